"""What kernels load and store, counted as they run interpreted, against the formulas that floors are computed from.

Two counts are taken of the tensors that an op is given and gives back: every access, and every byte that was touched at
all. A kernel that walks a volume as often as its formula says has the first equal to it; one that reads neighbours
again (from a cache, on a GPU) has the second.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from orthokernels.ops import (
    add_noise,
    attention3d,
    attention_block,
    attention_pool,
    denoise_step,
    diffusion_loss,
    group_norm_silu,
    plane_fusion,
    plane_gating,
    upsample2x_trilinear,
)
from orthokernels.ops.diffusion_loss import target_shares

interpreter = pytest.importorskip("triton.runtime.interpreter", reason="Triton is not installed")


@dataclass
class Accesses:
    """Addresses that kernels loaded and stored, with the bytes of each."""

    places: list[tuple[np.ndarray, int]] = field(default_factory=list)

    def of(self, *tensors: Tensor) -> int:
        """Bytes of all accesses to these tensors."""
        return sum(size * int(self._inside(places, tensor).sum()) for places, size in self.places for tensor in tensors)

    def touched(self, *tensors: Tensor) -> int:
        """Bytes of these tensors that were accessed at all."""
        count = 0
        for tensor in tensors:
            own = [places[self._inside(places, tensor)] for places, _ in self.places]
            count += len(np.unique(np.concatenate(own))) * tensor.element_size()
        return count

    @staticmethod
    def _inside(places: np.ndarray, tensor: Tensor) -> np.ndarray:
        first = tensor.untyped_storage().data_ptr() + tensor.storage_offset() * tensor.element_size()
        reach = 1 + sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return (places >= first) & (places < first + reach * tensor.element_size())


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accesses]:
    found = Accesses()
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def note(pointers, mask) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        found.places.append((np.asarray(pointers.data)[np.asarray(mask.data, bool)].astype(np.int64).ravel(), size))

    def counted_load(self, pointers, mask, *rest):
        note(pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self, pointers, value, mask, *rest):
        note(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "create_masked_load", counted_load)
        patch.setattr(builder, "create_masked_store", counted_store)
        yield found


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def formula(op):
    """The module that an op's function hides."""
    return importlib.import_module(op.__module__)


def first_tiles(x: Tensor, skip: Tensor | None = None) -> int:
    """Bytes of the first tile of each chunk, which the moments read twice in a row, for their pivot."""
    from orthokernels.backends.triton.group_norm_silu import _TILE, _Shape

    at = _Shape(x, skip, _TILE)
    return at.N * at.chunks * at.blocks * at.tile["BL"] * at.tile["BC"] * x.element_size()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 8, 3, 5, 7), (1, 12, 4, 6, 6)], ids=str)
def test_normalisation_walks_its_volumes_as_often_as_said(shape, channels_last, monkeypatch):
    form = torch.channels_last_3d if channels_last else torch.contiguous_format
    x = randn(*shape).contiguous(memory_format=form).requires_grad_()
    upstream = randn(*shape, seed=1).contiguous(memory_format=form)
    weight, bias = randn(shape[1]).requires_grad_(), randn(shape[1]).requires_grad_()
    with counted(monkeypatch) as forward:
        y = group_norm_silu(x, 4, weight, bias, backend="triton")
    again = forward.of(x, y) - formula(group_norm_silu).bytes_moved(x)
    assert 0 <= again <= first_tiles(x)
    with counted(monkeypatch) as backward:
        dx, *_ = torch.autograd.grad(y, (x, weight, bias), upstream)
    assert backward.of(x, upstream, dx) == formula(group_norm_silu).bytes_moved(x, backward=True)


def test_the_skip_s_volume_is_counted_too(monkeypatch):
    x, skip = randn(1, 8, 3, 4, 5), randn(1, 4, 3, 4, 5, seed=1)
    with counted(monkeypatch) as found:
        y = group_norm_silu(x, 3, skip=skip, backend="triton")
    again = found.of(x, skip, y) - formula(group_norm_silu).bytes_moved(x, skip)
    assert 0 <= again <= first_tiles(x, skip)


