"""The one-page report as a picture: findings, volumes, and what a reader must know beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from orthokernels.edge.objects.canvas import write
from PIL import Image, ImageDraw

from orthokernels.montage import AMBER, BACKGROUND, BRIGHT, MUTED, RULE
from orthokernels.montage_layout import colour, shorten
from orthokernels.result import StructureVolume, StudyResult

WIDTH, MARGIN, LINE = 1240, 60, 36
_SIDES = {"L": "left ", "R": "right "}
_COLUMNS = (MARGIN, 700, 880, 1040)


class _Row(NamedTuple):
    """One line: texts at their columns. ``square`` is the colour of a structure, before the first text."""

    texts: tuple[str, ...]
    columns: tuple[int, ...] = (MARGIN,)
    size: int = 22
    ink: str = BRIGHT
    bold: bool = False
    rule: bool = False
    square: tuple[int, int, int] | None = None


def result_page(result: StudyResult, answers: Sequence[str], remarks: Sequence[str]) -> Image.Image:
    """Draw a result.

    Args:
        result: findings and volumes.
        answers: of each finding, as the structured report gives it.
        remarks: sentences below the tables.
    """
    return _draw([*_heading(result), *_findings(result, answers), *_volumes(result), *_remarks(remarks)])


def abstention_page(joint: str, side: str, reasons: Sequence[str]) -> Image.Image:
    """Draw that there is no result, and why."""
    heading = [
        _Row((_title(joint, side),), size=34, bold=True),
        _Row(("No result: this study was not processed, or what came of it did not pass a check.",), ink=AMBER),
    ]
    return _draw([*heading, *_remarks(reasons)])


def _draw(rows: Sequence[_Row]) -> Image.Image:
    page = Image.new("RGB", (WIDTH, 2 * MARGIN + LINE * len(rows)), BACKGROUND)
    draw = ImageDraw.Draw(page)
    for number, row in enumerate(rows, start=1):
        base = MARGIN + LINE * number - 10
        for x, text in zip(row.columns, row.texts, strict=False):
            indent = 30 if row.square and x == MARGIN else 0
            write(draw, (x + indent, base), text, row.size, row.ink, bold=row.bold)
        if row.square:
            draw.rectangle((MARGIN, base - 16, MARGIN + 18, base + 2), row.square)
        if row.rule:
            draw.line((MARGIN, base + 10, WIDTH - MARGIN, base + 10), RULE)
    return page


def _title(joint: str, side: str | None) -> str:
    return f"{_SIDES.get(side or '', '')}{joint}".capitalize()


def _heading(result: StudyResult) -> Iterator[_Row]:
    yield _Row((_title(result.joint, result.laterality),), size=34, bold=True)
    if result.untrained:
        yield from (_Row((line,), ink=AMBER, bold=True) for line in textwrap.wrap(result.untrained, 90))
    model = f"Model {result.model.weights}, SHA-256 {result.model.digest[:16]}"
    yield _Row((shorten(model, 90),), ink=MUTED)
    yield _Row(())


def _findings(result: StudyResult, answers: Sequence[str]) -> Iterator[_Row]:
    heading = ("Finding", "Answer", "Probability", "Threshold")
    yield _Row(heading, _COLUMNS, ink=MUTED, rule=True)
    for finding, answer in zip(result.findings, answers, strict=True):
        yield _Row((shorten(finding.name, 46), answer, *finding.shown), _COLUMNS, bold=answer == "Present")
    yield _Row(())


def _volumes(result: StudyResult) -> Iterator[_Row]:
    planes = [plane for plane in result.planes if plane.structures]
    if not planes:
        return
    yield _Row(("Volume in ml", *(plane.plane.capitalize() for plane in planes)), _COLUMNS, ink=MUTED, rule=True)
    for structure in planes[0].structures:
        volumes = ({s.key: _ml(s) for s in plane.structures}.get(structure.key, "") for plane in planes)
        yield _Row((structure.name, *volumes), _COLUMNS, square=colour(structure.key, structure.index))
    yield _Row(())


def _ml(structure: StructureVolume) -> str:
    return "\N{GREATER-THAN OR EQUAL TO} " * structure.cut_off + f"{structure.ml:.2f}"


def _remarks(remarks: Sequence[str]) -> Iterator[_Row]:
    for remark in remarks:
        for line in textwrap.wrap(remark, 95):
            yield _Row((line,), ink=MUTED)
