"""Attention over few voxels with all that stands around it: both backends against the float64 definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orthokernels.backends.registry import BackendUnavailable
from orthokernels.ops import attention_block
from orthokernels.ops.attention_block import reference

pytest.importorskip("triton", reason="Triton is not installed")

# (batch, channels, groups, heads, voxels): groups of three channels, one voxel, groups of many channels, one in pieces.
SHAPES = [
    (1, 96, 32, 3, (3, 5, 7)),
    (1, 8, 4, 2, (1, 1, 1)),
    (2, 48, 2, 3, (2, 3, 5)),
    (1, 80, 1, 1, (2, 9)),
]
SMALL = (2, 12, 3, 2, (2, 3))
PARAMETERS = ("weight", "bias", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias")


def made(shape, dtype=torch.float32, *, last=False, mean=0.5, deviation=1.0) -> dict[str, Tensor]:
    """A volume, and parameters such that the result is of its size."""
    N, C, _, _, sides = shape
    draw = torch.Generator().manual_seed(0)
    sizes = (C,), (C,), (3 * C, C), (3 * C,), (C, C), (C,)
    found = {"x": torch.randn(N, C, *sides, generator=draw) * deviation + mean}
    for name, size in zip(PARAMETERS, sizes, strict=True):
        found[name] = torch.randn(size, generator=draw) * (C**-0.5 if len(size) == 2 else 0.3)
    found["weight"] += 1
    found = {name: tensor.to(dtype) for name, tensor in found.items()}
    if last:
        found["x"] = found["x"].movedim(1, -1).contiguous().movedim(-1, 1)
    return found


def called(function, tensors: dict[str, Tensor], shape, **options) -> Tensor:
    parameters = [tensors.get(name) for name in PARAMETERS]
    return function(tensors["x"], shape[2], *parameters, heads=shape[3], **options)


def both_ways(function, tensors: dict[str, Tensor], shape, **options) -> list[Tensor]:
    """The result, and the gradient of every tensor."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    y = called(function, leaves, shape, **options)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(tensors["x"].dtype)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), upstream.to(y.dtype))]


def doubled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


def assert_as_exact_as_plain(tensors: dict[str, Tensor], shape, *, backend: str, **options) -> None:
    """No error larger than twice the definition's at the same dtype, and one rounding where that is luckily small."""
    exact = both_ways(reference, doubled(tensors), shape, **options)
    plain = both_ways(reference, tensors, shape, **options)
    found = both_ways(attention_block, tensors, shape, backend=backend, **options)
    for name, own, other, want in zip(["y", *tensors], found, plain, exact, strict=True):
        # A bias of the keys moves every score of a query alike: that part of qkv's gradient is the rounding of a sum.
        rounding = max(torch.finfo(own.dtype).eps, 1e-6) * want.abs().max() + 2e-6
        assert own.dtype == other.dtype
        assert (own.double() - want).abs().max() <= 2 * (other.double() - want).abs().max() + rounding, name


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(("last", "legacy"), [(False, True), (True, False)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_result_and_gradients_are_as_exact_as_plain_pytorch_s(shape, last, legacy, backend):
    assert_as_exact_as_plain(made(shape, last=last), shape, backend=backend, legacy=legacy)


@pytest.mark.parametrize(("last", "legacy"), [(False, False), (True, True)])
def test_half_precision_sums_in_float32(last, legacy):
    # The interpreter multiplies bfloat16's bits: that type is for a GPU to check.
    shape = SHAPES[2]
    assert_as_exact_as_plain(made(shape, torch.float16, last=last), shape, backend="triton", legacy=legacy)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("without", [("weight", "bias"), ("qkv_bias",), ("proj_bias",)], ids=str)
def test_whatever_is_left_out_is_left_out(without, backend):
    tensors = {name: tensor for name, tensor in made(SMALL).items() if name not in without}
    assert_as_exact_as_plain(tensors, SMALL, backend=backend)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_parameters_may_be_wider_than_the_volume(backend):
    tensors = made(SMALL, torch.float16)
    wide = {name: tensor if name == "x" else tensor.float() for name, tensor in tensors.items()}
    found = both_ways(attention_block, wide, SMALL, backend=backend)
    exact = both_ways(reference, doubled(wide), SMALL)
    plain = both_ways(reference, tensors, SMALL)
    for name, own, other, want in zip(["y", *wide], found, plain, exact, strict=True):
        assert own.dtype == (torch.float16 if name in ("y", "x") else torch.float32)
        rounding = torch.finfo(torch.float16).eps * want.abs().max()
        assert (own.double() - want).abs().max() <= 2 * (other.double() - want).abs().max() + rounding, name


@pytest.mark.parametrize("last", [False, True])
def test_a_mean_of_a_thousand_deviations_keeps_its_digits(last):
    shape = SHAPES[2]
    tensors = made(shape, last=last, mean=100, deviation=0.1)
    found = called(attention_block, tensors, shape, backend="triton")
    exact = called(reference, doubled(tensors), shape)
    # The result near 100 is rounded to 2^-18, 4e-6; with sums of squares about zero it would be off by 1e-2.
    assert (found.double() - exact).abs().max() < 1e-5


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("last", [False, True])
def test_the_memory_format_is_kept(last, backend):
    tensors = made((2, 8, 2, 2, (2, 3, 4)), last=last)
    y, dx, *_ = both_ways(attention_block, tensors, (2, 8, 2, 2), backend=backend)
    for volume in (y, dx):
        assert volume.is_contiguous(memory_format=torch.channels_last_3d) == last
        assert volume.is_contiguous() != last


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:divide by zero:RuntimeWarning")
def test_no_eps_is_needed():
    tensors = made(SMALL)
    found = called(attention_block, tensors, SMALL, backend="triton", eps=0.0)
    exact, plain = (called(reference, given, SMALL, eps=0.0) for given in (doubled(tensors), tensors))
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-6 * exact.abs().max()


def test_scores_of_hundreds_do_not_overflow():
    tensors = made(SMALL)
    tensors["qkv_weight"] *= 20
    found = called(attention_block, tensors, SMALL, backend="triton")
    exact, plain = called(reference, doubled(tensors), SMALL), called(reference, tensors, SMALL)
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-5


def test_two_runs_give_the_same_bytes():
    runs = [both_ways(attention_block, made(SHAPES[2]), SHAPES[2], backend="triton") for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 2, 3, 4, 1), (0, 3, 1, 4, 2)], ids=str)
