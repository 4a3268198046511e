"""Attention with a mean over the queries in CUDA C++: ``csrc/cuda/attention_pool.cu``."""

from __future__ import annotations

from typing import Any

from orthokernels.backends.cuda.launch import launch, pointer, strides, type_of, wrong_type

_SIDE = 64  # rows of a block, and channels of a gradient that it keeps
_POOLED = 32  # channels of a block that pools


def forward(q: Any, k: Any, v: Any, scale: float, out: Any, looked_at: Any, log_sum: Any) -> None:
    """Write the pooled tokens, w and the logarithms of the softmax's denominators."""
    N, heads, T, d = q.shape
    rows, sizes = (N * heads, -(-T // _SIDE)), (heads, T, d)
    both = [*_tokens(q), *_tokens(k)]
    _launch("rows", rows, [*both, pointer(log_sum), *sizes, float(scale)], q)
    _launch("columns", rows, [*both, pointer(log_sum), pointer(looked_at), *sizes, float(scale)], q)
    _launch("pooled", (N * heads, -(-d // _POOLED)), [*_tokens(v), pointer(looked_at), pointer(out), *sizes], q)


def backward(gain: Any, q: Any, k: Any, log_sum: Any, scale: float, dq: Any, dk: Any) -> None:
    """Write dq and dk, contiguous; ``gain`` is g of the formulas, (N, heads, T)."""
    import torch

    N, heads, T, d = q.shape
    seen = torch.empty_like(log_sum)
    grid, both = (N * heads, -(-T // _SIDE), -(-d // _SIDE)), [*_tokens(q), *_tokens(k)]
    for kernel, gradient in (("row_gradients", dq), ("column_gradients", dk)):
        others = map(pointer, (gain, log_sum, seen, gradient))
        _launch(kernel, grid, [*both, *others, heads, T, d, float(scale)], q)


def _tokens(tokens: Any) -> tuple[int, ...]:
    return pointer(tokens), *strides(tokens)


def _launch(kernel: str, grid: tuple[int, ...], arguments: list[int | float], q: Any) -> None:
    launch("attention_pool", f"{kernel}_{type_of(q)}", grid, arguments, q)


def can_run(x: Any) -> str | None:
    """Why the kernels can not take tokens, or None."""
    most = 128 if type_of(x) == "float32" else 256
    if x.ndim == 4 and x.shape[-1] > most:
        return f"its kernels take heads of up to {most} channels in {x.dtype}, not {x.shape[-1]}"
    return wrong_type(x)
