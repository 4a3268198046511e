"""What of each op is compared with its definition: inputs of every kind, and two ways to compute the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from orthokernels.bench.gpu.setting import Setting
from orthokernels.bench.gpu.volume_cases import three_planes
from torch import Tensor

from orthokernels.backends.torch.philox import normal as unit_normal
from orthokernels.ops import (
    add_noise,
    attention_block,
    denoise_step,
    diffusion_loss,
    group_norm_silu,
    plane_fusion,
    plane_gating,
    upsample2x_trilinear,
)
from orthokernels.ops import attention3d as attention
from orthokernels.ops import attention_pool as pooling
from orthokernels.ops.diffusion_loss import target_shares

Function = Callable[..., Any]


class Comparison(NamedTuple):
    """``ours`` and ``plain`` take the tensors by name and give one tensor; its gradients are compared too."""

    what: str
    ours: Function
    plain: Function
    tensors: Mapping[str, Tensor]
    gradients: bool = True


def _normal(setting: Setting, *sides: int, mean: float = 0.0) -> Tensor:
    return torch.randn(sides, device=setting.device) + mean


def _volume(setting: Setting, dtype: torch.dtype, last: bool, *sides: int, mean: float = 0.0) -> Tensor:
    x = _normal(setting, *sides, mean=mean).to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def told(dtype: torch.dtype, last: bool, *rest: str) -> str:
    return ", ".join((str(dtype).removeprefix("torch."), "channels-last" if last else "contiguous", *rest))


def _group_norm_silu(setting: Setting, dtype: torch.dtype, last: bool) -> Iterator[Comparison]:
    sides, widths = ((3, 4, 5), ((8, 0, 4), (6, 3, 3))) if setting.tiny else ((5, 33, 47), ((64, 0, 32), (64, 32, 32)))
    from orthokernels.ops.group_norm_silu import reference

    for width, behind, groups in widths:
        joint = width + behind
        tensors = {"x": _volume(setting, dtype, last, 2, width, *sides, mean=1.5)}
        tensors |= {"weight": _normal(setting, joint).to(dtype), "bias": _normal(setting, joint).to(dtype)}
        if behind:
            tensors["skip"] = _volume(setting, dtype, last, 2, behind, *sides)
            tensors |= {"shift": _normal(setting, 2, joint).to(dtype)}
            tensors |= {"scale_shift": _normal(setting, 2, 2 * joint).to(dtype)}
        for activation in ("silu", None):
            options: dict[str, Any] = {"groups": groups, "activation": activation}
            what = told(dtype, last, f"{width}+{behind} channels", str(activation))
            yield Comparison(what, lambda o=options, **t: group_norm_silu(**t, **o, backend=setting.backend),
                lambda o=options, **t: reference(**t, **o), tensors,
            )  # fmt: skip


def _upsample2x_trilinear(setting: Setting, dtype: torch.dtype, last: bool) -> Iterator[Comparison]:
    from orthokernels.ops.upsample2x_trilinear import reference

    shapes = [(1, 3, 2, 3, 4)] if setting.tiny else [(2, 24, 5, 17, 23), (1, 64, 1, 16, 16)]
    for shape in shapes:
        yield Comparison(told(dtype, last, "x".join(map(str, shape))),
            lambda x: upsample2x_trilinear(x, backend=setting.backend), reference,
            {"x": _volume(setting, dtype, last, *shape)},
        )  # fmt: skip


def _plane_fusion(setting: Setting, dtype: torch.dtype, last: bool) -> Iterator[Comparison]:
    from orthokernels.ops.plane_fusion import reference

    sides, own, channels, groups = ((2, 4, 4), (3, 3, 3), 4, 2) if setting.tiny else ((4, 24, 24), (12, 13, 11), 16, 4)
    affines, result = three_planes(sides, own)
    for missing in ((), (1,)):
        tensors = {
            name: _volume(setting, dtype, last, 2, channels, *sides) for n, name in enumerate("abc") if n not in missing
        }
        tensors["gates"] = _normal(setting, 2, 3, groups, *own)

        def volumes(given: Mapping[str, Tensor]) -> list[Tensor | None]:
            return [given.get(name) for name in "abc"]

        yield Comparison(told(dtype, last, f"{len(missing)} planes missing"),
            lambda **t: plane_fusion(volumes(t), affines, t["gates"], result, backend=setting.backend),
            lambda **t: reference(volumes(t), affines, t["gates"], result).to(_first(volumes(t)).dtype), tensors,
        )  # fmt: skip


def _first(volumes: Sequence[Tensor | None]) -> Tensor:
    return next(volume for volume in volumes if volume is not None)


def _attention3d(setting: Setting, dtype: torch.dtype, last: bool) -> Iterator[Comparison]:
    from orthokernels.ops.attention3d import reference

    grid, heads, d = ((2, 2, 3), 2, 16) if setting.tiny else ((5, 9, 11), 3, 40)
    windows: list[Any] = [None, (1, 2, 2)] if setting.tiny else [None, (1, 7, 7), (3, 4, 5)]
    wide = [] if setting.tiny else [(None, 1, 256), ((1, 7, 7), 2, 200)]
    for window, heads, d in [*((window, heads, d) for window in windows), *wide]:
        joint = _normal(setting, 2, 3 * heads * d, math.prod(grid)).to(dtype)
        if last:
            joint = joint.transpose(1, 2).contiguous().transpose(1, 2)
        q, k, v = (part.unflatten(1, (heads, d)) for part in joint.chunk(3, dim=1))
        tensors = {"q": q, "k": k, "v": v, "bias": _normal(setting, heads, *(2 * side - 1 for side in grid)).to(dtype)}
        yield Comparison(told(dtype, last, f"window {window}", f"{heads} heads of {d}"),
            lambda w=window, **t: attention(**t, grid=grid, window=w, backend=setting.backend),
            lambda w=window, **t: reference(**t, grid=grid, window=w), tensors,
        )  # fmt: skip


def _attention_block(setting: Setting, dtype: torch.dtype, last: bool) -> Iterator[Comparison]:
    from orthokernels.ops.attention_block import reference

    shapes: list[tuple[int, int, int, int, tuple[int, int, int]]] = [(2, 12, 3, 2, (1, 2, 3))]
    if not setting.tiny:  # as published; groups of three channels; a group in pieces; several blocks of everything
        shapes = [(2, 256, 32, 1, (1, 16, 16)), (1, 96, 32, 3, (3, 5, 7)), (1, 160, 1, 2, (1, 5, 5))]
        shapes += [(2, 256, 16, 8, (4, 16, 16))] if dtype == torch.float32 else [(2, 512, 16, 1, (4, 16, 16))]
    for N, C, groups, heads, sides in shapes:
        sizes = {"weight": (C,), "bias": (C,), "qkv_weight": (3 * C, C), "qkv_bias": (3 * C,)}
        sizes |= {"proj_weight": (C, C), "proj_bias": (C,)}
        drawn = {name: _normal(setting, *size) * (C**-0.5 if len(size) == 2 else 0.3) for name, size in sizes.items()}
        tensors = {"x": _volume(setting, dtype, last, N, C, *sides, mean=0.5)}
        tensors |= {name: own.to(dtype) for name, own in drawn.items()}
        for legacy in (False, True):
            options: dict[str, Any] = {"groups": groups, "heads": heads, "legacy": legacy}
            what = told(dtype, last, f"{C} channels, {math.prod(sides)} voxels, {heads} heads", f"legacy {legacy}")
            yield Comparison(
                what, lambda o=options, **t: attention_block(**t, **o, backend=setting.backend),
                lambda o=options, **t: reference(**t, **o), tensors,
            )  # fmt: skip


def _attention_pool(setting: Setting, dtype: torch.dtype, last: bool) -> Iterator[Comparison]:
    from orthokernels.ops.attention_pool import reference

    N, heads, T, d = (2, 2, 7, 16) if setting.tiny else (3, 16, 257, 16)
    joint = _normal(setting, N, T, 3 * heads * d).to(dtype)
    parts = joint.chunk(3, dim=2)
    tensors = {
        name: part.unflatten(2, (heads, d)).transpose(1, 2)
        if last
        else part.unflatten(2, (heads, d)).movedim(1, 2).contiguous()
        for name, part in zip("qkv", parts, strict=True)
    }
    yield Comparison(told(dtype, last), lambda **t: pooling(**t, backend=setting.backend), reference, tensors
    )  # fmt: skip


def _denoise_step(setting: Setting, dtype: torch.dtype, last: bool) -> Iterator[Comparison]:
    from orthokernels.ops.denoise_step import reference

    shape = (2, 2, 2, 3, 4) if setting.tiny else (2, 3, 7, 33, 65)
    tensors = {name: _volume(setting, dtype, last, *shape) for name in ("x", "output", "previous")}
    coefficients, seed = _normal(setting, 7), torch.tensor([12345], device=setting.device)
    for noisy in (False, True):

        def ours(**t: Any) -> Tensor:
            given = seed if noisy else None  # noqa: B023
            return denoise_step(**t, coefficients=coefficients, clip=0.9, seed=given, step=3, backend=setting.backend)[
                0
            ]

        def plain(**t: Any) -> Tensor:
            x = t["x"]
            noise = unit_normal(x.numel(), seed, 3).to(x).as_strided(x.shape, x.stride()) if noisy else None  # noqa: B023
            return reference(**t, coefficients=coefficients, clip=0.9, noise=noise)[0]

        what = told(dtype, last, "noise" if noisy else "no noise")
        yield Comparison(what, ours, plain, tensors, gradients=False)


def _drawn(x: Tensor, seed: Tensor, step: int) -> Tensor:
    """The noise that kernels draw for a volume, float32."""
    return unit_normal(x.numel(), seed, step).as_strided(x.shape, x.stride())


def _noisy(setting: Setting, dtype: torch.dtype, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Clean volumes, their shares of signal and noise, and a seed."""
    shape = (2, 2, 2, 3, 4) if setting.tiny else (2, 3, 7, 33, 65)
    shares = torch.tensor([[0.8, 0.6], [0.28, 0.96]], device=setting.device)
    return _volume(setting, dtype, last, *shape), shares, torch.tensor([12345], device=setting.device)


