"""Attention over a volume's tokens: every backend against the float64 definition, forward and backward."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from orthokernels.backends.registry import BackendUnavailable
from orthokernels.ops import attention3d
from orthokernels.ops.attention3d import pairs, reference, seen_by

pytest.importorskip("triton", reason="Triton is not installed")

# (grid, channels of a head, window): odd sides, one slice, one token, several blocks of queries, rows of several tiles.
CASES = [
    ((3, 5, 7), 16, None),
    ((3, 5, 7), 8, (2, 3, 4)),
    ((1, 9, 11), 20, (1, 7, 7)),
    ((1, 1, 1), 8, None),
    ((2, 3, 19), 5, (1, 1, 1)),
    ((4, 6, 6), 33, (1, 3, 6)),
    ((1, 2, 9), 130, None),
    ((1, 2, 5), 256, (1, 1, 3)),
]
# The same with a bias, on smaller grids: its gradient has a program for each distance in depth and in blocks of rows.
# In float32 a block has 32 tokens: the fifth grid has three blocks of two rows, the sixth four of a part of one.
BIASED = [
    ((2, 3, 7), 16, None),
    ((2, 3, 5), 8, (2, 2, 4)),
    ((1, 3, 11), 20, (1, 2, 7)),
    ((1, 1, 1), 8, None),
    ((1, 5, 9), 8, (1, 3, 4)),
    ((1, 2, 35), 5, None),
    ((1, 2, 19), 5, (1, 1, 1)),
    ((2, 2, 6), 33, (1, 2, 6)),
    ((1, 2, 9), 130, None),
    ((1, 2, 5), 256, (1, 1, 3)),
]


def made(grid, d, dtype=torch.float32, *, layout="channels_first", batch=2, heads=2, bias=True) -> list[Tensor]:
    """q, k, v and the bias; q, k and v are views into one projection, as a 1x1x1 convolution gives it."""
    T, draw = grid[0] * grid[1] * grid[2], torch.Generator().manual_seed(0)
    joint = torch.randn(batch, 3 * heads * d, T, generator=draw).to(dtype)
    if layout == "channels_last":
        joint = joint.transpose(1, 2).contiguous().transpose(1, 2)
    tokens = list(joint.view(batch, 3, heads, d, T).unbind(1)) if layout == "channels_first" else [
        part.unflatten(1, (heads, d)) for part in joint.chunk(3, dim=1)
    ]  # fmt: skip
    table = torch.randn(heads, *(2 * side - 1 for side in grid), generator=draw).to(dtype)
    return [*tokens, table] if bias else tokens


def both_ways(function, parts: list[Tensor], grid, window, **options) -> list[Tensor]:
    leaves = [part.detach().requires_grad_() for part in parts]
    bias = leaves[3] if len(leaves) == 4 else None
    out = function(*leaves[:3], grid, bias=bias, window=window, **options)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(parts[0].dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def assert_as_exact_as_plain(parts: list[Tensor], grid, window, **options) -> None:
    """No error larger than twice the definition's at the same dtype, and one rounding where that is luckily small."""
    exact = both_ways(reference, [part.double() for part in parts], grid, window)
    plain = both_ways(reference, parts, grid, window)
    for own, other, want in zip(both_ways(attention3d, parts, grid, window, **options), plain, exact, strict=True):
        # Where a query sees one key, dq and dk are 0: what is left of two equal sums of some dozen products.
        rounding = max(torch.finfo(own.dtype).eps, 1e-6) * want.abs().max() + 5e-6
        assert own.dtype == other.dtype
        assert (own - want).abs().max() <= 2 * (other - want).abs().max() + rounding


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize(("grid", "d", "window"), CASES, ids=str)
def test_tokens_and_gradients_are_as_exact_as_plain_pytorch_s(grid, d, window, backend):
    assert_as_exact_as_plain(made(grid, d, bias=False), grid, window, backend=backend)


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize(("grid", "d", "window"), BIASED, ids=str)
def test_a_bias_and_its_gradient_are_as_exact_as_plain_pytorch_s(grid, d, window, backend):
    assert_as_exact_as_plain(made(grid, d), grid, window, backend=backend)


# Several blocks without a bias, and fewer tokens with one.
SEVERAL = [
    ((3, 5, 7), None, False),
    ((3, 5, 7), (2, 3, 4), False),
    ((2, 3, 5), None, True),
    ((2, 3, 5), (2, 2, 4), True),
]


@pytest.mark.parametrize(("grid", "window", "bias"), SEVERAL, ids=str)
def test_half_precision_sums_in_float32(grid, window, bias):
    assert_as_exact_as_plain(made(grid, 16, torch.float16, bias=bias), grid, window, backend="triton")


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_the_result_lies_in_memory_as_its_tokens_do(layout, backend):
    grid, parts = (1, 2, 4), made((1, 2, 4), 8, layout=layout)
    assert_as_exact_as_plain(parts, grid, None, backend=backend)
    out = attention3d(*parts[:3], grid, bias=parts[3], backend=backend)
    volume = out.flatten(1, 2).unflatten(2, grid)  # (N, heads x d, D, H, W), without a copy
    kept = torch.channels_last_3d if layout == "channels_last" else torch.contiguous_format
    assert volume.is_contiguous(memory_format=kept)
    assert volume.data_ptr() == out.data_ptr()


