"""What can be wrong with a data set, all of it told at once and before training starts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from PIL import Image

from orthokernels.data.geometry import plane_of, slice_axis
from orthokernels.data.nifti import affine_of
from orthokernels.data.volume import MIN_SLICES
from orthokernels.errors import InputError
from orthokernels.training.series import (
    IGNORED,
    MIN_MASKED_SLICES,
    Record,
    checked_labels,
    read_mask,
    stack_of,
)

_SHOWN = 20
_SAME_PLACE_MM = 0.1  # affines stored in float32 differ by less


def check_records(
    records: Sequence[Record],
    *,
    preparation: Literal["published", "full"] = "full",
    labels: bool = True,
    workers: int = 8,
) -> None:
    """Look at every record: headers of images, whole label maps and pictures, findings, and the split.

    Args:
        preparation: "published" also wants slices along the file's third axis.
        labels: whether label maps and pictures are looked at; their values must be read in full.

    Raises:
        InputError: one message that lists what is wrong, the first 20 in full.
    """
    if not records:
        raise InputError("the data set lists no series.")
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda record: list(_of_record(record, preparation, labels)), records)
        problems = [problem for of_record in found for problem in of_record]
    problems = list(dict.fromkeys([*_of_splits(records), *problems]))
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        raise InputError(f"the data set has {count}; correct or leave out what is listed:{listed}{more}")


def _of_splits(records: Sequence[Record]) -> Iterator[str]:
    """Patients, and files, on two sides."""
    for what, key in (("patient", lambda r: r.patient), ("file", lambda r: f"{r.image} ({r.plane})")):
        sides: dict[str, set[str]] = defaultdict(set)
        for record in records:
            if record.split is not None:
                sides[key(record)].add(record.split)
        for name, own in sides.items():
            if len(own) > 1:
                yield f"{what} {name}: is in {' and in '.join(sorted(own))}"
    owners: dict[str, str] = {}
    for record in records:  # a split that is drawn would put it on two sides
        name = f"{record.image} ({record.plane})"
        if owners.setdefault(name, record.patient) != record.patient:
            yield f"file {name}: is of patient {owners[name]} and of patient {record.patient}"


def _of_record(record: Record, preparation: str, labels: bool) -> Iterator[str]:
    if record.findings is not None:
        wrong = [value for value in record.findings if not (math.isnan(value) or value in (0.0, 1.0))]
        if wrong:
            yield f"study {record.study}: findings must be 0, 1 or empty, not {', '.join(_shown(v) for v in wrong)}"
    try:
        stack = stack_of(record)
    except InputError as error:
        yield _plain(error)
        return
    except (OSError, IndexError) as error:
        yield f"{record.image}: holds no {record.plane} series that can be read ({error})"
        return
    axis = slice_axis(stack.affine, stack.source.kind)
    if stack.shape[axis] < MIN_SLICES:
        yield f"{record.image}: {stack.shape[axis]} slices; at least {MIN_SLICES} are needed"
    if preparation == "published" and axis != 2:
        yield f"{record.image}: its slices lie along axis {axis + 1}, the published preparation cuts along the third"
    plane = plane_of(stack.affine, stack.source.kind)[0]
    if plane != record.plane:
        yield f"{record.image}: is {plane or 'of no plane'} by its header, {record.plane} by its record"
    if labels:
        yield from _of_labels(record, stack.shape, stack.affine)


def _shown(value: float) -> str:
    return "text" if value == -99.0 else f"{value:g}"


def _plain(error: InputError) -> str:
    return str(error).rstrip(".")


def _of_labels(record: Record, shape: tuple[int, ...], affine: np.ndarray) -> Iterator[str]:
    if record.labels is not None:
        yield from _of_label_map(record.labels, shape, affine)
    if record.masks:
        yield from _of_masks(record, shape)


def _of_label_map(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> Iterator[str]:
    try:
        image: Any = nibabel.load(path)
        stored = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel, zlib and the system each have their own
        yield f"{path}: not a readable label map ({str(error).splitlines()[0]})"
        return
    if stored.shape != shape:
        yield f"{path}: {_times(stored.shape)} voxels, its image has {_times(shape)}"
    elif not np.allclose(_corners(affine_of(image), shape), _corners(affine, shape), atol=_SAME_PLACE_MM):
        yield f"{path}: does not lie where its image does"
    try:
        checked_labels(stored, path)
    except InputError as error:
        yield _plain(error)


def _corners(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    ends = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    return ends @ np.asarray(affine, float).T


def _of_masks(record: Record, shape: tuple[int, ...]) -> Iterator[str]:
    """Label pictures: their number, size, and whether anything in them is a label. Only the pictures are read."""
    if len({number for number, _ in record.masks}) < MIN_MASKED_SLICES:
        yield f"{record.image}: {len(record.masks)} labelled slice; at least {MIN_MASKED_SLICES} are needed"
    for number, path in record.masks:
        if number > shape[2]:
            yield f"{path}: is slice {number} of an image with {shape[2]} slices"
        try:
            with Image.open(path) as opened:
                size = opened.size  # width along i, height along j
        except (OSError, ValueError, SyntaxError) as error:
            yield f"{path}: {'no such file' if not path.is_file() else f'not a readable picture ({error})'}"
            continue
        if size != shape[:2]:
            yield f"{path}: {_times(size)} pixels, its image has {_times(shape[:2])}"
        elif (read_mask(path) == IGNORED).all():
            yield f"{path}: no value is a label"


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
