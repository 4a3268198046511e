"""One PNG of a plane: slices over the stack, plain and with the structures drawn on them.

Whatever a DICOM header says is text from outside: it is drawn literally, never as mathematics.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox, IdentityTransform, TransformedBbox
from PIL import Image

from orthokernels import tasks
from orthokernels.montage_layout import (
    FONT,
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
from orthokernels.result import PlaneArrays, PlaneResult

LARGEST_PNG = 2_400_000
NARROWEST_CAPTION = 200

LETTER_FONT = "DejaVu Sans Mono"  # its capital I has serifs and does not pass for a line
BACKGROUND, BRIGHT, MUTED, RULE, AMBER = "#0d0f12", "#f2f4f6", "#9aa5b1", "#2a3038", "#ffb224"


def montage(plane: PlaneResult, arrays: PlaneArrays, path: str | Path, *, untrained: bool) -> None:
    """Write what ``draw_montage`` draws as one PNG. Two runs write the same bytes.

    Args:
        plane, arrays, untrained: as of ``draw_montage``.
        path: the file to write; it appears whole or not at all.

    Raises:
        ValueError: if the voxels are not a volume, or the label map is on another grid.
    """
    _write_whole(Path(path), _png(draw_montage(plane, arrays, untrained=untrained)))


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
        Pixels with axes (row, column, RGBA), uint8.

    Raises:
        ValueError: if the voxels are not a volume, or the label map is on another grid.
    """
    sheet = plan(plane, arrays, untrained=untrained)
    figure = Figure(figsize=(WIDTH / 100, sheet.height / 100), dpi=100, facecolor=BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    _draw_header(figure, sheet, plane)
    window, axes = _window(arrays.voxels), _sheet_axes(figure, sheet)
    for cell in range(len(sheet.slices)):
        _draw_cell(axes, sheet, arrays, cell, window)
    _draw_legend(figure, sheet, plane)
    _draw_footer(figure, sheet)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _png(pixels: np.ndarray) -> bytes:
    """Encode pixels with axes (y, x, RGBA); a picture too large for a report is reduced to 256 colours."""
    picture = Image.fromarray(pixels).convert("RGB")
    encoded = _encoded(picture)
    return encoded if len(encoded) <= LARGEST_PNG else _encoded(picture.quantize(256, dither=Image.Dither.NONE))


def _encoded(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=3)  # the highest level takes ten times as long for a tenth of the bytes
    return stream.getvalue()


def _write_whole(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def _window(voxels: np.ndarray) -> tuple[float, float]:
    """Grey window between the 1st and the 99.7th percentile; a constant image becomes black."""
    sample = voxels.ravel()[:: max(1, voxels.size // 2_000_000)]
    sample = sample[np.isfinite(sample)].astype(np.float64)
    low, high = np.percentile(sample, (1.0, 99.7)) if sample.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0


def _write(
    figure: Figure,
    sheet: Sheet,
    at: tuple[float, float],
    text: str,
    size: float,
    ink: str = BRIGHT,
    *,
    align: Literal["left", "right"] = "left",
    bold: bool = False,
) -> Text:
    """Write one line whose baseline starts ``at`` (pixels from the upper left corner); ``size`` in pixels."""
    return figure.text(
        at[0],
        sheet.height - at[1],
        text,
        color=ink,
        fontsize=size * 0.72,
        family=FONT,
        ha=align,
        va="baseline",
        weight="bold" if bold else "normal",
        transform=IdentityTransform(),
        parse_math=False,
    )


def _fill(
    figure: Figure, sheet: Sheet, box: tuple[float, float, float, float], ink: str | tuple[float, float, float]
) -> None:
    """Fill a box given as left, top, width and height in pixels."""
    left, top, width, height = box
    figure.add_artist(
        Rectangle(
            (left, sheet.height - top - height),
            width,
            height,
            facecolor=ink,
            edgecolor="none",
            transform=IdentityTransform(),
            antialiased=False,
        )
    )


def _draw_header(figure: Figure, sheet: Sheet, plane: PlaneResult) -> None:
    if sheet.band:
        _fill(figure, sheet, (0, 0, WIDTH, sheet.band), AMBER)
        _write(figure, sheet, (MARGIN, 34), tasks.UNTRAINED_NOTICE, 22, "#201500", bold=True)
    title = _write(figure, sheet, (MARGIN, sheet.band + 58), plane.plane.capitalize(), 36, bold=True)
    description = shorten(drawable(plane.description) or "no description", 76)
    _write(figure, sheet, (title.get_window_extent().x1 + 28, sheet.band + 58), description, 26)
    _write(figure, sheet, (MARGIN, sheet.band + 96), "   |   ".join(_facts(plane)), 20, MUTED)
    for line, text in enumerate(sheet.note):
        _write(figure, sheet, (MARGIN, sheet.band + 96 + NOTE_LINE * (line + 1)), text, 20, AMBER)


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


def _sheet_axes(figure: Figure, sheet: Sheet) -> Axes:
    """Axes over the whole sheet, in pixels, y upwards: one for all pictures, since axes cost as much as a slice."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(0, sheet.height)
    axes.set_autoscale_on(False)
    return axes


@dataclass(frozen=True)
class _Tile:
    """Where a picture lies on the sheet: pixels from its lower left corner, and the millimetres that it shows."""

    left: float
    bottom: float
    width: float
    height: float
    mm: tuple[float, float]

    @property
    def extent(self) -> tuple[float, float, float, float]:
        return self.left, self.left + self.width, self.bottom, self.bottom + self.height

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a place given as shares of width and height."""
        return self.left + x * self.width, self.bottom + y * self.height


def _tile(sheet: Sheet, cell: int, arrays: PlaneArrays, *, overlay: bool = False) -> _Tile:
    left, top = sheet.corner(cell, overlay)
    width, height = sheet.tile
    return _Tile(left, sheet.height - top - height, width, height, field_of_view(arrays))


def _draw_cell(axes: Axes, sheet: Sheet, arrays: PlaneArrays, cell: int, window: tuple[float, float]) -> None:
    figure, k = axes.figure, sheet.slices[cell]
    assert isinstance(figure, Figure)
    left, top = sheet.corner(cell)
    width = max(NARROWEST_CAPTION, 2 * sheet.tile[0] + SEAM if sheet.paired else sheet.tile[0])
    shape = arrays.voxels.shape
    _write(figure, sheet, (left, top - 9), f"{k + 1} / {shape[2]}", 18, bold=True)
    _write(figure, sheet, (left + width, top - 9), slice_position(arrays.affine, shape, k), 18, MUTED, align="right")
    _draw_image(axes, _tile(sheet, cell, arrays), arrays, k, window, scale_bar=True)
    if sheet.paired:
        tile = _tile(sheet, cell, arrays, overlay=True)
        _draw_image(axes, tile, arrays, k, window, scale_bar=False)
        _draw_labels(axes, tile, sheet, arrays, k)


def _draw_image(
    axes: Axes, tile: _Tile, arrays: PlaneArrays, k: int, window: tuple[float, float], *, scale_bar: bool
) -> None:
    axes.imshow(
        np.nan_to_num(arrays.voxels[:, :, k].T.astype(np.float32)),
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        origin="lower",
        extent=tile.extent,
        aspect="auto",
        interpolation="hanning",
    )
    outline = [withStroke(linewidth=2.5, foreground="black")]
    left, right, bottom, top = edge_letters(arrays.affine)
    for x, y, letter, across, along in (
        (0.02, 0.5, left, "left", "center"),
        (0.98, 0.5, right, "right", "center"),
        (0.5, 0.02, bottom, "center", "bottom"),
        (0.5, 0.98, top, "center", "top"),
    ):
        axes.text(
            *tile.at(x, y),
            letter,
            ha=across,
            va=along,
            color=BRIGHT,
            fontsize=12,
            family=LETTER_FONT,
            path_effects=outline,
        )
    if scale_bar:
        mm = tile.mm[0]
        length = max((own for own in (1, 2, 5, 10, 20, 50, 100) if own <= mm / 4), default=1)
        x, y = tile.at(0.03, 0.03)
        end = x + length / mm * tile.width
        axes.plot([x, end], [y, y], color=BRIGHT, linewidth=2, solid_capstyle="butt", path_effects=outline)
        axes.text(
            x,
            y + 0.02 * tile.height,
            f"{length} mm",
            color=BRIGHT,
            fontsize=10,
            family=FONT,
            va="bottom",
            path_effects=outline,
        )


def _draw_labels(axes: Axes, tile: _Tile, sheet: Sheet, arrays: PlaneArrays, k: int) -> None:
    """Lay a light fill and a thin contour of each structure over the slice."""
    assert arrays.labels is not None
    labels = arrays.labels[:, :, k].T  # [j, i]
    fills = np.zeros((int(arrays.labels.max()) + 1, 4))
    # One voxel of background around the slice closes contours that run into its edge.
    padded = np.pad(labels, 1)
    x = tile.left + (np.arange(-1, labels.shape[1] + 1) + 0.5) * tile.width / labels.shape[1]
    y = tile.bottom + (np.arange(-1, labels.shape[0] + 1) + 0.5) * tile.height / labels.shape[0]
    box = TransformedBbox(Bbox.from_extents(tile.left, tile.bottom, *tile.at(1, 1)), axes.transData)
    for entry in sheet.legend:
        rgb = _unit(entry.colour)
        fills[entry.index] = (*rgb, 0.25)
        mask = padded == entry.index
        if mask.any():
            lines = axes.contour(x, y, mask.astype(float), levels=[0.5], colors=[rgb], linewidths=1.1)
            lines.set_clip_box(box)
    axes.imshow(fills[labels], origin="lower", extent=tile.extent, aspect="auto", interpolation="nearest")


def _unit(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    return colour[0] / 255, colour[1] / 255, colour[2] / 255


def _draw_legend(figure: Figure, sheet: Sheet, plane: PlaneResult) -> None:
    if not sheet.legend:
        return
    _write(figure, sheet, (MARGIN, sheet.legend_top + 22), volume_heading(plane), 18, MUTED)
    rows = -(-len(sheet.legend) // LEGEND_COLUMNS)
    pitch = (WIDTH - 2 * MARGIN + GAP) / LEGEND_COLUMNS
    for n, entry in enumerate(sheet.legend):
        column, row = divmod(n, rows)
        left, base = MARGIN + column * pitch, sheet.legend_top + 22 + LEGEND_LINE * (row + 1)
        _fill(figure, sheet, (left, base - 15, 18, 18), _unit(entry.colour))
        _write(figure, sheet, (left + 28, base), shorten(drawable(entry.name), 27), 19)
        _write(figure, sheet, (left + pitch - GAP, base), f"{entry.ml:.2f} ml", 19, MUTED, align="right")


def _draw_footer(figure: Figure, sheet: Sheet) -> None:
    _fill(figure, sheet, (MARGIN, sheet.height - FOOTER + 8, WIDTH - 2 * MARGIN, 1), RULE)
    base = sheet.height - 20
    _write(figure, sheet, (MARGIN, base), tasks.RESEARCH_NOTICE, 20, bold=True)
    _write(figure, sheet, (WIDTH - MARGIN, base), "orthokernels", 20, MUTED, align="right")
