"""Checkpoints: one file each, whole or not there at all.

A file is what ``torch.save`` writes of tensors and plain values (no code runs when it is read), and behind it the
SHA-256 of that, since PyTorch does not notice a damaged tensor. It is written beside its place, brought to the disk,
then renamed, so a kill at any moment leaves the ones before it.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orthokernels.errors import InputError

State = dict[str, Any]

_NAME = re.compile(r"step_(\d+)\.pt")
_DIGEST = hashlib.sha256().digest_size


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: theirs alone; made when the first is saved.
        keep: how many of the newest stay; "best.pt" stays besides.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.pt"

    def save(self, step: int, state: State, *, best: bool = False) -> Path:
        """Write the state after ``step`` steps, and drop all but the newest.

        Raises:
            InputError: the folder can not be written.
        """
        path = self.folder / "best.pt" if best else self.path(step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, state)
            # A later one is damaged, or the run would have gone on from it: it must not push out what is new.
            for old in [own for own in self.steps() if own <= step][: -self.keep]:
                self.path(old).unlink(missing_ok=True)
            for part in self.folder.glob("*.writing"):  # of a run that was killed
                part.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"{path}: can't be written ({error.strerror}). Make room, or name another --out."
            ) from error
        return path

    def steps(self) -> list[int]:
        """Steps of which there are checkpoints, oldest first."""
        names = [_NAME.fullmatch(path.name) for path in self.folder.glob("step_*.pt")]
        return sorted(int(name[1]) for name in names if name)

    def newest(self) -> tuple[int, State] | None:
        """The newest checkpoint that is whole, tensors on the CPU; a damaged one is warned of and passed over."""
        steps = self.steps()
        for number, step in reversed(list(enumerate(steps))):
            try:
                return step, read(self.path(step))
            except InputError as error:
                then = "The one before it is used." if number else "There is none before it: the run begins anew."
                warnings.warn(f"{error} {then}", stacklevel=2)
        return None

    def best(self) -> State | None:
        """The checkpoint that was best on validation data, where one was kept."""
        path = self.folder / "best.pt"
        return read(path) if path.is_file() else None

    def clear(self) -> None:
        """Remove every checkpoint."""
        for path in [*self.folder.glob("step_*.pt"), *self.folder.glob("best.pt")]:
            path.unlink()


def _write(path: Path, state: State) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    beside = path.with_suffix(".writing")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.write(hashlib.sha256(content).digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with suppress(OSError):  # half a checkpoint would keep a full disk full
            beside.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the new name itself must reach the disk
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path) -> State:
    """One checkpoint, tensors on the CPU.

    Raises:
        InputError: it is missing, cut short, damaged, or holds more than tensors and plain values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}).") from error
    if hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:]:
        raise InputError(f"{path}: is cut short or damaged.")
    try:
        return torch.load(io.BytesIO(content[:-_DIGEST]), map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own
        raise InputError(f"{path}: is no checkpoint of ours ({str(error).splitlines()[0][:100]}).") from error


def check_same(stored: Mapping[str, Any], current: Mapping[str, Any], where: Path) -> None:
    """Raise InputError where a checkpoint was made with another network or other data than the run that wants it."""
    names = [name for name in sorted({*stored, *current}) if stored.get(name) != current.get(name)]
    if names:
        told = "; ".join(f"{name} was {stored.get(name)}, is {current.get(name)}" for name in names[:3])
        more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
        raise InputError(
            f"{where}: belongs to a run with other settings ({told}{more}). Use those, another --out, or --fresh."
        )


def random_states() -> State:
    """The global generators' states, as tensors and plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.array(keys, np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: State) -> None:
    """Put the global generators where ``random_states`` found them."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
