"""The published checkpoints, converted to safetensors, from a file at hand or fetched from their hub.

Nothing here reads a pickle: checkpoints load with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.diffusion import cosine_schedule
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.orthodiffusion.weights import save_state
from orthokernels.models.weights_folder import Card, Settings, first_line, published_folder
from orthokernels.tasks import PLANES

PUBLISHED_REPOSITORY = "lanstat0123/orthodiffusion"
PUBLISHED_FILES = {plane: f"{plane}_model.pt" for plane in PLANES}

_PREFIXES = ("denoise_fn.module.", "denoise_fn.")


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
    return out, save_state(state, out, "unet", plane=plane, origin=facts)


def _load_checkpoint(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors ({_refused(error)}), so loading it could run its code. It was not. "
            "Get the checkpoint from its authors."
        ) from error
    except (RuntimeError, OSError, ValueError, EOFError, KeyError, IndexError) as error:
        raise InputError(
            f"{path}: not a readable PyTorch checkpoint ({first_line(error)}). Download it again."
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
                f"{PUBLISHED_REPOSITORY} on the Hugging Face hub can't be reached ({first_line(error)}). Run again "
                "with a connection (a broken download resumes), or copy the *_model.pt files here and use "
                "'weights convert'."
            ) from error
        cards.append(
            convert_checkpoint(Path(file), folder, plane=plane, origin=f"{PUBLISHED_REPOSITORY}@{revision}")[1]
        )
    (folder / "weights.json").write_text(Settings(name="published").model_dump_json(indent=1) + "\n")
    return cards


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refused(error: Exception) -> str:
    """Which type a pickle wanted, out of PyTorch's long explanation."""
    words = str(error).split("GLOBAL ")
    return f"it names {words[1].split(' was not')[0].split()[0]}" if len(words) > 1 else first_line(error)
