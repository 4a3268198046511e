"""What is usual in a joint's series and label maps, measured on phantoms: ``edge/checks/ranges.json``.

Acquisition: how the series of each joint are planned. Structures: volume, share in the largest connected component and
share that touches the structure beneath, of every true label map of every drawn knee, both sides, findings at their
usual prevalence. Least and greatest are kept. No network is asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from orthokernels.edge.checks.measures import StructureMeasures, measure
from orthokernels.edge.checks.ranges import FILE, Acquisition, Ranges, StructureRange

from orthokernels import __version__, tasks
from orthokernels.data.geometry import spacing
from orthokernels.data.phantom import make_study
from orthokernels.data.phantom.study import JOINTS, draw_side, plan_series

MATRIX = 128
CONTRAST = "pd_fs"

_NAMES = tasks.class_names(len(tasks.STRUCTURES) + 1)


def acquisition(joint: str, studies: int) -> dict[str, Acquisition]:
    """Ranges of slice distance, field of view and depth in mm, by plane."""
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for seed in range(studies):
        planned = plan_series(seed, JOINTS[joint].examination, draw_side(seed), CONTRAST, MATRIX)
        for plane, series in zip(tasks.PLANES, planned, strict=True):
            across, _, distance = spacing(series.affine)
            found[plane].append((distance, series.shape[0] * across, series.shape[2] * distance))
    return {plane: Acquisition(**dict(zip(Acquisition.model_fields, _ranges(rows), strict=True)))
            for plane, rows in found.items()}  # fmt: skip


def structures(studies: int) -> dict[str, dict[str, StructureRange]]:
    """Ranges of every structure, by plane."""
    found: dict[str, dict[str, list[StructureMeasures]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(studies):
        for series in make_study(seed, side=None, matrix=MATRIX, contrast=CONTRAST).series:
            for name, measured in measure(series.labels, series.affine, _NAMES).items():
                found[series.plane][name].append(measured)
    return {plane: {name: _range(rows) for name, rows in own.items()} for plane, own in found.items()}


def _range(rows: list[StructureMeasures]) -> StructureRange:
    (volumes,) = _ranges((row.ml,) for row in rows)
    shares = [row.largest_share for row in rows if row.ml > 0]
    touching = [row.touching_share for row in rows if row.touching_share is not None]
    return StructureRange(
        ml=volumes,
        largest_share=_rounded(min(shares, default=0.0)),
        touching_share=_rounded(min(touching)) if touching else None,
    )


def _ranges(rows: Iterable[tuple[float, ...]]) -> list[tuple[float, float]]:
    """Least and greatest of each column."""
    columns = np.array(list(rows))
    return [(_rounded(low), _rounded(high)) for low, high in zip(columns.min(axis=0), columns.max(axis=0), strict=True)]


def _rounded(value: float) -> float:
    return round(float(value), 4)


def main(
    studies: Annotated[int, typer.Option(help="Phantoms of each joint, seeds from 0.")] = 200,
    out: Annotated[Path, typer.Option(help="File to write.")] = FILE,
) -> None:
    """Measure, and replace the ranges that the appliance's checks read."""
    made = Ranges(
        source={
            "what": "true label maps and planned series of phantoms",
            "command": f"python -m orthokernels.bench.label_ranges --studies {studies}",
            "studies": studies,
            "matrix": MATRIX,
            "contrast": CONTRAST,
            "version": __version__,
        },
        acquisition={joint: acquisition(joint, studies) for joint in JOINTS},
        structures=structures(studies),
    )
    out.write_text(made.model_dump_json(indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
