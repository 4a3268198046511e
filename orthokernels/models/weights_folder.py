"""What a weights folder holds and how it is checked, without PyTorch: settings, cards and digests.

A weights folder holds ``weights.json`` (the settings below) and one safetensors file per module, each with a JSON card
of the same stem that says which module it is, how it was constructed, where it came from, and its digest:

    sagittal.safetensors                the denoiser of a plane
    sagittal.segmentation.safetensors   its segmentation head, where there is one
    sagittal.segmentation.encoder.safetensors   the encoder and middle that were fine-tuned with that head
    sagittal.knee.pooling.safetensors   its pooling for a joint, where there is one
    sagittal.knee.head.safetensors      its single-plane head for a joint, where there is one
    sagittal.knee.encoder.safetensors   the encoder and middle that were fine-tuned with that pooling and head
    knee.fusion.safetensors             the head that fuses the planes for a joint, where there is one
    knee.patient_data.safetensors       the head that fuses them with what is known of the patient, where there is one

Tensors may be stored in half precision; they are float32 once loaded.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orthokernels.data.prepare import SIZE, Mode
from orthokernels.errors import InputError
from orthokernels.folders import cache_folder
from orthokernels.tasks import PLANES

PUBLISHED_TIMESTEP, PUBLISHED_BLOCK = 100, "mid_2"
TIMESTEPS = 1000  # of the diffusion
SEGMENTATION = ("segmentation", "segmentation.encoder")  # files behind the plane's name, and names in an origin
READ = ("encoder", "pooling")  # the same behind the plane's and the joint's: what a head reads
FUSIONS = ("fusion", "patient_data")  # files behind the joint's name
FINE_TUNED = ("input_blocks.", "middle_block.")  # what the published fine-tuning changes; time_embed stays

Timestep = Annotated[int, Field(ge=0, lt=TIMESTEPS)]
Threshold = Annotated[float, Field(ge=0, le=1)]


class Card(BaseModel):
    """What is known of one safetensors file. ``digest`` is ``digest_of`` its tensors."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
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
    """Where features are taken.

    Attributes:
        timestep: of the noise, 0 to 999.
        block: whose output is read.
    """

    model_config = ConfigDict(extra="forbid")

    timestep: Timestep = PUBLISHED_TIMESTEP
    block: str = PUBLISHED_BLOCK


class Settings(BaseModel):
    """``weights.json``.

    Attributes:
        notice: one sentence that says what these weights are; shown with everything made with them.
        size: side of the square slices that the networks were trained on, in pixels.
        preparation: of the studies that the heads were trained on, and that a run therefore takes; None is not known.
        timestep, block: of each plane's features.
        points: the same for one task, "segmentation" or a joint, where it has its own: task, then plane.
        thresholds: probability from which a label counts as present: joint, then label.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    name: str = "unnamed"
    notice: str | None = None
    size: Annotated[int, Field(ge=16, le=2048)] = SIZE
    preparation: Mode | None = None
    timestep: dict[str, Timestep] = dict.fromkeys(PLANES, PUBLISHED_TIMESTEP)
    block: dict[str, str] = dict.fromkeys(PLANES, PUBLISHED_BLOCK)
    points: dict[str, dict[str, FeaturePoint]] = {}
    thresholds: dict[str, dict[str, Threshold]] = {}

    def point(self, task: str, plane: str) -> FeaturePoint:
        """Where a task's features of a plane are taken."""
        general = FeaturePoint(
            timestep=self.timestep.get(plane, PUBLISHED_TIMESTEP), block=self.block.get(plane, PUBLISHED_BLOCK)
        )
        return self.points.get(task, {}).get(plane, general)


def folder_of(name: str) -> Path:
    """The folder of weights that are called "demo" (in the package) or "published" (fetched before), or a path.

    Raises:
        InputError: there is no such folder.
    """
    folder = {"demo": demo_folder(), "published": published_folder()}.get(name, Path(name))
    if name == "published" and not folder.is_dir():
        raise InputError("The published weights are not here yet. Fetch them with 'orthokernels weights fetch'.")
    if not folder.is_dir():
        raise InputError(
            f"--weights {name}: no such folder. Give a weights folder, 'demo', 'published' or random:SEED."
        )
    return folder


def load_settings(folder: Path) -> Settings:
    """The settings of a weights folder, or the published ones where it has no ``weights.json``."""
    path = folder / "weights.json"
    if not path.is_file():
        return Settings()
    try:
        return Settings.model_validate_json(path.read_text())
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a valid settings file ({_reason(error)}). Convert the weights again.") from error


def _reason(error: Exception) -> str:
    """What is wrong first: of a value its name, itself and why."""
    if not isinstance(error, ValidationError):
        return first_line(error)
    first = error.errors()[0]
    if not first["loc"]:
        return first["msg"][:160]
    name = ".".join(str(part) for part in first["loc"])
    return f"{name} = {repr(first['input'])[:40]}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def load_card(path: Path, allowed: Collection[str] | None) -> Card:
    """The card of a safetensors file.

    Args:
        path: of the safetensors file.
        allowed: modules that it may describe; None is any.

    Raises:
        InputError: no card, a damaged one, or one of another module.
    """
    card_path = path.with_suffix(".json")
    try:
        card = Card.model_validate_json(card_path.read_text())
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{card_path}: no valid card for {path.name} ({_reason(error)}). Convert it again.") from error
    if allowed is not None and card.module not in allowed:
        wanted = ("one of " if len(allowed) > 1 else "") + ", ".join(allowed)
        raise InputError(f"{card_path}: describes a module {card.module!r}, not {wanted}.")
    return card


