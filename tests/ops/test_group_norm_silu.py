"""Group normalisation, FiLM and SiLU: every backend against the float64 definition, forward and backward."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from orthokernels.backends.registry import BackendUnavailable
from orthokernels.ops import group_norm_silu
from orthokernels.ops.group_norm_silu import reference

pytest.importorskip("triton", reason="Triton is not installed")

# (batch, channels, channels of the skip, groups, voxels): odd sides, one slice, one voxel, one channel a group, more
# channels than a tile has, a group that straddles both volumes, several chunks.
SHAPES = [
    (2, 8, 4, 3, (3, 5, 7)),
    (1, 96, 0, 32, (3, 5, 7)),
    (1, 32, 0, 32, (1, 9, 11)),
    (3, 6, 0, 1, (1, 1, 1)),
    (1, 300, 40, 10, (2, 3)),
    (2, 4, 0, 2, (17, 19, 23)),
    (1, 2, 2, 2, (4099,)),
]


def made(shape, dtype, *, channels_last=False, mean=0.0, deviation=1.0, seed=0) -> dict[str, Tensor]:
    """Inputs by name, of fresh random numbers."""
    batch, channels, behind, _, voxels = shape
    draw = torch.Generator().manual_seed(seed)
    width = channels + behind

    def normal(*sides: int) -> Tensor:
        return torch.randn(sides, generator=draw)

    found = {"x": normal(batch, channels, *voxels) * deviation + mean, "weight": normal(width), "bias": normal(width)}
    found |= {"shift": normal(batch, width) * deviation, "scale_shift": normal(batch, 2 * width)}
    if behind:
        found["skip"] = normal(batch, behind, *voxels) * deviation + mean
    found = {name: tensor.to(dtype) for name, tensor in found.items()}
    for name in {"x", "skip"} & set(found) if channels_last else ():
        found[name] = found[name].movedim(1, -1).contiguous().movedim(-1, 1)
    return found


def both_ways(function, tensors: dict[str, Tensor], groups: int, upstream: Tensor, **options) -> list[Tensor]:
    """The output, and the gradient of each input."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    rest = {name: leaf for name, leaf in leaves.items() if name not in ("x", "weight", "bias")}
    y = function(leaves["x"], groups, leaves.get("weight"), leaves.get("bias"), **rest, **options)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), upstream.to(y.dtype))]