def _add_noise(setting: Setting, dtype: torch.dtype, last: bool) -> Iterator[Comparison]:
    from orthokernels.ops.add_noise import reference

    x0, shares, seed = _noisy(setting, dtype, last)
    noise = _drawn(x0, seed, 3)
    yield Comparison(
        told(dtype, last), lambda x0: add_noise(x0, shares, seed=seed, step=3, backend=setting.backend),
        lambda x0: reference(x0, shares, noise.to(x0.dtype)), {"x0": x0}, gradients=False,
    )  # fmt: skip


def _diffusion_loss(setting: Setting, dtype: torch.dtype, last: bool) -> Iterator[Comparison]:
    from orthokernels.ops.diffusion_loss import reference

    x0, shares, seed = _noisy(setting, dtype, last)
    noise, weight = _drawn(x0, seed, 3), torch.tensor([0.3, 2.0], device=setting.device)
    prediction = _volume(setting, dtype, last, *x0.shape)
    for norm in ("l1", "l2"):
        options: dict[str, Any] = {"target": target_shares("v_prediction", shares), "weight": weight, "norm": norm}
        yield Comparison(
            told(dtype, last, norm),
            lambda prediction, o=options: diffusion_loss(
                prediction, x0, seed=seed, step=3, **o, backend=setting.backend
            ),
            lambda prediction, o=options: reference(
                prediction, x0.to(prediction.dtype), noise=noise.to(prediction.dtype), **o
            ),
            {"prediction": prediction},
        )  # fmt: skip


