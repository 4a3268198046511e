"""What holds around every op: the tensors' device is the current one, and autocast has one rule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orthokernels import ops
from orthokernels.backends.cpu.volumes import array
from orthokernels.ops import (
    attention3d,
    attention_block,
    attention_pool,
    conv3d,
    diffusion_loss,
    group_norm_silu,
    upsample2x_trilinear,
)


def test_every_implementation_is_registered_in_one_way():
    files = {path.name for path in Path(ops.__file__).parent.glob("*.py") if "library.impl(" in path.read_text()}
    assert files == {"registration.py"}


def test_an_op_makes_its_tensors_device_the_current_one_in_either_direction(monkeypatch):
    seen: list[tuple[int, ...]] = []
    real = torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: seen.append(tuple(x.shape)) or real(x))
    x = torch.randn(2, 4, 2, 3, 4, requires_grad=True)
    group_norm_silu(x, 2, backend="torch").sum().backward()
    assert seen == [(2, 4, 2, 3, 4)] * 2
    seen.clear()
    attention_block(x, 2, None, None, torch.randn(12, 4), None, torch.randn(4, 4), None).sum().backward()
    # Backward is an op, which calls four that compute its parts.
    assert seen == [(2, 4, 2, 3, 4)] * 3 + [(2, 1, 4, 24)] * 2 + [(2, 4, 2, 3, 4)]


def test_shapes_are_told_on_a_device_without_autocast():
    x, weight = torch.empty(1, 4, 3, 4, 5, device="meta"), torch.empty(6, 4, 3, 3, 3, device="meta")
    assert conv3d(x, weight, stride=2).shape == (1, 6, 2, 2, 3)
    q, k, v = torch.empty(3, 1, 2, 8, 24, device="meta").unbind()
    assert attention3d(q, k, v, (2, 3, 4), window=(1, 3, 3)).shape == q.shape
    assert attention_pool(*torch.empty(3, 1, 2, 24, 8, device="meta").unbind()).shape == (1, 2, 8)


@pytest.mark.parametrize("lowers", [False, True])
def test_autocast_s_rule_is_traced_whole(lowers):
    x, weight = torch.randn(1, 4, 3, 4, 5), torch.randn(6, 4, 3, 3, 3)
    traced = torch.compile(conv3d, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=lowers):
        found = traced(x, weight, backend="torch")
        torch.testing.assert_close(found, conv3d(x, weight, backend="torch"))
    assert found.dtype == (torch.bfloat16 if lowers else torch.float32)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices")
def test_kernels_run_on_a_device_that_is_not_the_current_one():
    x, weight = torch.randn(2, 4, 2, 3, 4), torch.tensor([0.5, 2.0])
    places = [own.to("cuda:1") for own in (x, torch.zeros(2, 2), weight)]
    with torch.cuda.device(0):
        found = group_norm_silu(places[0], 2, backend="triton")
        loss = diffusion_loss(places[0], *places[:2], noise=places[0], weight=places[2], backend="triton")
    torch.testing.assert_close(found.cpu(), group_norm_silu(x, 2, backend="torch"))
    torch.testing.assert_close(loss.cpu(), (weight * x.square().flatten(1).mean(1)).mean())


def test_autocast_lowers_no_product_inside_an_op():
    q, k, v = torch.randn(3, 1, 2, 8, 24, generator=torch.Generator().manual_seed(0)).bfloat16().unbind()
    op = torch.ops.orthokernels.attention3d
    given = q, k, v, [2, 3, 4], None, [1, 3, 3], 0.3, "torch"
    with torch.autocast("cpu", torch.bfloat16):
        found = op(*given)
    assert all(torch.equal(own, other) for own, other in zip(found, op(*given), strict=True))
    assert attention3d(q, k, v, (2, 3, 4), window=(1, 3, 3), backend="torch").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_products_take_autocast_s_dtype_and_norms_their_volume_s(dtype, biased):
    x, tokens = torch.randn(1, 4, 2, 3, 4).to(dtype), torch.randn(1, 2, 4, 24).to(dtype)
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.randn(6, 4, 3, 3, 3, dtype=parameters, requires_grad=True)
    bias = torch.randn(6, dtype=parameters) if biased else None
    table = torch.randn(2, 3, 5, 7, dtype=parameters) if biased else None
    maps = [torch.randn(12, 4, dtype=parameters), None, torch.randn(4, 4, dtype=parameters), None]
    with torch.autocast("cpu", torch.bfloat16):
        products = {
            "conv3d": conv3d(x, weight, bias),
            "attention3d": attention3d(tokens, tokens, tokens, (2, 3, 4), bias=table),
            "attention_pool": attention_pool(*[tokens.transpose(2, 3)] * 3),
            "attention_block": attention_block(x, 2, None, None, *maps),
        }
        kept = group_norm_silu(x, 2), upsample2x_trilinear(x)
    wanted = torch.float64 if dtype == torch.float64 else torch.bfloat16
    assert {name: found.dtype for name, found in products.items()} == dict.fromkeys(products, wanted)
    assert {found.dtype for found in kept} == {dtype}
    products["conv3d"].sum().backward()
    assert weight.grad.dtype == parameters


def test_native_kernels_leave_a_storage_that_can_be_resized():
    # As FSDP2 does with parameters.
    x, weight, bias = torch.randn(1, 8, 2, 3, 4), torch.ones(8), torch.zeros(8)
    taps = torch.randn(8, 8, 3, 3, 3)
    group_norm_silu(x, 4, weight, bias, backend="cpu")
    conv3d(x, taps, bias, backend="cpu")
    upsample2x_trilinear(x, backend="cpu")
    for own in (x, weight, bias, taps):
        own.untyped_storage().resize_(0)
        assert own.untyped_storage().nbytes() == 0


def test_an_array_is_the_tensor_s_memory_and_holds_it():
    for tensor in (torch.randn(3, 4), torch.randn(3, 4, 5).permute(2, 0, 1), torch.randn(6, 4)[1::2], torch.ones(())):
        own = array(tensor)
        assert own.shape == tuple(tensor.shape)
        assert (own == tensor.numpy()).all()
        own[...] = 7
        assert (tensor == 7).all()
    held = array(torch.full((1000,), 3.0))
    others = [torch.zeros(1000) for _ in range(9)]
    assert (held == 3).all()
    assert not any(other.any() for other in others)
