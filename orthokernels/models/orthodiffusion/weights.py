"""Weights in and out: folders of safetensors, each file with its card.

A weights folder holds ``weights.json`` (the settings below) and one safetensors file per module, each with a JSON card
of the same stem that says which module it is, how it was constructed, where it came from, and its digest:

    sagittal.safetensors                the denoiser of a plane
    sagittal.segmentation.safetensors   its segmentation head, where there is one
    sagittal.segmentation.encoder.safetensors   the encoder and middle that were fine-tuned with that head
    sagittal.knee.pooling.safetensors   its pooling for a joint, where there is one
    sagittal.knee.head.safetensors      its single-plane head for a joint, where there is one
    sagittal.knee.encoder.safetensors   the encoder and middle that were fine-tuned with that pooling and head
    knee.fusion.safetensors             the head that fuses the planes for a joint, where there is one

Tensors may be stored in half precision; they are float32 once loaded.
"""

from __future__ import annotations

import copy
import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from orthokernels.data.prepare import SIZE
from orthokernels.errors import InputError
from orthokernels.folders import cache_folder
from orthokernels.models.orthodiffusion.fusion import FUSIONS
from orthokernels.models.orthodiffusion.pooling import POOLINGS
from orthokernels.models.orthodiffusion.regional_pooling import StructurePool
from orthokernels.models.orthodiffusion.segmentation import MultiscaleSegmentationHead, SegmentationHead
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.tasks import PLANES

PUBLISHED_TIMESTEP, PUBLISHED_BLOCK = 100, "mid_2"


class Card(BaseModel):
    """What is known of one safetensors file. ``digest`` is ``digest_of`` its tensors."""

    model_config = ConfigDict(extra="forbid")

    format: int = 1
    module: str
    arguments: dict[str, Any] = {}
    plane: str | None = None
    joint: str | None = None
    trained: bool = True
    origin: dict[str, str] = {}
    licence: str | None = None
    digest: str
    shapes: dict[str, list[int]]


class FeaturePoint(BaseModel):
    """Where features are taken: at which timestep, and behind which block."""

    model_config = ConfigDict(extra="forbid")

    timestep: Annotated[int, Field(ge=0)] = PUBLISHED_TIMESTEP
    block: str = PUBLISHED_BLOCK


class Settings(BaseModel):
    """``weights.json``.

    Attributes:
        notice: one sentence that says what these weights are; shown with everything made with them.
        size: side of the square slices that the networks were trained on, in pixels.
        timestep, block: of each plane's features.
        points: the same for one task, "segmentation" or a joint, where it has its own: task, then plane.
        thresholds: probability from which a label counts as present: joint, then label.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = 1
    name: str = "unnamed"
    notice: str | None = None
    size: Annotated[int, Field(ge=16, le=2048)] = SIZE
    timestep: dict[str, int] = dict.fromkeys(PLANES, PUBLISHED_TIMESTEP)
    block: dict[str, str] = dict.fromkeys(PLANES, PUBLISHED_BLOCK)
    points: dict[str, dict[str, FeaturePoint]] = {}
    thresholds: dict[str, dict[str, float]] = {}

    def point(self, task: str, plane: str) -> FeaturePoint:
        """Where a task's features of a plane are taken."""
        general = FeaturePoint(
            timestep=self.timestep.get(plane, PUBLISHED_TIMESTEP), block=self.block.get(plane, PUBLISHED_BLOCK)
        )
        return self.points.get(task, {}).get(plane, general)


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
    notice: str | None = None

    def modules(self) -> dict[str, nn.Module]:
        """Each module under the name of its file, in a fixed order."""
        found = {
            f"{plane}{name}": module
            for plane, own in sorted(self.planes.items())
            for name, module in own.modules(self.joint).items()
        }
        return found if self.fusion is None else {**found, f"{self.joint}.fusion": self.fusion}

    def digest(self) -> str:
        """SHA-256 over all tensors of all modules."""
        tensors = {f"{name}/{key}": t for name, m in self.modules().items() for key, t in m.state_dict().items()}
        return digest_of(tensors)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors in the order of their names: name, dtype, shape, and little-endian bytes of each."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return sha.hexdigest()


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
        return random_weights(int(seed), joint, planes)
    folder = {"demo": demo_folder(), "published": published_folder()}.get(name, Path(name))
    if name == "published" and not folder.is_dir():
        raise InputError("The published weights are not here yet. Fetch them with 'orthokernels weights fetch'.")
    if not folder.is_dir():
        raise InputError(
            f"--weights {name}: no such folder. Give a weights folder, 'demo', 'published' or random:SEED."
        )
    return _load_folder(folder, name, joint, planes)


def _load_folder(folder: Path, name: str, joint: str, planes: tuple[str, ...]) -> Weights:
    settings = load_settings(folder)
    found: dict[str, PlaneWeights] = {}
    cards: list[Card] = []
    for plane in planes:
        if (folder / f"{plane}.safetensors").is_file():
            found[plane] = _load_plane(folder, settings, plane, joint, cards)
    if not found:
        raise InputError(f"{folder}: holds no denoiser ({', '.join(f'{p}.safetensors' for p in planes)}).")
    fusion, fusion_name = None, None
    if (folder / f"{joint}.fusion.safetensors").is_file():
        fusion, card = load_module(folder / f"{joint}.fusion.safetensors", None)
        fusion_name = card.module
        cards.append(card)
    return ready(
        Weights(
            name=settings.name if settings.name != "unnamed" else name,
            trained=all(card.trained for card in cards),
            joint=joint,
            planes=found,
            fusion=fusion,
            fusion_name=fusion_name,
            thresholds=settings.thresholds.get(joint, {}),
            size=settings.size,
            notice=settings.notice,
        )
    )


