"""Weights in and out as PyTorch's modules, from and to the folders that ``models.weights_folder`` describes."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from orthokernels.data.prepare import SIZE, SLAB, Mode
from orthokernels.errors import InputError
from orthokernels.folders import umask
from orthokernels.models.orthodiffusion.fusion import FUSIONS
from orthokernels.models.orthodiffusion.patient_data import LateFusion
from orthokernels.models.orthodiffusion.pooling import POOLINGS
from orthokernels.models.orthodiffusion.regional_pooling import StructurePool
from orthokernels.models.orthodiffusion.segmentation import MultiscaleSegmentationHead, SegmentationHead
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.patient_data import MODULE, LateFusionCard
from orthokernels.models.weights_folder import (
    FINE_TUNED,
    PUBLISHED_BLOCK,
    PUBLISHED_TIMESTEP,
    Card,
    FeaturePoint,
    Settings,
    check_digest,
    check_fusions,
    check_origins,
    check_structures,
    digest_of_bytes,
    folder_of,
    load_card,
    load_settings,
    no_denoiser,
    not_its_encoder,
    unfit,
    unreadable,
)
from orthokernels.tasks import PLANES


@dataclass
class PlaneWeights:
    """The modules of one plane; a head that the weights do not have is None.

    ``timestep`` and ``block`` are the diagnosis features'. An encoder is a denoiser whose encoder and middle were
    fine-tuned for one task; where it is None, the task reads the denoiser.
    """

    denoiser: UNet
    timestep: int = PUBLISHED_TIMESTEP
    block: str = PUBLISHED_BLOCK
    segmentation: SegmentationHead | MultiscaleSegmentationHead | None = None
    segmentation_point: FeaturePoint = field(default_factory=FeaturePoint)
    segmentation_encoder: UNet | None = None
    pooling: nn.Module | None = None
    head: nn.Module | None = None
    encoder: UNet | None = None

    def modules(self, joint: str = "") -> dict[str, nn.Module]:
        """Each module under its file's name behind the plane's, in a fixed order."""
        found: dict[str, nn.Module | None] = {
            "": self.denoiser,
            ".segmentation": self.segmentation,
            ".segmentation.encoder": self.segmentation_encoder,
            f".{joint}.pooling": self.pooling,
            f".{joint}.head": self.head,
            f".{joint}.encoder": self.encoder,
        }
        return {name: module for name, module in found.items() if module is not None}

    def networks(self) -> list[UNet]:
        """The denoiser and the encoders that were fine-tuned from it."""
        return [unet for unet in (self.denoiser, self.segmentation_encoder, self.encoder) if unet is not None]


@dataclass
class Weights:
    """Every module a run needs, for one joint."""

    name: str
    trained: bool
    joint: str
    planes: dict[str, PlaneWeights]
    fusion: nn.Module | None = None
    fusion_name: str | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    size: int = SIZE
    preparation: Mode | None = None
    notice: str | None = None
    late_fusion: LateFusion | None = None
    late_fusion_card: LateFusionCard | None = None

    def modules(self) -> dict[str, nn.Module]:
        """Each module under the name of its file, in a fixed order."""
        found = {
            f"{plane}{name}": module
            for plane, own in sorted(self.planes.items())
            for name, module in own.modules(self.joint).items()
        }
        if self.fusion is not None:
            found[f"{self.joint}.fusion"] = self.fusion
        if self.late_fusion is not None:
            found[f"{self.joint}.patient_data"] = self.late_fusion
        return found

    def digest(self) -> str:
        """SHA-256 over all tensors of all modules."""
        tensors = {f"{name}/{key}": t for name, m in self.modules().items() for key, t in m.state_dict().items()}
        return digest_of(tensors)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors in the order of their names: name, dtype, shape, and little-endian bytes of each."""

    def entries() -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            content = tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            yield name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), content

    return digest_of_bytes(entries())


