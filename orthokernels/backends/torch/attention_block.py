"""Group normalisation, attention and residual of a block in plain PyTorch; the scores exist here, a matrix a head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# What the kernels take. A program of the first launch reads a whole sample for its statistics, so that more tokens are
# served better by ops of their own; wider float32 tiles don't fit into the registers.
TOKENS_AT_MOST = 1024
CHANNELS_AT_MOST = {torch.float32: 256, torch.float16: 512, torch.bfloat16: 512}


def forward(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, qkv_weight: Tensor, qkv_bias: Tensor | None,
    proj_weight: Tensor, proj_bias: Tensor | None, heads: int, legacy: bool, eps: float, y: Tensor,
) -> None:  # fmt: skip
    """Write the block's result, computed in float32, float64 for float64."""
    dtype = torch.promote_types(x.dtype, torch.float32)

    def wide(own: Tensor | None) -> Tensor | None:
        return None if own is None else own.to(dtype)

    into, out_of = qkv_weight.to(dtype), proj_weight.to(dtype)
    given = wide(weight), wide(bias), into, wide(qkv_bias), out_of, wide(proj_bias)
    y.copy_(attended_block(x.to(dtype), groups, *given, heads=heads, legacy=legacy, eps=eps))


def attended_block(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, qkv_weight: Tensor, qkv_bias: Tensor | None,
    proj_weight: Tensor, proj_bias: Tensor | None, *, heads: int, legacy: bool, eps: float,
) -> Tensor:  # fmt: skip
    """The block, line by line as the formulas of ``ops.attention_block``, in x's dtype."""
    tokens = F.group_norm(x.flatten(2), groups, weight, bias, eps)  # [N, C, T]
    q, k, v = parts_of(product(qkv_weight, tokens, qkv_bias), heads, legacy)
    p = (q.transpose(2, 3) @ k * q.shape[2] ** -0.5).softmax(dim=3)
    attended = (v @ p.transpose(2, 3)).flatten(1, 2)
    return x + product(proj_weight, attended, proj_bias).view(x.shape)


def product(weight: Tensor, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """A linear map of every token: (C', C) of (N, C, T)."""
    found = weight @ tokens
    return found if bias is None else found + bias[:, None]


def parts_of(joint: Tensor, heads: int, legacy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Views q, k and v (N, heads, d, T) of a projection (N, 3 C, T)."""
    if legacy:
        q, k, v = joint.unflatten(1, (heads, 3, -1)).unbind(2)
    else:
        q, k, v = joint.unflatten(1, (3, heads, -1)).unbind(1)
    return q, k, v


def joint_of(q: Tensor, k: Tensor, v: Tensor, legacy: bool) -> Tensor:
    """The way back of ``parts_of``."""
    return torch.stack((q, k, v), dim=2 if legacy else 1).flatten(1, 3)
