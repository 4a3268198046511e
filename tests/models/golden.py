"""The figures that the published modules gave, and the rules that fill weights and inputs to get them again."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

FIGURES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "figures" / "orthodiffusion_golden.json").read_text())

Filled = TypeVar("Filled", bound=nn.Module)

# The U-Net is deep and its filled weights amplify rounding; the heads are shallow. (Bound of the norm, relative; bound
# of each value, in standard deviations of the tensor.) The published modules themselves differ by up to 3e-5 and 1e-3
# between memory formats.
DEEP = (1e-4, 5e-3)
SHALLOW = (1e-5, 1e-4)


def fill(module: Filled) -> Filled:
    """Every tensor of the state filled with a wave whose phase follows from its name, scaled by its fan-in."""
    state = {}
    for name, tensor in module.state_dict().items():
        wave = np.sin(zlib.crc32(name.encode()) % 1000 + 0.7 * np.arange(tensor.numel(), dtype=np.float64))
        if tensor.ndim >= 2:
            wave *= np.sqrt(2 / np.prod(tensor.shape[1:]))
        elif name.endswith("weight"):
            wave = 1 + 0.1 * wave
        else:
            wave *= 0.02
        state[name] = torch.from_numpy(wave).float().view(tensor.shape)
    module.load_state_dict(state, strict=True)
    return module.eval()


def wave(shape: tuple[int, ...], start: float, step: float) -> Tensor:
    values = np.sin(start + step * np.arange(np.prod(shape), dtype=np.float64))
    return torch.from_numpy(values).float().view(shape)


def check(name: str, found: Tensor, bounds: tuple[float, float]) -> None:
    """Assert that a tensor has the golden shape, norm and values."""
    figure = FIGURES[name]
    norm_bound, value_bound = bounds
    assert list(found.shape) == figure["shape"], name
    values = found.detach().double().flatten()
    assert abs(float(values.norm()) / figure["l2"] - 1) <= norm_bound, name
    for index, expected in figure["at"].items():
        assert abs(float(values[int(index)]) - expected) <= value_bound * figure["std"], (name, index)