def load_weights(name: str, joint: str = "knee", planes: tuple[str, ...] = PLANES) -> Weights:
    """Weights by name: "demo" (in the package), "published" (fetched before), "random:SEED", or a folder.

    Raises:
        InputError: unknown name, missing or damaged file, or a file that does not fit its card.
    """
    if name.startswith("random:"):
        from orthokernels.models.orthodiffusion.untrained import random_weights  # reads the classes of this file

        seed = name.removeprefix("random:")
        if not seed.isdecimal():
            raise InputError(f"--weights {name}: the seed must be a whole number, as in random:0.")
        if int(seed) >= 2**63:
            raise InputError(f"--weights {name}: the seed must be less than 2**63.")
        return random_weights(int(seed), joint, planes)
    return _load_folder(folder_of(name), name, joint, planes)


def _load_folder(folder: Path, name: str, joint: str, planes: tuple[str, ...]) -> Weights:
    settings = load_settings(folder)
    found: dict[str, PlaneWeights] = {}
    cards: dict[str, Card] = {}
    for plane in planes:
        if (folder / f"{plane}.safetensors").is_file():
            found[plane] = _load_plane(folder, settings, plane, joint, cards)
    if not found:
        raise no_denoiser(folder, planes)
    fusion, fusion_name = None, None
    if (folder / f"{joint}.fusion.safetensors").is_file():
        fusion, card = load_module(folder / f"{joint}.fusion.safetensors", None)
        fusion_name = card.module
        cards[f"{joint}.fusion"] = card
    late_fusion, late_fusion_card = _load_late_fusion(folder / f"{joint}.patient_data.safetensors", cards)
    check_fusions(folder, joint, cards)
    return ready(
        Weights(
            name=settings.name if settings.name != "unnamed" else name,
            trained=all(card.trained for card in cards.values()),
            joint=joint,
            planes=found,
            fusion=fusion,
            fusion_name=fusion_name,
            thresholds=settings.thresholds.get(joint, {}),
            size=settings.size,
            preparation=settings.preparation,
            notice=settings.notice,
            late_fusion=late_fusion,
            late_fusion_card=late_fusion_card,
        )
    )


def _load_late_fusion(path: Path, cards: dict[str, Card]) -> tuple[LateFusion | None, LateFusionCard | None]:
    if not path.is_file():
        return None, None
    module, card = load_module(path, MODULE)
    assert isinstance(module, LateFusion)
    try:
        found = LateFusionCard.of(card)
    except ValueError as error:
        raise unfit(path, error) from error
    cards[path.stem] = card
    return module, found


def _load_plane(folder: Path, settings: Settings, plane: str, joint: str, cards: dict[str, Card]) -> PlaneWeights:
    """One plane's modules; the card of each file is added to ``cards`` by its stem."""
    found: dict[str, Card] = {}

    def load(stem: str, kind: str | None) -> nn.Module | None:
        path = folder / f"{stem}.safetensors"
        if not path.is_file():
            return None
        module, card = load_encoder(path, denoiser) if kind == "unet_encoder" else load_module(path, kind)
        if card.joint not in (None, joint):
            return None  # a segmentation of another joint's structures
        found[stem] = card
        return module

    denoiser: Any = load(plane, "unet")
    point = settings.point(joint, plane)
    own: dict[str, Any] = {
        "segmentation": load(f"{plane}.segmentation", None),
        "segmentation_encoder": load(f"{plane}.segmentation.encoder", "unet_encoder"),
        "pooling": load(f"{plane}.{joint}.pooling", None),
        "head": load(f"{plane}.{joint}.head", "linear"),
        "encoder": load(f"{plane}.{joint}.encoder", "unet_encoder"),
    }
    kind = "structures" if isinstance(own["pooling"], StructurePool) else None
    check_structures(folder, plane, kind, segments=own["segmentation"] is not None)
    check_origins(folder, plane, found, settings)
    cards.update(found)
    made = PlaneWeights(
        denoiser, point.timestep, point.block, segmentation_point=settings.point("segmentation", plane), **own
    )
    _check_settings(folder / f"{plane}.safetensors", made, settings.size)
    return made


def _check_settings(path: Path, own: PlaneWeights, size: int) -> None:
    """Refuse settings that the denoiser in ``path`` can't be run with: slices of ``size``, blocks that are read."""
    read = [own.block] if own.pooling is not None or own.segmentation is None else []
    read += [own.segmentation_point.block] if isinstance(own.segmentation, SegmentationHead) else []
    if unknown := [block for block in read if block not in own.denoiser.feature_names]:
        raise unfit(path, ValueError(f"no feature called {unknown[0]!r}"))
    sides = (SLAB, size, size)
    if any(side % own_side for side, own_side in zip(sides, own.denoiser.patch, strict=True)):
        raise unfit(path, ValueError(f"a patch of {own.denoiser.patch} does not divide a volume of {sides}"))


