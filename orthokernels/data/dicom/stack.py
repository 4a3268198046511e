"""Stacks: the frames of a series sorted into volumes, by position and orientation alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from orthokernels.data.dicom.frame import Frame
from orthokernels.data.dicom.pixels import decode
from orthokernels.data.volume import MIN_SLICES, Source, Volume, check_voxels
from orthokernels.errors import InputError

# Two images nearer than this along the normal are at one location; the thinnest 3-D scans have slices of 0.3 mm.
_SAME_PLACE_MM = 0.05

# A gap of more usual steps than this is none of lost slices, where whole stacks lie on either side of it.
_GAP_STEPS = 5.0


@dataclass(frozen=True)
class DicomStack:
    """Evenly spaced frames in ascending order along their normal: a volume not yet decoded."""

    frames: tuple[Frame, ...]
    source: Source
    warnings: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.frames[0].columns, self.frames[0].rows, len(self.frames)

    @property
    def affine(self) -> np.ndarray:
        """Voxel (i, j, k) to RAS mm; i is the column, j the row counted from below, k the slice along the normal."""
        first, last = self.frames[0], self.frames[-1]
        between_rows, between_columns = first.pixel_spacing
        along_row, down_column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
        affine = np.eye(4)
        affine[:3, 0] = along_row * between_columns
        affine[:3, 1] = -down_column * between_rows
        start = np.array(first.position)
        if len(self.frames) > 1:
            affine[:3, 2] = (np.array(last.position) - start) / (len(self.frames) - 1)
        else:
            affine[:3, 2] = first.normal
        affine[:3, 3] = start + down_column * between_rows * (first.rows - 1)
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

    def load(self) -> Volume:
        """Decode the frames; those that can not be decoded are left out with a warning, if enough remain.

        Raises:
            InputError: too few slices can be decoded, or the voxels hold no image.
        """
        pixels, damage = decode(self.frames)
        stack: DicomStack | None = self
        notes = list(self.warnings)
        if damage:
            notes += [f"left out: {reason}" for reason in damage]
            readable = [frame for frame in self.frames if (frame.path, frame.index) in pixels]
            stacks, _ = stacks_of(readable)
            stack = max(stacks, key=lambda s: len(s.frames), default=None)
            if stack is None or len(stack.frames) < MIN_SLICES:
                raise InputError(f"too few slices can be decoded; {damage[0]}")
            notes += stack.warnings
        assert stack is not None
        voxels = assemble(stack.frames, pixels)
        check_voxels(voxels, stack.source.description)
        places = tuple((frame.path, frame.index) for frame in stack.frames)
        return Volume(voxels, stack.affine, stack.source, tuple(notes), places)


def stacks_of(frames: Sequence[Frame]) -> tuple[list[DicomStack], list[tuple[str, str]]]:
    """Sort the frames of one series into stacks, one per echo, orientation, image type and time.

    Returns the stacks, and for each group of frames that makes none its name and the reason.
    """
    stacks: list[DicomStack] = []
    reasons: list[tuple[str, str]] = []
    echoes = len({frame.source.echo_time for frame in frames})
    groups = _groups(frames)
    for group in groups:
        repetitions = _repetitions(group)
        beside = [own for own in groups if _alike(own[0], group[0])]
        for number, (leftovers, repetition) in enumerate(repetitions, start=1):
            name = frames[0].source.description
            if echoes > 1:
                echo = group[0].source.echo_time
                name += f", echo {echo:g} ms" if echo is not None else ", no echo time"
            if len(beside) > 1:
                name += f", field of view {beside.index(group) + 1}"
            if len(repetitions) > 1:
                name += f", repetition {number}"
            parts = _apart(repetition)
            for place, part in enumerate(parts, start=1):
                own = f"{name}, stack {place}" if len(parts) > 1 else name
                try:
                    stacks.append(_stack(part, leftovers, own))
                except InputError as error:
                    reasons.append((own, str(error)))
    return stacks, reasons


def _groups(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames that could lie in one volume. Orientations are compared with a tolerance, since headers round them."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if _alike(group[0], frame) and not _side_by_side(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def _alike(a: Frame, b: Frame) -> bool:
    return (
        (a.rows, a.columns, a.image_type) == (b.rows, b.columns, b.image_type)
        and a.source.echo_time == b.source.echo_time
        and np.allclose(a.pixel_spacing, b.pixel_spacing, rtol=1e-3, atol=0)
        and np.allclose(a.orientation, b.orientation, rtol=0, atol=1e-2)
    )


def _side_by_side(a: Frame, b: Frame) -> bool:
    """Whether two frames of one orientation show different fields of view, as two knees in one series have them."""
    offset = np.array(b.position) - np.array(a.position)
    along_rows, along_columns = abs(offset @ a.orientation[:3]), abs(offset @ a.orientation[3:])
    between_rows, between_columns = a.pixel_spacing
    return bool(along_rows > 0.5 * a.columns * between_columns or along_columns > 0.5 * a.rows * between_rows)


def _repetitions(frames: Sequence[Frame]) -> list[tuple[int, list[Frame]]]:
    """Split frames that repeat every location equally often, by time. Each comes with the number of leftovers."""
    places: list[list[Frame]] = []
    for frame in sorted(frames, key=lambda f: f.distance):
        if places and frame.distance - places[-1][0].distance < _SAME_PLACE_MM:
            places[-1].append(frame)
        else:
            places.append([frame])
    for place in places:
        place.sort(key=lambda f: (f.time_order, f.index, str(f.path)))
    counts = {len(place) for place in places}
    if len(places) > 1 and len(counts) == 1:
        return [(0, [place[n] for place in places]) for n in range(counts.pop())]
    if len(places) == 1:
        return [(len(frames) - 1, places[0])]
    return [(sum(len(p) - 1 for p in places), [place[0] for place in places])]


def _apart(frames: Sequence[Frame]) -> list[Sequence[Frame]]:
    """Sorted frames by stack, where gaps show that there are several, as of two joints; a few lost slices make none."""
    steps = np.diff([frame.distance for frame in frames])
    if len(steps) < 2:
        return [frames]
    cuts = [0, *(np.flatnonzero(steps > _GAP_STEPS * np.median(steps)) + 1).tolist(), len(frames)]
    parts = [frames[start:stop] for start, stop in itertools.pairwise(cuts)]
    return parts if sum(len(part) >= MIN_SLICES for part in parts) > 1 else [frames]


def _stack(frames: Sequence[Frame], leftovers: int, name: str) -> DicomStack:
    """Evenly spaced slices out of sorted ones: the longest even run, where a slice is missing."""
    if len(frames) > 1 and frames[-1].distance - frames[0].distance < _SAME_PLACE_MM:
        raise InputError(f"{len(frames)} images of one location over time, not a stack of slices")
    notes = []
    if leftovers:
        notes.append(f"{leftovers} further images at the same positions were left out")
    start, stop = _longest_even_run(np.array([frame.distance for frame in frames]))
    if stop - start < len(frames):
        notes.append(
            f"slices are missing (the gaps differ), so only slices {start + 1} to {stop} of {len(frames)} are used"
        )
    run = tuple(frames[start:stop])
    if len(run) > 2:
        _check_straight(run)
    paths = tuple(dict.fromkeys(frame.path for frame in run))
    source = replace(run[0].source, description=name, paths=paths)
    sides = sorted({frame.source.laterality for frame in run if frame.source.laterality})
    if len(sides) > 1:
        notes.append(f"its slices name both sides ({', '.join(sides)}), so its side is left open")
        source = replace(source, laterality=None)
    return DicomStack(run, source, tuple(notes))


def _longest_even_run(distances: np.ndarray) -> tuple[int, int]:
    """First and last-plus-one of the longest run whose steps are the usual one to 5 % (headers round positions)."""
    if len(distances) < 3:
        return 0, len(distances)
    steps = np.diff(distances)
    usual = float(np.median(steps))
    best, start = (0, 1), 0
    for n, step in enumerate([*steps.tolist(), np.inf]):
        if abs(step - usual) > 0.05 * usual + 0.01:
            best = max(best, (start, n + 1), key=lambda run: run[1] - run[0])
            start = n + 1
    return best


def _check_straight(frames: Sequence[Frame]) -> None:
    """Slices must step along a straight line, or no affine describes them."""
    positions = np.array([frame.position for frame in frames])
    line = np.linspace(positions[0], positions[-1], len(positions))
    worst = float(np.abs(positions - line).max())
    if worst > 0.5 * min(frames[0].pixel_spacing):
        raise InputError(
            f"the slices are shifted against each other by up to {worst:.1f} mm, so they are no one volume"
        )


def assemble(frames: Sequence[Frame], pixels: dict[tuple[Path, int], np.ndarray]) -> np.ndarray:
    """Voxels with axes (i, j, k); rescaled to float32 only where the file asks for it."""
    planes = [pixels[frame.path, frame.index] for frame in frames]
    rescaled = any((frame.slope, frame.intercept) != (1.0, 0.0) for frame in frames)
    kind = np.float32 if rescaled else np.result_type(*planes)
    stack = np.empty((len(frames), frames[0].rows, frames[0].columns), kind)
    for slot, frame, plane in zip(stack, frames, planes, strict=True):
        slot[...] = plane[::-1]
        if rescaled:
            slot *= frame.slope
            slot += frame.intercept
    return stack.transpose(2, 1, 0)