def _load_plane(folder: Path, settings: Settings, plane: str, joint: str, cards: list[Card]) -> PlaneWeights:
    """One plane's modules; the card of each file is added to ``cards``."""

    def load(stem: str, kind: str | None) -> nn.Module | None:
        path = folder / f"{stem}.safetensors"
        if not path.is_file():
            return None
        module, card = load_encoder(path, denoiser) if kind == "unet_encoder" else load_module(path, kind)
        if card.joint not in (None, joint):
            return None  # a segmentation of another joint's structures
        cards.append(card)
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
    if isinstance(own["pooling"], StructurePool) and own["segmentation"] is None:
        raise InputError(
            f"{folder}: the {plane} pooling reads the structures that the segmentation finds, and there is no "
            f"{plane}.segmentation.safetensors. Fetch or train the weights again."
        )
    return PlaneWeights(
        denoiser, point.timestep, point.block, segmentation_point=settings.point("segmentation", plane), **own
    )


def load_settings(folder: Path) -> Settings:
    """The settings of a weights folder, or the published ones where it has no ``weights.json``."""
    path = folder / "weights.json"
    if not path.is_file():
        return Settings()
    try:
        return Settings.model_validate_json(path.read_text())
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not a valid settings file ({first_line(error)}). Convert the weights again."
        ) from error


def ready(weights: Weights) -> Weights:
    """The same weights for inference: no dropout, no gradients."""
    for module in weights.modules().values():
        module.eval().requires_grad_(False)
    return weights


_FINE_TUNED = ("input_blocks.", "middle_block.")  # what the published fine-tuning changes; time_embed stays

_MODULES: dict[str, Any] = {
    "unet": UNet,
    "segmentation_head": SegmentationHead,
    "multiscale_segmentation_head": MultiscaleSegmentationHead,
    "linear": nn.Linear,
    **POOLINGS,
    **FUSIONS,
}


def load_module(path: Path, kind: str | None) -> tuple[nn.Module, Card]:
    """A module from its safetensors file, built and checked as its card says.

    Raises:
        InputError: the file or its card is missing, damaged or altered, or is not of ``kind``.
    """
    card = _card(path, kind)
    try:
        state = _state(path, card)
        with torch.device("meta"):
            module = _MODULES[card.module](**card.arguments)
        module.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: does not fit its card ({first_line(error)}). Convert it again.") from error
    return module, card


def load_encoder(path: Path, denoiser: UNet) -> tuple[UNet, Card]:
    """A copy of ``denoiser`` with the fine-tuned encoder and middle of a file that ``save_encoder`` wrote.

    Raises:
        InputError: the file or its card is missing, damaged or altered, or belongs to a network of another shape.
    """
    card = _card(path, "unet_encoder")
    state = _state(path, card)
    encoder = copy.deepcopy(denoiser)
    expected = {name: tensor.shape for name, tensor in encoder.state_dict().items() if name.startswith(_FINE_TUNED)}
    if {name: tensor.shape for name, tensor in state.items()} != expected:
        raise InputError(f"{path}: is not the encoder of the denoiser beside it. Train or convert it again.")
    encoder.load_state_dict(state, strict=False)
    return encoder, card


def _card(path: Path, kind: str | None) -> Card:
    card_path = path.with_suffix(".json")
    try:
        card = Card.model_validate_json(card_path.read_text())
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{card_path}: no valid card for {path.name} ({first_line(error)}). Convert it again."
        ) from error
    known = kind == "unet_encoder" or card.module in _MODULES
    if not known or (kind and card.module != kind):
        raise InputError(
            f"{card_path}: describes a module {card.module!r}, not {kind or 'one of ' + ', '.join(_MODULES)}."
        )
    return card


def _state(path: Path, card: Card) -> dict[str, Tensor]:
    """The tensors of a file whose digest is its card's; half precision comes as float32."""
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({first_line(error)}). Convert it again.") from error
    if digest_of(state) != card.digest:
        raise InputError(f"{path}: its content does not match the digest in its card. Convert or fetch it again.")
    return {name: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for name, t in state.items()}


def save_module(module: nn.Module, path: Path, kind: str, *, half: bool = False, **facts: Any) -> Card:
    """Write a module's tensors and card, each to a temporary file first, then renamed; the card last.

    ``half`` stores float32 tensors as float16: half the size, each value off by at most 2^-11 of itself (down to 6e-5).
    """
    return save_state(_stored(module.state_dict(), half), path, kind, **facts)


def save_encoder(denoiser: UNet, path: Path, *, half: bool = False, **facts: Any) -> Card:
    """Write the tensors that fine-tuning changes, the encoder's and the middle's, with a card."""
    state = {name: tensor for name, tensor in denoiser.state_dict().items() if name.startswith(_FINE_TUNED)}
    return save_state(_stored(state, half), path, "unet_encoder", **facts)


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
            Path(folder, "card").write_text(card.model_dump_json(indent=1) + "\n")
            os.replace(Path(folder, "tensors"), path)
            os.replace(Path(folder, "card"), path.with_suffix(".json"))
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror or error}). Choose another place.") from error
    return card


def demo_folder() -> Path:
    """Where the package keeps its demo weights, trained on digital joints; its README.md is their card."""
    return Path(__file__).parents[1] / "demo"


def published_folder() -> Path:
    """Where fetched weights live."""
    return cache_folder() / "weights" / "published"


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:160] if lines else type(error).__name__
