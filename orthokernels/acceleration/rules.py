"""Which modules the ops can serve: how they are known, by what they hold, and what speaks against it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orthokernels.acceleration import blocks
from orthokernels.acceleration.blocks import pair_at
from orthokernels.acceleration.classes import is_accelerated, original_of, subclass
from orthokernels.acceleration.trial import agreeing, normal

# By whom a forward was written, and its name, where it is known without a trial.
KNOWN_ELSEWHERE = {
    ("monai", "DiffusionUNetResnetBlock.forward"), ("monai", "AEKLResBlock.forward"), ("monai", "SABlock.forward"),
    ("generative", "ResnetBlock.forward"),
}  # fmt: skip
Inputs = Callable[[Any, torch.Generator], Iterator[tuple[Tensor, ...]]]


@dataclass(frozen=True)
class Rule:
    """A kind of module: how it is known, the ops that serve it, and the method that calls them.

    ``inputs`` are of a kind that is known by its structure alone, and is tried where its forward is nobody's known.
    Such a block may have its computation in ``_forward``, with checkpointing around it.
    """

    matches: Callable[[nn.Module], bool]
    unfit: Callable[[nn.Module], str]
    ops: tuple[str, ...]
    forward: Callable[..., Any]
    method: str = "forward"
    inputs: Inputs | None = None

    def method_of(self, module: nn.Module) -> str:
        return "_forward" if self.inputs is not None and _has(module, "_forward") else self.method


def rule_of(module: nn.Module) -> Rule | None:
    return next((rule for rule in RULES if rule.matches(module)), None)


def class_for(module: nn.Module, rule: Rule, backend: str) -> type[nn.Module] | str:
    """The class that lets a module call its op, or the reason why it keeps its own."""
    if patched := [name for name in (rule.method_of(module), "forward", "_conv_forward") if name in module.__dict__]:
        return f"its {patched[0]} was set on the instance, and would not be called"
    if reason := rule.unfit(module):
        return reason
    if _is_known(module) or rule.forward is blocks.pair:
        return _made(module, rule, backend, legacy=True)
    if rule.inputs is None:
        return _other(module)
    orders = (True, False) if rule.forward is blocks.attention_block else (True,)
    # Plain PyTorch says whether it is the same computation, wherever it will run.
    found = agreeing(module, [_made(module, rule, "torch", legacy) for legacy in orders], rule.inputs)
    if isinstance(found, str):
        return found
    return _made(module, rule, backend, legacy=found._orthokernels_legacy)  # type: ignore[attr-defined]


def _made(module: nn.Module, rule: Rule, backend: str, legacy: bool) -> type[nn.Module]:
    return subclass(type(module), rule.method_of(module), rule.forward, backend, legacy)  # type: ignore[arg-type]


@functools.cache
def _known() -> frozenset[Any]:
    """Forwards that compute what their kind of module does; a subclass's own may compute anything."""
    from orthokernels.models.orthodiffusion import convolution, unet

    kinds = (
        nn.GroupNorm, nn.SiLU, nn.Conv1d, nn.Conv3d, nn.Upsample, nn.Sequential, unet.GroupNorm, unet.SiLU,
        unet.ResBlock, unet.AttentionBlock, unet.Upsample, convolution.Conv3d,
    )  # fmt: skip
    methods = (nn.Conv1d._conv_forward, nn.Conv3d._conv_forward, convolution.Conv3d._conv_forward)
    return frozenset(kind.forward for kind in kinds) | frozenset(methods)


def _is_known(module: nn.Module) -> bool:
    """Whether a module's forward is one of ``_known``, or MONAI's: not a subclass's own."""
    own: Any = original_of(module)
    if getattr(own, "_conv_forward", nn.Conv3d._conv_forward) not in _known():
        return False
    origin = str(getattr(own.forward, "__module__", "")), getattr(own.forward, "__qualname__", "")
    return own.forward in _known() or (origin[0].split(".")[0], origin[1]) in KNOWN_ELSEWHERE


def _other(module: nn.Module) -> str:
    return f"{type(module).__name__} has a forward of its own"


def _has(module: nn.Module, *names: str) -> bool:
    """Whether a module holds these itself; a wrapper that answers for what it wraps does not."""
    return all(name in module._modules or name in module.__dict__ or hasattr(type(module), name) for name in names)


def _starts_with_pair(module: nn.Module, name: str) -> bool:
    layers = module._modules.get(name)
    return isinstance(layers, nn.Sequential) and pair_at(list(layers), 0)


def _is_guided_block(module: nn.Module) -> bool:
    return (
        _has(module, "in_layers", "emb_layers", "out_layers", "skip_connection")
        and _starts_with_pair(module, "in_layers")
        and _starts_with_pair(module, "out_layers")
    )


