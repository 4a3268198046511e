"""From weights to a bundle: every graph in every admitted form, the manifest over them, the card, the signature.

The folder is made beside its place and renamed when it is whole and verified, so that there is never half a bundle.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orthokernels.export.card import write_card
from orthokernels.export.golden import write_golden
from orthokernels.export.graphs import Plan, plan_graphs
from orthokernels.export.onnx_file import write_onnx

from orthokernels import __version__, tasks
from orthokernels.bundle import manifest as records
from orthokernels.bundle.manifest import MANIFEST, SIGNATURE, WEIGHTS, Form, Manifest
from orthokernels.bundle.signature import sign
from orthokernels.bundle.verify import Bundle, verify
from orthokernels.data.prepare import SLAB, Mode
from orthokernels.errors import InputError
from orthokernels.folders import place_of
from orthokernels.models.orthodiffusion.untrained import save_random
from orthokernels.models.orthodiffusion.weights import Weights, load_weights
from orthokernels.models.weights_folder import demo_folder, folder_of
from orthokernels.progress import Progress

GRAPHS = "graphs"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

INTENDED_USE = (
    "Research on joint MRI: label maps and finding scores for studies of the joints named here. "
    f"{tasks.RESEARCH_NOTICE}"
)
LIMITS = (
    "Scores and label maps were not validated on patients; a person who knows the images must look at every result.",
    "Trained for MRI series in three planes; other modalities, other joints and post-operative joints are outside.",
    "Finding probabilities are not calibrated to any clinic's prevalence.",
)
UNTRAINED_LIMIT = "The weights are untrained: whatever comes out means nothing."


@dataclass(frozen=True)
class Draft:
    """A bundle's folder before its manifest: what was loaded, its golden case, and which graphs are in which forms.

    ``packaged`` says that they are the very weights that come with the package: what was trained from them keeps their
    name, and is somebody else's all the same.
    """

    folder: Path
    weights: Mapping[str, Weights]
    plan: Plan
    golden: Mapping[str, records.GoldenCase]
    packaged: bool = False
    forms: dict[str, dict[Form, list[str]]] = field(default_factory=dict)
    known: dict[tuple[str, str], records.Known] = field(default_factory=dict)  # by joint and plane
    quantised: list[records.Quantisation] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Side of the square slices that the networks take, in pixels."""
        return next(iter(self.weights.values())).size

    @property
    def trained(self) -> bool:
        """Whether all that the bundle has for every joint was trained."""
        return all(own.trained for own in self.weights.values())

    @property
    def preparation(self) -> Mode:
        """Of every study that the bundle is calibrated with, judged by, and run on."""
        return next(iter(self.weights.values())).preparation or "full"

    def add(self, name: str, form: Form, files: Sequence[Path]) -> None:
        """A graph's form, already in the folder."""
        relative = [path.relative_to(self.folder).as_posix() for path in files]
        self.forms.setdefault(name, {})[form] = relative

    def drop(self, form: Form, graphs: Collection[str] | None = None) -> list[str]:
        """Take a form of some graphs, by default of all, out again, files and all; the graphs that had it."""
        found = [name for name, own in self.forms.items() if form in own and (graphs is None or name in graphs)]
        for name in found:
            for file in self.forms[name].pop(form):
                (self.folder / file).unlink()
        return found

    def note(self, form: Form, graphs: Sequence[str], reason: str) -> None:
        """Write down why graphs are not in a form after all."""
        rest = [own for own in self.quantised if own.form != form or own.graph not in graphs]
        layers = {own.graph: own.layers for own in self.quantised}
        for name in graphs:
            rest.append(records.Quantisation(graph=name, form=form, layers=layers.get(name, 0), refused=reason))
        self.quantised[:] = rest


def joints_of(weights: str) -> dict[str, Weights]:
    """The weights of every joint that they have a diagnosis for; the knee's too, where they have anything for it.

    A segmentation alone is the knee's where it is of no joint by name, else that of its own joint.
    """
    found = {joint: load_weights(weights, joint) for joint in tasks.LABELS}
    knees = _segmented(found["knee"])
    kept = {
        joint: own
        for joint, own in found.items()
        if any(plane.pooling is not None for plane in own.planes.values())
        or (knees if joint == "knee" else _segmented(own) - knees)
    }
    return kept or {"knee": found["knee"]}


