"""What a montage shows and where it stands: slices, patient directions, legend, and the sheet in pixels."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orthokernels import tasks
from orthokernels.fonts import has_glyph
from orthokernels.result import PlaneArrays, PlaneResult, label_counts

SLICES = 12
WIDTH, MARGIN, GAP, SEAM = 1800, 40, 28, 4
BAND, HEADER, NOTE_LINE, CAPTION, LEGEND_LINE, FOOTER = 52, 138, 28, 32, 34, 62
LEGEND_COLUMNS = 4

_COLOURS = {s.key: s.colour for s in tasks.STRUCTURES}
# For classes without a published name: far apart in hue, and light enough for a dark picture.
_UNNAMED_COLOURS = (
    (86, 180, 233),
    (240, 160, 30),
    (60, 200, 140),
    (245, 232, 80),
    (235, 95, 70),
    (200, 130, 230),
    (70, 120, 235),
    (165, 225, 105),
    (245, 150, 185),
    (110, 235, 235),
    (205, 165, 115),
    (225, 225, 235),
)


def colour(key: str, index: int) -> tuple[int, int, int]:
    """sRGB colour, 0 to 255, of a structure: the table's own, or one by ``index`` for a class without a name."""
    return _COLOURS.get(key, _UNNAMED_COLOURS[(index - 1) % len(_UNNAMED_COLOURS)])


def choose_slices(labels: np.ndarray | None, slices: int, wanted: int = SLICES) -> tuple[int, ...]:
    """Slices to show, ascending: labelled ones first, evenly over the stack, then others evenly between them.

    Args:
        labels: label map with axes (i, j, k), or None.
        slices: length of the stack.
        wanted: how many to choose; a shorter stack is shown whole.
    """
    labelled = np.zeros(slices, bool) if labels is None else labels.any(axis=(0, 1))
    chosen = _evenly(np.flatnonzero(labelled), wanted)
    chosen += _evenly(np.flatnonzero(~labelled), wanted - len(chosen))
    return tuple(sorted(chosen))


def _evenly(candidates: np.ndarray, wanted: int) -> list[int]:
    count = min(wanted, len(candidates))
    middles = (np.arange(count) + 0.5) * len(candidates) / max(count, 1)
    return [int(k) for k in candidates[middles.astype(int)]]


def edge_letters(affine: np.ndarray) -> tuple[str, str, str, str]:
    """Patient directions at the left, right, bottom and top edge of a picture, each by its dominant letter."""
    (left, right), (bottom, top) = (_letters(affine[:3, axis]) for axis in (0, 1))
    return left, right, bottom, top


def _letters(direction: np.ndarray) -> tuple[str, str]:
    """Letters at the start and at the end of a direction in RAS."""
    axis = int(np.argmax(np.abs(direction)))
    negative, positive = ("LR", "PA", "IS")[axis]
    return (negative, positive) if direction[axis] > 0 else (positive, negative)