def unreadable(path: Path, error: BaseException) -> InputError:
    """What is said of a safetensors file that its library does not read."""
    return InputError(f"{path}: not a readable safetensors file ({first_line(error)}). Convert it again.")


def check_digest(path: Path, card: Card, digest: str) -> None:
    """Refuse a file whose content is not what its card says."""
    if digest != card.digest:
        raise InputError(f"{path}: its content does not match the digest in its card. Convert or fetch it again.")


def unfit(path: Path, error: BaseException) -> InputError:
    """What is said of tensors that do not make the module of their card."""
    return InputError(f"{path}: does not fit its card ({first_line(error)}). Convert it again.")


def not_its_encoder(path: Path) -> InputError:
    """What is said of fine-tuned tensors that are not the denoiser's by name and shape."""
    return InputError(f"{path}: is not the encoder of the denoiser beside it. Train or convert it again.")


def check_structures(folder: Path, plane: str, pooling: str | None, *, segments: bool) -> None:
    """Refuse a pooling that reads what a segmentation finds, without one."""
    if pooling == "structures" and not segments:
        raise InputError(
            f"{folder}: the {plane} pooling reads the structures that the segmentation finds, and there is no "
            f"{plane}.segmentation.safetensors. Fetch or train the weights again."
        )


def check_origins(folder: Path, plane: str, cards: Mapping[str, Card], settings: Settings | None = None) -> None:
    """Refuse a module of a plane that was trained on other modules than lie beside it now, or on features of another
    point than the settings take, as far as its card says.

    Args:
        cards: of modules by the stems of their files, with all of the plane's among them.
        settings: of the folder; without them points are not compared.
    """
    beside = {f"{plane}.{part}".removesuffix(".denoiser"): part for part in ("denoiser", *SEGMENTATION)}
    for stem, card in cards.items():
        first, *task = stem.split(".")
        if first != plane:
            continue
        own = {f"{plane}.{task[0]}.{part}": part for part in READ} if len(task) > 1 else {}
        for read, part in {**beside, **own}.items():
            if card.origin.get(part) not in (None, origin_of(cards.get(read))):
                raise _of_another(folder, stem, part.replace(".", " "))
        if task and settings is not None:
            _check_point(folder, stem, card, settings.point(task[0], plane))


def check_fusions(folder: Path, joint: str, cards: Mapping[str, Card]) -> None:
    """Refuse what fuses the planes where it was trained on other heads than theirs, as far as its card says.

    Args:
        cards: of modules by the stems of their files, with all of the planes that are looked at among them.
    """
    for stem in (f"{joint}.{name}" for name in FUSIONS if f"{joint}.{name}" in cards):
        for plane, part in itertools.product(PLANES, ("head", *READ)):
            told = cards[stem].origin.get(f"{plane}.{part}")
            if plane in cards and told not in (None, origin_of(cards.get(f"{plane}.{joint}.{part}"))):
                raise _of_another(folder, stem, f"{plane} {part}")


def _of_another(folder: Path, stem: str, part: str) -> InputError:
    return InputError(
        f"{folder / stem}.safetensors: was trained on another {part} than the one beside it. Train it again on this "
        "one (orthokernels train), or take the whole folder it came from."
    )


def _check_point(folder: Path, stem: str, card: Card, point: FeaturePoint) -> None:
    taken = {"timestep": str(point.timestep), "block": point.block}
    for name, value in taken.items():
        if card.origin.get(name) not in (None, value):
            raise InputError(
                f"{folder / stem}.safetensors: was trained on features of {name} {card.origin[name]}, and weights.json "
                f"takes them of {name} {value}. Write its own {name} there, or train it again (orthokernels train)."
            )


def origin_of(card: Card | None) -> str:
    """How the origin of a module's card names another that it was trained on: by digest, "none" where there is none."""
    return "none" if card is None else card.digest


def no_denoiser(folder: Path, planes: Iterable[str]) -> InputError:
    """What is said of a folder without any of the planes' denoisers."""
    return InputError(f"{folder}: holds no denoiser ({', '.join(f'{p}.safetensors' for p in planes)}).")


def digest_of_bytes(tensors: Iterable[tuple[str, str, tuple[int, ...], bytes | memoryview]]) -> str:
    """SHA-256 over tensors in the order of their names.

    Args:
        tensors: each name, dtype ("float32"), shape and little-endian bytes, in the order of the names.
    """
    sha = hashlib.sha256()
    for name, dtype, shape, content in tensors:
        sha.update(f"{name} torch.{dtype} {shape}\n".encode())
        sha.update(content)
    return sha.hexdigest()


def demo_folder() -> Path:
    """Where the package keeps its demo weights, trained on digital joints; its README.md is their card."""
    return Path(__file__).parent / "demo"


def published_folder() -> Path:
    """Where fetched weights live."""
    return cache_folder() / "weights" / "published"


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:160] if lines else type(error).__name__