def test_doubling_touches_small_and_large_volume_once(monkeypatch):
    x = randn(1, 4, 3, 4, 5).requires_grad_()
    with counted(monkeypatch) as forward:
        y = upsample2x_trilinear(x, backend="triton")
    assert forward.touched(x, y) == formula(upsample2x_trilinear).bytes_moved(x)
    upstream = randn(*y.shape)
    with counted(monkeypatch) as backward:
        dx = torch.autograd.grad(y, x, upstream)[0]
    assert backward.touched(upstream, dx) == formula(upsample2x_trilinear).bytes_moved(x)
    assert backward.of(dx) == dx.nbytes  # written once


def test_a_step_reads_and_writes_the_volume_once(monkeypatch):
    x, output, previous = (randn(2, 1, 3, 5, 7, seed=seed) for seed in range(3))
    with counted(monkeypatch) as found:
        after, x0 = denoise_step(
            x, output, randn(7), previous=previous, seed=torch.tensor([3]), keep_x0=True, backend="triton"
        )
    expected = formula(denoise_step).bytes_moved(x, output, previous=True, keep_x0=True)
    assert found.of(x, output, previous, after, x0) == expected


def test_noise_that_is_drawn_inside_is_never_read(monkeypatch):
    x0, prediction = randn(2, 1, 3, 5, 7), randn(2, 1, 3, 5, 7, seed=1).requires_grad_()
    shares, seed = torch.tensor([[0.8, 0.6], [0.6, 0.8]]), torch.tensor([3])
    with counted(monkeypatch) as noising:
        noisy = add_noise(x0, shares, seed=seed, backend="triton")
    assert noising.of(x0, noisy) == formula(add_noise).bytes_moved(x0)
    target, own = target_shares("epsilon", shares), formula(diffusion_loss)
    with counted(monkeypatch) as forward:
        loss = diffusion_loss(prediction, x0, target, seed=seed, backend="triton")
    assert forward.of(prediction, x0) == own.bytes_moved(prediction, x0)
    with counted(monkeypatch) as backward:
        gradient = torch.autograd.grad(loss, prediction)[0]
    assert backward.of(prediction, x0, gradient) == own.bytes_moved(prediction, x0, backward=True)


def test_attention_touches_its_tokens_and_the_table_once(monkeypatch):
    grid = (2, 3, 5)
    q, k, v = (randn(1, 2, 8, 30, seed=seed).requires_grad_() for seed in range(3))
    bias = randn(2, 3, 5, 9).requires_grad_()
    own = formula(attention3d)
    with counted(monkeypatch) as forward:
        out = attention3d(q, k, v, grid, bias=bias, backend="triton")
    assert forward.touched(q, k, v, out, bias) == own.bytes_moved(q, bias)
    upstream = randn(*out.shape)
    with counted(monkeypatch) as backward:
        gradients = torch.autograd.grad(out, (q, k, v), upstream)
    # The formula counts the result, read for the rows' sums outside of the kernels, and the bias's gradient.
    touched = backward.touched(q, k, v, upstream, *gradients, bias)
    assert touched + out.nbytes + bias.nbytes == own.bytes_moved(q, bias, backward=True)


def test_planes_outside_of_the_windows_are_not_read(monkeypatch):
    grid = (4, 4, 8)
    q, k, v = (randn(1, 1, 8, 128, seed=seed) for seed in range(3))
    with counted(monkeypatch) as narrow:
        attention3d(q, k, v, grid, window=(1, 4, 8), backend="triton")
    with counted(monkeypatch) as wide:
        attention3d(q, k, v, grid, backend="triton")
    # A block of 32 queries is a plane here, and reads its own plane's keys alone.
    assert 4 * narrow.of(k, v) == wide.of(k, v)


