"""Whether the native engine has become slower beside PyTorch, with pytest-benchmark; no part of the tests.

    pytest bench/regression/test_cpu.py --benchmark-group-by=group

Each group holds ours and PyTorch's on the same input; the table's factors are the ratios to watch on any machine.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from orthokernels.bench.cpu.subjects import FeaturePass, native_plan, network

from orthokernels.models.orthodiffusion import UNet
from orthokernels.ops import conv3d

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (pip install 'orthokernels[bench]')")

WIDTHS = (16, 32, 64, 128)
SIDES = {"wide": (8, 128, 128), "deep": (32, 64, 64), "flat": (1, 64, 64)}
FEATURE_SIDES = (16, 128, 128)


@pytest.mark.parametrize("who", ["native", "PyTorch, channels last"])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("width", WIDTHS)
def test_convolution(width: int, sides: str, who: str, benchmark: Any) -> None:
    x = torch.randn(1, width, *SIDES[sides]).contiguous(memory_format=torch.channels_last_3d)
    conv = torch.nn.Conv3d(width, width, 3, padding=1).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    benchmark.group = f"convolution, {width} channels, {sides}"
    with torch.no_grad():
        if who == "native":
            benchmark(lambda: conv3d(x, conv.weight, conv.bias, backend="cpu"))
        else:
            benchmark(lambda: conv(x))


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return network(tiny=False)


@pytest.mark.parametrize("who", ["native", "PyTorch, channels last"])
def test_feature_pass(unet: UNet, who: str, benchmark: Any) -> None:
    x = torch.randn(1, 1, *FEATURE_SIDES)
    benchmark.group = "feature pass"
    with torch.no_grad():
        if who == "native":
            plan = native_plan(unet, "mid_2", FEATURE_SIDES)
            benchmark(lambda: plan.run(x[0].numpy(), threads=torch.get_num_threads()))
        else:
            features = FeaturePass(unet, "mid_2").to(memory_format=torch.channels_last_3d)
            benchmark(lambda: features(x.contiguous(memory_format=torch.channels_last_3d)))
