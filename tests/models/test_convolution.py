"""The convolution for one volume beside PyTorch's, in values, gradients, memory format, and what exports see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orthokernels.models.orthodiffusion.convolution import Conv3d

SHAPES = [(1, 4, 16, 24, 20), (1, 16, 3, 5, 7), (1, 3, 1, 1, 1), (2, 4, 6, 8, 8), (1, 40, 16, 40, 40)]
ARGUMENTS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1, "bias": False},
]


def pair(channels: int, **arguments) -> tuple[Conv3d, nn.Conv3d]:
    torch.manual_seed(0)
    ours, theirs = Conv3d(channels, 6, **arguments), nn.Conv3d(channels, 6, **arguments)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("last", [False, True])
def test_values_are_those_of_double_precision(shape, arguments, last):
    ours, theirs = pair(shape[1], **arguments)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if last:
        ours, x = ours.to(memory_format=torch.channels_last_3d), x.contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        found, expected = ours(x), theirs.double()(x.double())
    # Sums of up to 27 x 40 products of size 1/sqrt(27 x 40) at most, in float32.
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_one_volume_keeps_the_channels_last_of_its_network():
    ours, _ = pair(16, kernel_size=3, padding=1)
    ours = ours.to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        out = ours(torch.randn(1, 16, 4, 6, 6).contiguous(memory_format=torch.channels_last_3d))
    assert out.is_contiguous(memory_format=torch.channels_last_3d)  # PyTorch's loop gives contiguous memory


def test_gradients_are_pytorchs():
    ours, theirs = pair(4, kernel_size=3, padding=1)
    x = torch.randn(1, 4, 5, 6, 7)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    # The same sums in another order.
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_go_pytorchs_way(dtype):
    ours, theirs = (layer.to(dtype) for layer in pair(4, kernel_size=3, padding=1))
    x = torch.randn(1, 4, 5, 6, 7, dtype=dtype)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))


def test_an_export_holds_an_ordinary_convolution():
    ours, _ = pair(4, kernel_size=3, padding=1)
    program = torch.export.export(ours.eval().requires_grad_(False), (torch.randn(1, 4, 5, 6, 7),))
    assert [n.target.__name__ for n in program.graph.nodes if n.op == "call_function"] == ["conv3d.default"]