def upstream_of(tensors: dict[str, Tensor]) -> Tensor:
    channels = tensors["x"].shape[1] + (tensors["skip"].shape[1] if "skip" in tensors else 0)
    shape = (tensors["x"].shape[0], channels, *tensors["x"].shape[2:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(tensors["x"].dtype)


def assert_as_exact_as_plain(tensors, groups, *, backend, **options) -> None:
    """No error larger than twice what the definition makes at the same dtype, against the definition in float64.

    Where that is luckily small, one rounding of the largest value is allowed: of the output's dtype, or of float32 sums
    over as many terms as there are voxels.
    """
    upstream = upstream_of(tensors)
    exact = both_ways(reference, {n: t.double() for n, t in tensors.items()}, groups, upstream, **options)
    plain = both_ways(reference, tensors, groups, upstream, **options)
    found = both_ways(group_norm_silu, tensors, groups, upstream, backend=backend, **options)
    for name, own, other, want in zip(["y", *tensors], found, plain, exact, strict=True):
        rounding = want.abs().max() * max(torch.finfo(own.dtype).eps, 1e-6)
        bound = 2 * (other.double() - want).abs().max() + rounding
        assert own.dtype == other.dtype
        assert (own.double() - want).abs().max() <= bound, name


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_as_exact_as_plain_pytorch_s(shape, channels_last, backend):
    tensors = made(shape, torch.float32, channels_last=channels_last)
    assert_as_exact_as_plain(tensors, shape[3], backend=backend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_half_precision_sums_in_float32(dtype, channels_last):
    assert_as_exact_as_plain(made(SHAPES[0], dtype, channels_last=channels_last), SHAPES[0][3], backend="triton")


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("without", list(itertools.combinations(["affine", "shift", "scale_shift"], 2)), ids=str)
@pytest.mark.parametrize("activation", ["silu", None])
def test_whatever_is_left_out_is_left_out(backend, without, activation):
    tensors = made((2, 6, 3, 3, (3, 4, 5)), torch.float32, channels_last=True)
    dropped = {"affine": ("weight", "bias")}
    for name in without:
        for own in dropped.get(name, (name,)):
            del tensors[own]
    assert_as_exact_as_plain(tensors, 3, backend=backend, activation=activation)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_mean_of_a_thousand_deviations_keeps_its_digits(channels_last, backend):
    tensors = made((1, 8, 0, 2, (4, 33, 31)), torch.float32, channels_last=channels_last, mean=100, deviation=0.1)
    upstream = upstream_of(tensors)
    exact = both_ways(reference, {n: t.double() for n, t in tensors.items()}, 2, upstream)
    found = both_ways(group_norm_silu, tensors, 2, upstream, backend=backend)
    # x itself is known to 100 * 2^-24, 6e-5 of the deviation; sums of squares about zero would be off by 1e-1 of it.
    assert (found[0].double() - exact[0]).abs().max() < 1e-3


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_two_runs_give_the_same_bytes(channels_last, backend):
    tensors = made(SHAPES[5], torch.float32, channels_last=channels_last)
    first, second = (both_ways(group_norm_silu, tensors, 2, upstream_of(tensors), backend=backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_format_is_kept(backend, channels_last):
    tensors = made(SHAPES[0], torch.float32, channels_last=channels_last)
    y, dx, *_ = both_ways(group_norm_silu, tensors, 3, upstream_of(tensors), backend=backend)
    for volume in (y, dx):
        assert volume.is_contiguous(memory_format=torch.channels_last_3d) == channels_last
        assert volume.is_contiguous() != channels_last


@pytest.mark.parametrize("sides", [(5,), (5, 7), (3, 5, 7), (2, 3, 5, 7)], ids=str)
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_the_output_may_be_written_to_in_place(backend, sides):
    x = torch.randn(2, *sides, 8).movedim(-1, 1).requires_grad_()
    y = group_norm_silu(x, 4, backend=backend)
    assert y.stride() == x.stride()
    want = 2 * y.detach()
    y.mul_(2).sum().backward()
    assert torch.equal(y, want)
    assert x.grad.any()


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_strided_volume_is_taken(backend):
    wide = torch.randn(2, 12, 3, 5, 8, generator=torch.Generator().manual_seed(1))
    x = wide[:, ::2, :, :, 1:6]
    found = group_norm_silu(x, 3, backend=backend)
    torch.testing.assert_close(found, reference(x, 3), rtol=1e-5, atol=1e-5)  # float32 rounding of values up to 4


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_pass_gradcheck(channels_last):
    tensors = made((2, 4, 2, 3, (2, 3, 2)), torch.float64, channels_last=channels_last)
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]
    names = list(tensors)

    def function(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return group_norm_silu(given.pop("x"), 3, given.pop("weight"), given.pop("bias"), **given)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last", "permuted"])
def test_registration_passes_opcheck(backend, layout):
    tensors = made((2, 4, 2, 3, (2, 3, 4)), torch.float32, channels_last=layout == "channels_last")
    if layout == "permuted":  # dense, but neither of the two formats
        tensors = {n: t.transpose(2, 4).contiguous().transpose(2, 4) if t.ndim == 5 else t for n, t in tensors.items()}
    for tensor in tensors.values():
        tensor.requires_grad_()
    x, weight, bias = (tensors[name] for name in ("x", "weight", "bias"))
    given = (x, tensors["skip"], 3, weight, bias, tensors["shift"], tensors["scale_shift"], True, 1e-5, backend)
    torch.library.opcheck(torch.ops.orthokernels.group_norm_silu.default, given)


def test_one_graph_holds_the_public_function():
    tensors = made(SHAPES[0], torch.float32)
    whole = torch.compile(group_norm_silu, fullgraph=True, backend="aot_eager")
    plain = both_ways(group_norm_silu, tensors, 3, upstream_of(tensors))
    for found, want in zip(both_ways(whole, tensors, 3, upstream_of(tensors)), plain, strict=True):
        torch.testing.assert_close(found, want, rtol=0, atol=0)  # the same op either way


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"groups": 5}, "groups: 5 does not divide 12 channels"),
        ({"bias": None}, "weight and bias: one is given without the other"),
        ({"shift": torch.zeros(2, 3)}, r"shift: shape \(2, 3\); must be \(2, 12\)"),
        ({"skip": torch.zeros(2, 4, 3, 5, 6)}, "in all but the channels"),
        ({"activation": "relu"}, "activation: 'relu'"),
        ({"backend": "fast"}, "backend: 'fast'; group_norm_silu has auto, torch, triton, cpu"),
        ({"x": torch.zeros(2, 8), "skip": None}, "allowed are floating point"),
        ({"x": torch.zeros(2, 8, 3, 5, 7, dtype=torch.int32), "skip": None}, "x: torch.int32"),
    ],
)
def test_bad_arguments_are_named(changes, told):
    arguments = {**made(SHAPES[0], torch.float32), "groups": 3, **changes}
    with pytest.raises(ValueError, match=told):
        group_norm_silu(**arguments)


@pytest.mark.parametrize("backend", ["auto", "torch", "cpu", "triton"])
@pytest.mark.parametrize("name", ["weight", "bias", "shift", "scale_shift"])
def test_a_parameter_wider_than_the_arithmetic_is_named(name, backend):
    given = made((2, 8, 0, 4, (3, 5, 7)), torch.float32)
    given[name] = given[name].double()
    with pytest.raises(ValueError, match=f"^{name}: torch.float64; must be torch.float32 at most, beside x in"):
        group_norm_silu(given.pop("x"), 4, given.pop("weight"), given.pop("bias"), **given, backend=backend)


@pytest.mark.parametrize("sides", [(2, 3, 4), (32, 32, 32)], ids=str)
def test_a_narrower_parameter_is_taken_whatever_the_volume_s_size(sides):
    given = made((1, 32, 0, 4, sides), torch.float32)
    x, *small = (given.pop(name) for name in ("x", "weight", "bias"))
    small, rest = [own.half() for own in small], {name: own.half() for name, own in given.items()}
    want = group_norm_silu(x, 4, *[s.float() for s in small], **{n: own.float() for n, own in rest.items()})
    torch.testing.assert_close(group_norm_silu(x, 4, *small, **rest), want, rtol=1e-5, atol=1e-5)


def test_auto_on_a_processor_is_the_native_kernels_where_they_are_faster_and_plain_pytorch_else():
    small, large = torch.randn(1, 8, 16, 16), torch.randn(1, 32, 32, 32, 32)
    for x, activation, expected in (
        (large, "silu", group_norm_silu(large, 4, backend="cpu")),
        (large, None, reference(large, 4, activation=None)),
        (small, "silu", reference(small, 4)),
        (small.double(), "silu", group_norm_silu(small.double(), 4, backend="torch")),
    ):
        assert torch.equal(group_norm_silu(x, 4, activation=activation), expected)
    assert not torch.equal(group_norm_silu(large, 4), reference(large, 4))  # or the first row would say nothing


def test_auto_takes_a_large_volume_s_norm_alone():
    x = torch.randn(1, 32, 64, 64, 64)
    native = group_norm_silu(x, 4, activation=None, backend="cpu")
    assert not torch.equal(native, reference(x, 4, activation=None))
    assert torch.equal(group_norm_silu(x, 4, activation=None), native)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_auto_on_a_processor_gives_half_precision_to_pytorch_s_own_normalisation(dtype, channels_last):
    x = torch.randn(2, 8, 2, 3, 4).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d) if channels_last else x
    weight, bias, film = torch.randn(8), torch.randn(8), torch.randn(2, 16)
    with torch.no_grad():
        for parameters in ((weight, bias), (weight.to(dtype), bias.to(dtype))):
            own = {"shift": film[:, :8].to(dtype), "scale_shift": film.to(dtype)}
            found = group_norm_silu(x, 4, *parameters, **own)
            assert torch.equal(found, reference(x, 4, *parameters, **own))
            assert (found.dtype, found.stride()) == (dtype, x.stride())
        # What PyTorch would widen the volume for is left to the op, whose result has x's dtype.
        found = group_norm_silu(x, 4, weight, bias, scale_shift=film)
        assert torch.equal(found, group_norm_silu(x, 4, weight, bias, scale_shift=film, backend="torch"))


