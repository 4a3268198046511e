"""Weights in and out: published checkpoints converted, fetched, or made at random; folders of safetensors loaded.

A weights folder holds ``weights.json`` (the settings below) and one safetensors file per module, each with a JSON card
of the same stem that says which module it is, how it was constructed, where it came from, and its digest:

    sagittal.safetensors                the denoiser of a plane
    sagittal.segmentation.safetensors   its segmentation head, where there is one
    sagittal.knee.pooling.safetensors   its pooling for a joint, where there is one
    sagittal.knee.head.safetensors      its single-plane head for a joint, where there is one
    knee.fusion.safetensors             the head that fuses the planes for a joint, where there is one

Nothing here reads a pickle: checkpoints load with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.diffusion import cosine_schedule
from orthokernels.models.orthodiffusion.fusion import FUSIONS
from orthokernels.models.orthodiffusion.pooling import POOLINGS
from orthokernels.models.orthodiffusion.segmentation import SegmentationHead
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.tasks import LABELS, PLANES, STRUCTURES

PUBLISHED_REPOSITORY = "lanstat0123/orthodiffusion"
PUBLISHED_FILES = {plane: f"{plane}_model.pt" for plane in PLANES}
PUBLISHED_TIMESTEP, PUBLISHED_BLOCK = 100, "mid_2"

_PREFIXES = ("denoise_fn.module.", "denoise_fn.")


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


class Settings(BaseModel):
    """``weights.json``: timestep and block of each plane's features, and each label's threshold, per joint."""

    model_config = ConfigDict(extra="forbid")

    format: int = 1
    name: str = "unnamed"
    timestep: dict[str, int] = dict.fromkeys(PLANES, PUBLISHED_TIMESTEP)
    block: dict[str, str] = dict.fromkeys(PLANES, PUBLISHED_BLOCK)
    thresholds: dict[str, dict[str, float]] = {}


@dataclass
class PlaneWeights:
    """The modules of one plane; a head that the weights do not have is None."""

    denoiser: UNet
    timestep: int = PUBLISHED_TIMESTEP
    block: str = PUBLISHED_BLOCK
    segmentation: SegmentationHead | None = None
    pooling: nn.Module | None = None
    head: nn.Module | None = None


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

    def modules(self) -> dict[str, nn.Module]:
        """Each module under the name of its file, in a fixed order."""
        found: dict[str, nn.Module | None] = {}
        for plane, own in sorted(self.planes.items()):
            found[plane] = own.denoiser
            found[f"{plane}.segmentation"] = own.segmentation
            found[f"{plane}.{self.joint}.pooling"] = own.pooling
            found[f"{plane}.{self.joint}.head"] = own.head
        found[f"{self.joint}.fusion"] = self.fusion
        return {name: module for name, module in found.items() if module is not None}

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


def random_weights(seed: int, joint: str = "knee", planes: tuple[str, ...] = PLANES) -> Weights:
    """A full set of untrained modules at the published size; the same seed gives the same weights."""
    labels = len(LABELS[joint])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = {}
        # Every plane is drawn, asked for or not, so that a plane's weights do not depend on the others.
        for plane in PLANES:
            pooling = POOLINGS["selfattn"]()
            found[plane] = PlaneWeights(
                denoiser=_varied(UNet()),
                segmentation=_following(SegmentationHead(classes=len(STRUCTURES) + 1)),
                pooling=pooling,
                head=nn.Linear(pooling.out_channels, labels),
            )
        fusion = FUSIONS["gating"](labels=labels)
    return _ready(
        Weights(
            name=f"random:{seed}",
            trained=False,
            joint=joint,
            planes={plane: found[plane] for plane in planes},
            fusion=fusion,
            fusion_name="gating",
        )
    )


def _varied(unet: UNet) -> UNet:
    """An untrained denoiser whose features follow the picture: no biases, and convolutions that keep the variance.

    PyTorch's usual start shrinks the signal at each layer until the biases decide, and features are alike everywhere.
    """
    for layer in unet.modules():
        if isinstance(layer, nn.Conv3d) and bool(layer.weight.any()):  # those that start at zero stay there
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return unet


def _following(head: SegmentationHead) -> SegmentationHead:
    """An untrained head whose classes follow its features, so that its label map shows whether it lies where it should.

    The transposed convolutions mix channels at random and interpolate linearly in space. The last layer is scaled and
    shifted so that on random features every class has the same mean and spread: none wins everywhere.
    """
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25])  # linear interpolation by 2
    kernel = taps[:, None, None] * taps[:, None] * taps
    for layer in head.net:
        if isinstance(layer, nn.ConvTranspose3d):
            mixing = torch.randn(layer.in_channels, layer.out_channels) * (2 / layer.in_channels) ** 0.5
            layer.weight.data = mixing[:, :, None, None, None] * kernel
            layer.bias.data.zero_()  # type: ignore[union-attr]
    first, last = head.net[0], head.net[-1]
    assert isinstance(first, nn.ConvTranspose3d)
    assert isinstance(last, nn.Conv3d)
    last.weight.data.normal_()
    last.bias.data.zero_()  # type: ignore[union-attr]
    with torch.no_grad():
        logits = head(torch.randn(1, first.in_channels, 1, 8, 8)).transpose(0, 1).flatten(1)  # [classes, voxels]
    spread, mean = torch.std_mean(logits, dim=1)
    last.weight.data /= spread.view(-1, 1, 1, 1, 1)
    last.bias.data -= mean / spread  # type: ignore[union-attr]
    return head


def load_weights(name: str, joint: str = "knee", planes: tuple[str, ...] = PLANES) -> Weights:
    """Weights by name: "random:SEED", "published" (fetched before), or a folder.

    Raises:
        InputError: unknown name, missing or damaged file, or a file that does not fit its card.
    """
    if name.startswith("random:"):
        seed = name.removeprefix("random:")
        if not seed.isdecimal():
            raise InputError(f"--weights {name}: the seed must be a whole number, as in random:0.")
        return random_weights(int(seed), joint, planes)
    folder = published_folder() if name == "published" else Path(name)
    if name == "published" and not folder.is_dir():
        raise InputError(
            "There are no weights yet. Fetch the published ones with 'orthokernels weights fetch', or run untrained "
            "with --weights random:0."
        )
    if not folder.is_dir():
        raise InputError(f"--weights {name}: no such folder. Give a weights folder, 'published' or random:SEED.")
    return _load_folder(folder, name, joint, planes)


def _load_folder(folder: Path, name: str, joint: str, planes: tuple[str, ...]) -> Weights:
    settings = _settings(folder)
    found, cards = {}, []
    for plane in planes:
        if not (folder / f"{plane}.safetensors").is_file():
            continue
        denoiser, card = load_module(folder / f"{plane}.safetensors", "unet")
        cards.append(card)
        own = PlaneWeights(denoiser, settings.timestep[plane], settings.block[plane])  # type: ignore[arg-type]
        for stem, field_name, kind in (
            (f"{plane}.segmentation", "segmentation", "segmentation_head"),
            (f"{plane}.{joint}.pooling", "pooling", None),
            (f"{plane}.{joint}.head", "head", "linear"),
        ):
            if (folder / f"{stem}.safetensors").is_file():
                module, card = load_module(folder / f"{stem}.safetensors", kind)
                cards.append(card)
                setattr(own, field_name, module)
        found[plane] = own
    if not found:
        raise InputError(f"{folder}: holds no denoiser ({', '.join(f'{p}.safetensors' for p in planes)}).")
    fusion, fusion_name = None, None
    if (folder / f"{joint}.fusion.safetensors").is_file():
        fusion, card = load_module(folder / f"{joint}.fusion.safetensors", None)
        fusion_name = card.module
        cards.append(card)
    return _ready(
        Weights(
            name=settings.name if settings.name != "unnamed" else name,
            trained=all(card.trained for card in cards),
            joint=joint,
            planes=found,
            fusion=fusion,
            fusion_name=fusion_name,
            thresholds=settings.thresholds.get(joint, {}),
        )
    )


def _settings(folder: Path) -> Settings:
    path = folder / "weights.json"
    if not path.is_file():
        return Settings()
    try:
        return Settings.model_validate_json(path.read_text())
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not a valid settings file ({_first_line(error)}). Convert the weights again."
        ) from error


def _ready(weights: Weights) -> Weights:
    for module in weights.modules().values():
        module.eval().requires_grad_(False)
    return weights


_MODULES: dict[str, Any] = {
    "unet": UNet,
    "segmentation_head": SegmentationHead,
    "linear": nn.Linear,
    **POOLINGS,
    **FUSIONS,
}


def load_module(path: Path, kind: str | None) -> tuple[nn.Module, Card]:
    """A module from its safetensors file, built and checked as its card says.

    Raises:
        InputError: the file or its card is missing, damaged or altered, or is not of ``kind``.
    """
    card_path = path.with_suffix(".json")
    try:
        card = Card.model_validate_json(card_path.read_text())
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{card_path}: no valid card for {path.name} ({_first_line(error)}). Convert it again."
        ) from error
    if card.module not in _MODULES or (kind and card.module != kind):
        raise InputError(
            f"{card_path}: describes a module {card.module!r}, not {kind or 'one of ' + ', '.join(_MODULES)}."
        )
    try:
        state = load_file(path)
        if digest_of(state) != card.digest:
            raise InputError(f"{path}: its content does not match the digest in its card. Convert or fetch it again.")
        with torch.device("meta"):
            module = _MODULES[card.module](**card.arguments)
        module.load_state_dict(state, strict=True, assign=True)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a readable safetensors file ({_first_line(error)}). Convert it again."
        ) from error
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: does not fit its card ({_first_line(error)}). Convert it again.") from error
    return module, card


def save_module(module: nn.Module, path: Path, kind: str, **facts: Any) -> Card:
    """Write a module's tensors and card, each to a temporary file first, then renamed; the card last."""
    state = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    return _save_state(state, path, kind, **facts)