def test_each_query_sees_the_window_around_it_pushed_inside_at_the_edges():
    grid, window = (2, 5, 6), (1, 3, 4)
    seen = seen_by(grid, window)
    assert seen.sum() == pairs(grid, window)
    places = list(itertools.product(*map(range, grid)))
    for (q, at), (k, there) in itertools.product(enumerate(places), repeat=2):
        inside = []
        for a, b, side, width in zip(at, there, grid, window, strict=True):
            first = min(max(a - width // 2, 0), side - width)
            inside.append(first <= b < first + width)
        assert seen[q, k] == all(inside)


def test_auto_gives_dense_calls_to_pytorch_s_own():
    q, k, v = made((2, 3, 4), 8, bias=False)
    found = attention3d(q, k, v, (2, 3, 4))
    want = F.scaled_dot_product_attention(*(part.transpose(2, 3) for part in (q, k, v))).transpose(2, 3)
    assert torch.equal(found, want)


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
def test_scores_of_hundreds_do_not_overflow(backend):
    q, k, v, bias = made((3, 5, 7), 16)
    found = attention3d(q * 50, k, v, (3, 5, 7), bias=bias, backend=backend)
    want = reference(*(part.double() for part in (q * 50, k, v)), (3, 5, 7), bias=bias.double())
    # A score of 800 is known to 5e-5 in float32, and so is each weight, relatively.
    torch.testing.assert_close(found.double(), want, rtol=0, atol=3e-4)


def test_a_bias_s_gradient_has_the_same_bytes_head_by_head(monkeypatch):
    from orthokernels.backends.triton import attention3d as kernels

    parts = made((2, 3, 5), 8)
    together = both_ways(attention3d, parts, (2, 3, 5), None, backend="triton")
    monkeypatch.setattr(kernels, "_PART", 1)
    apart = both_ways(attention3d, parts, (2, 3, 5), None, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


@pytest.mark.parametrize(("grid", "window", "bias"), SEVERAL[1::2], ids=str)
def test_two_runs_give_the_same_bytes(grid, window, bias):
    runs = [both_ways(attention3d, made(grid, 8, bias=bias), grid, window, backend="triton") for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_registration_passes_opcheck(layout, backend):
    parts = [part.detach().requires_grad_() for part in made((1, 2, 3), 4, layout=layout)]
    q, k, v, bias = parts
    for own in (bias, None):
        arguments = (q, k, v, [1, 2, 3], own, [1, 2, 2], 0.5, backend)
        torch.library.opcheck(torch.ops.orthokernels.attention3d.default, arguments)


@pytest.mark.parametrize("window", [None, (1, 2, 2)])
def test_gradients_pass_gradcheck(window):
    parts = [part.detach().requires_grad_() for part in made((2, 2, 3), 3, torch.float64, batch=1)]
    assert torch.autograd.gradcheck(
        lambda q, k, v, bias: attention3d(q, k, v, (2, 2, 3), bias=bias, window=window, scale=0.7, backend="torch"),
        parts,
    )


def test_tokens_beyond_two_to_the_31_are_read_where_they_lie():
    grid, heads, d, apart = (1, 2, 3), 1, 4, 2**30
    # Pages that nobody touches take no memory; the third sample's offset fits no 32 bits, its stride does.
    memory = torch.from_numpy(np.zeros(2 * apart + 72, np.float16))
    parts = [memory.as_strided((3, heads, d, 6), (apart, d * 6, 6, 1), 24 * n) for n in range(3)]
    near = made(grid, d, torch.float16, batch=3, heads=heads)
    for far, own in zip(parts, near[:3], strict=True):
        far.copy_(own)
    found = attention3d(*parts, grid, bias=near[3], backend="triton")
    assert torch.equal(found, attention3d(*near[:3], grid, bias=near[3], backend="triton"))


def test_bad_arguments_are_named():
    q, k, v, bias = made((3, 5, 7), 16)
    with pytest.raises(
        ValueError, match=r"^grid: \(3, 5, 8\); must be three whole sides whose product is q's 105 tokens"
    ):
        attention3d(q, k, v, (3, 5, 8))
    with pytest.raises(ValueError, match=r"^k: "):
        attention3d(q, k[:, :1], v, (3, 5, 7))
    with pytest.raises(ValueError, match=r"^v: "):
        attention3d(q, k, v.double(), (3, 5, 7))
    with pytest.raises(ValueError, match=r"^q: "):
        attention3d(q[0], k[0], v[0], (3, 5, 7))
    with pytest.raises(ValueError, match=r"^bias: shape \(2, 5, 9, 12\).*must be \(2, 5, 9, 13\)"):
        attention3d(q, k, v, (3, 5, 7), bias=bias[..., 1:])
    with pytest.raises(ValueError, match=r"^bias: torch.float64; must be torch.float32"):
        attention3d(q, k, v, (3, 5, 7), bias=bias.double())
    with pytest.raises(ValueError, match=r"^window: \(0, 3, 3\); must be three whole numbers from 1 to the grid's"):
        attention3d(q, k, v, (3, 5, 7), window=(0, 3, 3))
    with pytest.raises(ValueError, match=r"^grid: \(3\.9, 5, 7\); must be three whole sides"):
        attention3d(q, k, v, (3.9, 5, 7))
    with pytest.raises(ValueError, match=r"^window: \(1\.5, 3, 3\); must be three whole numbers"):
        attention3d(q, k, v, (3, 5, 7), window=(1.5, 3, 3))
    wide = torch.zeros(1, 1, 512, 2)
    with pytest.raises(BackendUnavailable, match="up to 256 channels, not 512"):
        attention3d(wide, wide, wide, (1, 1, 2), backend="triton")