def _guided_unfit(module: nn.Module) -> str:
    own: Any = module
    passed = [own.in_layers, own.out_layers, *own.in_layers[:2], *own.out_layers[:2]]
    return _parts_unfit(passed)


def _guided_inputs(module: Any, draw: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
    width = next(layer.in_features for layer in module.emb_layers.modules() if hasattr(layer, "in_features"))
    emb = normal(draw, 2, width)
    for voxels in _grids(module.in_layers):
        yield normal(draw, 2, module.in_layers[0].num_channels, *voxels), emb


def _grids(layers: nn.Module) -> list[tuple[int, ...]]:
    """Volumes as small as they get; of the axes that the convolutions want, if any."""
    axes = next((conv.weight.ndim - 2 for conv in layers.modules() if isinstance(conv, nn.modules.conv._ConvNd)), 0)
    return [(2,) * count for count in ([axes] if axes else [3, 2, 1])]


def _is_monai_block(module: nn.Module) -> bool:
    parts = ("norm1", "norm2", "conv1", "conv2", "time_emb_proj", "nonlinearity", "skip_connection", "upsample")
    return _has(module, *parts) and isinstance(module.nonlinearity, nn.SiLU)


def _monai_unfit(module: nn.Module) -> str:
    own: Any = module
    return _norms_unfit(own, "norm1", "norm2") or _parts_unfit([own.nonlinearity])


def _is_autoencoder_block(module: nn.Module) -> bool:
    named = any(kind.__name__ == "AEKLResBlock" for kind in type(module).__mro__)
    return named and _has(module, "norm1", "nin_shortcut")


def _autoencoder_unfit(module: nn.Module) -> str:
    return _norms_unfit(module, "norm1", "norm2")


def _is_sequence(module: nn.Module) -> bool:
    return type(module) is nn.Sequential and bool(_pairs(module))


def _pairs(layers: nn.Sequential) -> list[nn.Module]:
    """A sequence's GroupNorms before a SiLU, and these SiLUs."""
    own = list(layers)
    return [part for place in range(len(own)) if pair_at(own, place) for part in own[place : place + 2]]


def _sequence_unfit(module: nn.Module) -> str:
    return _parts_unfit(_pairs(module)) if isinstance(module, nn.Sequential) else ""


def _is_project_upsample(module: nn.Module) -> bool:
    from orthokernels.models.orthodiffusion.unet import Upsample

    return isinstance(module, Upsample)


def _is_doubling(module: nn.Module) -> bool:
    return isinstance(module, nn.Upsample) and module.mode == "trilinear"


def _is_attention_block(module: nn.Module) -> bool:
    if not _has(module, "norm", "qkv", "proj_out") or not (_has(module, "heads") or _has(module, "num_heads")):
        return False
    return all(isinstance(conv, nn.Conv1d) and conv.kernel_size == (1,) for conv in (module.qkv, module.proj_out))


def _attention_unfit(module: nn.Module) -> str:
    own: Any = module
    attention = module._modules.get("attention")
    kind = type(attention).__name__
    if kind not in ("NoneType", "QKVAttention", "QKVAttentionLegacy"):
        return f"{kind} is not known to compute what guided-diffusion's attention does"
    if attention is not None and (reason := _passed_by(attention)):
        return reason
    return _norms_unfit(module, "norm") or _parts_unfit([own.qkv, own.proj_out])


def _attention_inputs(module: Any, draw: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
    for voxels in _grids(module.norm):
        yield (normal(draw, 2, module.norm.num_channels, *voxels),)


def _is_monai_attention(module: nn.Module) -> bool:
    named = any(kind.__name__ == "SABlock" for kind in type(module).__mro__)
    return named and _has(module, "use_combined_linear")


def _monai_attention_unfit(module: nn.Module) -> str:
    own: Any = module
    reasons = {
        "it drops attention weights": own.dropout_rate > 0,
        "it is causal": own.causal,
        "it has relative positions of its own": own.rel_positional_embedding is not None,
        "it keeps its attention matrix": own.save_attn,
        "it computes attention in a dtype of its own": own.attention_dtype is not None,
    }
    passed = [part for name, part in module.named_children() if name in ("input_rearrange", "out_rearrange")]
    return next((reason for reason, holds in reasons.items() if holds), "") or next(
        filter(None, map(_passed_by, passed)), ""
    )


def is_project_unet(module: nn.Module) -> bool:
    from orthokernels.models.orthodiffusion.unet import UNet

    return isinstance(module, UNet)


def _unet_unfit(module: nn.Module) -> str:
    from orthokernels.models.orthodiffusion.unet import UNet

    own: Any = type(module)
    if own.features is not UNet.features or own._join is not UNet._join:
        return f"{own.__name__} goes through its decoder in a way of its own"
    first: list[Any] = [block[0] for block in module.output_blocks]  # type: ignore[union-attr]
    if not all(is_accelerated(block) for block in first):
        return "not all blocks of its decoder were replaced, so it concatenates their inputs"
    if any(not isinstance(block.skip_connection, nn.Conv3d) for block in first):
        return "a block of its decoder has another way round than a convolution"
    outer: list[Any] = list(module.output_blocks)  # type: ignore[arg-type]
    ways = [block.skip_connection for block in first]
    if any(_hooked(part) for part in (*outer, *first, *ways)):
        return "a block of its decoder has a hook, which would see its two inputs apart"
    return next((_other(way) for way in ways if not _is_known(way)), "") or next(
        filter(None, map(_passed_by, ways)), ""
    )


def _hooked(module: nn.Module) -> bool:
    kept = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(kept)


def _passed_by(part: nn.Module) -> str:
    """What speaks against not calling a part any more, whose work an op takes over."""
    kind = type(part).__name__
    if _hooked(part):
        return f"its {kind} has a hook, which would not be called"
    if "forward" in part.__dict__:
        return f"the forward of its {kind} was set on the instance, and would not be called"
    return ""


def _parts_unfit(parts: list[nn.Module]) -> str:
    """Of the modules that are not called any more: one that somebody listens to, or that computes something else."""
    for part in parts:
        kind = type(part).__name__
        if reason := _passed_by(part):
            return reason
        if isinstance(part, nn.GroupNorm):
            if (part.weight is None) != (part.bias is None):
                return f"its {kind} has a weight without a bias"
            if kind not in ("GroupNorm", "GroupNorm32") or not (_is_known(part) or _normalises(part)):
                return f"{kind} is not known to compute what GroupNorm does"
        elif not _is_known(part):
            return f"its {_other(part)}"
    return ""


def _normalises(norm: nn.GroupNorm) -> bool:
    """Whether a GroupNorm with a forward of its own, like the published GroupNorm32, computes what GroupNorm does."""

    def inputs(own: Any, draw: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        yield (normal(draw, 2, own.num_channels, 2, 2, 2),)

    plain = type("Plain", (type(norm),), {"forward": nn.GroupNorm.forward})
    return not isinstance(agreeing(norm, [plain], inputs), str)


def _norms_unfit(module: nn.Module, *names: str) -> str:
    norms = {name: getattr(module, name) for name in names}
    for name, norm in norms.items():
        if not isinstance(norm, nn.GroupNorm):
            return f"its {name} is {type(norm).__name__}, not GroupNorm"
    return _parts_unfit(list(norms.values()))


def _doubling_unfit(module: nn.Module) -> str:
    factor: Any = module.scale_factor
    if set(factor if isinstance(factor, tuple | list) else [factor]) != {2.0} or module.align_corners:
        return "it is no doubling with align_corners=False"
    return ""


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv3d) and not isinstance(module, nn.ConvTranspose3d)


def _convolution_unfit(module: nn.Module) -> str:
    own: Any = module
    kernel, stride = own.kernel_size[0], own.stride[0]
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "its weight is not there before its first call; accelerate after that"
    reasons = {
        "its kernel is neither 3 x 3 x 3 nor 1 x 1 x 1": kernel not in (1, 3) or set(own.kernel_size) != {kernel},
        "its stride is neither 1 nor 2 along all axes": stride not in (1, 2) or set(own.stride) != {stride},
        "it does not pad with zeros to its own size": own.padding not in ("same", (kernel // 2,) * 3)
        or own.padding_mode != "zeros",
        "it is dilated or grouped": set(own.dilation) != {1} or own.groups != 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _fit(module: nn.Module) -> str:
    return ""


_NORM, _UP, _ATTENTION, _CONVOLUTION = ("group_norm_silu",), ("upsample2x_trilinear",), ("attention3d",), ("conv3d",)
RULES = (
    Rule(is_project_unet, _unet_unfit, _NORM, blocks.pair, "_join"),
    Rule(_is_attention_block, _attention_unfit, _ATTENTION, blocks.attention_block, inputs=_attention_inputs),
    Rule(_is_monai_attention, _monai_attention_unfit, _ATTENTION, blocks.monai_attention),
    Rule(_is_guided_block, _guided_unfit, _NORM, blocks.guided_block, inputs=_guided_inputs),
    Rule(_is_monai_block, _monai_unfit, _NORM, blocks.monai_block),
    Rule(_is_autoencoder_block, _autoencoder_unfit, _NORM, blocks.autoencoder_block),
    Rule(_is_project_upsample, _fit, _UP, blocks.upsample),
    Rule(_is_doubling, _doubling_unfit, _UP, blocks.doubling),
    Rule(_is_sequence, _sequence_unfit, _NORM, blocks.sequence),
    Rule(_is_convolution, _convolution_unfit, _CONVOLUTION, blocks.convolution),
)
