"""What accelerated modules do: their own forward passes, with the ops in them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthokernels.backends.cpu.gains import plain_learns_faster
from orthokernels.backends.registry import ops_of
from orthokernels.ops.attention3d import attention3d
from orthokernels.ops.attention_block import attention_block as whole_block
from orthokernels.ops.attention_block import fits
from orthokernels.ops.autocast import lowers
from orthokernels.ops.conv3d import conv3d
from orthokernels.ops.group_norm_silu import group_norm_silu
from orthokernels.ops.layout import conform, layout_of
from orthokernels.ops.upsample2x_trilinear import upsample2x_trilinear


def _takes(x: Any) -> bool:
    """Whether the ops take it at all: a volume, or tokens, with something in it."""
    return isinstance(x, Tensor) and x.ndim > 2 and x.numel() > 0


def _plainly(self: Any, *given: Any, **named: Any) -> Any:
    """What the module's own class would do."""
    return getattr(self._orthokernels_original, self._orthokernels_method)(self, *given, **named)


def _of_volumes(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Leaves vectors and empty batches to the module's own class."""

    first = list(inspect.signature(forward).parameters)[1]

    @functools.wraps(forward)
    def chosen(self: Any, *given: Any, **named: Any) -> Any:
        x = given[0] if given else named.get(first)
        taken = _takes(x[0] if isinstance(x, tuple) else x)
        return forward(self, *given, **named) if taken else _plainly(self, *given, **named)

    return chosen


def pair_at(layers: Sequence[nn.Module], place: int) -> bool:
    """Whether a SiLU follows a GroupNorm there."""
    follower = layers[place + 1] if place + 1 < len(layers) else None
    return isinstance(layers[place], nn.GroupNorm) and isinstance(follower, nn.SiLU)


def _normalise(
    owner: nn.Module, norm: nn.Module, x: Tensor, *, shift: Tensor | None = None, scale_shift: Tensor | None = None,
    activation: str | None = "silu", skip: Tensor | None = None,
) -> Tensor:  # fmt: skip
    assert isinstance(norm, nn.GroupNorm)
    return group_norm_silu(
        x, norm.num_groups, norm.weight, norm.bias, shift=shift, scale_shift=scale_shift, eps=norm.eps,
        activation=activation, skip=skip, backend=owner._orthokernels_backend,  # type: ignore[arg-type]
    )  # fmt: skip


def _like_weights(x: Tensor, conv: nn.Module) -> Tensor:
    """A volume channels last where the weights behind it are, as PyTorch's own convolution would give its result.

    Attention over tokens leaves volumes channels first, and what follows would be brought into the kernels' layout and
    back, op by op. ``conv`` may be MONAI's ``Convolution`` around it. Where an adapter took its place, or its weight is
    computed when it is read, the volume stays as it lies.
    """
    weight = getattr(conv, "conv", conv)._parameters.get("weight")
    if weight is None or x.ndim != 5:
        return x
    return conform(x, "channels_last") if layout_of(weight) == "channels_last" else x


@_of_volumes
def guided_block(self: Any, x: Tensor | tuple[Tensor, Tensor], emb: Tensor, *more: Any, **named: Any) -> Tensor:
    """guided-diffusion's residual block; in this project's decoder it may be given its two inputs apart."""
    if more or named:
        return _plainly(self, x, emb, *more, **named)
    if isinstance(x, tuple):
        return _guided_end(self, _normalise(self, self.in_layers[0], x[0], skip=x[1]), _apart(self, *x), emb)
    h = _normalise(self, self.in_layers[0], x)
    if getattr(self, "updown", False):
        h, x = self.h_upd(h), self.x_upd(x)
    return _guided_end(self, h, self.skip_connection(x), emb)


def _guided_end(self: Any, h: Tensor, past: Tensor, emb: Tensor) -> Tensor:
    """From the first convolution on; ``past`` goes round the block."""
    h = _rest(self.in_layers, h)
    embedded = self.emb_layers(emb).to(h.dtype)
    if getattr(self, "use_scale_shift_norm", False):
        h = _normalise(self, self.out_layers[0], h, scale_shift=embedded)
    else:
        h = _normalise(self, self.out_layers[0], h, shift=embedded)
    return past + _rest(self.out_layers, h)


def _apart(self: Any, x: Tensor, skip: Tensor) -> Tensor:
    """The 1x1x1 convolution of two volumes side by side, without putting them there."""
    conv, widths = self.skip_connection, [x.shape[1], skip.shape[1]]
    if layout_of(x) == layout_of(skip) == "channels_last":  # linear maps of tokens that need not move
        own, other = conv.weight.movedim(1, -1).flatten(1).split(widths, dim=1)
        return (F.linear(x.movedim(1, -1), own, conv.bias) + F.linear(skip.movedim(1, -1), other)).movedim(-1, 1)
    own, other = conv.weight.split(widths, dim=1)
    return F.conv3d(x, own, conv.bias) + F.conv3d(skip, other)


@_of_volumes
def pair(self: Any, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """This project's U-Net gives a decoder block its two inputs as they lie."""
    return x, skip


def _rest(layers: nn.Sequential, h: Tensor) -> Tensor:
    """What follows normalisation and activation."""
    for layer in list(layers)[2:]:
        h = layer(h)
    return h


@_of_volumes
def monai_block(self: Any, x: Tensor, emb: Tensor) -> Tensor:
    """The residual block of MONAI's DiffusionModelUNet."""
    x = _like_weights(x, self.conv1)
    h = _normalise(self, self.norm1, x)
    resample = self.upsample if self.upsample is not None else self.downsample
    if resample is not None:
        h, x = resample(h), resample(x)
    h = self.conv1(h)
    h = _normalise(self, self.norm2, h, shift=self.time_emb_proj(self.nonlinearity(emb)).to(h.dtype))
    return self.conv2(h) + self.skip_connection(x)  # laid as the first: pooling leaves volumes channels first, too


@_of_volumes
def autoencoder_block(self: Any, x: Tensor) -> Tensor:
    """The residual block of MONAI's AutoencoderKL."""
    x = _like_weights(x, self.conv1)
    h = self.conv1(_normalise(self, self.norm1, x))
    h = self.conv2(_normalise(self, self.norm2, h))
    return self.nin_shortcut(x) + h


def sequence(self: Any, input: Tensor) -> Tensor:
    """A sequence, its GroupNorms and the SiLUs behind them in one op."""
    layers, x = list(self), input
    place = 0
    while place < len(layers):
        if pair_at(layers, place) and _takes(x):
            x = _normalise(self, layers[place], x)
            place += 2
        else:
            x = layers[place](x)
            place += 1
    return x


@_of_volumes
def upsample(self: Any, x: Tensor, size: Sequence[int]) -> Tensor:
    """This project's ``Upsample``; a skip of an odd side is met by interpolation, as before."""
    if tuple(size) == tuple(2 * side for side in x.shape[2:]):
        return self.conv(upsample2x_trilinear(x, backend=self._orthokernels_backend))
    return self.conv(F.interpolate(x, size=size, mode="trilinear", align_corners=False))


@_of_volumes
def convolution(self: Any, input: Tensor) -> Tensor:
    """``nn.Conv3d`` of 3 x 3 x 3 or 1 x 1 x 1 with zeros around; PyTorch's where learning gains nothing by ours."""
    x, backend, stride = input, self._orthokernels_backend, self.stride[0]
    weight, bias = self.weight, self.bias  # read once: a parametrisation may go a step further at every reading
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    plain = learns and backend == "auto" and plain_learns_faster(x, weight, stride)
    if plain or x.ndim != 5 or x.dtype != weight.dtype or lowers(x.device.type):
        return self._conv_forward(x, weight, bias)
    return conv3d(_like_weights(x, self), weight, bias, stride=stride, backend=backend)


@_of_volumes
def doubling(self: Any, input: Tensor) -> Tensor:
    """``nn.Upsample`` of factor 2."""
    return upsample2x_trilinear(input, backend=self._orthokernels_backend)


@_of_volumes
def attention_block(self: Any, x: Tensor, *more: Any, **named: Any) -> Tensor:
    """guided-diffusion's attention over all voxels, added to its input; over few of them it is one op.

    What else it is given (GLIDE's encoded text) is its own class's to attend to.
    """
    if any(own is not None for own in (*more, *named.values())):
        return _plainly(self, x, *more, **named)
    if _is_whole(self, x):
        norm, into, out_of = self.norm, self.qkv, self.proj_out
        return whole_block(
            x, norm.num_groups, norm.weight, norm.bias, into.weight.flatten(1), into.bias, out_of.weight.flatten(1),
            out_of.bias, heads=_heads_of(self), legacy=self._orthokernels_legacy, eps=norm.eps,
            backend=self._orthokernels_backend,
        )  # fmt: skip
    grid = (1, 1, 1, *x.shape[2:])[-3:]
    tokens = _normalise(self, self.norm, x, activation=None)
    last = layout_of(x) == "channels_last"
    if last:  # channels last: a linear map of tokens that need not move
        tokens = tokens.movedim(1, -1).flatten(1, -2)
        joint = F.linear(tokens, self.qkv.weight.flatten(1), self.qkv.bias).transpose(1, 2)
    else:
        joint = self.qkv(tokens.flatten(2))
    heads = _heads_of(self)
    if self._orthokernels_legacy:  # heads first, each with its q, k and v; else q, k, v first
        q, k, v = joint.unflatten(1, (heads, 3, -1)).unbind(2)
    else:
        q, k, v = joint.unflatten(1, (3, heads, -1)).unbind(1)
    out = attention3d(q, k, v, grid, backend=self._orthokernels_backend).flatten(1, 2)
    if last:
        out = F.linear(out.transpose(1, 2), self.proj_out.weight.flatten(1), self.proj_out.bias).transpose(1, 2)
    else:
        out = self.proj_out(out)
    return x + out.unflatten(2, tuple(x.shape[2:]))


def _is_whole(block: Any, x: Tensor) -> bool:
    """Whether one op computes what the block would. Autocast lowers all its x, of which the block adds what it was."""
    lowered = lowers(x.device.type) and x.dtype != torch.get_autocast_dtype(x.device.type)
    into = block.qkv  # its weight is read once, where it is used
    square = (into.out_channels, into.in_channels, into.groups) == (3 * x.shape[1], x.shape[1], 1)
    taken = all(parameter.dtype in (x.dtype, torch.float32) for parameter in block.parameters())
    backend = block._orthokernels_backend
    served = backend == "auto" or "attention_block" in ops_of(backend)
    return served and fits(x) and square and taken and not lowered


def _heads_of(block: Any) -> int:
    return int(block.heads if hasattr(block, "heads") else block.num_heads)


@_of_volumes
def monai_attention(self: Any, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """MONAI's self-attention over tokens (N, T, C)."""
    if attn_mask is not None:
        return _plainly(self, x, attn_mask)
    if self.use_combined_linear:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).unbind(2)
    else:
        q, k, v = (to(x).unflatten(2, (self.num_heads, -1)) for to in (self.to_q, self.to_k, self.to_v))
    q, k, v = (part.permute(0, 2, 3, 1) for part in (q, k, v))  # (N, heads, d, T), where they lie
    out = attention3d(q, k, v, (1, 1, x.shape[1]), scale=self.scale, backend=self._orthokernels_backend)
    return self.drop_output(self.out_proj(out.permute(0, 3, 1, 2).flatten(2)))
