"""Turns the ops on inside someone's model.

    report = orthokernels.accelerate(model)     # after model.to(device)
    print(report)                               # what was replaced, and what was not, with the reason
    orthokernels.restore(model)

A module keeps its place, its parameters and its state dict: it is given a subclass of its own class, whose forward
calls the ops. Modules are known by what they hold, not by where they come from: residual blocks of guided-diffusion
(this project's, the published ones), MONAI's residual blocks of ``DiffusionModelUNet`` and ``AutoencoderKL``, and any
``nn.Sequential`` in which a GroupNorm is followed by a SiLU.

No kernel was timed on a GPU yet, so nothing is left out for being slower there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthokernels.backends.registry import can_accelerate
from orthokernels.ops.group_norm_silu import group_norm_silu
from orthokernels.ops.upsample2x_trilinear import upsample2x_trilinear

OPS = ("group_norm_silu", "upsample2x_trilinear")


@dataclass(frozen=True)
class Row:
    """A module: the ops that it calls now, or the reason why it was left as it is."""

    name: str
    kind: str
    ops: tuple[str, ...] = ()
    reason: str = ""


@dataclass
class Report:
    """What ``accelerate`` did."""

    rows: list[Row] = field(default_factory=list)

    @property
    def replaced(self) -> list[Row]:
        return [row for row in self.rows if row.ops]

    @property
    def left(self) -> list[Row]:
        return [row for row in self.rows if not row.ops]

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} modules replaced, {len(self.left)} left as they are"]
        lines += [f"  {row.name or '(model)'}: {row.kind} -> {', '.join(row.ops)}" for row in self.replaced]
        lines += [f"  {row.name or '(model)'}: {row.kind}, left: {row.reason}" for row in self.left]
        return "\n".join(lines)


def accelerate(
    model: nn.Module,
    *,
    ops: str | Sequence[str] = "auto",
    memory_format: torch.memory_format | None = torch.channels_last_3d,
    backend: str = "auto",
) -> Report:
    """Let a model's modules call the ops, in place.

    Args:
        model: on the device that it will run on, since kernels are chosen for it. Call again after moving it.
        ops: "auto" for all that a kernel computes there, or names of ``OPS``.
        memory_format: that parameters are brought into, where a module was replaced; None leaves them.
        backend: of the ops: "auto", or one by name, which is then called wherever the model runs.

    Returns:
        Every module that an op could serve: replaced, or left with the reason.

    Raises:
        ValueError: an unknown op.
        BackendUnavailable: a backend that was asked for by name can not run.
    """
    wanted = OPS if ops == "auto" else (ops,) if isinstance(ops, str) else tuple(ops)
    if unknown := [name for name in wanted if name not in OPS]:
        raise ValueError(f"ops: {unknown[0]!r}; there are {', '.join(OPS)}, and auto.")
    restore(model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    reasons = {name: can_accelerate(name, backend, device) for name in wanted}
    report = Report()
    inside: list[str] = []  # of blocks that were looked at: their sequences are theirs
    for name, module in list(model.named_modules()):
        rule = _rule_of(module)
        if rule is None or (rule.forward is _sequence and any(name.startswith(block) for block in inside)):
            continue
        inside.append(f"{name}." if name else "")
        kind = type(module).__name__
        served = [op for op in rule.ops if op in wanted]
        if not served:
            report.rows.append(Row(name, kind, reason=f"{', '.join(rule.ops)} was not asked for"))
        elif reason := reasons[served[0]] or rule.unfit(module):
            report.rows.append(Row(name, kind, reason=reason))
        else:
            module.__class__ = _subclass(type(module), rule.method, rule.forward, backend)  # type: ignore[arg-type]
            report.rows.append(Row(name, kind, tuple(served)))
    if memory_format is not None and report.replaced:
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
    return report


def restore(model: nn.Module) -> None:
    """Undo ``accelerate``: every module has its own class again. The parameters' memory format stays."""
    for module in model.modules():
        original = getattr(type(module), "_orthokernels_original", None)
        if original is not None:
            module.__class__ = original


