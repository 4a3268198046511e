"""Networks and heads on the native engine as a ``StudyModel``: NumPy and C++, no PyTorch in the process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orthokernels import _native
from orthokernels.data.prepare import Mode
from orthokernels.models.native.fusion import Fusion, late_fusion
from orthokernels.models.native.layers import Array, Linear, State, check_arguments
from orthokernels.models.native.noising import noised
from orthokernels.models.native.pooling import Pooling
from orthokernels.models.native.segmentation import SegmentationHead
from orthokernels.models.native.unet import UNetPlan
from orthokernels.models.patient_data import LateFusionCard, PatientColumns
from orthokernels.models.study_model import SlabOutput


@dataclass(frozen=True)
class Engine:
    """How everything of a model is computed: with how many threads, which algorithms, and in whose memory."""

    threads: int
    exact: bool
    memory: _native.PlanMemory


class Network:
    """A U-Net's tensors, and its plans: one for each shape, timestep and set of maps.

    Args:
        state: tensors by their checkpoint's names.
        arguments: of ``models.orthodiffusion.unet.UNet``.

    Raises:
        ValueError: the U-Net has no such argument.
    """

    def __init__(self, state: State, arguments: Mapping[str, Any], engine: Engine) -> None:
        check_arguments(arguments, _UNET_ARGUMENTS)
        self.state, self.arguments, self._engine = state, arguments, engine
        self._plans: dict[tuple[Any, ...], UNetPlan] = {}

    def plan(self, sides: tuple[int, ...], names: tuple[str, ...], timestep: int) -> UNetPlan:
        """The plan of a shape, built where there is none yet.

        Raises:
            ValueError: as ``UNetPlan``.
        """
        key = (sides, names, timestep)
        if key not in self._plans:
            self._plans[key] = self._built(sides, names, timestep, packs=True)
        return self._plans[key]

    def check(self, sides: tuple[int, ...], names: tuple[str, ...], timestep: int) -> None:
        """Whether there could be such a plan: one without weights is built and dropped.

        Raises:
            ValueError: as ``UNetPlan``.
        """
        self._built(sides, names, timestep, packs=False)

    def _built(self, sides: tuple[int, ...], names: tuple[str, ...], timestep: int, *, packs: bool) -> UNetPlan:
        own = {name: self.arguments[name] for name in _UNET_OPTIONS if name in self.arguments}
        return UNetPlan(
            self.state, sides=sides, names=names, timestep=timestep, exact=self._engine.exact,
            memory=self._engine.memory, packs=packs, **own,
        )  # fmt: skip

    def release(self) -> None:
        """Let go of plans and their weights, which the next call makes anew."""
        self._plans.clear()


_UNET_OPTIONS = ("heads", "head_channels", "groups", "patch")  # that its tensors do not tell
_UNET_ARGUMENTS = (
    *_UNET_OPTIONS, "in_channels", "out_channels", "base_channels", "channel_mults", "res_blocks", "attention_rates",
    "dropout", "checkpoint",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What the heads of one task read: maps of a network at a timestep."""

    network: Network
    timestep: int
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class SlabFeatures:
    """Feature maps of a slab by block, [channels, depth, height, width]: what each task reads."""

    segmentation: dict[str, Array]
    diagnosis: dict[str, Array]