def block_of(width: int, *voxels: int) -> tuple[Tensor, list[Tensor]]:
    """Two volumes and an attention block's parameters."""
    sizes = (width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)
    return randn(2, width, *voxels), [randn(*size, seed=n).requires_grad_() for n, size in enumerate(sizes)]


def test_an_attention_block_touches_volume_and_parameters_once(monkeypatch):
    x, parameters = block_of(12, 2, 3, 3)
    x.requires_grad_()
    own = formula(attention_block)
    with counted(monkeypatch) as forward:
        y = attention_block(x, 3, *parameters, heads=2, backend="triton")
    assert forward.touched(x, y, *parameters) == own.bytes_moved(x, *parameters)
    # Beside these only q, k and v and the attended tokens, in places of their own for each sample.
    everything = np.unique(np.concatenate([places for places, _ in forward.places]))
    assert len(everything) * x.element_size() == own.bytes_moved(x, *parameters) + 4 * x.nbytes
    with counted(monkeypatch) as backward:
        dx, *_ = torch.autograd.grad(y, (x, *parameters), randn(*y.shape))
    # All else is read and written by matrix products and sums outside of the kernels.
    outside = x.nbytes + 2 * sum(each.nbytes for each in parameters)
    assert backward.touched(x, dx) + outside == own.bytes_moved(x, *parameters, backward=True)


def test_an_attention_block_multiplies_as_often_as_said(monkeypatch):
    x, parameters = block_of(64, 2, 4, 4)  # tiles without a rest
    own, products, dot = formula(attention_block), [], interpreter.InterpreterBuilder.create_dot

    def counted_dot(self, a, b, *rest):
        products.append(2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1])
        return dot(self, a, b, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", counted_dot)
        attention_block(x, 2, *parameters, heads=1, backend="triton")
    assert sum(products) == own.operations(x)
    with FlopCounterMode(display=False) as outside:
        own._backward(x, x, 2, *parameters, 1, True, 1e-5, "torch")
    attention, q = formula(attention3d), x.flatten(2)[:, None]
    within = sum(attention.operations(q, (2, 4, 4), backward=backward) for backward in (False, True))
    assert outside.get_total_flops() + within == own.operations(x, backward=True)


def test_pooling_touches_its_tokens_once(monkeypatch):
    q, k, v = (randn(1, 2, 20, 8, seed=seed) for seed in range(3))
    with counted(monkeypatch) as found:
        attention_pool(q, k, v, backend="triton")
    assert found.of(q, k, v) == formula(attention_pool).bytes_moved(q)


def test_fusion_touches_its_volumes_once(monkeypatch):
    affine = torch.eye(4, dtype=torch.float64)
    volumes = [randn(1, 4, 3, 4, 5, seed=seed) for seed in range(3)]
    gates = randn(1, 3, 2, 3, 4, 5)
    with counted(monkeypatch) as found:
        result = plane_fusion(volumes, [affine] * 3, gates, affine, backend="triton")
    assert found.touched(*volumes, result) + 2 * gates.nbytes == formula(plane_fusion).bytes_moved(
        volumes, gates, result
    )
    assert found.touched(gates) == gates.nbytes


def test_gating_reads_its_logits_once(monkeypatch):
    logits = randn(5, 3, 8).requires_grad_()
    gate = [randn(*size, seed=n) for n, size in enumerate(((7, 3), (7,), (3, 7), (3,)))]
    with counted(monkeypatch) as forward:
        mixed, gates = plane_gating(logits, *gate, backend="triton")
    assert forward.of(logits, mixed, gates) == formula(plane_gating).bytes_moved(logits)
    upstream = randn(5, 8), randn(5, 3, 8)
    with counted(monkeypatch) as backward:
        gradient = torch.autograd.grad((mixed, gates), logits, upstream)[0]
    expected = formula(plane_gating).bytes_moved(logits, backward=True)
    assert backward.of(logits, *upstream, gradient) == expected