@functools.cache
def _subclass(original: type[nn.Module], method: str, forward: Callable[..., Tensor], backend: str) -> type[nn.Module]:
    own = {method: forward, "_orthokernels_original": original, "_orthokernels_backend": backend}
    return type(f"Accelerated{original.__name__}", (original,), own)


@dataclass(frozen=True)
class _Rule:
    """A kind of module: how it is known, the ops that serve it, and the method that calls them."""

    matches: Callable[[nn.Module], bool]
    unfit: Callable[[nn.Module], str]
    ops: tuple[str, ...]
    forward: Callable[..., Tensor]
    method: str = "forward"


def _rule_of(module: nn.Module) -> _Rule | None:
    return next((rule for rule in _RULES if rule.matches(module)), None)


# --- what the accelerated modules do ---


def _normalise(
    owner: nn.Module, norm: nn.Module, x: Tensor, *, shift: Tensor | None = None, scale_shift: Tensor | None = None,
    activation: str | None = "silu",
) -> Tensor:  # fmt: skip
    assert isinstance(norm, nn.GroupNorm)
    return group_norm_silu(
        x, norm.num_groups, norm.weight, norm.bias, shift=shift, scale_shift=scale_shift, eps=norm.eps,
        activation=activation, backend=owner._orthokernels_backend,  # type: ignore[arg-type]
    )  # fmt: skip


def _guided_block(self: Any, x: Tensor, emb: Tensor) -> Tensor:
    """guided-diffusion's residual block."""
    h = _normalise(self, self.in_layers[0], x)
    if getattr(self, "updown", False):
        h, x = self.h_upd(h), self.x_upd(x)
    h = _rest(self.in_layers, h)
    embedded = self.emb_layers(emb).to(h.dtype)
    if getattr(self, "use_scale_shift_norm", False):
        h = _normalise(self, self.out_layers[0], h, scale_shift=embedded)
    else:
        h = _normalise(self, self.out_layers[0], h, shift=embedded)
    return self.skip_connection(x) + _rest(self.out_layers, h)


def _rest(layers: nn.Sequential, h: Tensor) -> Tensor:
    """What follows normalisation and activation."""
    for layer in list(layers)[2:]:
        h = layer(h)
    return h


def _monai_block(self: Any, x: Tensor, emb: Tensor) -> Tensor:
    """The residual block of MONAI's DiffusionModelUNet."""
    h = _normalise(self, self.norm1, x)
    resample = self.upsample if self.upsample is not None else self.downsample
    if resample is not None:
        h, x = resample(h), resample(x)
    h = self.conv1(h)
    h = _normalise(self, self.norm2, h, shift=self.time_emb_proj(self.nonlinearity(emb)).to(h.dtype))
    return self.skip_connection(x) + self.conv2(h)


def _autoencoder_block(self: Any, x: Tensor) -> Tensor:
    """The residual block of MONAI's AutoencoderKL."""
    h = self.conv1(_normalise(self, self.norm1, x))
    h = self.conv2(_normalise(self, self.norm2, h))
    return self.nin_shortcut(x) + h


def _sequence(self: Any, x: Tensor) -> Tensor:
    """A sequence, its GroupNorms and the SiLUs behind them in one op."""
    layers = list(self)
    place = 0
    while place < len(layers):
        if _pair_at(layers, place):
            x = _normalise(self, layers[place], x)
            place += 2
        else:
            x = layers[place](x)
            place += 1
    return x


def _upsample(self: Any, x: Tensor, size: Sequence[int]) -> Tensor:
    """This project's ``Upsample``; a skip of an odd side is met by interpolation, as before."""
    if tuple(size) == tuple(2 * side for side in x.shape[2:]):
        return self.conv(upsample2x_trilinear(x, backend=self._orthokernels_backend))
    return self.conv(F.interpolate(x, size=size, mode="trilinear", align_corners=False))


