"""DejaVu, which comes with the package (LICENSE_DEJAVU), so that a picture looks the same everywhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from PIL import ImageFont

Face = Literal["DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono"]

_NO_CHARACTER = "\U0010ffff"  # drawn as the box that stands for every character that is missing


@cache
def font(size: int, face: Face = "DejaVuSans") -> ImageFont.FreeTypeFont:
    """A face for Pillow; ``size`` in pixels."""
    # The basic layout is always there, so that lines break and letters stand alike with every build of Pillow.
    return ImageFont.truetype(Path(__file__).parent / f"{face}.ttf", size, layout_engine=ImageFont.Layout.BASIC)


@cache
def has_glyph(character: str) -> bool:
    """Whether DejaVu Sans draws this character, and not the box in its place."""
    return bytes(font(16).getmask(character)) != bytes(font(16).getmask(_NO_CHARACTER))
