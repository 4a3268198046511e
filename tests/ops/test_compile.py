"""Every op of the table is traced whole by torch.compile, forward and backward, and gives what it gives by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from orthokernels.ops import (
    add_noise,
    attention3d,
    attention_block,
    attention_pool,
    conv3d,
    denoise_step,
    diffusion_loss,
    group_norm_silu,
    plane_fusion,
    plane_gating,
    upsample2x_trilinear,
)
from orthokernels.ops.capabilities import CAPABILITIES

# Sides of volumes, and who computes: "torch" takes an op, and "auto" of so small ones often its definition. Any number
# may stand for each side of the first; where two were the same number, they would be taken for one.
CASES = (((7, 9, 11), "torch"), ((8, 10, 13), "torch"), ((8, 10, 13), "auto"))
RESULT = [[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
SEED = torch.tensor([7])
AFFINES = [np.diag([1.5, 1.0, 2.0, 1.0]), None, torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0]))]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@dataclass(frozen=True)
class Call:
    """An op as a function of tensors; what they are for volumes of some sides; how many, the first, have gradients."""

    run: Callable[..., Tensor | tuple[Tensor, ...]]
    tensors: Callable[..., list[Tensor]]
    gradients: int


CALLS = {
    "add_noise": Call(
        lambda x0, shares, **to: add_noise(x0, shares, seed=SEED, **to),
        lambda *sides: [draw(2, 3, *sides), draw(2, 2)], 0,
    ),
    "attention3d": Call(
        lambda q, k, v, bias, **to: attention3d(
            q.flatten(3), k.flatten(3), v.flatten(3), q.shape[3:], bias=bias, window=(1, 3, 3), **to
        ),
        lambda *sides: [draw(1, 2, n, *sides) for n in (4, 4, 4)] + [draw(2, *(2 * side - 1 for side in sides))], 4,
    ),
    "attention_block": Call(
        lambda x, *parameters, **to: attention_block(x, 2, *parameters, **to),
        lambda *sides: [draw(1, 4, *sides), draw(4), draw(4), draw(12, 4), draw(12), draw(4, 4), draw(4)], 7,
    ),
    "attention_pool": Call(
        lambda q, k, v, **to: attention_pool(q.flatten(2, 4), k.flatten(2, 4), v.flatten(2, 4), **to),
        lambda *sides: list(draw(3, 1, 2, *sides, 4)), 3,
    ),
    "conv3d": Call(conv3d, lambda *sides: [draw(1, 4, *sides), draw(6, 4, 3, 3, 3), draw(6)], 3),
    "denoise_step": Call(
        lambda *given, **to: denoise_step(*given, seed=SEED, clip=1.0, keep_x0=True, **to),
        lambda *sides: [draw(2, 3, *sides), draw(2, 3, *sides), draw(7)], 0,
    ),
    "diffusion_loss": Call(
        lambda *given, **to: diffusion_loss(*given, seed=SEED, **to),
        lambda *sides: [draw(2, 3, *sides), draw(2, 3, *sides), draw(2, 2)], 1,
    ),
    "group_norm_silu": Call(
        lambda x, skip, weight, bias, shift, **to: group_norm_silu(x, 2, weight, bias, skip=skip, shift=shift, **to),
        lambda *sides: [draw(2, 4, *sides), draw(2, 2, *sides), draw(6), draw(6), draw(2, 6)], 5,
    ),
    "plane_fusion": Call(
        lambda a, c, gates, **to: plane_fusion([a, None, c], AFFINES, gates, RESULT, **to),
        lambda *sides: [draw(1, 4, *sides), draw(1, 4, *(side + 6 for side in sides)), draw(1, 3, 2, *sides)], 3,
    ),
    "plane_gating": Call(
        plane_gating,
        lambda *sides: [draw(2, 3, sum(sides)), draw(5, 3), draw(5), draw(3, 5), draw(3)], 5,
    ),
    "upsample2x_trilinear": Call(upsample2x_trilinear, lambda *sides: [draw(1, 2, *sides)], 1),
}  # fmt: skip


def both_ways(
    run: Callable[..., Tensor | tuple[Tensor, ...]], call: Call, sides: Sequence[int], to: str
) -> list[Tensor]:
    """Results, and the gradients of their sum of squares."""
    tensors = call.tensors(*sides)
    wanted = [own.requires_grad_() for own in tensors[: call.gradients]]
    found = run(*tensors, backend=to)
    results = [found] if isinstance(found, Tensor) else list(found)
    if not wanted:
        return results
    return [*results, *torch.autograd.grad(sum(own.square().sum() for own in results), wanted)]


def test_every_op_is_called_and_asked_for_the_gradients_that_it_has():
    assert {row.op: row.gradients.startswith("none") for row in CAPABILITIES} == {
        name: call.gradients == 0 for name, call in CALLS.items()
    }


@pytest.mark.parametrize("name", CALLS)
def test_an_op_is_traced_whole_for_any_shape(name):
    call = CALLS[name]
    torch.compiler.reset()
    traced = torch.compile(call.run, fullgraph=True, dynamic=True, backend="aot_eager")
    for sides, backend in CASES:
        found, want = both_ways(traced, call, sides, backend), both_ways(call.run, call, sides, backend)
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.gradients])
def test_a_second_derivative_is_given_or_refused_by_name(name):
    call = CALLS[name]
    tensors = [own.double() for own in call.tensors(2, 3, 4)]
    if name == "diffusion_loss":
        tensors[2] = tensors[2].float()
    wanted = [own.requires_grad_() for own in tensors[: call.gradients]]

    def gradients(*, create_graph: bool) -> tuple[Tensor, ...]:
        found = call.run(*tensors, backend="torch")
        results = [found] if isinstance(found, Tensor) else list(found)
        return torch.autograd.grad(sum(own.square().sum() for own in results), wanted, create_graph=create_graph)

    first = gradients(create_graph=True)
    torch.testing.assert_close(first, gradients(create_graph=False))
    penalty = sum(own.square().sum() for own in first)
    if name == "upsample2x_trilinear":
        assert torch.autograd.grad(penalty, wanted)[0].any()
        return
    with pytest.raises(RuntimeError, match=f"^{name}: differentiable once, .*restore"):
        torch.autograd.grad(penalty, wanted)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_tensor_of_monai_s_is_taken_both_ways(name, frozen):
    """With a gradient for everything, and for the last input that has one alone."""
    meta_tensor = pytest.importorskip("monai.data").MetaTensor
    call = CALLS[name]

    def run(wrap: Callable[[Tensor], Tensor]) -> list[Tensor]:
        tensors = call.tensors(7, 9, 11)
        volumes = [wrap(own) if own.ndim > 2 else own for own in tensors]
        wanted = [own.requires_grad_() for own in volumes[: call.gradients][-1 if frozen else 0 :]]
        found = call.run(*volumes, backend="torch")
        results = [found] if isinstance(found, Tensor) else list(found)
        given = torch.autograd.grad(sum(own.square().sum() for own in results), wanted) if wanted else ()
        return [own.as_subclass(Tensor) for own in (*results, *given)]

    torch.testing.assert_close(run(meta_tensor), run(lambda own: own))


@pytest.mark.parametrize("name", CALLS)
def test_a_forward_mode_derivative_is_refused_by_name(name):
    call = CALLS[name]
    first, *others = call.tensors(7, 9, 11)
    with pytest.raises(RuntimeError, match=f"^{name}: has no forward-mode derivative"):
        torch.func.jvp(lambda own: call.run(own, *others, backend="torch"), (first,), (torch.ones_like(first),))


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.gradients])
def test_a_derivative_by_torch_func_is_refused_by_name(name):
    """Also of samples that are mapped, on either side; what nobody differentiates is computed."""
    call = CALLS[name]
    first, *others = call.tensors(7, 9, 11)

    def total(own: Tensor) -> Tensor:
        found = call.run(own, *others, backend="torch")
        return sum(part.square().sum() for part in ([found] if isinstance(found, Tensor) else found))

    both = torch.stack([first, first])
    for differentiate in (
        lambda: torch.func.grad(total)(first),
        lambda: torch.vmap(torch.func.grad(total))(both),
        lambda: torch.func.grad(lambda own: torch.vmap(total)(own).sum())(both),
    ):
        with pytest.raises(RuntimeError, match=f"^{name}: has no derivative by torch.func, .*restore"):
            differentiate()
    of_two = torch.func.grad(lambda scale: scale * total(first))(torch.tensor(2.0))
    torch.testing.assert_close(of_two, total(first))  # the same computation
