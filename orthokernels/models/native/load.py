"""A weights folder read for the native engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from orthokernels import _native
from orthokernels.models.native.fusion import FUSIONS, check_late_fusion, make_fusion
from orthokernels.models.native.layers import Linear, check_arguments, check_shapes
from orthokernels.models.native.model import Engine, NativeModel, NativePlane, Network, Task
from orthokernels.models.native.pooling import POOLINGS
from orthokernels.models.native.segmentation import SEGMENTATIONS, SegmentationHead
from orthokernels.models.native.tensors import Guard, Tensors, digest_of, load_tensors
from orthokernels.models.patient_data import MODULE, LateFusionCard
from orthokernels.models.weights_folder import (
    FINE_TUNED,
    Card,
    check_fusions,
    check_origins,
    check_structures,
    load_card,
    load_settings,
    no_denoiser,
    not_its_encoder,
    unfit,
)
from orthokernels.tasks import PLANES

SLICES = 16  # of a slab
_ENCODER = ("unet_encoder",)  # a card's name for what was fine-tuned

Made = TypeVar("Made")


def load_native(
    folder: Path, joint: str, planes: Sequence[str] = PLANES, *, threads: int | None = None, exact: bool = False,
    digest: str | None = None, guard: Guard | None = None,
) -> NativeModel:  # fmt: skip
    """A weights folder as a ``StudyModel``, with no PyTorch in the process.

    Args:
        folder: as ``models.weights_folder`` describes it.
        joint, planes: whose heads and networks are read; planes without a denoiser are left out.
        threads: that share the work, by default one for each processor; the results do not depend on them.
        exact: direct convolutions only, whose error is that of plain summation.
        digest: of the model, where every file was held against one already, as a bundle's are: none is read through
            again then.
        guard: of the files that stay mapped, which are read anew whenever plans were let go.

    Raises:
        InputError: a missing, damaged or altered file, or one that does not fit its card.
    """
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    engine = Engine(threads or mine, exact, _native.PlanMemory())
    return _Reading(folder, joint, engine, digest, guard).model(planes)


class _Reading:
    """One reading of a folder, which remembers the cards and tensors that it met."""

    def __init__(self, folder: Path, joint: str, engine: Engine, digest: str | None, guard: Guard | None) -> None:
        self.folder, self.joint, self.engine, self.digest, self.guard = folder, joint, engine, digest, guard
        self.settings = load_settings(folder)
        self.cards: dict[str, Card] = {}  # by the stems of their files, as the tensors
        self.tensors: dict[str, Tensors] = {}

    def model(self, planes: Sequence[str]) -> NativeModel:
        found = {plane: self._plane(plane) for plane in planes if self._path(plane).is_file()}
        if not found:
            raise no_denoiser(self.folder, planes)
        fusion, fusion_name = self._module(f"{self.joint}.fusion", FUSIONS, make_fusion)
        patients = f"{self.joint}.patient_data"
        late_fusion_state, kind = self._module(patients, (MODULE,), _late_fusion)
        late_fusion = None
        if kind is not None:
            with _fitting(self._path(patients)):
                late_fusion = LateFusionCard.of(self.cards[patients])
        check_fusions(self.folder, self.joint, self.cards)
        settings = self.settings
        return NativeModel(
            name=settings.name if settings.name != "unnamed" else str(self.folder),
            digest=self.digest or self._digest(),
            trained=all(card.trained for card in self.cards.values()), notice=settings.notice, joint=self.joint,
            size=settings.size, thresholds=settings.thresholds.get(self.joint, {}), planes=found,
            preparation=settings.preparation,
            fusion_name=fusion_name, fusion=fusion, late_fusion=late_fusion, late_fusion_state=late_fusion_state,
        )  # fmt: skip

    def _plane(self, plane: str) -> NativePlane:
        def network(_: str, state: Tensors, arguments: Mapping[str, Any]) -> Network:
            return Network(state, arguments, self.engine)

        denoiser, _ = self._module(plane, ("unet",), network)
        if denoiser is None:  # it is there, and its card says that it is another joint's
            raise no_denoiser(self.folder, (plane,))
        segmentation, _ = self._module(f"{plane}.segmentation", SEGMENTATIONS, self._segmentation)
        pooling, kind = self._module(f"{plane}.{self.joint}.pooling", POOLINGS, lambda name, *own: POOLINGS[name](*own))
        head, _ = self._module(f"{plane}.{self.joint}.head", ("linear",), _linear_head)
        check_structures(self.folder, plane, kind, segments=segmentation is not None)
        point = self.settings.point(self.joint, plane)
        segmenting = diagnosing = None
        encoder = self._encoder(f"{plane}.segmentation.encoder", plane, denoiser)
        if segmentation is not None:
            segmenting = self._segmenting(plane, segmentation, encoder)
        encoder = self._encoder(f"{plane}.{self.joint}.encoder", plane, denoiser)
        if pooling is not None or segmentation is None:
            diagnosing = Task(encoder, point.timestep, (point.block,))
        check_origins(self.folder, plane, self.cards, self.settings)
        own = NativePlane(
            self.engine, point.timestep, point.block, segmenting, diagnosing, segmentation, pooling, head
        )  # fmt: skip
        with _fitting(self._path(plane)):
            own.check((SLICES, self.settings.size, self.settings.size))
        return own

    def _module(
        self, stem: str, known: Collection[str],
        make: Callable[[str, Tensors, Mapping[str, Any]], Made],
    ) -> tuple[Made | None, str | None]:  # fmt: skip
        """A module and its card's name for it; None where there is no file, or it belongs to another joint."""
        path = self._path(stem)
        if not path.is_file() or load_card(path, known).joint not in (None, self.joint):
            return None, None
        # Networks and segmentations are large and stay mapped; the rest is small, and some of it is read at each call.
        mapped = "unet" in known or known is SEGMENTATIONS
        state, card = load_tensors(path, known, check=self.digest is None, guard=self.guard, copy=not mapped)
        with _fitting(path):
            made = make(card.module, state, card.arguments)
        self.cards[stem] = card
        self.tensors[stem] = state
        return made, card.module

    def _encoder(self, stem: str, plane: str, denoiser: Network) -> Network:
        """The denoiser with the fine-tuned encoder and middle of a file, or itself where there is none."""
        path = self._path(stem)
        if not path.is_file() or load_card(path, _ENCODER).joint not in (None, self.joint):
            return denoiser
        tuned, card = load_tensors(path, _ENCODER, check=self.digest is None, guard=self.guard)
        own = self.tensors[plane]
        expected = {name: tensor.shape for name, tensor in own.items() if name.startswith(FINE_TUNED)}
        if {name: tensor.shape for name, tensor in tuned.items()} != expected:
            raise not_its_encoder(path)
        self.cards[stem] = card
        self.tensors[stem] = both = Tensors({**own, **tuned})
        both.guards = (*own.guards, *tuned.guards)
        return Network(both, denoiser.arguments, self.engine)

    def _segmentation(self, kind: str, state: Tensors, arguments: Mapping[str, Any]) -> SegmentationHead:
        return SEGMENTATIONS[kind](state, arguments, exact=self.engine.exact, memory=self.engine.memory)

    def _segmenting(self, plane: str, head: SegmentationHead, network: Network) -> Task:
        point = self.settings.point("segmentation", plane)
        with _fitting(self._path(f"{plane}.segmentation")):
            return Task(network, point.timestep, head.blocks(network.state, point.block))

    def _digest(self) -> str:
        """As ``models.orthodiffusion.weights.Weights.digest``."""
        every = {f"{stem}/{name}": own for stem, state in self.tensors.items() for name, own in state.items()}
        return digest_of({name: (tensor, tensor.dtype.name) for name, tensor in every.items()})

    def _path(self, stem: str) -> Path:
        return self.folder / f"{stem}.safetensors"


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Whatever a module finds wrong with its tensors or arguments is the file's fault."""
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise unfit(path, error) from error


def _late_fusion(_: str, state: Tensors, arguments: Mapping[str, Any]) -> Tensors:
    check_late_fusion(state, arguments)
    return state


def _linear_head(_: str, state: Tensors, arguments: Mapping[str, Any]) -> Linear:
    check_arguments(arguments, ("in_features", "out_features"))
    inputs, outputs = (int(arguments[name]) for name in ("in_features", "out_features"))
    check_shapes(state, {"weight": (outputs, inputs), "bias": (outputs,)})
    return Linear(np.asarray(state["weight"]), np.asarray(state["bias"]))
