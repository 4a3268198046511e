"""The gate over planes: both backends against the float64 definition and the model's own module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orthokernels.models.orthodiffusion.fusion import GatingFusion
from orthokernels.ops import plane_gating
from orthokernels.ops.plane_gating import reference

pytest.importorskip("triton", reason="Triton is not installed")

# (studies, planes, labels, hidden): the published gate, one of each, odd numbers, several programs.
SHAPES = [(5, 3, 8, 32), (1, 1, 1, 1), (9, 2, 11, 7), (4, 5, 3, 20)]


def made(shape, dtype=torch.float32) -> list[Tensor]:
    N, planes, labels, hidden = shape
    draw = torch.Generator().manual_seed(0)
    sizes = ((N, planes, labels), (hidden, planes), (hidden,), (planes, hidden), (planes,))
    return [torch.randn(size, generator=draw).to(dtype) for size in sizes]


def both_ways(function, given: list[Tensor], **options) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    mixed, gates = function(*leaves, **options)
    draw = torch.Generator().manual_seed(1)
    upstream = [torch.randn(out.shape, generator=draw).to(out.dtype) for out in (mixed, gates)]
    return [mixed.detach(), gates.detach(), *torch.autograd.grad((mixed, gates), leaves, upstream)]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients_are_as_exact_as_plain_pytorch_s(shape, backend):
    given = made(shape)
    exact, plain = both_ways(reference, [t.double() for t in given]), both_ways(reference, given)
    for own, other, want in zip(both_ways(plane_gating, given, backend=backend), plain, exact, strict=True):
        # Twice the definition's error in float32, and a few roundings where that is luckily small.
        assert (own - want).abs().max() <= 2 * (other - want).abs().max() + 2e-6 * (1 + want.abs().max())


def test_half_precision_sums_in_float32():
    given = made(SHAPES[0], torch.float16)
    exact = both_ways(reference, [t.double() for t in given])
    for own, want in zip(both_ways(plane_gating, given, backend="triton"), exact, strict=True):
        assert own.dtype == torch.float16
        assert (own - want).abs().max() <= 1e-3 * (1 + want.abs().max())  # one rounding


def test_it_is_the_model_s_gate():
    torch.manual_seed(0)
    fusion = GatingFusion(8).eval()
    logits = torch.randn(5, 3, 8)
    first, _, _, second = fusion.gate.net
    found = plane_gating(logits, first.weight, first.bias, second.weight, second.bias, backend="triton")
    for own, want in zip(found, fusion(logits), strict=True):
        torch.testing.assert_close(own, want, rtol=1e-5, atol=1e-6)


def test_two_runs_give_the_same_bytes():
    runs = [both_ways(plane_gating, made(SHAPES[2]), backend="triton") for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_registration_passes_opcheck(backend):
    given = [tensor.requires_grad_() for tensor in made((2, 3, 4, 5))]
    torch.library.opcheck(torch.ops.orthokernels.plane_gating.default, (*given, backend))
    given[0] = made((2, 4, 3, 5))[0].transpose(1, 2).requires_grad_()
    torch.library.opcheck(torch.ops.orthokernels.plane_gating.default, (*given, backend))


def test_gradients_pass_gradcheck():
    given = [tensor.requires_grad_() for tensor in made((2, 3, 2, 4), torch.float64)]
    assert torch.autograd.gradcheck(plane_gating, given)


def test_bad_arguments_are_named():
    logits, weight1, bias1, weight2, bias2 = made(SHAPES[0])
    with pytest.raises(ValueError, match=r"^logits: "):
        plane_gating(logits[0], weight1, bias1, weight2, bias2)
    with pytest.raises(ValueError, match=r"^weight1: shape \(32, 2\) on cpu; must be \(32, 3\)"):
        plane_gating(logits, weight1[:, :2], bias1, weight2, bias2)
    with pytest.raises(ValueError, match=r"^bias2: torch.float64; must be torch.float32"):
        plane_gating(logits, weight1, bias1, weight2, bias2.double())
