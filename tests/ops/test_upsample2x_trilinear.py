"""Trilinear doubling: every backend against the float64 definition, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orthokernels.ops import upsample2x_trilinear
from orthokernels.ops.upsample2x_trilinear import reference

pytest.importorskip("triton", reason="Triton is not installed")

# Odd sides, one slice, one voxel, more columns and more channels than a tile has, slices in several programs.
SHAPES = [(2, 3, 3, 5, 7), (1, 130, 1, 3, 2), (1, 1, 1, 1, 1), (1, 2, 5, 11, 13), (2, 64, 2, 2, 2), (1, 1, 7, 1, 260)]


def volume(shape, dtype=torch.float32, *, channels_last=False, seed=0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last_3d) if channels_last else x


def both_ways(function, x: Tensor, **options) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    y = function(leaf, **options)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    return y.detach(), torch.autograd.grad(y, leaf, upstream.to(y.dtype))[0]


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_doubled_volume_and_gradient_are_pytorch_s(shape, channels_last, backend):
    x = volume(shape, channels_last=channels_last)
    found, want = both_ways(upsample2x_trilinear, x, backend=backend), both_ways(reference, x.double())
    for own, exact in zip(found, want, strict=True):
        # Sums of at most 64 normal numbers, below 5 each, whose weights add up to 8: a rounding an addition.
        assert (own - exact).abs().max() <= 12 * 8 * 5 * 2**-24


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_half_precision_is_rounded_once(dtype, backend):
    x = volume(SHAPES[0], dtype, channels_last=True)
    found, want = both_ways(upsample2x_trilinear, x, backend=backend), both_ways(reference, x.double())
    for own, exact in zip(found, want, strict=True):
        assert own.dtype == dtype
        # Half a last digit; Triton's interpreter cuts bfloat16 off instead of rounding, which is a whole one.
        digits = 1.01 if backend == "triton" and dtype == torch.bfloat16 else 0.51
        assert (own - exact).abs().max() <= digits * exact.abs().max() * torch.finfo(dtype).eps


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
def test_an_infinite_voxel_stays_among_its_neighbours(backend):
    x = volume((1, 1, 5, 5, 5))
    x[0, 0, 2, 2, 2] = torch.inf
    y = upsample2x_trilinear(x, backend=backend)
    assert not y.isnan().any()
    assert y.isinf().sum() == 4**3  # two outputs on either side of its middle, along each axis


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_format_is_kept(backend, channels_last):
    y, dx = both_ways(upsample2x_trilinear, volume(SHAPES[0], channels_last=channels_last), backend=backend)
    assert y.is_contiguous(memory_format=torch.channels_last_3d) == channels_last
    assert y.is_contiguous() != channels_last
    assert dx.is_contiguous() or channels_last


@pytest.mark.parametrize("channels_last", [False, True])
def test_both_derivatives_pass_gradcheck(channels_last):
    x = volume((1, 2, 2, 1, 3), torch.float64, channels_last=channels_last).requires_grad_()
    assert torch.autograd.gradcheck(upsample2x_trilinear, x)
    assert torch.autograd.gradgradcheck(upsample2x_trilinear, x)


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last", "permuted"])
def test_registration_passes_opcheck(backend, layout):
    x = volume((1, 2, 2, 3, 4), channels_last=layout == "channels_last")
    if layout == "permuted":  # dense, but neither of the two formats
        x = x.transpose(2, 4).contiguous().transpose(2, 4)
    torch.library.opcheck(torch.ops.orthokernels.upsample2x_trilinear.default, (x.requires_grad_(), backend))


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3, 4, 4), torch.zeros(1, 1, 2, 2, 2, dtype=torch.int32), torch.zeros(1, 0, 2, 2, 2)]
)
def test_what_is_no_volume_is_named(x):
    with pytest.raises(ValueError, match=r"^x: torch\.\w+ of shape "):
        upsample2x_trilinear(x)