def _segmented(weights: Weights) -> set[str]:
    return {name for name, plane in weights.planes.items() if plane.segmentation is not None}


def draft(weights: str, folder: Path, tell: Progress = lambda what, done, total: None) -> Draft:
    """Every graph in fp32, the weights themselves for the native engine, and the golden case."""
    copied = _copy_weights(weights, folder / WEIGHTS)
    loaded = joints_of(copied)
    for own in loaded.values():
        if own.name == copied:  # weights without a name of their own are called by their folder's
            own.name = folder_of(weights).resolve().name
    made = Draft(
        folder, loaded, plan_graphs(list(loaded.values())), write_golden(folder, loaded, tell),
        comes_with_the_package(weights),
    )  # fmt: skip
    (folder / GRAPHS).mkdir(parents=True)
    first = next(iter(loaded.values()))
    for number, (name, source) in enumerate(made.plan.graphs.items()):
        tell("Exporting graphs", number, len(made.plan.graphs))
        path = folder / GRAPHS / f"{name}.fp32.onnx"
        write_onnx(source, path, _facts(first, name, source.labels))
        made.add(name, "fp32", [path])
    return made


def comes_with_the_package(weights: str) -> bool:
    """Whether weights are the package's own demo, whose folder decides: a name can be kept by what was trained on."""
    return not weights.startswith("random:") and folder_of(weights).resolve() == demo_folder().resolve()


def _copy_weights(weights: str, target: Path) -> str:
    """A weights folder's safetensors files, cards and settings in ``target``; its name.

    Raises:
        InputError: there are no such weights.
    """
    if weights.startswith("random:"):
        load_weights(weights, planes=())  # says what is wrong with the seed
        save_random(int(weights.removeprefix("random:")), target)
        return str(target)
    folder = folder_of(weights)
    load_weights(str(folder))
    target.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json") and path.is_file():
            shutil.copyfile(path, target / path.name)
    return str(target)


def _facts(weights: Weights, name: str, labels: Sequence[str]) -> dict[str, str]:
    facts = {
        "orthokernels.version": __version__,
        "orthokernels.graph": name,
        "orthokernels.weights": weights.name,
        "orthokernels.weights_digest": weights.digest(),
        "orthokernels.notice": tasks.RESEARCH_NOTICE if weights.trained else tasks.UNTRAINED_NOTICE,
    }
    return {**facts, "orthokernels.labels": ",".join(labels)} if labels else facts


def finish(made: Draft, *, metrics: Sequence[records.Metric] = (), refused: Sequence[records.Refusal] = ()) -> Manifest:
    """Write card, licence and manifest over what is in the folder; may be called again when that has changed."""
    folder = made.folder
    shutil.copyfile(_licence_file(), folder / "LICENSE")
    manifest = _manifest(made, metrics, refused)
    write_card(folder, manifest)
    manifest = manifest.model_copy(update={"files": _files(folder)})
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def _licence_file() -> Path:
    from importlib.metadata import files

    for path in files("orthokernels") or ():
        if path.name == "LICENSE":
            return Path(str(path.locate()))
    return Path(__file__).parents[1] / "LICENSE"  # a source tree


def _manifest(made: Draft, metrics: Sequence[records.Metric], refused: Sequence[records.Refusal]) -> Manifest:
    first = next(iter(made.weights.values()))
    limits = LIMITS if made.trained else (UNTRAINED_LIMIT, *LIMITS)
    graphs = {
        name: records.Graph(
            inputs={tensor: ["batch", *sides] for tensor, sides in source.inputs.items()},
            outputs={tensor: ["batch", *sides] for tensor, sides in source.outputs.items()},
            forms=made.forms[name],
        )
        for name, source in made.plan.graphs.items()
    }
    return Manifest(
        name=first.name, version=__version__, notice=first.notice, intended_use=INTENDED_USE, limits=limits,
        trained=made.trained, licence=_licence(made), origin=_origin(made), size=made.size, depth=SLAB,
        preparation=made.preparation,
        structures={plane: _structures(own) for plane, own in _classes(made.weights).items()},
        joints={joint: _joint(made, own) for joint, own in made.weights.items()},
        graphs=graphs, native=True,
        minimum_versions={"orthokernels": __version__, "openvino": "2024.5", "onnxruntime": "1.19"},
        golden=dict(made.golden), metrics=tuple(metrics), refused=tuple(refused),
        quantised=tuple(made.quantised), files={},
    )  # fmt: skip