def test_auto_learns_a_norm_behind_a_frozen_channels_last_volume():
    # Plain PyTorch's backward pass ends the process there (2.13).
    x = torch.randn(2, 8, 2, 3, 4).contiguous(memory_format=torch.channels_last_3d)
    weight, bias = torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    for own in (x, x.bfloat16(), x[..., :3]):
        found = torch.autograd.grad(group_norm_silu(own, 4, weight, bias).float().sum(), (weight, bias))
        want = torch.autograd.grad(reference(own.contiguous().double(), 4, weight.double(), bias.double()).sum(), bias)
        torch.testing.assert_close(found[1].double(), want[0].double(), rtol=0.02, atol=0.1)  # bfloat16 has 8 digits


def test_a_backend_that_can_not_says_why(monkeypatch):
    with pytest.raises(BackendUnavailable, match=r"float32, float16 and bfloat16, not torch\.float64"):
        group_norm_silu(torch.zeros(1, 2, 3, dtype=torch.float64), 1, backend="triton")
    with pytest.raises(BackendUnavailable, match=r"its kernels take float32, not torch\.float64"):
        group_norm_silu(torch.zeros(1, 2, 3, dtype=torch.float64), 1, backend="cpu")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(BackendUnavailable, match="lies on cpu"):
        group_norm_silu(torch.zeros(1, 2, 3), 1, backend="triton")


@pytest.mark.parametrize("shape", [(0, 4, 2, 3, 4), (2, 4, 0, 3, 4)])
def test_of_nothing_comes_nothing_and_a_gradient_of_zero(shape):
    x = torch.zeros(shape, requires_grad=True)
    small = [torch.ones(4), torch.ones(4), torch.ones(shape[0], 4), torch.ones(shape[0], 8)]
    weight, bias, shift, film = (own.requires_grad_() for own in small)
    y = group_norm_silu(x, 2, weight, bias, shift=shift, scale_shift=film, backend="triton")
    assert y.shape == shape
    found = torch.autograd.grad(y.sum(), [x, *small])
    assert [own.shape for own in found] == [x.shape, *(own.shape for own in small)]
    assert all(not own.any() for own in found)
