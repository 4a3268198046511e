"""Which modules the ops can serve: how they are known, by what they hold, and what speaks against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from orthokernels.acceleration import blocks
from orthokernels.acceleration.blocks import pair_at


@dataclass(frozen=True)
class Rule:
    """A kind of module: how it is known, the ops that serve it, and the method that calls them."""

    matches: Callable[[nn.Module], bool]
    unfit: Callable[[nn.Module], str]
    ops: tuple[str, ...]
    forward: Callable[..., Any]
    method: str = "forward"


def rule_of(module: nn.Module) -> Rule | None:
    return next((rule for rule in RULES if rule.matches(module)), None)


def _has(module: nn.Module, *names: str) -> bool:
    return all(hasattr(module, name) for name in names)


def _starts_with_pair(layers: Any) -> bool:
    return isinstance(layers, nn.Sequential) and pair_at(list(layers), 0)


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
    return any(pair_at(layers, place) for place in range(len(layers)))


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
    kind = type(getattr(module, "attention", None)).__name__
    if kind not in ("NoneType", "QKVAttention", "QKVAttentionLegacy"):
        return f"{kind} is not known to compute what guided-diffusion's attention does"
    hooked = [part for part in (own.qkv, own.proj_out, getattr(own, "attention", None)) if part and _hooked(part)]
    return f"its {type(hooked[0]).__name__} has a hook, which would not be called" if hooked else _norms_unfit(module)


def _is_monai_attention(module: nn.Module) -> bool:
    return type(module).__name__.removeprefix("Accelerated") == "SABlock" and _has(module, "use_combined_linear")


def _monai_attention_unfit(module: nn.Module) -> str:
    own: Any = module
    reasons = {
        "it drops attention weights": own.dropout_rate > 0,
        "it is causal": own.causal,
        "it has relative positions of its own": own.rel_positional_embedding is not None,
        "it keeps its attention matrix": own.save_attn,
        "it computes attention in a dtype of its own": own.attention_dtype is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def is_project_unet(module: nn.Module) -> bool:
    from orthokernels.models.orthodiffusion.unet import UNet

    return isinstance(module, UNet)


def _unet_unfit(module: nn.Module) -> str:
    first: list[Any] = [block[0] for block in module.output_blocks]  # type: ignore[union-attr]
    if not all(hasattr(type(block), "_orthokernels_original") for block in first):
        return "not all blocks of its decoder were replaced, so it concatenates their inputs"
    if any(not isinstance(block.skip_connection, nn.Conv3d) for block in first):
        return "a block of its decoder has another way round than a convolution"
    outer: list[Any] = list(module.output_blocks)  # type: ignore[arg-type]
    if any(_hooked(part) for part in (*outer, *first, *(block.skip_connection for block in first))):
        return "a block of its decoder has a hook, which would see its two inputs apart"
    return ""


def _hooked(module: nn.Module) -> bool:
    kept = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(kept)


def _norms_of(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that are not called any more: whose work an op takes over, and those of them that hold it."""
    for name, child in module.named_modules():
        taken = isinstance(child, nn.GroupNorm | nn.SiLU) and name.count(".") <= 1
        if taken or (name in ("in_layers", "out_layers") and _is_guided_block(module)):
            yield child


def _norms_unfit(module: nn.Module) -> str:
    for name, child in module.named_children():
        if name in ("norm", "norm1", "norm2") and not (isinstance(child, nn.GroupNorm) or _is_sequence(module)):
            return f"its {name} is {type(child).__name__}, not GroupNorm"
    for child in _norms_of(module):
        if _hooked(child):
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


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv3d) and not isinstance(module, nn.ConvTranspose3d)


def _convolution_unfit(module: nn.Module) -> str:
    own: Any = module
    kernel, stride = own.kernel_size[0], own.stride[0]
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
    Rule(
        lambda m: _is_attention_block(m) and hasattr(m, "_forward"),
        _attention_unfit,
        _ATTENTION,
        blocks.attention_block,
        "_forward",
    ),
    Rule(_is_attention_block, _attention_unfit, _ATTENTION, blocks.attention_block),
    Rule(_is_monai_attention, _monai_attention_unfit, _ATTENTION, blocks.monai_attention),
    Rule(
        lambda m: _is_guided_block(m) and hasattr(m, "_forward"), _norms_unfit, _NORM, blocks.guided_block, "_forward"
    ),
    Rule(_is_guided_block, _norms_unfit, _NORM, blocks.guided_block),
    Rule(_is_monai_block, _norms_unfit, _NORM, blocks.monai_block),
    Rule(_is_autoencoder_block, _norms_unfit, _NORM, blocks.autoencoder_block),
    Rule(_is_project_upsample, _fit, _UP, blocks.upsample),
    Rule(_is_doubling, _doubling_unfit, _UP, blocks.doubling),
    Rule(_is_sequence, _norms_unfit, _NORM, blocks.sequence),
    Rule(_is_convolution, _convolution_unfit, _CONVOLUTION, blocks.convolution),
)
