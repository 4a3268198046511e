"""Golden figures of the published modules: the rule that fills their weights, their inputs, and the comparison.

The figures come from the published modules in float32, with every tensor of the ``state_dict`` filled by a rule that
anyone can repeat, so that no weights are needed.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

FIGURES = Path(__file__).parents[1] / "data_files" / "orthodiffusion_golden.json"


def wave(shape: tuple[int, ...], start: float, step: float) -> Tensor:
    """sin(start + step * i) in C order, worked out in float64, float32."""
    return torch.sin(start + step * torch.arange(math.prod(shape), dtype=torch.float64)).float().reshape(shape)


def fill(module: nn.Module) -> nn.Module:
    """Fill every tensor of the state with a wave that starts at the checksum of its name; returns the module in eval.

    Matrices and kernels are scaled to keep the variance through a ReLU, scales of norms stay near 1, biases near 0.
    """
    state = {}
    for name, tensor in module.state_dict().items():
        start = zlib.crc32(name.encode()) % 1000
        w = torch.sin(start + 0.7 * torch.arange(tensor.numel(), dtype=torch.float64)).reshape(tensor.shape)
        if tensor.ndim >= 2:
            w = w * math.sqrt(2 / math.prod(tensor.shape[1:]))
        else:
            w = 1 + 0.1 * w if name.endswith("weight") else 0.02 * w
        state[name] = w.float()
    module.load_state_dict(state, strict=True)
    return module.eval()


class Golden:
    """The figures, and the comparison with them."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = json.loads(FIGURES.read_text())

    def check(self, entry: str, tensor: Tensor, *, norm: float, value: float) -> None:
        """Norm within ``norm`` relative; mean, deviation and single values within ``value`` standard deviations."""
        expected = self.figures[entry]
        assert list(tensor.shape) == expected["shape"], entry
        flat = tensor.detach().double().flatten()
        slack = value * expected["std"]
        assert float(flat.norm()) == pytest.approx(expected["l2"], rel=norm), entry
        assert float(flat.mean()) == pytest.approx(expected["mean"], abs=slack), entry
        assert float(flat.std(correction=0)) == pytest.approx(expected["std"], rel=value), entry
        at = {int(index): number for index, number in expected["at"].items()}
        assert flat[list(at)].tolist() == pytest.approx(list(at.values()), abs=slack), entry

    def check_state(self, entry: str, module: nn.Module) -> None:
        """Names and shapes of the state are the published ones, in any order."""
        assert {name: list(tensor.shape) for name, tensor in module.state_dict().items()} == self.figures["state"][
            entry
        ]


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()
