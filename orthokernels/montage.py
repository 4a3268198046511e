"""One PNG of a plane: slices over the stack, plain and with the structures drawn on them.

Whatever a DICOM header says is text from outside: it is drawn as one line of plain characters.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from orthokernels import tasks
from orthokernels.fonts import Face, font
from orthokernels.montage_layout import (
    FOOTER,
    GAP,
    LEGEND_COLUMNS,
    LEGEND_LINE,
    MARGIN,
    NOTE_LINE,
    SEAM,
    WIDTH,
    Sheet,
    drawable,
    edge_letters,
    field_of_view,
    plan,
    shorten,
    slice_position,
    volume_heading,
)
from orthokernels.montage_overlay import with_structures
from orthokernels.result import PlaneArrays, PlaneResult

LARGEST_PNG = 2_400_000
NARROWEST_CAPTION = 200

# The capital I of this one has serifs and does not pass for a line.
LETTER_FACE: Face = "DejaVuSansMono"
BACKGROUND, BRIGHT, MUTED, RULE, AMBER = "#0d0f12", "#f2f4f6", "#9aa5b1", "#2a3038", "#ffb224"
OUTLINE = 2  # pixels of black around what is written on a picture


def montage(plane: PlaneResult, arrays: PlaneArrays, path: str | Path, *, untrained: bool) -> None:
    """Write what ``draw_montage`` draws as one PNG. Two runs write the same bytes.

    Args:
        plane, arrays, untrained: as of ``draw_montage``.
        path: the file to write; it appears whole or not at all.

    Raises:
        ValueError: if the voxels are not a volume, or the label map is on another grid.
    """
    write_png(draw_picture(plane, arrays, untrained=untrained), Path(path))


def draw_montage(plane: PlaneResult, arrays: PlaneArrays, *, untrained: bool) -> np.ndarray:
    """Slices over the stack, plain and with the structures drawn on them, 1800 pixels wide.

    A picture is ``voxels[:, :, k].T`` with j upwards, in its physical proportions; the orientation letters come from
    the affine. Slices are numbered from 1, as on a reading station. Without a label the slices are shown alone, and
    the picture says why.

    Args:
        plane: what the title, the legend and the notes say.
        arrays: voxels and labels with axes (i, j, k), and the affine to RAS millimetres.
        untrained: whether to lay the warning band over the top.

    Returns:
        Pixels with axes (row, column, RGB), uint8.

    Raises:
        ValueError: if the voxels are not a volume, or the label map is on another grid.
    """
    return np.asarray(draw_picture(plane, arrays, untrained=untrained))


def draw_picture(plane: PlaneResult, arrays: PlaneArrays, *, untrained: bool) -> Image.Image:
    """What ``draw_montage`` draws, as Pillow's RGB image: a file is written from it without two copies of it."""
    sheet = plan(plane, arrays, untrained=untrained)
    picture = Image.new("RGB", (WIDTH, sheet.height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    _draw_header(draw, sheet, plane)
    window = _window(arrays.voxels)
    for cell in range(len(sheet.slices)):
        _draw_cell(picture, draw, sheet, arrays, cell, window)
    _draw_legend(draw, sheet, plane)
    _draw_footer(draw, sheet)
    return picture


def write_png(picture: Image.Image, path: Path) -> None:
    """Write what ``draw_picture`` gave; the file appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(_png(picture))
    os.replace(part, path)


def _png(picture: Image.Image) -> bytes:
    """Encode an RGB image; one too large for a report is reduced to 256 colours."""
    encoded = _encoded(picture)
    if len(encoded) <= LARGEST_PNG:
        return encoded
    # Colours of every third pixel do for all: a sixth of the time for an error of 4.3 grey levels in place of 3.6.
    palette = Image.fromarray(np.asarray(picture)[::3, ::3]).quantize(256, dither=Image.Dither.NONE)
    return _encoded(picture.quantize(palette=palette, dither=Image.Dither.NONE))


def _encoded(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=2)  # level 3 takes a third longer for a tenth of the bytes
    return stream.getvalue()


def _window(voxels: np.ndarray) -> tuple[float, float]:
    """Grey window between the 1st and the 99.7th percentile; a constant image becomes black."""
    sample = voxels.ravel(order="K")[:: max(1, voxels.size // 250_000)]
    sample = sample[np.isfinite(sample)].astype(np.float64)
    low, high = np.percentile(sample, (1.0, 99.7)) if sample.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    ink: str = BRIGHT,
    *,
    anchor: str = "ls",
    face: Face = "DejaVuSans",
    outline: int = 0,
) -> None:
    """Write one line ``at`` pixels from the upper left corner, where its baseline starts; ``size`` in pixels.

    ``anchor`` is Pillow's: "rs" is where the baseline ends.
    """
    draw.text(at, text, ink, font(size, face), anchor, stroke_width=outline, stroke_fill="black")


def _draw_header(draw: ImageDraw.ImageDraw, sheet: Sheet, plane: PlaneResult) -> None:
    if sheet.band:
        draw.rectangle((0, 0, WIDTH, sheet.band - 1), AMBER)
        _write(draw, (MARGIN, 34), tasks.UNTRAINED_NOTICE, 22, "#201500", face="DejaVuSans-Bold")
    title, base = plane.plane.capitalize(), sheet.band + 58
    _write(draw, (MARGIN, base), title, 36, face="DejaVuSans-Bold")
    description = shorten(drawable(plane.description) or "no description", 76)
    _write(draw, (MARGIN + font(36, "DejaVuSans-Bold").getlength(title) + 28, base), description, 26)
    _write(draw, (MARGIN, sheet.band + 96), "   |   ".join(_facts(plane)), 20, MUTED)
    for line, text in enumerate(sheet.note):
        _write(draw, (MARGIN, sheet.band + 96 + NOTE_LINE * (line + 1)), text, 20, AMBER)


def _facts(plane: PlaneResult) -> list[str]:
    """Matrix, spacing, obliquity and contrast in words."""
    times = " \N{MULTIPLICATION SIGN} "
    facts = [
        times.join(str(n) for n in plane.shape) + " voxels",
        times.join(f"{s:.3g}" for s in plane.spacing_mm) + " mm",
        f"{plane.obliquity_degrees:.1f}° oblique",
    ]
    if plane.echo_time_ms is not None:
        facts.append(f"TE {plane.echo_time_ms:.1f} ms")
    if plane.contrast != "unknown":
        facts.append(shorten(drawable(plane.contrast), 60))
    return facts


def _draw_cell(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    sheet: Sheet,
    arrays: PlaneArrays,
    cell: int,
    window: tuple[float, float],
) -> None:
    k, shape = sheet.slices[cell], arrays.voxels.shape
    left, top = sheet.corner(cell)
    width = max(NARROWEST_CAPTION, 2 * sheet.tile[0] + SEAM if sheet.paired else sheet.tile[0])
    _write(draw, (left, top - 9), f"{k + 1} / {shape[2]}", 18, face="DejaVuSans-Bold")
    _write(draw, (left + width, top - 9), slice_position(arrays.affine, shape, k), 18, MUTED, anchor="rs")
    grey = _grey(arrays.voxels[:, :, k], sheet.tile, window)
    picture.paste(Image.fromarray(grey), (left, top))
    _write_directions(draw, (left, top), sheet, arrays)
    _draw_scale(draw, (left, top), sheet, field_of_view(arrays)[0])
    if sheet.paired:
        assert arrays.labels is not None
        corner = sheet.corner(cell, overlay=True)
        picture.paste(Image.fromarray(with_structures(grey, arrays.labels[:, ::-1, k].T, sheet.legend)), corner)
        _write_directions(draw, corner, sheet, arrays)


def _grey(voxels: np.ndarray, tile: tuple[int, int], window: tuple[float, float]) -> np.ndarray:
    """A slice (i, j) as a tile's pixels (row, column), uint8, with j upwards."""
    upright = np.nan_to_num(voxels[:, ::-1].T.astype(np.float32))
    resized = np.asarray(Image.fromarray(upright).resize(tile, Image.Resampling.HAMMING))
    low, high = window
    return np.rint(np.clip((resized - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)


def _write_directions(draw: ImageDraw.ImageDraw, corner: tuple[int, int], sheet: Sheet, arrays: PlaneArrays) -> None:
    """Letters of the patient's directions in the middle of each edge."""
    left, right, bottom, top = edge_letters(arrays.affine)
    for x, y, letter, anchor in (
        (0.02, 0.5, left, "lm"), (0.98, 0.5, right, "rm"), (0.5, 0.98, bottom, "mb"), (0.5, 0.02, top, "mt"),
    ):  # fmt: skip
        at = corner[0] + x * sheet.tile[0], corner[1] + y * sheet.tile[1]
        _write(draw, at, letter, 17, anchor=anchor, face=LETTER_FACE, outline=OUTLINE)


def _draw_scale(draw: ImageDraw.ImageDraw, corner: tuple[int, int], sheet: Sheet, mm: float) -> None:
    """A bar of a round length, on a picture that is ``mm`` wide."""
    width, height = sheet.tile
    length = max((own for own in (1, 2, 5, 10, 20, 50, 100) if own <= mm / 4), default=1)
    x, y = round(corner[0] + 0.03 * width), round(corner[1] + 0.97 * height)
    end = round(corner[0] + 0.03 * width + length / mm * width)
    draw.rectangle((x, y - 2, end - 1, y + 2), "black")
    draw.rectangle((x, y - 1, end - 1, y + 1), BRIGHT)
    _write(draw, (x, y - 0.02 * height - 3), f"{length} mm", 14, anchor="lb", outline=OUTLINE)


def _draw_legend(draw: ImageDraw.ImageDraw, sheet: Sheet, plane: PlaneResult) -> None:
    if not sheet.legend:
        return
    heading = volume_heading(plane)
    if any(entry.cut_off for entry in sheet.legend):
        heading += "; \N{GREATER-THAN OR EQUAL TO}: it reaches the edge of what was labelled, and there may be more"
    _write(draw, (MARGIN, sheet.legend_top + 22), heading, 18, MUTED)
    rows = -(-len(sheet.legend) // LEGEND_COLUMNS)
    pitch = (WIDTH - 2 * MARGIN + GAP) / LEGEND_COLUMNS
    for n, entry in enumerate(sheet.legend):
        column, row = divmod(n, rows)
        left, base = MARGIN + column * pitch, sheet.legend_top + 22 + LEGEND_LINE * (row + 1)
        draw.rectangle((left, base - 15, left + 17, base + 2), entry.colour)
        _write(draw, (left + 28, base), shorten(drawable(entry.name), 27), 19)
        least = "\N{GREATER-THAN OR EQUAL TO} " if entry.cut_off else ""
        _write(draw, (left + pitch - GAP, base), f"{least}{entry.ml:.2f} ml", 19, MUTED, anchor="rs")


def _draw_footer(draw: ImageDraw.ImageDraw, sheet: Sheet) -> None:
    draw.line((MARGIN, sheet.height - FOOTER + 8, WIDTH - MARGIN - 1, sheet.height - FOOTER + 8), RULE)
    base = sheet.height - 20
    _write(draw, (MARGIN, base), tasks.RESEARCH_NOTICE, 20, face="DejaVuSans-Bold")
    _write(draw, (WIDTH - MARGIN, base), "orthokernels", 20, MUTED, anchor="rs")
