"""``manifest.json``: what a bundle holds, what each file must be, and what the model may be used for.

    manifest.json                           this
    manifest.sig                            its Ed25519 signature, where the maker has a key
    MODEL_CARD.md, MODEL_CARD.html          the same for people
    LICENSE                                 of the weights
    graphs/NAME.FORM.onnx, .xml and .bin    the graphs
    novelty/JOINT.PLANE.safetensors         what is known of studies, to tell what is unlike them
    weights/                                the weights folder that they were made from, for the native engine
    golden/JOINT/                           a small phantom study and the label maps that the reference gives for it

Paths are relative to the folder, with forward slashes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 2  # 1 had no novelty tables and no patient data
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
WEIGHTS = "weights"

# In which form a graph is stored. Every graph has "fp32".
Form = Literal["fp32", "fp16", "int8", "int8_qdq", "int8_weights"]
FORMS: tuple[Form, ...] = ("fp32", "fp16", "int8", "int8_qdq", "int8_weights")

# What opens graph files, and what runs each form: fp32 both, the others what they are made for. An export judges these
# pairs and no others, so no others are tuned or run.
GraphEngine = Literal["openvino", "onnxruntime"]
ENGINES_OF: dict[Form, tuple[GraphEngine, ...]] = {
    "fp32": ("openvino", "onnxruntime"),
    "fp16": ("openvino",),
    "int8": ("openvino",),
    "int8_qdq": ("onnxruntime",),
    "int8_weights": ("onnxruntime",),
}


# Whose graphs and structures they are. Anything else would be passed over in silence.
Plane = Annotated[str, Field(pattern=r"^(sagittal|coronal|axial)$")]
FusionName = Annotated[str, Field(pattern=r"^(simple_concat|linear_concat|linear_add|crossattn|gating)$")]
# Numbers with points between them, and behind them whatever a package calls its builds.
Version = Annotated[str, Field(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6}){0,5}([^0-9].{0,60})?$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Record):
    """What a file must be."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Graph(_Record):
    """One network or head.

    Attributes:
        inputs, outputs: each tensor's sides, float32; a word ("batch") where any size goes.
        forms: the files of each form, the model file first. OpenVINO's own has its weights beside it.
    """

    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    forms: dict[Form, Annotated[list[str], Field(min_length=1)]]


class Code(_Record):
    """A coded term, as DICOM writes it."""

    scheme: str
    value: str
    meaning: str


class Structure(_Record):
    """A segmented structure; ``index`` is its value in a label map, ``colour`` is sRGB, 0 to 255."""

    index: Annotated[int, Field(ge=1, le=255)]
    key: str
    name: str
    colour: tuple[int, int, int] | None = None
    code: Code | None = None


class Finding(_Record):
    """A label that the diagnosis scores; from ``threshold`` on it counts as present."""

    key: str
    name: str
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    code: Code | None = None


class Known(_Record):
    """A file with what is known of a plane's studies (``orthokernels.novelty``), and which studies these were."""

    file: str
    studies: Annotated[int, Field(ge=1)]
    source: Literal["phantoms", "own studies"]


class PlaneGraphs(_Record):
    """Which graphs make one plane's segmentation and diagnosis, and where the features are taken.

    Attributes:
        timestep, block: of the diagnosis features.
        classes: of the segmentation, with the background.
        segmentation_features, diagnosis_features: the passes that the heads read; the same one where they share it.
        segmentation, pooling, head: the heads' graphs.
        structures: a safetensors file with the parameters of the "structures" pooling, whose last step, from the mean
            of the slabs' sums to the series' vector, is no graph: it is computed in float64.
        known: what tells a series that is unlike those the model was made for; None where nothing is known.
    """

    timestep: Annotated[int, Field(ge=0, lt=1000)]
    block: str
    classes: Annotated[int, Field(ge=2, le=256)] | None = None
    segmentation_features: str | None = None
    diagnosis_features: str | None = None
    segmentation: str | None = None
    pooling: str | None = None
    structures: str | None = None
    head: str | None = None
    known: Known | None = None


class Joint(_Record):
    """What is done for a joint: its findings, its planes, and the graph that fuses them.

    ``weights_digest`` is the reference model's own, over every tensor of this joint's modules. ``late_fusion`` is the
    graph that fuses patient data too, and ``patient_data`` the safetensors file whose card says how patients are read.
    """

    weights_digest: str
    findings: tuple[Finding, ...]
    planes: dict[Plane, PlaneGraphs]
    fusion: str | None = None
    fusion_name: FusionName | None = None
    late_fusion: str | None = None
    patient_data: str | None = None


class GoldenCase(_Record):
    """A study that the model has to give the same result for wherever it runs.

    Attributes:
        images: its DICOM files.
        labels: a safetensors file with the label map of each plane that has one, uint8 (i, j, k).
        probabilities: of each finding; None where the reference does not score it.
    """

    images: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: str
    probabilities: dict[str, float | None]


class Metric(_Record):
    """One figure of a task, in a form and in fp32, over as many studies."""

    task: str
    metric: str
    form: Form
    value: float
    fp32: float
    studies: int


class Refusal(_Record):
    """A form that is not in the bundle, and why."""

    form: Form
    reason: str


class Quantisation(_Record):
    """What became of a graph in INT8.

    Attributes:
        layers: convolutions and linear layers that it has.
        in_float: those that are in float32, and why.
        refused: why there is no such form of the graph; empty where there is.
    """

    graph: str
    form: Form
    layers: int
    in_float: dict[str, str] = {}
    refused: str = ""


class Manifest(_Record):
    """The whole.

    Attributes:
        name, notice, trained: of the weights.
        size, depth: of the slabs that the networks take, in pixels and slices.
        preparation: how a study becomes slabs, as when the heads were trained; "full" covers every slice.
        structures: of each plane's segmentation.
        minimum_versions: of the package and of the engines, by their names on the package index.
        golden: a case of each joint that the model is tried on before it is used elsewhere.
        metrics, refused: what each form reached, and which forms were left out.
        quantised: which layers of which graphs are not in INT8 where their form says so.
        files: every file of the folder but the manifest and its signature.
    """

    schema_version: int = SCHEMA
    name: str
    version: str
    notice: str | None = None
    intended_use: str
    limits: tuple[str, ...]
    trained: bool
    licence: str
    origin: str
    size: Annotated[int, Field(ge=16, le=2048)]
    depth: Annotated[int, Field(ge=16, le=16)]
    preparation: Literal["full", "published"] = "full"
    structures: dict[Plane, tuple[Structure, ...]]
    joints: dict[str, Joint]
    graphs: dict[str, Graph]
    native: bool
    minimum_versions: dict[str, Version]
    golden: dict[str, GoldenCase] = {}
    metrics: tuple[Metric, ...] = ()
    refused: tuple[Refusal, ...] = ()
    quantised: tuple[Quantisation, ...] = ()
    files: dict[str, File]

    @property
    def forms(self) -> tuple[Form, ...]:
        """Those that any graph has."""
        return tuple(form for form in FORMS if any(form in graph.forms for graph in self.graphs.values()))