def _licence(made: Draft) -> str:
    return "Apache-2.0" if made.packaged else "as its origin says"


def _origin(made: Draft) -> str:
    first = next(iter(made.weights.values()))
    if not any(own.trained for own in made.weights.values()):
        return "random numbers; nothing was trained"
    if not made.trained:
        return f"weights {first.name!r}; not all of them are trained"
    return "trained by this project on digital phantoms alone" if made.packaged else f"weights {first.name!r}"


def _classes(weights: Mapping[str, Weights]) -> dict[str, int]:
    """Of each plane's segmentation, which all joints share that have it."""
    planes = [(plane, own.segmentation) for joint in weights.values() for plane, own in joint.planes.items()]
    return {plane: segmentation.classes for plane, segmentation in planes if segmentation is not None}


def _structures(classes: int) -> tuple[records.Structure, ...]:
    known = {structure.key: structure for structure in tasks.STRUCTURES}
    found = []
    for index, key in enumerate(tasks.class_names(classes)):
        if index == 0:
            continue
        if (own := known.get(key)) is None:
            found.append(records.Structure(index=index, key=key, name=key.replace("_", " ").capitalize()))
        else:
            found.append(
                records.Structure(index=index, key=key, name=own.name, colour=own.colour, code=_code(own.code))
            )
    return tuple(found)


def _code(code: tasks.Code | None) -> records.Code | None:
    return None if code is None else records.Code(scheme=code.scheme, value=code.value, meaning=code.meaning)


def _joint(made: Draft, weights: Weights) -> records.Joint:
    joint = weights.joint
    findings = tuple(
        records.Finding(
            key=own.key, name=own.name, threshold=weights.thresholds.get(own.key, 0.5), code=_code(own.code)
        )
        for own in tasks.LABELS[joint]
    )
    planes = {
        plane: own.model_copy(
            update={"structures": _structure_file(made, plane, joint), "known": made.known.get((joint, plane))}
        )
        for plane, own in made.plan.planes[joint].items()
    }
    return records.Joint(
        weights_digest=weights.digest(), findings=findings, planes=planes, fusion=made.plan.fusion.get(joint),
        fusion_name=weights.fusion_name if joint in made.plan.fusion else None,
        late_fusion=made.plan.late_fusion.get(joint),
        patient_data=f"{WEIGHTS}/{joint}.patient_data.safetensors" if joint in made.plan.late_fusion else None,
    )  # fmt: skip


def _structure_file(made: Draft, plane: str, joint: str) -> str | None:
    """The parameters that the last step of a "structures" pooling reads."""
    from orthokernels.models.orthodiffusion.regional_pooling import StructurePool

    if not isinstance(made.weights[joint].planes[plane].pooling, StructurePool):
        return None
    return f"{WEIGHTS}/{plane}.{joint}.pooling.safetensors"


def _files(folder: Path) -> dict[str, records.File]:
    """Every file but the manifest, which an earlier ``finish`` may have left, and its signature."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in (MANIFEST, SIGNATURE):
            continue
        content = path.read_bytes()
        found[name] = records.File(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    return found


class BundleFolder:
    """Where a bundle will be; made beside its place and moved there when it is whole.

    Raises:
        InputError: the place is taken, or can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path = place_of(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"--out {path}: is there already. Name a new folder; a bundle is never overwritten.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        except OSError as error:
            raise InputError(f"--out {path}: can't be written ({error.strerror}). Name another folder.") from error

    def __enter__(self) -> BundleFolder:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        shutil.rmtree(self.draft, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise InputError(f"--out {self.path}: can't be written ({error.strerror}). Name another folder.") from error

    def publish(self, key: Path | None) -> Bundle:
        """Sign where there is a key, verify as any user would, and move into place."""
        if key is not None:
            sign(self.draft, key)
        found = verify(self.draft)
        self.draft.chmod(0o755)
        try:
            os.replace(self.draft, self.path)
        except OSError as error:  # something else came to be there meanwhile
            raise InputError(f"--out {self.path}: can't be written ({error.strerror}). Name another folder.") from error
        return replace(found, folder=self.path)