def _save_state(state: dict[str, Tensor], path: Path, kind: str, **facts: Any) -> Card:
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


def convert_checkpoint(checkpoint: Path, out: Path, *, plane: str | None = None, origin: str = "") -> tuple[Path, Card]:
    """A published checkpoint's EMA weights as safetensors with a card.

    Args:
        checkpoint: a dict with ``ema`` (preferred, as downstream code uses it) or ``model``, whose keys lie under
            ``denoise_fn.`` or ``denoise_fn.module.``.
        out: a ``.safetensors`` path, or a folder, which gets ``<plane>.safetensors``.
        plane: sagittal, coronal or axial; by default read from the checkpoint's file name.

    Raises:
        InputError: not a checkpoint, not loadable without running code from it, or not this network.
    """
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint}: no such file. Check the path.")
    plane = plane or next((p for p in PLANES if p in checkpoint.name.lower()), None)
    if out.suffix != ".safetensors":
        if plane is None:
            raise InputError(f"{checkpoint}: which plane is it? Its name does not say; pass --plane.")
        out = out / f"{plane}.safetensors"
    content = _load_checkpoint(checkpoint)
    source = "ema" if "ema" in content else "model"
    state, ignored = _network_state(content[source], checkpoint)
    _check_state(state, checkpoint)
    facts = {
        "file": checkpoint.name,
        "sha256": _file_digest(checkpoint),
        "entry": source,
        "ignored": ", ".join(ignored),
        "step": str(content.get("step", "unknown")),
    }
    if origin:
        facts["from"] = origin
    return out, _save_state(state, out, "unet", plane=plane, origin=facts)