def _plane_gating(setting: Setting, dtype: torch.dtype, last: bool) -> Iterator[Comparison]:
    from orthokernels.ops.plane_gating import reference

    N, planes, labels, hidden = (2, 3, 4, 5) if setting.tiny else (33, 3, 8, 32)
    logits = _normal(setting, N, labels, planes).to(dtype).transpose(1, 2)  # memory is made contiguous either way
    sizes = {"weight1": (hidden, planes), "bias1": (hidden,), "weight2": (planes, hidden), "bias2": (planes,)}
    tensors = {"logits": logits if last else logits.contiguous()}
    tensors |= {name: _normal(setting, *size).to(dtype) for name, size in sizes.items()}

    def joined(mixed: Tensor, gates: Tensor) -> Tensor:
        return torch.cat([mixed[:, None], gates], dim=1)

    yield Comparison(
        told(dtype, last), lambda **t: joined(*plane_gating(**t, backend=setting.backend)),
        lambda **t: joined(*reference(**t)), tensors,
    )  # fmt: skip


CASES: dict[str, Callable[[Setting, torch.dtype, bool], Iterator[Comparison]]] = {
    "add_noise": _add_noise,
    "attention3d": _attention3d,
    "attention_block": _attention_block,
    "attention_pool": _attention_pool,
    "denoise_step": _denoise_step,
    "diffusion_loss": _diffusion_loss,
    "group_norm_silu": _group_norm_silu,
    "plane_fusion": _plane_fusion,
    "plane_gating": _plane_gating,
    "upsample2x_trilinear": _upsample2x_trilinear,
}
