"""Drawing on a picture for the archive: the montage's colours and font, and the notice over everything."""

from __future__ import annotations

from functools import cache

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from orthokernels.edge.objects.setting import NOTICE
from PIL import Image, ImageDraw, ImageFont

from orthokernels.montage import AMBER, BACKGROUND
from orthokernels.montage_layout import FONT, drawable

BANNER = 64


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The montage's font; ``size`` in pixels."""
    file = findfont(FontProperties(family=FONT, weight="bold" if bold else "normal"))
    return ImageFont.truetype(file, size)


def write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, ink: str, *, bold: bool = False
) -> None:
    """One line whose baseline starts ``at``, in characters that the font has."""
    draw.text(at, drawable(text), ink, font(size, bold=bold), anchor="ls")


def with_notice(picture: Image.Image) -> np.ndarray:
    """The picture under a band that says what it is not for: pixels with axes (row, column, RGB), uint8."""
    made = Image.new("RGB", (picture.width, picture.height + BANNER), AMBER)
    draw = ImageDraw.Draw(made)
    draw.text((made.width / 2, BANNER / 2), NOTICE, BACKGROUND, font(34, bold=True), anchor="mm")
    made.paste(picture, (0, BANNER))
    return np.asarray(made)