@dataclass(frozen=True)
class NativePlane:
    """One plane's networks and heads; a head that the weights do not have is None, and so is what it would read.

    Attributes:
        timestep, block: of the diagnosis features.
    """

    engine: Engine
    timestep: int
    block: str
    segmenting: Task | None = None
    diagnosing: Task | None = None
    segmentation: SegmentationHead | None = None
    pooling: Pooling | None = None
    head: Linear | None = None

    @property
    def classes(self) -> int | None:
        return None if self.segmentation is None else self.segmentation.classes

    @property
    def scores(self) -> bool:
        return self.head is not None

    def features(self, x0: Array, *, seed: int, draws: int, sample: int) -> SlabFeatures:
        """Tasks that read the same network at the same timestep share a pass."""
        if draws < 1:
            raise ValueError(f"draws must be at least 1, not {draws}")
        maps = {}
        for (network, timestep), names in self._passes().items():
            plan = network.plan(x0.shape, names, timestep)
            volumes = [noised(x0[None], timestep, seed=seed, draw=draw, sample=sample) for draw in range(draws)]
            maps[network, timestep] = _mean_maps(plan.run(noisy, threads=self.engine.threads) for noisy in volumes)

        def read_by(task: Task | None) -> dict[str, Array]:
            return {} if task is None else {name: maps[task.network, task.timestep][name] for name in task.blocks}

        return SlabFeatures(read_by(self.segmenting), read_by(self.diagnosing))

    def heads(self, found: SlabFeatures, x0: Array) -> SlabOutput:
        logits, vector = None, None
        if self.segmentation is not None:
            logits = self.segmentation.logits(found.segmentation, x0, threads=self.engine.threads)
        if self.pooling is not None:
            vector = self.pooling.vector(found.diagnosis[self.block], logits, x0, threads=self.engine.threads)
        return SlabOutput(logits, vector)

    def series_vector(self, slabs: Sequence[Array]) -> Array:
        mean: Array = np.stack(list(slabs)).mean(axis=0)
        return mean if self.pooling is None else self.pooling.of_series(mean)

    def score(self, vector: Array) -> Array:
        assert self.head is not None
        return self.head(vector[None])[0]

    def check(self, sides: tuple[int, int, int]) -> None:
        """Whether the networks take a volume and have the maps that are read.

        Raises:
            ValueError: one does not.
        """
        for (network, timestep), names in self._passes().items():
            network.check(sides, names, timestep)

    def release(self) -> None:
        for network, _ in self._passes():
            network.release()
        if self.segmentation is not None:
            self.segmentation.release()

    def _passes(self) -> dict[tuple[Network, int], tuple[str, ...]]:
        """The networks and timesteps that are read, with the maps."""
        wanted: dict[tuple[Network, int], set[str]] = {}
        for task in (self.segmenting, self.diagnosing):
            if task is not None:
                wanted.setdefault((task.network, task.timestep), set()).update(task.blocks)
        return {key: tuple(sorted(names)) for key, names in wanted.items()}


def _mean_maps(every: Iterable[dict[str, Array]]) -> dict[str, Array]:
    """Each map's mean over several passes; one alone stays as it is."""
    total: dict[str, Array] = {}
    for count, found in enumerate(every, start=1):
        total = found if count == 1 else {name: total[name] + own for name, own in found.items()}
    return total if count == 1 else {name: own / np.float32(count) for name, own in total.items()}


@dataclass(frozen=True)
class NativeModel:
    """Every network and head that a study of one joint needs; attributes as ``StudyModel`` has them."""

    name: str
    digest: str
    trained: bool
    notice: str | None
    joint: str
    size: int
    thresholds: Mapping[str, float]
    planes: Mapping[str, NativePlane]
    preparation: Mode | None = None
    fusion_name: str | None = None
    fusion: Fusion | None = None
    late_fusion: LateFusionCard | None = None
    late_fusion_state: State | None = None
    engine: str = "native"
    form: str = "fp32"
    bundle: str | None = None

    def release(self) -> None:
        for plane in self.planes.values():
            plane.release()
            plane.engine.memory.release()  # one for all of them

    def fuse(self, planes: Array) -> tuple[Array, Array | None]:
        assert self.fusion is not None
        return self.fusion(np.ascontiguousarray(planes, dtype=np.float32))

    def fuse_with_patient(self, vectors: Array, patient: PatientColumns) -> tuple[Array, Array]:
        assert self.late_fusion_state is not None
        mri = np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1)
        columns = (patient.continuous, patient.sex, patient.patient_type)
        found = late_fusion(self.late_fusion_state, mri, *columns, patient.event)
        return found["fused"], found["alpha"]