def test_registration_passes_opcheck(order, backend):
    tensors = made((1, 4, 2, 2, (2, 2, 2)))
    tensors["x"] = tensors["x"].permute(order).contiguous().permute([order.index(axis) for axis in range(5)])
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]
    arguments = (leaves[0], 2, *leaves[1:], 2, True, 1e-5, backend)
    torch.library.opcheck(torch.ops.orthokernels.attention_block.default, arguments)


@pytest.mark.parametrize("legacy", [True, False])
def test_gradients_pass_gradcheck(legacy):
    shape = (2, 4, 2, 2, (1, 2, 2))
    leaves = [tensor.requires_grad_() for tensor in made(shape, torch.float64).values()]
    assert torch.autograd.gradcheck(
        lambda x, *rest: attention_block(x, 2, *rest, heads=2, legacy=legacy, backend="torch"), leaves
    )


def test_heads_too_wide_for_attention3d_have_gradients_too():
    shape = (1, 288, 4, 1, (1, 2, 2))  # half precision: in float32 the block itself ends at 256 channels
    assert_as_exact_as_plain(made(shape, dtype=torch.float16), shape, backend="triton")


def test_bad_arguments_are_named():
    tensors = made(SMALL)

    def refused(match: str, *, groups: int = 3, heads: int = 2, kind=ValueError, **changed) -> None:
        given = {**tensors, **changed}
        with pytest.raises(kind, match=match):
            called(attention_block, given, (None, None, groups, heads), backend="triton")

    refused(r"^x: torch\.float32 of shape \(2, 12\)", x=tensors["x"][..., 0, 0])
    refused(r"^groups: 5 does not divide 12 channels", groups=5)
    refused(r"^heads: 0 does not divide 12 channels", heads=0)
    refused(r"^weight and bias: one is given without the other", bias=None)
    refused(r"^qkv_weight: shape \(12, 12\) on cpu; must be \(36, 12\)", qkv_weight=tensors["proj_weight"])
    refused(r"^proj_bias: torch\.float64; must be torch\.float32", proj_bias=tensors["proj_bias"].double())
    refused(r"^proj_weight: .* on meta; must be \(12, 12\) on cpu", proj_weight=tensors["proj_weight"].to("meta"))
    long = made((1, 8, 2, 2, (5, 15, 15)))
    refused(r"up to 1024 voxels, not 1125", kind=BackendUnavailable, groups=2, **long)
    wide = {name: tensor.half() for name, tensor in made((1, 513, 3, 1, (2,))).items()}
    refused(r"up to 512 channels in torch\.float16, not 513", kind=BackendUnavailable, heads=1, **wide)
