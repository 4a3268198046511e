"""Drawing on a picture for the archive: the montage's colours and font, and the notice over everything."""

from __future__ import annotations

import numpy as np
from orthokernels.edge.objects.setting import NOTICE
from PIL import Image, ImageDraw

from orthokernels.fonts import font
from orthokernels.montage import AMBER, BACKGROUND
from orthokernels.montage_layout import drawable

BANNER = 64


def write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, ink: str, *, bold: bool = False
) -> None:
    """One line whose baseline starts ``at``, in characters that the font has."""
    draw.text(at, drawable(text), ink, font(size, "DejaVuSans-Bold" if bold else "DejaVuSans"), anchor="ls")


def with_notice(picture: Image.Image) -> np.ndarray:
    """The picture under a band that says what it is not for: pixels with axes (row, column, RGB), uint8."""
    made = Image.new("RGB", (picture.width, picture.height + BANNER), AMBER)
    draw = ImageDraw.Draw(made)
    draw.text((made.width / 2, BANNER / 2), NOTICE, BACKGROUND, font(34, "DejaVuSans-Bold"), anchor="mm")
    made.paste(picture, (0, BANNER))
    return np.asarray(made)
