"""A bundle's graphs as a ``StudyModel``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orthokernels import tasks
from orthokernels.bundle.manifest import Form, GraphEngine, Joint, PlaneGraphs
from orthokernels.bundle.verify import Bundle
from orthokernels.errors import InputError
from orthokernels.models.native.pooling import StructurePool
from orthokernels.models.native.tensors import load_tensors
from orthokernels.models.noise import feature_noise
from orthokernels.models.patient_data import MODULE, LateFusionCard, PatientColumns
from orthokernels.models.study_model import Array, SlabOutput
from orthokernels.models.weights_folder import load_card, unfit
from orthokernels.runtime.sessions import Session, open_graph


class Graphs:
    """The graphs of a bundle in one engine and form, opened when they are first run.

    Args:
        bundle: verified.
        engine: that opens them.
        form: of every graph that has it; the others are taken in "fp32".
    """

    def __init__(self, bundle: Bundle, engine: GraphEngine, form: Form) -> None:
        self.bundle, self.engine, self.form = bundle, engine, form
        self._sessions: dict[str, Session] = {}

    def run(self, name: str, **inputs: Array) -> dict[str, Array]:
        """One graph over a batch; a tensor that this graph does not read may be among the inputs."""
        graph = self.bundle.manifest.graphs[name]
        if name not in self._sessions:
            files = graph.forms.get(self.form) or graph.forms["fp32"]
            path, *_ = (self.bundle.unchanged(file) for file in files)
            self._sessions[name] = open_graph(path, self.engine)
        made = self._sessions[name]({tensor: inputs[tensor] for tensor in graph.inputs})
        if lacking := graph.outputs.keys() - made.keys():
            raise InputError(
                f"{self.bundle.folder}: the graph {name} does not make {min(lacking)!r}, as its manifest says. "
                "Fetch the bundle again."
            )
        return made

    def close(self, name: str | None) -> None:
        """Let go of a graph's memory."""
        self._sessions.pop(name or "", None)


@dataclass(frozen=True)
class SlabMaps:
    """Feature maps of a slab by block, [1, channels, depth, height, width]: what each task reads."""

    segmentation: Mapping[str, Array]
    diagnosis: Mapping[str, Array]


class GraphPlane:
    """One plane's graphs."""

    def __init__(self, graphs: Graphs, own: PlaneGraphs) -> None:
        self._graphs, self._own = graphs, own
        self.timestep, self.block, self.classes = own.timestep, own.block, own.classes
        self.scores = own.head is not None
        self._structures: StructurePool | None = None
        if own.structures is not None:
            state, card = load_tensors(graphs.bundle.unchanged(own.structures), ("structures",), copy=True)
            self._structures = StructurePool(state, card.arguments)

    def features(self, x0: Array, *, seed: int, draws: int, sample: int) -> SlabMaps:
        passes = {name for name in (self._own.segmentation_features, self._own.diagnosis_features) if name is not None}
        found: dict[str, dict[str, Array]] = {name: {} for name in sorted(passes)}
        volume = x0[None, None]
        for draw in range(draws):
            noise = feature_noise((1, *x0.shape), seed=seed, draw=draw, sample=sample)[None]
            for name, total in found.items():
                for block, made in self._graphs.run(name, volume=volume, noise=noise).items():
                    total[block] = made if draw == 0 else total[block] + made
        if draws > 1:
            found = {
                name: {block: own / np.float32(draws) for block, own in maps.items()} for name, maps in found.items()
            }
        return SlabMaps(
            found.get(self._own.segmentation_features or "", {}), found.get(self._own.diagnosis_features or "", {})
        )

    def heads(self, found: SlabMaps, x0: Array) -> SlabOutput:
        volume, logits, vector = x0[None, None], None, None
        if self._own.segmentation is not None:
            logits = self._graphs.run(self._own.segmentation, volume=volume, **found.segmentation)["logits"]
        if self._own.pooling is not None:
            read = {"volume": volume, **found.diagnosis, **({} if logits is None else {"logits": logits})}
            vector = self._graphs.run(self._own.pooling, **read)["vector"][0]
        return SlabOutput(None if logits is None else logits[0], vector)

    def series_vector(self, slabs: Sequence[Array]) -> Array:
        mean: Array = np.stack(slabs).mean(axis=0, dtype=np.float32)
        return mean if self._structures is None else self._structures.of_series(mean)

    def score(self, vector: Array) -> Array:
        assert self._own.head is not None
        return self._graphs.run(self._own.head, vector=vector[None])["logits"][0]

    def release(self) -> None:
        own = self._own
        for name in (own.segmentation_features, own.diagnosis_features, own.segmentation, own.pooling):
            self._graphs.close(name)


class GraphModel:
    """A joint's graphs.

    Args:
        bundle: verified.
        joint: one that the bundle has.
        planes: those wanted.
        engine, form: that the graphs are run in.
    """

    def __init__(
        self, bundle: Bundle, joint: str, planes: Sequence[str], engine: GraphEngine, form: Form = "fp32"
    ) -> None:
        manifest = bundle.manifest
        self._graphs = Graphs(bundle, engine, form)
        self._own: Joint = manifest.joints[joint]
        self.name, self.trained, self.notice = manifest.name, manifest.trained, manifest.notice
        self.digest, self.bundle = self._own.weights_digest, bundle.digest
        self.engine: str = engine
        self.form: str = form
        self.joint, self.size, self.preparation = joint, manifest.size, manifest.preparation
        self.fusion_name = self._own.fusion_name if self._own.fusion is not None else None
        self.late_fusion = _late_fusion(bundle, self._own)
        self.thresholds = {finding.key: finding.threshold for finding in self._own.findings}
        self.planes = {
            plane: GraphPlane(self._graphs, graphs) for plane, graphs in self._own.planes.items() if plane in planes
        }

    def release(self) -> None:
        for plane in self.planes.values():
            plane.release()

    def fuse(self, planes: Array) -> tuple[Array, Array | None]:
        assert self._own.fusion is not None
        if self.fusion_name == "gating":
            made = self._graphs.run(self._own.fusion, planes=planes[None])
            return made["logits"][0], made["shares"][0]
        named = {plane: planes[n : n + 1] for n, plane in enumerate(tasks.PLANES)}
        return self._graphs.run(self._own.fusion, **named)["logits"][0], None

    def fuse_with_patient(self, vectors: Array, patient: PatientColumns) -> tuple[Array, Array]:
        assert self._own.late_fusion is not None
        assert self.late_fusion is not None
        event = np.zeros((1, len(self.late_fusion.encoding.events)), np.float32)
        event[0, patient.event] = 1
        columns = {name: getattr(patient, name)[None] for name in ("continuous", "sex", "patient_type")}
        named = {plane: vectors[n : n + 1] for n, plane in enumerate(tasks.PLANES)}
        made = self._graphs.run(self._own.late_fusion, **named, **columns, event=event)
        return made["logits"][0], made["share"][0]


def _late_fusion(bundle: Bundle, own: Joint) -> LateFusionCard | None:
    """How the joint's fusion with patient data reads a patient.

    Raises:
        InputError: its card can't be read.
    """
    if own.late_fusion is None or own.patient_data is None:
        return None
    path = bundle.unchanged(own.patient_data)
    try:
        return LateFusionCard.of(load_card(path, (MODULE,)))
    except ValueError as error:
        raise unfit(path, error) from error