def _load_checkpoint(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors ({_refused(error)}), so loading it could run its code. It was not. "
            "Get the checkpoint from its authors."
        ) from error
    except (RuntimeError, OSError, ValueError, EOFError, KeyError) as error:
        raise InputError(
            f"{path}: not a readable PyTorch checkpoint ({_first_line(error)}). Download it again."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("ema", content.get("model")), dict):
        raise InputError(f"{path}: has neither an 'ema' nor a 'model' entry. Pass a published *_model.pt checkpoint.")
    return content


def _network_state(entry: dict[str, Any], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The network's tensors without their prefix, float32; and the names of everything else."""
    prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in entry)), None)
    if prefix is None:
        raise InputError(f"{path}: has no 'denoise_fn.' weights. Pass a published *_model.pt checkpoint.")
    state = {
        key.removeprefix(prefix): tensor.float().contiguous()
        for key, tensor in entry.items()
        if key.startswith(prefix) and isinstance(tensor, Tensor)
    }
    betas = entry.get("betas")
    if isinstance(betas, Tensor) and (
        betas.shape != (1000,) or not torch.allclose(betas.double(), cosine_schedule(), atol=1e-6)
    ):
        raise InputError(f"{path}: was trained with another noise schedule than the published cosine one.")
    return state, sorted(key for key in entry if not key.startswith(prefix))


def _check_state(state: dict[str, Tensor], path: Path) -> None:
    """Every name and shape of the published network, no more and no less."""
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in UNet().state_dict().items()}
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in expected]
    wrong += [
        f"{name} has shape {list(state[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    wrong += [f"{name} has NaN or infinite values" for name, t in state.items() if not bool(torch.isfinite(t).all())]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"{path}: is not the published network: {'; '.join(wrong[:3])}{more}. Nothing was written.")


def fetch_published(folder: Path | None = None, planes: tuple[str, ...] = PLANES) -> list[Card]:
    """Download the published checkpoints (resumed if cut off, 553 MB each), convert them, and record their digests.

    Raises:
        InputError: the hub can not be reached, or does not have the files.
    """
    from huggingface_hub import HfApi, hf_hub_download

    folder = folder or published_folder()
    cards = []
    for plane in planes:
        try:
            revision = HfApi().model_info(PUBLISHED_REPOSITORY, timeout=30).sha or "main"
            file = hf_hub_download(PUBLISHED_REPOSITORY, PUBLISHED_FILES[plane], revision=revision)
        except Exception as error:  # the transport library and its errors changed twice between the hub's versions
            raise InputError(
                f"{PUBLISHED_REPOSITORY} on the Hugging Face hub can't be reached ({_first_line(error)}). Run again "
                "with a connection (a broken download resumes), or copy the *_model.pt files here and use "
                "'weights convert'."
            ) from error
        cards.append(
            convert_checkpoint(Path(file), folder, plane=plane, origin=f"{PUBLISHED_REPOSITORY}@{revision}")[1]
        )
    (folder / "weights.json").write_text(Settings(name="published").model_dump_json(indent=1) + "\n")
    return cards


def published_folder() -> Path:
    """Where fetched weights live: under ORTHOKERNELS_CACHE, else the user's cache folder."""
    cache = os.environ.get("ORTHOKERNELS_CACHE")
    base = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orthokernels"
    return base / "weights" / "published"


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refused(error: Exception) -> str:
    """Which type a pickle wanted, out of PyTorch's long explanation."""
    words = str(error).split("GLOBAL ")
    return f"it names {words[1].split(' was not')[0].split()[0]}" if len(words) > 1 else _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:160] if lines else type(error).__name__
