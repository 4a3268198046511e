"""What lies over a picture: fills and contours at their place, by their definition."""

import numpy as np
import pytest

from orthokernels.montage_layout import LegendEntry
from orthokernels.montage_overlay import FILL, _contour, with_structures

RED, BLUE = LegendEntry(3, "Femur", (255, 40, 20), 1.0), LegendEntry(7, "Tibia", (0, 90, 250), 1.0)
GREY = 100


def test_a_structure_is_filled_lightly_and_its_border_is_its_colour():
    labels = np.zeros((20, 30), np.uint8)
    labels[5:15, 10:20] = RED.index
    pixels = with_structures(np.full((80, 120), GREY, np.uint8), labels, [RED, BLUE])  # four pixels to a voxel
    assert pixels.dtype == np.uint8
    assert pixels.shape == (80, 120, 3)
    colour = np.array(RED.colour)
    filled = GREY + FILL * (colour - GREY)
    np.testing.assert_allclose(pixels[24:56, 44:76], np.broadcast_to(filled, (32, 32, 3)), atol=0.5)
    # The line of four thirds of a pixel lies two thirds in the pixels on either side of the border.
    for within in (pixels[20, 45:75], pixels[59, 45:75], pixels[25:55, 40], pixels[25:55, 79]):
        np.testing.assert_allclose(within, np.broadcast_to(filled + 2 / 3 * (colour - filled), (30, 3)), atol=1)
    for without in (pixels[19, 45:75], pixels[60, 45:75], pixels[25:55, 39], pixels[25:55, 80]):
        np.testing.assert_allclose(without, np.broadcast_to(GREY + 2 / 3 * (colour - GREY), (30, 3)), atol=1)
    outside = np.ones((80, 120), bool)
    outside[18:62, 38:82] = False
    assert (pixels[outside] == GREY).all()


def test_contours_lie_over_fills_and_later_ones_over_earlier_ones():
    labels = np.zeros((10, 20), np.uint8)
    labels[:, :10], labels[:, 10:] = RED.index, BLUE.index
    pixels = with_structures(np.full((60, 120), GREY, np.uint8), labels, [RED, BLUE]).astype(int)
    border = pixels[30, 59:61]
    assert np.abs(border - BLUE.colour).sum() < np.abs(border - RED.colour).sum()
    other = with_structures(np.full((60, 120), GREY, np.uint8), labels, [BLUE, RED]).astype(int)[30, 59:61]
    assert np.abs(other - RED.colour).sum() < np.abs(other - BLUE.colour).sum()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 3), (12, 2), (37, 40)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_a_contour_is_what_lies_within_two_samples_of_a_border(shape: tuple[int, int], share: float):
    inside = np.random.default_rng(int(10 * share)).random(shape) < share
    framed = np.pad(inside, 2)  # beyond the picture nothing is inside
    around = np.stack(
        [
            framed[2 + down : 2 + down + shape[0], 2 + right : 2 + right + shape[1]]
            for down in range(-2, 3)
            for right in range(-2, 3)
            if abs(down) + abs(right) < 4  # all of five by five but the corners
        ]
    )
    np.testing.assert_array_equal(_contour(inside), around.any(axis=0) & ~around.all(axis=0))