def slice_position(affine: np.ndarray, shape: Sequence[int], k: int) -> str:
    """Where slice ``k`` lies along its normal, with the dominant patient direction: "R 32.1 mm"."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal = normal / np.linalg.norm(normal)
    axis = int(np.argmax(np.abs(normal)))
    centre = affine @ np.array([(shape[0] - 1) / 2, (shape[1] - 1) / 2, k, 1.0])
    millimetres = float(centre[:3] @ normal * np.sign(normal[axis]))
    return f"{('LR', 'PA', 'IS')[axis][millimetres > 0]} {abs(millimetres):.1f} mm"


def volume_heading(plane: PlaneResult) -> str:
    """Which slices a volume counts, numbered from 1; ``labelled_slices`` is half-open and numbered from 0."""
    if plane.labelled_slices is None:
        return "Volume of each structure"
    first, stop = plane.labelled_slices
    return f"Volume of each structure within slices {first + 1} to {stop}"


@dataclass(frozen=True)
class LegendEntry:
    """A structure with at least one voxel; ``colour`` is sRGB, 0 to 255, and ``cut_off`` as in ``StructureVolume``."""

    index: int
    name: str
    colour: tuple[int, int, int]
    ml: float
    cut_off: bool = False


def _legend_entries(plane: PlaneResult, arrays: PlaneArrays) -> list[LegendEntry]:
    """Structures that have a voxel in the label map, by their index."""
    if arrays.labels is None:
        return []
    reported = {s.index: s for s in plane.structures}
    counts = label_counts(arrays.labels)
    voxel_ml = abs(np.linalg.det(arrays.affine[:3, :3])) / 1000
    entries = []
    for index in (int(i) for i in np.flatnonzero(counts) if i):
        key = arrays.names[index] if index < len(arrays.names) else f"class_{index}"
        known = reported.get(index)
        name, ml = (known.name, known.ml) if known else (key, counts[index] * voxel_ml)
        entries.append(LegendEntry(index, name, colour(key, index), float(ml), known is not None and known.cut_off))
    return entries


@dataclass(frozen=True)
class Sheet:
    """Where things stand on a montage, in pixels from its upper left corner.

    Attributes:
        slices: what is shown, one cell each.
        paired: whether a cell holds the plain image and the overlay beside it, or the plain image alone.
        tile: width and height of one picture, in the physical proportions of the field of view.
        band: height of the warning band, 0 where there is none.
        note: lines between header and pictures.
        legend: structures to name below the pictures.
    """

    slices: tuple[int, ...]
    paired: bool
    tile: tuple[int, int]
    band: int
    note: tuple[str, ...]
    legend: tuple[LegendEntry, ...]

    @property
    def columns(self) -> int:
        return 3 if self.paired else 4

    @property
    def grid_top(self) -> int:
        return self.band + HEADER + NOTE_LINE * len(self.note)

    @property
    def legend_top(self) -> int:
        rows = -(-len(self.slices) // self.columns)
        return self.grid_top + rows * (CAPTION + self.tile[1] + GAP)

    @property
    def height(self) -> int:
        rows = -(-len(self.legend) // LEGEND_COLUMNS)
        return self.legend_top + (LEGEND_LINE * (rows + 1) + 16 if rows else 0) + FOOTER

    def corner(self, cell: int, overlay: bool = False) -> tuple[int, int]:
        """Left and top of the picture in a cell."""
        row, column = divmod(cell, self.columns)
        cell_width = (WIDTH - 2 * MARGIN - (self.columns - 1) * GAP) // self.columns
        content = self.tile[0] * (2 if self.paired else 1) + (SEAM if self.paired else 0)
        left = MARGIN + column * (cell_width + GAP) + (cell_width - content) // 2
        top = self.grid_top + row * (CAPTION + self.tile[1] + GAP) + CAPTION
        return left + (self.tile[0] + SEAM if overlay else 0), top


def plan(plane: PlaneResult, arrays: PlaneArrays, *, untrained: bool) -> Sheet:
    """Lay a montage out.

    Raises:
        ValueError: if the voxels are not a volume, or the label map is on another grid.
    """
    if arrays.voxels.ndim != 3 or 0 in arrays.voxels.shape:
        raise ValueError(f"a montage needs voxels with axes (i, j, k), got shape {arrays.voxels.shape}")
    if arrays.labels is not None and arrays.labels.shape != arrays.voxels.shape:
        raise ValueError(f"labels have shape {arrays.labels.shape}, voxels {arrays.voxels.shape}")
    legend = tuple(_legend_entries(plane, arrays))
    paired = bool(legend)
    return Sheet(
        slices=choose_slices(arrays.labels, arrays.voxels.shape[2]),
        paired=paired,
        tile=_tile(field_of_view(arrays), paired),
        band=BAND if untrained else 0,
        note=tuple(_note(plane, arrays)),
        legend=legend,
    )


def field_of_view(arrays: PlaneArrays) -> tuple[float, float]:
    """Width and height of a slice in millimetres."""
    spacing = np.linalg.norm(arrays.affine[:3, :2], axis=0)
    return float(arrays.voxels.shape[0] * spacing[0]), float(arrays.voxels.shape[1] * spacing[1])


def _tile(millimetres: tuple[float, float], paired: bool) -> tuple[int, int]:
    """Width and height in pixels of a picture that shows so many millimetres each way."""
    columns = 3 if paired else 4
    widest = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
    widest = (widest - SEAM) // 2 if paired else widest
    scale = min(widest / millimetres[0], 1.4 * widest / millimetres[1])
    return max(1, round(millimetres[0] * scale)), max(1, round(millimetres[1] * scale))


def _note(plane: PlaneResult, arrays: PlaneArrays) -> list[str]:
    if arrays.labels is None:
        reason = plane.segmentation_reason or "no reason was given"
        return textwrap.wrap(drawable(f"No segmentation: {reason}"), 140, max_lines=2, placeholder=" …")
    return [] if arrays.labels.any() else ["Segmentation ran; no voxel was labelled."]


def drawable(text: str) -> str:
    """One line of characters that the font has; others become the replacement character."""
    spaced = "".join(" " if unicodedata.category(c).startswith(("C", "Z")) else c for c in text)
    return "".join(c if has_glyph(c) else "\N{REPLACEMENT CHARACTER}" for c in " ".join(spaced.split()))


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
