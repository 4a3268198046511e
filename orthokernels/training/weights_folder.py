"""A weights folder as training reads and adds to it: denoisers in, heads and settings out."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orthokernels.data.prepare import Mode
from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.orthodiffusion.weights import PlaneWeights, load_encoder, load_module
from orthokernels.models.weights_folder import (
    SEGMENTATION,
    Card,
    Settings,
    check_origins,
    load_card,
    load_settings,
    origin_of,
)
from orthokernels.tasks import PLANES


@contextmanager
def started_from(weights: Path, out: Path, preparation: Mode | None = None) -> Iterator[None]:
    """Make ``out`` hold what ``weights`` holds, unless it is the same folder; files that ``out`` has stay.

    Where the data are refused that are read meanwhile, what was copied goes again.

    Args:
        preparation: of the studies that heads in ``out`` are to be trained on; None where none are.

    Raises:
        InputError: ``weights`` is no weights folder, heads of either are of another preparation, or ``out`` can not be
            written or holds another denoiser.
    """
    if not weights.is_dir():
        raise InputError(f"--weights {weights}: no such folder. Pre-train first: orthokernels train pretrain.")
    if preparation is not None:
        for folder in (weights, out):
            _check_preparation(folder, preparation)
    copied: list[Path] = []
    with folder_for_results(out):
        try:
            with written_to(out):
                for path in _copies(weights, out):
                    copied.append(path)
            yield
        except InputError:
            for path in copied:
                path.unlink(missing_ok=True)
            raise


def _copies(weights: Path, out: Path) -> Iterator[Path]:
    """What ``out`` lacks of a weights folder, copied one file after the other."""
    if out.resolve() == weights.resolve():
        return
    _check_same_denoisers(weights, out)
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as beside:
        for path in sorted(weights.iterdir()):
            if path.suffix in (".safetensors", ".json") and path.is_file() and not (out / path.name).exists():
                # Half a file would stay, since what is there is not copied again.
                os.replace(shutil.copy2(path, beside), out / path.name)
                yield out / path.name


@contextmanager
def written_to(out: Path) -> Iterator[None]:
    """A failure of writing results, told in a sentence.

    Raises:
        InputError: ``out`` can't be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"--out {out}: can't be written ({error.strerror}). Choose another place.") from error


@contextmanager
def folder_for_results(out: Path) -> Iterator[None]:
    """Make the folder that results go to before data are read, which takes longer; where they are refused, no empty
    one is left.

    Raises:
        InputError: it can't be made.
    """
    new = not out.exists()
    make_folder(out)
    try:
        yield
    except InputError:
        if new:
            with suppress(OSError):  # not empty
                out.rmdir()
        raise


def make_folder(out: Path) -> None:
    """Make a folder.

    Raises:
        InputError: it can't be made.
    """
    with written_to(out):
        out.mkdir(parents=True, exist_ok=True)


def _check_same_denoisers(weights: Path, out: Path) -> None:
    """Refuse an ``out`` whose denoisers would stay, so that ``weights`` would not be what is trained on."""
    for plane in PLANES:
        paths = [folder / f"{plane}.safetensors" for folder in (weights, out)]
        if all(path.is_file() for path in paths) and len({load_card(path, ("unet",)).digest for path in paths}) > 1:
            raise InputError(
                f"--out {out}: its {plane} denoiser is another than that of --weights {weights}. Choose a new --out, "
                f"or train on {out} itself: --weights {out}."
            )


def load_denoiser(folder: Path, plane: str) -> tuple[UNet, Card]:
    """The pre-trained denoiser of a plane.

    Raises:
        InputError: the folder has none, or its file is damaged.
    """
    need_denoisers(folder, (plane,))
    unet, card = load_module(folder / f"{plane}.safetensors", "unet")
    assert isinstance(unet, UNet)
    return unet, card


def load_segmentation_encoder(folder: Path, plane: str, denoiser: UNet) -> tuple[UNet, Card]:
    """A copy of a plane's denoiser with the encoder and middle that were fine-tuned for segmentation.

    Raises:
        InputError: the folder has none, or its file is damaged or was trained on another denoiser.
    """
    path = folder / f"{plane}.segmentation.encoder.safetensors"
    if not path.is_file():
        raise InputError(
            f"{folder}: has no {plane} encoder that was fine-tuned for segmentation. Make it with orthokernels train "
            "segment and an encoder_rate above 0, or set start=denoiser."
        )
    encoder, card = load_encoder(path, denoiser)
    _check_origins(folder, plane, {path.stem: card})
    return encoder, card


def load_segmentation(
    folder: Path, plane: str, denoiser: UNet, settings: Settings
) -> tuple[PlaneWeights, dict[str, str]]:
    """A plane's denoiser with its segmentation head, and the head's own encoder where there is one.

    Returns:
        The weights, and what a card's origin says of them.

    Raises:
        InputError: the folder has no such head, a file is damaged, or was trained on another denoiser.
    """
    path = folder / f"{plane}.segmentation.safetensors"
    if not path.is_file():
        raise InputError(
            f"{folder}: has no {plane} segmentation head, which pooling = structures reads. Make it with orthokernels "
            "train segment, or set another pooling."
        )
    cards: dict[str, Card] = {}
    head: Any
    head, cards[path.stem] = load_module(path, None)
    encoder, own = folder / f"{plane}.segmentation.encoder.safetensors", None
    if encoder.is_file():
        own, cards[encoder.stem] = load_encoder(encoder, denoiser)
    _check_origins(folder, plane, cards, settings)
    found = PlaneWeights(
        denoiser,
        segmentation=head,
        segmentation_point=settings.point("segmentation", plane),
        segmentation_encoder=own,
    )
    return found, {part: origin_of(cards.get(f"{plane}.{part}")) for part in SEGMENTATION}


def _check_origins(folder: Path, plane: str, cards: Mapping[str, Card], settings: Settings | None = None) -> None:
    """Refuse what was fine-tuned or trained for segmentation on another denoiser than the folder's."""
    check_origins(folder, plane, {plane: load_card(folder / f"{plane}.safetensors", ("unet",)), **cards}, settings)


def need_denoisers(folder: Path, planes: Sequence[str]) -> None:
    """Raise InputError unless the folder has a denoiser of every plane: before data are read, which takes longer."""
    for plane in planes:
        if not (folder / f"{plane}.safetensors").is_file():
            raise InputError(f"{folder}: has no {plane} denoiser. Pre-train it: orthokernels train pretrain.")


def _check_preparation(folder: Path, preparation: Mode) -> None:
    """Refuse to train heads on studies prepared otherwise than for those beside them: a run prepares a study once."""
    own = load_settings(folder).preparation
    if own not in (None, preparation):
        raise InputError(
            f"{folder}: its heads were trained on studies of data.preparation={own}, and a run prepares a study once "
            f"for all of them. Set data.preparation={own}, or start from a folder with the denoisers alone."
        )


def change_settings(folder: Path, change: Callable[[Settings], Settings]) -> Settings:
    """Rewrite ``weights.json``, in one piece."""
    settings = change(load_settings(folder))
    beside = folder / ".weights.json.writing"
    try:
        beside.write_text(settings.model_dump_json(indent=1) + "\n")
        os.replace(beside, folder / "weights.json")
    except OSError as error:
        raise InputError(f"{folder}: can't be written ({error.strerror}). Choose another --out.") from error
    return settings


def remove_module(folder: Path, stem: str) -> None:
    """Drop a module that what is written now would not fit."""
    for suffix in (".json", ".safetensors"):
        (folder / f"{stem}{suffix}").unlink(missing_ok=True)