def ready(weights: Weights) -> Weights:
    """The same weights for inference: no dropout, no gradients."""
    for module in weights.modules().values():
        module.eval().requires_grad_(False)
    return weights


_MODULES: dict[str, Any] = {
    "unet": UNet,
    "segmentation_head": SegmentationHead,
    "multiscale_segmentation_head": MultiscaleSegmentationHead,
    "linear": nn.Linear,
    MODULE: LateFusion,
    **POOLINGS,
    **FUSIONS,
}


def load_module(path: Path, kind: str | None) -> tuple[nn.Module, Card]:
    """A module from its safetensors file, built and checked as its card says.

    Raises:
        InputError: the file or its card is missing, damaged or altered, or is not of ``kind``.
    """
    card = load_card(path, (kind,) if kind else _MODULES)
    try:
        state = _state(path, card)
        with torch.device("meta"):
            module = _MODULES[card.module](**card.arguments)
        module.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise unfit(path, error) from error
    return module, card


def load_encoder(path: Path, denoiser: UNet) -> tuple[UNet, Card]:
    """A copy of ``denoiser`` with the fine-tuned encoder and middle of a file that ``save_encoder`` wrote.

    Raises:
        InputError: the file or its card is missing, damaged or altered, or belongs to a network of another shape.
    """
    card = load_card(path, ("unet_encoder",))
    state = _state(path, card)
    encoder = copy.deepcopy(denoiser)
    expected = {name: tensor.shape for name, tensor in encoder.state_dict().items() if name.startswith(FINE_TUNED)}
    if {name: tensor.shape for name, tensor in state.items()} != expected:
        raise not_its_encoder(path)
    encoder.load_state_dict(state, strict=False)
    return encoder, card


def _state(path: Path, card: Card) -> dict[str, Tensor]:
    """The tensors of a file whose digest is its card's; half precision comes as float32."""
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error
    check_digest(path, card, digest_of(state))
    return {name: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for name, t in state.items()}


def save_module(module: nn.Module, path: Path, kind: str, *, half: bool = False, **facts: Any) -> Card:
    """Write a module's tensors and card, each to a temporary file first, then renamed; the card last.

    ``half`` stores float32 tensors as float16: half the size, each value off by at most 2^-11 of itself (down to 6e-5).
    """
    return save_state(_stored(module.state_dict(), half), path, kind, **facts)


def save_encoder(denoiser: UNet, path: Path, *, half: bool = False, **facts: Any) -> Card:
    """Write the tensors that fine-tuning changes, the encoder's and the middle's, with a card."""
    return save_state(_stored(_fine_tuned(denoiser), half), path, "unet_encoder", **facts)


def digest_of_module(module: nn.Module, *, half: bool) -> str:
    """The digest that ``save_module`` will give a module."""
    return digest_of(_stored(module.state_dict(), half))


def digest_of_encoder(denoiser: UNet, *, half: bool) -> str:
    """The digest that ``save_encoder`` will give an encoder."""
    return digest_of(_stored(_fine_tuned(denoiser), half))


def _fine_tuned(denoiser: UNet) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in denoiser.state_dict().items() if name.startswith(FINE_TUNED)}


def _stored(state: Mapping[str, Tensor], half: bool) -> dict[str, Tensor]:
    narrowed = {n: t.half() if half and t.dtype == torch.float32 else t for n, t in state.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in narrowed.items()}


def save_state(state: dict[str, Tensor], path: Path, kind: str, **facts: Any) -> Card:
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    card = Card(module=kind, digest=digest_of(state), shapes=shapes, **facts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
            save_file(state, Path(folder, "tensors"))
            Path(folder, "tensors").chmod(0o666 & ~umask())  # its own are their owner's alone
            Path(folder, "card").write_text(card.model_dump_json(indent=1) + "\n")
            os.replace(Path(folder, "tensors"), path)
            os.replace(Path(folder, "card"), path.with_suffix(".json"))
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror or error}). Choose another place.") from error
    return card