def _doubling(self: Any, x: Tensor) -> Tensor:
    """``nn.Upsample`` of factor 2."""
    return upsample2x_trilinear(x, backend=self._orthokernels_backend)


# --- how modules are known ---


def _has(module: nn.Module, *names: str) -> bool:
    return all(hasattr(module, name) for name in names)


def _pair_at(layers: Sequence[nn.Module], place: int) -> bool:
    follower = layers[place + 1] if place + 1 < len(layers) else None
    return isinstance(layers[place], nn.GroupNorm) and isinstance(follower, nn.SiLU)


def _starts_with_pair(layers: Any) -> bool:
    return isinstance(layers, nn.Sequential) and _pair_at(list(layers), 0)


def _is_guided_block(module: nn.Module) -> bool:
    return (
        _has(module, "in_layers", "emb_layers", "out_layers", "skip_connection")
        and _starts_with_pair(module.in_layers)
        and _starts_with_pair(module.out_layers)
    )


def _is_monai_block(module: nn.Module) -> bool:
    parts = ("norm1", "norm2", "conv1", "conv2", "time_emb_proj", "nonlinearity", "skip_connection", "upsample")
    return _has(module, *parts) and isinstance(module.nonlinearity, nn.SiLU)


def _is_autoencoder_block(module: nn.Module) -> bool:
    return type(module).__name__.removeprefix("Accelerated") == "AEKLResBlock" and _has(module, "norm1", "nin_shortcut")


def _is_sequence(module: nn.Module) -> bool:
    layers = list(module) if isinstance(module, nn.Sequential) and type(module) is nn.Sequential else []
    return any(_pair_at(layers, place) for place in range(len(layers)))


def _is_project_upsample(module: nn.Module) -> bool:
    from orthokernels.models.orthodiffusion.unet import Upsample

    return isinstance(module, Upsample)


def _is_doubling(module: nn.Module) -> bool:
    return isinstance(module, nn.Upsample) and module.mode == "trilinear"


def _norms_of(module: nn.Module) -> Iterator[nn.Module]:
    """The modules whose work an op takes over."""
    for name, child in module.named_modules():
        if isinstance(child, nn.GroupNorm | nn.SiLU) and name.count(".") <= 1:
            yield child


def _norms_unfit(module: nn.Module) -> str:
    for child in _norms_of(module):
        if child._forward_hooks or child._forward_pre_hooks or child._backward_hooks:
            return f"its {type(child).__name__} has a hook, which would not be called"
        own = type(child).__name__
        if isinstance(child, nn.GroupNorm) and own not in ("GroupNorm", "GroupNorm32"):
            return f"{own} is not known to compute what GroupNorm does"
    return ""


def _doubling_unfit(module: nn.Module) -> str:
    factor: Any = module.scale_factor
    if set(factor if isinstance(factor, tuple | list) else [factor]) != {2.0} or module.align_corners:
        return "it is no doubling with align_corners=False"
    return ""


def _fit(module: nn.Module) -> str:
    return ""


_NORM, _UP = ("group_norm_silu",), ("upsample2x_trilinear",)
_RULES = (
    _Rule(lambda m: _is_guided_block(m) and hasattr(m, "_forward"), _norms_unfit, _NORM, _guided_block, "_forward"),
    _Rule(_is_guided_block, _norms_unfit, _NORM, _guided_block),
    _Rule(_is_monai_block, _norms_unfit, _NORM, _monai_block),
    _Rule(_is_autoencoder_block, _norms_unfit, _NORM, _autoencoder_block),
    _Rule(_is_project_upsample, _fit, _UP, _upsample),
    _Rule(_is_doubling, _doubling_unfit, _UP, _doubling),
    _Rule(_is_sequence, _norms_unfit, _NORM, _sequence),
)
