"""Random changes of a training slab, all drawn from one generator."""

from __future__ import annotations

import numpy as np

from orthokernels.training.config import AugmentConfig
from orthokernels.training.series import IGNORED


def augment(
    image: np.ndarray,
    labels: np.ndarray | None,
    config: AugmentConfig,
    rng: np.random.Generator,
    around: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Crop, shift, flip and change the contrast of one slab.

    Args:
        image: (D, H, W) float32 in [-1, 1].
        labels: (D, H, W) int8, or None; places shifted in from outside are ignored (-1).
        around: row and column that the crop shall hold (before the shift), or None.

    Returns:
        Both, (D, crop, crop) where ``config.crop`` is set. Without any change asked for they are what was given.
    """
    held = around or (None, None)
    rows, cols = (_positions(side, config, rng, place) for side, place in zip(image.shape[1:], held, strict=True))
    flips = [config.flip and bool(rng.integers(2)) for _ in range(2)]
    rows, cols = (p[::-1] if flip else p for p, flip in zip((rows, cols), flips, strict=True))
    if not (_is_whole(rows, image.shape[1]) and _is_whole(cols, image.shape[2])):
        inside = [np.clip(p, 0, side - 1) for p, side in zip((rows, cols), image.shape[1:], strict=True)]
        image = image[:, inside[0][:, None], inside[1]]
        if labels is not None:
            labels = labels[:, inside[0][:, None], inside[1]]
            labels[:, inside[0] != rows, :] = IGNORED
            labels[:, :, inside[1] != cols] = IGNORED
    return _contrast(image, config, rng), labels


def _positions(side: int, config: AugmentConfig, rng: np.random.Generator, held: int | None) -> np.ndarray:
    """Source index of each output index along one axis; outside [0, side) after a shift."""
    length = min(config.crop or side, side)
    reach = round(config.shift * side)
    lowest, highest = 0, side - length
    if held is not None:
        lowest, highest = max(lowest, held - length + 1), min(highest, held)
    first = int(rng.integers(lowest, highest + 1)) + (int(rng.integers(-reach, reach + 1)) if reach else 0)
    return np.arange(first, first + length)


def _is_whole(positions: np.ndarray, side: int) -> bool:
    return len(positions) == side and positions[0] == 0


def _contrast(image: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    if config.gamma:
        power = np.exp(rng.uniform(-1, 1) * np.log1p(config.gamma))
        image = ((image + 1) / 2) ** np.float32(power) * 2 - 1
    if config.gain:
        image = np.clip(image * np.float32(1 + rng.uniform(-1, 1) * config.gain), -1, 1)
    return image
