"""Settings of ``orthokernels train``: one typed model per sub-command, from a file and command-line overrides.

The defaults are the published settings. A file is YAML or TOML with the same names; "optimiser.rate=3e-4" overrides.
"""

from __future__ import annotations

import contextlib
import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orthokernels.errors import InputError
from orthokernels.models.weights_folder import Timestep
from orthokernels.tasks import PLANES

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]  # Adam divides by 1 - beta
Some = Field(min_length=1)  # a list with nothing in it would leave nothing to do


class Section(BaseModel):
    """A group of settings: unknown names are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _a_group_keeps_the_defaults_that_it_has_here(cls, given: Any) -> Any:
        """One setting of a group leaves the others at this section's defaults, which may not be the group's own."""
        if not isinstance(given, dict):
            return given
        filled = dict(given)
        for name, own in given.items():
            default = cls.model_fields[name].default if name in cls.model_fields else None
            if isinstance(default, BaseModel) and isinstance(own, dict):
                filled[name] = {**default.model_dump(exclude_unset=True), **own}
        return filled


class DataConfig(Section):
    """Which data, and how they are prepared.

    Attributes:
        joint: whose labels are read; studies of another joint are left out.
        images: folder that a published CSV's file names start from; by default the CSV's own.
        masks: the same for label pictures; by default the images' folder.
        plane: which every series of a published CSV shows that has no column for it.
        poses: the planes that a published CSV's numbers 0, 1, 2 stand for.
        masks_mirrored: label pictures have left and right exchanged.
        split_file: a CSV with columns patient (or study) and split.
        validation: a second table, all of it for validation (the published CSVs come in pairs).
        preparation: "published" is the centre 16 slices; "full" all slices, slabs at random.
        size: side of the network's slices in pixels.
        cache: folder of prepared volumes; None is the user's cache folder.
        validate_share: share of the patients held out where the data set has no split of its own.
        test_share: share of the patients kept away from training and validation alike.
        split_seed: decides which patients those are.
        workers: processes that read slabs; 0 reads in the training process.
        prefetch: batches that each of them prepares ahead.
    """

    joint: Literal["knee", "ankle", "shoulder"] = "knee"
    images: Path | None = None
    masks: Path | None = None
    plane: str | None = None
    poses: tuple[str, ...] = ("axial", "sagittal", "coronal")
    masks_mirrored: bool = False
    split_file: Path | None = None
    validation: Path | None = None
    preparation: Literal["published", "full"] = "published"
    size: Annotated[int, Field(ge=16, le=2048)] = 256
    cache: Path | None = None
    validate_share: Share = 0.1
    test_share: Share = 0.0
    split_seed: int = 0
    workers: NotNegative = 2
    prefetch: Positive = 4


class AugmentConfig(Section):
    """Random changes of a training slab; none by default, as published.

    Attributes:
        crop: side of a random in-plane square in pixels; None keeps the whole slice.
        shift: largest shift in-plane, as a share of the side; what enters is the slice's edge value.
        gain: intensities are multiplied by 1 +- this, then clipped to [-1, 1].
        gamma: intensities, mapped to [0, 1], are raised to a power between 1 / (1 + this) and 1 + this.
        flip: mirror axis 0 or 1 in-plane with even odds. Laterality is lost with it.
    """

    crop: Annotated[int, Field(ge=16)] | None = None
    shift: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    gain: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gamma: Annotated[float, Field(ge=0)] = 0.0
    flip: bool = False


class NetworkConfig(Section):
    """The denoiser; the defaults are the published network.

    Attributes:
        base_channels: width of the first level.
        channel_mults: width of each level as a multiple of it; depth, height and width halve between two levels.
        res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_rates: down-sampling rates (1, 2, 4, ...) whose blocks end in self-attention. The middle always has
            one.
        heads: attention heads.
        head_channels: channels per head, instead of ``heads``.
        groups: groups of every normalisation; must divide the width of every level.
        dropout: probability, before the last convolution of a residual block.
        patch: voxels along depth, height and width that the network sees as one, their values as channels.
        checkpoint: recompute each block in the backward pass instead of keeping its activations.
    """

    base_channels: Positive = 64
    channel_mults: tuple[Positive, ...] = (1, 1, 2, 2, 4)
    res_blocks: Positive = 1
    attention_rates: tuple[Positive, ...] = (16,)
    heads: Positive = 1
    head_channels: Positive | None = None
    groups: Positive = 32
    dropout: Share = 0.0
    patch: tuple[Positive, Positive, Positive] = (1, 1, 1)
    checkpoint: bool = False

    def arguments(self) -> dict[str, Any]:
        """What ``UNet`` is built with."""
        return self.model_dump()


class OptimiserConfig(Section):
    """Adam and its rate.

    Attributes:
        rate: the published 1e-5 times batch (10), on one GPU. It is not scaled by the number of processes here.
        betas: shares that stay of the running means of the gradient and of its square.
        warmup: steps over which the rate rises from 0.
        schedule: "constant" as published, or "cosine" down to ``last_rate`` of it.
        last_rate: share of the rate that is left at the last step, where the schedule is "cosine".
        weight_decay: decoupled (AdamW) where it is not 0.
    """

    rate: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup: NotNegative = 0
    schedule: Literal["constant", "cosine"] = "constant"
    last_rate: Share = 0.0


class EmaConfig(Section):
    """The running mean of the weights, which is what a run ends with.

    Attributes:
        decay: share of the mean that stays.
        start: the step up to which it is a copy of the weights.
        every: steps from one move of the mean to the next.
    """

    decay: Share = 0.995
    start: NotNegative = 2000
    every: Positive = 10


class LoopConfig(Section):
    """How long and how a loop runs.

    Attributes:
        steps: optimiser steps.
        batch: slabs per process and pass.
        accumulate: passes whose gradients make one step.
        clip_norm: largest norm of the gradient; None does not clip.
        precision: "bf16" runs the network under autocast; weights and optimiser stay float32.
        channels_last: memory format of volumes and weights.
        accelerate: on a CPU, let the native ops train the network (``orthokernels.accelerate``); other devices, and
            networks that are compiled, are left as they are.
        compile: compile the network with torch.compile.
        deterministic: ask PyTorch for deterministic kernels, so that a resumed GPU run repeats bit for bit where it
            has them; CPU runs repeat anyway.
        seed: decides everything random in training.
        log_every: steps from one line of progress, and point of the curves, to the next; 0 only at the end.
        save_every: steps from one checkpoint to the next; 0 only at the end.
        validate_every: steps from one validation to the next; 0 only at the end.
        keep: how many of the newest checkpoints are kept.
    """

    steps: Positive = 21_500
    batch: Positive = 10
    accumulate: Positive = 1
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    accelerate: bool = True
    compile: bool = False
    deterministic: bool = False
    seed: NotNegative = 0
    log_every: NotNegative = 20
    save_every: NotNegative = 500
    validate_every: NotNegative = 500
    keep: Positive = 2


class PretrainConfig(Section):
    """``orthokernels train pretrain``.

    Attributes:
        planes: trained one after the other, a network each.
        loss: of the predicted noise.
        min_snr_gamma: weight of a timestep is min(snr, gamma) / snr (arXiv 2303.09556); None weighs all alike.
        validate_timesteps: timesteps of the validation loss.
        validate_slabs: at most so many slabs are validated on.
        half: store the result's tensors as float16.
        picture_steps: DDIM steps of the sample picture at the end; 0 makes none.
    """

    planes: Annotated[tuple[str, ...], Some] = PLANES
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    ema: EmaConfig = EmaConfig()
    loop: LoopConfig = LoopConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: Literal["l1", "l2"] = "l2"
    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    validate_timesteps: Annotated[tuple[Timestep, ...], Some] = (20, 100, 300, 600, 900)
    validate_slabs: Positive = 32
    half: bool = False
    picture_steps: NotNegative = 0


Model = TypeVar("Model", bound=BaseModel)


def load_config(model: type[Model], file: Path | None = None, overrides: Sequence[str] = ()) -> Model:
    """Settings from a YAML or TOML file, changed by overrides such as "loop.steps=100" or "planes=[axial]".

    Raises:
        InputError: the file can not be read, or a name or value is wrong; the message names each.
    """
    settings = _read(file) if file is not None else {}
    for override in overrides:
        _set(settings, override)
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        where = f"{file}: " if file is not None else ""
        raise InputError(where + "; ".join(_told(model, e) for e in error.errors()) + ".") from error


def named(section: BaseModel, *, include: set[str] | None = None, exclude: set[str] | None = None) -> dict[str, Any]:
    """Settings as plain values under their dotted names, for a run's identity.

    Args:
        include, exclude: names of the section's own settings.
    """

    def below(name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, dict):
            yield name, value
            return
        for key, own in value.items():
            yield from below(f"{name}.{key}" if name else key, own)

    return dict(below("", section.model_dump(mode="json", include=include, exclude=exclude)))


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        found = tomllib.loads(text) if file.suffix.lower() == ".toml" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file}: can't be read ({getattr(error, 'strerror', None) or error}).") from error
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"--config {file}: not valid {'TOML' if file.suffix == '.toml' else 'YAML'}: {reason}."
        ) from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InputError(f"--config {file}: holds a {type(found).__name__}, not settings by name.")
    return found


def _set(settings: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    path = [part.strip() for part in name.split(".")]
    if not equals or not all(path):
        raise InputError(f"--set {override}: is not of the form name=value, such as loop.steps=100.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: {text!r} is no value; write numbers, words or [lists].") from error
    # YAML 1.1 reads 1e-4 as a word; a number was meant.
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    for part in path[:-1]:
        settings = settings.setdefault(part, {})
        if not isinstance(settings, dict):
            raise InputError(f"--set {override}: {part} is a value, not a group of settings.")
    settings[path[-1]] = value


def _told(model: type[BaseModel], error: Any) -> str:
    """One problem in words, with the nearest known name for an unknown one."""
    place = [str(part) for part in error["loc"]]
    name = ".".join(place)
    if error["type"] == "value_error":
        return f"{name} = {error['input']!r}: {error['ctx']['error']}"
    if error["type"] != "extra_forbidden":
        return f"{name} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
    known = _names(model, place[:-1])
    near = difflib.get_close_matches(place[-1], known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"there is no setting {name} ({hint})"


def _names(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    current: Any = model
    for part in path:
        in_dict = get_origin(current) is dict
        current = get_args(current)[1] if in_dict else current.model_fields[part].annotation
        if get_origin(current) in (Union, UnionType):  # a group of settings, or None
            current = next(one for one in get_args(current) if one is not type(None))
    return list(current.model_fields)
