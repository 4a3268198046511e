"""Attention with a mean over the queries: every backend against the float64 definition, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orthokernels.backends.registry import BackendUnavailable
from orthokernels.models.orthodiffusion import SelfAttentionPool
from orthokernels.ops import attention_pool
from orthokernels.ops.attention_pool import reference

pytest.importorskip("triton", reason="Triton is not installed")

# (batch, heads, tokens, channels of a head): 3 x 5 x 7 tokens, one, more than a program takes at once, odd widths.
SHAPES = [(2, 3, 105, 16), (1, 2, 1, 8), (1, 1, 256, 5), (1, 2, 300, 20), (1, 1, 33, 128), (1, 1, 33, 200)]


def made(shape, dtype=torch.float32, *, views=True) -> list[Tensor]:
    """q, k and v; as views into one projection, as a model has them, they are not contiguous."""
    N, heads, T, d = shape
    joint = torch.randn(N, T, 3 * heads * d, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens = [part.unflatten(2, (heads, d)).transpose(1, 2) for part in joint.chunk(3, dim=2)]
    return tokens if views else [part.contiguous() for part in tokens]


def both_ways(function, tokens: list[Tensor], **options) -> list[Tensor]:
    leaves = [part.detach().requires_grad_() for part in tokens]
    out = function(*leaves, **options)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(tokens[0].dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def assert_as_exact_as_plain(tokens: list[Tensor], **options) -> None:
    """No error larger than twice the definition's at the same dtype, and one rounding where that is luckily small."""
    exact, plain = both_ways(reference, [part.double() for part in tokens]), both_ways(reference, tokens)
    for own, other, want in zip(both_ways(attention_pool, tokens, **options), plain, exact, strict=True):
        rounding = max(torch.finfo(own.dtype).eps, 1e-6) * want.abs().max() + 1e-7  # a lone token's dq and dk are 0
        assert own.dtype == other.dtype
        assert (own - want).abs().max() <= 2 * (other - want).abs().max() + rounding


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("views", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pooled_tokens_and_gradients_are_as_exact_as_plain_pytorch_s(shape, views, backend):
    assert_as_exact_as_plain(made(shape, views=views), backend=backend)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], (1, 1, 33, 256)], ids=str)
def test_half_precision_sums_in_float32(shape):
    assert_as_exact_as_plain(made(shape, torch.float16), backend="triton")


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
def test_scores_of_hundreds_do_not_overflow(backend):
    tokens = made(SHAPES[0])
    found = attention_pool(tokens[0] * 50, *tokens[1:], backend=backend)
    want = reference(tokens[0].double() * 50, *(part.double() for part in tokens[1:]))
    # A score of 800 is known to 5e-5 in float32, and so is each weight, relatively.
    torch.testing.assert_close(found.double(), want, rtol=0, atol=3e-4)


def test_two_runs_give_the_same_bytes():
    runs = [both_ways(attention_pool, made(SHAPES[3]), backend="triton") for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_it_is_what_the_published_pooling_computes():
    pooling, x = SelfAttentionPool(32, heads=4), torch.randn(2, 32, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    tokens = x.flatten(2).transpose(1, 2)
    parts = [p(tokens).unflatten(2, (4, -1)).transpose(1, 2) for p in (pooling.q_proj, pooling.k_proj, pooling.v_proj)]
    found = pooling.out_proj(attention_pool(*parts, backend="triton").flatten(1))
    torch.testing.assert_close(found, pooling(x)[:, 32:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("views", [True, False])
def test_registration_passes_opcheck(backend, views):
    tokens = [part.detach().requires_grad_() for part in made((1, 2, 5, 4), views=views)]
    torch.library.opcheck(torch.ops.orthokernels.attention_pool.default, (*tokens, 0.5, backend))


def test_gradients_pass_gradcheck():
    tokens = [part.detach().requires_grad_() for part in made((1, 2, 5, 3), torch.float64)]
    assert torch.autograd.gradcheck(lambda *parts: attention_pool(*parts, scale=0.7), tokens)


def test_bad_arguments_are_named():
    q, k, v = made(SHAPES[0])
    with pytest.raises(ValueError, match=r"^k: "):
        attention_pool(q, k[:, :, 1:], v)
    with pytest.raises(ValueError, match=r"^v: "):
        attention_pool(q, k, v.double())
    with pytest.raises(ValueError, match=r"^q: "):
        attention_pool(q[0], k[0], v[0])
    wide = torch.zeros(1, 1, 2, 512)
    with pytest.raises(BackendUnavailable, match="up to 256 channels, not 512"):
        attention_pool(wide, wide, wide, backend="triton")
