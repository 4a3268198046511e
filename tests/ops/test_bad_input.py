"""What every op refuses alike, before anything is launched: tensors on two devices, two dtypes, a gradient too many."""

from __future__ import annotations

from collections.abc import Callable

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

AFFINES = np.eye(4), np.eye(4), np.eye(4)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def fused(first: Tensor, second: Tensor, third: Tensor, gates: Tensor) -> Tensor:
    return plane_fusion([first, second, third], AFFINES, gates, np.eye(4))


def attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return attention3d(q, k, v, (1, 2, 3), bias=bias)


def blocked(**tensors: Tensor) -> Tensor:
    return attention_block(groups=2, **tensors)


def normalised(**tensors: Tensor) -> Tensor:
    return group_norm_silu(groups=2, **tensors)


TOKENS = {name: zeros(1, 2, 4, 6) for name in "qkv"}
VOLUME = (2, 4, 2, 3, 4)
PER_CHANNEL = {"weight": zeros(4), "bias": zeros(4)}
# Each op with a complete set of tensors, by name, the first of which says where the others must lie.
CALLS: dict[str, tuple[Callable[..., object], dict[str, Tensor]]] = {
    "group_norm_silu": (
        normalised,
        {"x": zeros(*VOLUME), **PER_CHANNEL, "shift": zeros(2, 4), "scale_shift": zeros(2, 8)},
    ),
    "group_norm_silu with a skip": (
        normalised,
        {"x": zeros(2, 2, 2, 3, 4), "skip": zeros(2, 2, 2, 3, 4), **PER_CHANNEL},
    ),
    "attention3d": (attended, {**TOKENS, "bias": zeros(2, 1, 3, 5)}),
    "attention_pool": (attention_pool, {name: own.transpose(2, 3) for name, own in TOKENS.items()}),
    "attention_block": (
        blocked,
        {
            "x": zeros(*VOLUME), **PER_CHANNEL, "qkv_weight": zeros(12, 4), "qkv_bias": zeros(12),
            "proj_weight": zeros(4, 4), "proj_bias": zeros(4),
        },
    ),
    "conv3d": (conv3d, {"x": zeros(*VOLUME), "weight": zeros(3, 4, 3, 3, 3), "bias": zeros(3)}),
    "denoise_step": (
        denoise_step,
        {
            "x": zeros(*VOLUME), "output": zeros(*VOLUME), "coefficients": zeros(7), "previous": zeros(*VOLUME),
            "threshold": zeros(2), "seed": torch.zeros(1, dtype=torch.int64),
        },
    ),
    "add_noise": (add_noise, {"x0": zeros(*VOLUME), "shares": zeros(2, 2), "noise": zeros(*VOLUME)}),
    "diffusion_loss": (
        diffusion_loss,
        {
            "x0": zeros(*VOLUME), "prediction": zeros(*VOLUME), "target": zeros(2, 2), "noise": zeros(*VOLUME),
            "weight": zeros(2),
        },
    ),
    "plane_fusion": (
        fused,
        {"first": zeros(*VOLUME), "second": zeros(*VOLUME), "third": zeros(*VOLUME), "gates": zeros(2, 3, 2, 2, 3, 4)},
    ),
    "plane_gating": (
        plane_gating,
        {
            "logits": zeros(2, 3, 4), "weight1": zeros(5, 3), "bias1": zeros(5), "weight2": zeros(3, 5),
            "bias2": zeros(3),
        },
    ),
}  # fmt: skip
ARGUMENTS = [(call, name) for call, (_, tensors) in CALLS.items() for name in list(tensors)[1:]]


@pytest.mark.parametrize("call", CALLS)
def test_what_is_refused_below_is_taken_here(call):
    function, tensors = CALLS[call]
    function(**tensors)


@pytest.mark.parametrize(("call", "name"), ARGUMENTS)
def test_a_tensor_on_another_device_is_named(call, name):
    function, tensors = CALLS[call]
    with pytest.raises(ValueError, match="meta") as refused:
        function(**{**tensors, name: tensors[name].to("meta")})
    place = f"volumes[{list(tensors).index(name)}]" if call == "plane_fusion" and name != "gates" else name
    assert str(refused.value).startswith(f"{place}: ")


@pytest.mark.parametrize(("call", "name"), ARGUMENTS)
def test_whole_numbers_are_refused(call, name):
    function, tensors = CALLS[call]
    wrong = tensors[name].to(torch.int32)
    with pytest.raises(ValueError, match=r"torch\.int32"):
        function(**{**tensors, name: wrong})


@pytest.mark.parametrize("call", [*CALLS, "upsample2x_trilinear"])
def test_a_first_tensor_of_no_sides_is_named(call):
    function, tensors = CALLS.get(call, (upsample2x_trilinear, {"x": zeros(*VOLUME)}))
    first = next(iter(tensors))
    with pytest.raises(ValueError, match=r"shape \(\)"):
        function(**{**tensors, first: torch.zeros(())})


@pytest.mark.parametrize(
    ("function", "tensors", "wanted"),
    [
        (denoise_step, CALLS["denoise_step"][1], ("x", "output", "coefficients", "previous", "threshold")),
        (add_noise, CALLS["add_noise"][1], ("x0", "shares", "noise")),
        (diffusion_loss, CALLS["diffusion_loss"][1], ("x0", "target", "noise", "weight")),
    ],
    ids=["denoise_step", "add_noise", "diffusion_loss"],
)
def test_a_gradient_that_there_is_none_of_is_refused(function, tensors, wanted):
    for name in wanted:
        with pytest.raises(ValueError, match=f"^{name}: wants a gradient"):
            function(**{**tensors, name: tensors[name].clone().requires_grad_()})


def test_where_a_grid_lies_has_no_gradient():
    volumes, gates = [zeros(*VOLUME)] * 3, zeros(2, 3, 2, 2, 3, 4)
    turned = torch.eye(4, requires_grad=True)
    with pytest.raises(ValueError, match=r"^affines\[1\]: wants a gradient"):
        plane_fusion(volumes, [np.eye(4), turned, np.eye(4)], gates, np.eye(4))
    with pytest.raises(ValueError, match=r"^affine: wants a gradient"):
        plane_fusion(volumes, AFFINES, gates, turned)
    with torch.no_grad():
        plane_fusion(volumes, AFFINES, gates, turned)


@pytest.mark.parametrize("call", ["add_noise", "denoise_step", "diffusion_loss"])
def test_a_seed_that_is_no_tensor_is_told_what_it_must_be(call):
    function, tensors = CALLS[call]
    given = {name: own for name, own in tensors.items() if name != "noise"}
    with pytest.raises(ValueError, match=r"^seed: 3; must be a tensor, torch\.int64 of shape \(1,\) on cpu"):
        function(**{**given, "seed": 3})
