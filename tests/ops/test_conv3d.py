"""The convolution: every backend against the float64 definition, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orthokernels.backends.cpu import conv3d as native
from orthokernels.backends.cpu import packed_weights
from orthokernels.backends.cpu.packed_weights import PackedWeights
from orthokernels.backends.registry import BackendUnavailable
from orthokernels.ops import attention3d, conv3d
from orthokernels.ops.conv3d import bytes_moved, operations, reference

# Channels, outputs, kernel, stride, sides; and F(4,4,4)'s bound of csrc/cpu/conv3d.h for at most 64 channels.
SHAPES = [
    (16, 32, 3, 1, (4, 9, 10)), (32, 16, 3, 1, (1, 16, 16)), (16, 16, 3, 1, (3, 5, 7)), (5, 3, 3, 1, (3, 4, 5)),
    (16, 24, 3, 2, (3, 6, 9)), (24, 16, 1, 1, (2, 5, 3)), (1, 16, 3, 1, (4, 4, 4)), (3, 16, 3, 2, (3, 6, 5)),
    (16, 8, 1, 2, (3, 5, 4)),
    (16, 32, 3, 1, (4, 21, 26)), (32, 16, 3, 2, (5, 20, 24)),  # whose weights learn by Winograd's algorithm
]  # fmt: skip
BOUND = 4e-6


def inputs(shape, dtype=torch.float32, *, channels_last=False, batch=2) -> tuple[Tensor, Tensor, Tensor]:
    channels, out, kernel, _, sides = shape
    seeded = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, *sides, generator=seeded)
    weight = torch.randn(out, channels, kernel, kernel, kernel, generator=seeded) / (channels * kernel**3) ** 0.5
    bias = torch.randn(out, generator=seeded)
    x = x.contiguous(memory_format=torch.channels_last_3d) if channels_last else x
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def both_ways(function, given, **options) -> list[Tensor]:
    """The output and every gradient."""
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    y = function(*leaves, **options)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_the_definition_s(shape, channels_last, backend):
    given = inputs(shape, channels_last=channels_last)
    found = both_ways(conv3d, given, stride=shape[3], backend=backend)
    exact = both_ways(reference, [tensor.double() for tensor in given], stride=shape[3])
    for own, want in zip(found, exact, strict=True):
        assert (own - want).norm() / want.norm() < BOUND
    last = channels_last or shape[0] == 1  # one channel is both, and what comes of it is channels last
    assert found[0].is_contiguous(memory_format=torch.channels_last_3d) == last


def test_changed_weights_are_seen_however_they_were_changed():
    x, weight, bias = inputs(SHAPES[0])
    with torch.no_grad():
        before = conv3d(x, weight, bias, backend="cpu")
        weight.data.mul_(2)  # no version counter tells of this
        after = conv3d(x, weight, bias, backend="cpu")
    torch.testing.assert_close(after - bias.view(-1, 1, 1, 1), 2 * (before - bias.view(-1, 1, 1, 1)))


@pytest.fixture
def packed(monkeypatch):
    """Room for two convolutions of SHAPES[0], and the weights that were packed anew, in order."""
    x, weight, _ = inputs(SHAPES[0])
    own = PackedWeights(2**30)
    monkeypatch.setattr(native, "PACKED", own)
    conv3d(x, weight, backend="cpu")
    own.most_bytes = 2 * own.bytes
    own.clear()
    made: list[Tensor] = []
    anew = native._packed_anew
    monkeypatch.setattr(native, "_packed_anew", lambda weight, *given: made.append(weight) or anew(weight, *given))
    return own, made


def test_packed_weights_stay_within_their_limit(packed):
    own, made = packed
    x, weight, _ = inputs(SHAPES[0])
    weights = [weight + n for n in range(3)]
    for each in weights:
        conv3d(x, each, backend="cpu")
    assert own.bytes == own.most_bytes
    own.clear()
    assert own.bytes == 0
    own.most_bytes = 0
    assert torch.equal(conv3d(x, weight, backend="cpu"), conv3d(x, weight, backend="cpu"))
    assert own.bytes == 0
    assert len(made) == 5


def test_weights_used_in_turn_just_beyond_the_limit_are_mostly_found(packed):
    _, made = packed
    x, weight, _ = inputs(SHAPES[0])
    weights = [weight + n for n in range(3)]
    for _ in range(4):
        for each in weights:
            conv3d(x, each, backend="cpu")
    assert len(made) == 2 + 4  # the third alone is packed every time


def test_weights_that_nobody_uses_any_more_give_way(packed, monkeypatch):
    monkeypatch.setattr(packed_weights, "_MANY_CALLS", 4)
    _, made = packed
    x, weight, _ = inputs(SHAPES[0])
    first, second, third = (weight + n for n in range(3))
    for each in (first, second, first, second, third, first, third, first, third, first, third):
        conv3d(x, each, backend="cpu")
    assert len(made) == 2 + 3  # the third is kept from its third call on, the second's last being five calls ago
    first.mul_(2)  # other values in the same memory take its place, and are used last
    for each in (first, third, first, third):
        conv3d(x, each, backend="cpu")
    assert len(made) == 6


def test_whatever_the_default_dtype_and_device_are_results_are_the_same():
    x, weight, bias = inputs(SHAPES[0])
    q, k, v = torch.randn(3, 1, 2, 4, 24).unbind()
    want = conv3d(x, weight, bias, backend="cpu"), attention3d(q, k, v, (2, 3, 4), backend="cpu")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = conv3d(x, weight, bias, backend="cpu"), attention3d(q, k, v, (2, 3, 4), backend="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(own, other) for own, other in zip(found, want, strict=True))


@pytest.mark.parametrize(("exact", "bound"), [(True, 1e-6), (False, BOUND)])
def test_exact_has_the_bound_of_plain_products(exact, bound):
    given = inputs((64, 64, 3, 1, (16, 32, 32)), batch=1)
    want = reference(*(tensor.double() for tensor in given))
    found = conv3d(*given, exact=exact, backend="cpu")
    assert (found - want).norm() / want.norm() < bound


@pytest.mark.parametrize("value", [1e7, 1e36, float("nan")])
def test_exact_sums_keep_an_outlier_to_its_own_taps(value):
    x, weight, _ = inputs((64, 64, 3, 1, (8, 16, 16)), batch=1)
    x[0, 3, 3, 7, 7] = value
    found, want = conv3d(x, weight, exact=True, backend="cpu"), reference(x, weight)
    outside = torch.ones_like(want, dtype=torch.bool)
    outside[0, :, 2:5, 6:9, 6:9] = False
    assert found.isfinite()[outside].all()
    # Outside, sums of 1,728 products of numbers near 1, as if there were no outlier.
    torch.testing.assert_close(found[outside], want[outside], rtol=1e-4, atol=1e-3)


def test_both_derivatives_pass_gradcheck():
    given = [tensor.requires_grad_() for tensor in inputs((2, 3, 3, 1, (2, 3, 2)), torch.float64)]
    assert torch.autograd.gradcheck(lambda *tensors: conv3d(*tensors), given)
    strided = [tensor.requires_grad_() for tensor in inputs((2, 3, 3, 2, (2, 3, 2)), torch.float64)]
    assert torch.autograd.gradcheck(lambda *tensors: conv3d(*tensors, stride=2), strided)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last", "permuted"])
def test_registration_passes_opcheck(backend, layout):
    x, weight, bias = inputs(SHAPES[2], channels_last=layout == "channels_last")
    if layout == "permuted":
        x = x.transpose(2, 4).contiguous().transpose(2, 4)
    x.requires_grad_()
    weight.requires_grad_()
    torch.library.opcheck(torch.ops.orthokernels.conv3d.default, (x, weight, bias, 1, False, backend))


def test_bytes_and_operations_are_counted_by_the_formula():
    x, weight, _ = inputs((16, 24, 3, 2, (3, 6, 9)))
    places = 2 * 3 * 5
    assert operations(x, weight, 2) == 2 * 2 * 24 * 16 * 27 * places
    assert bytes_moved(x, weight, 2) == 4 * (x.numel() + weight.numel() + 2 * 24 * places)


def test_bad_input_gets_a_sentence():
    x, weight, bias = inputs(SHAPES[0])
    for arguments, options, told in [
        ((x[0], weight, bias), {}, "x: torch.float32 of shape"),
        (
            (x, weight[:, :3], bias),
            {},
            r"weight: shape \(32, 3, 3, 3, 3\); must be \(K, 16, k, k, k\) with k of 1 or 3",
        ),
        ((x, weight[:0], None), {}, r"weight: shape \(0, 16, 3, 3, 3\); K, the channels of the result, must be 1"),
        ((x, weight, bias[:1]), {}, r"bias: shape \(1,\); must be \(32,\)"),
        ((x, weight.double(), bias), {}, "weight: torch.float64 on cpu; must be as x"),
        ((x, weight, bias), {"stride": 3}, "stride: 3; allowed are 1 and 2"),
        ((x, weight, bias), {"backend": "triton"}, "backend: 'triton'; conv3d has auto, torch, cpu"),
    ]:
        with pytest.raises(ValueError, match=told):
            conv3d(*arguments, **options)
    with pytest.raises(BackendUnavailable, match="its kernels take float32"):
        conv3d(x.double(), weight.double(), bias.double(), backend="cpu")


def test_auto_gives_the_kernels_what_they_are_faster_at():
    x, weight, small = torch.randn(1, 16, 4, 24, 24), torch.randn(16, 16, 3, 3, 3), torch.randn(1, 16, 1, 2, 2)
    one = torch.randn(16, 16, 1, 1, 1)
    with torch.no_grad():
        assert torch.equal(conv3d(x, weight), conv3d(x, weight, backend="cpu"))
        assert torch.equal(conv3d(small, weight), reference(small, weight))
        assert torch.equal(conv3d(x, one), reference(x, one))
        assert torch.equal(conv3d(x, weight, stride=2), reference(x, weight, stride=2))


def test_what_auto_leaves_to_pytorch_keeps_the_memory_format():
    weight = torch.randn(8, 8, 1, 1, 1).contiguous(memory_format=torch.channels_last_3d)
    x = torch.randn(1, 8, 2, 3, 4)
    with torch.no_grad():
        assert conv3d(x, weight).is_contiguous()
        last = conv3d(x.contiguous(memory_format=torch.channels_last_3d), weight)
        assert last.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_output_may_be_added_to_in_place(channels_last, backend):
    x, weight, bias = inputs(SHAPES[0], channels_last=channels_last)
    weight.requires_grad_()
    y = conv3d(x, weight, bias, backend=backend)
    want = y.detach() + 1
    y.add_(1).sum().backward()
    assert torch.equal(y, want)
    assert weight.grad is not None
