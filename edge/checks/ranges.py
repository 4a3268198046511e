"""What is usual: measured on phantoms by ``bench/label_ranges.py``, which writes ``ranges.json`` beside this file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

Range = tuple[float, float]

FILE = Path(__file__).with_name("ranges.json")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Acquisition(_Record):
    """Least and greatest of how one plane is acquired, in mm: between slices, across a slice, through the stack."""

    slice_distance: Range
    field_of_view: Range
    depth: Range


class StructureRange(_Record):
    """Least and greatest of one structure in one plane.

    Attributes:
        ml: volume.
        largest_share: least share of its voxels that its largest connected component holds.
        touching_share: least share of its voxels that touch the structure it lies on; None where it lies on none.
    """

    ml: Range
    largest_share: float
    touching_share: float | None


class Ranges(_Record):
    """Attributes: ``source`` says what was measured, ``acquisition`` is by joint and plane, ``structures`` by plane."""

    source: dict[str, str | int]
    acquisition: dict[str, dict[str, Acquisition]]
    structures: dict[str, dict[str, StructureRange]]


@cache
def read_ranges() -> Ranges:
    return Ranges.model_validate_json(FILE.read_text(encoding="utf-8"))


def widened(usual: Range, factor: float) -> Range:
    """The range with a margin: patients vary more than phantoms do."""
    low, high = usual
    return low / factor, high * factor
