"""Attention: with a bias, dense, in windows, pooled, and as a whole block; this package beside PyTorch's and others'.

Everyone is given tokens in the memory order that it likes best, and what it would take to bring them there is not
timed. This package's are the transposed view of tokens-first memory, as a channels-last volume has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from orthokernels.bench.gpu.case import Bar, Case, Corner
from orthokernels.bench.gpu.passes import (
    Direction,
    Function,
    Lazily,
    channels_last,
    compile_modes,
    compiled,
    normal,
    passing,
)
from orthokernels.bench.gpu.peers import with_peer
from orthokernels.bench.gpu.setting import Setting
from orthokernels.bench.gpu.timing import Contender
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from orthokernels.ops.attention3d import attention3d, bias_matrix, bytes_moved, operations, seen_by
from orthokernels.ops.attention_block import attention_block
from orthokernels.ops.attention_block import bytes_moved as block_bytes_moved
from orthokernels.ops.attention_block import operations as block_operations
from orthokernels.ops.attention_block import reference as block_reference
from orthokernels.ops.attention_pool import attention_pool
from orthokernels.ops.attention_pool import bytes_moved as pool_bytes_moved
from orthokernels.ops.attention_pool import reference as pool_reference
from orthokernels.ops.group_norm_silu import group_norm_silu

BOTH: Direction = "forward and backward"
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH,
}  # fmt: skip
OURS = "orthokernels"
MATH_WITH_MASK = "SDPA math, the mask made beforehand"
Grid = tuple[int, int, int]


def bias_cases(setting: Setting) -> list[Case]:
    """4,096 tokens with a learned bias by relative position, forward and backward."""
    grid: Grid = (2, 2, 3) if setting.tiny else (16, 16, 16)
    heads, d = (2, 16) if setting.tiny else (8, 64)
    T = math.prod(grid)
    told = f"{heads} heads of {d}, {'x'.join(map(str, grid))} = {T} tokens bf16"
    table_shape = (heads, *(2 * side - 1 for side in grid))
    q, table = _meta(heads, d, T), torch.empty(table_shape, device="meta")
    moved = bytes_moved(q, table) + bytes_moved(q, table, backward=True)
    counted = operations(q, grid) + operations(q, grid, backward=True)

    def contenders() -> Sequence[Contender]:
        q, k, v = (normal(setting, 1, heads, T, d) for _ in range(3))
        table = normal(setting, *table_shape, dtype=torch.float32)
        mask = bias_matrix(table, grid).to(q.dtype)[None].contiguous()

        def ours(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
            return _ours(q, k, v, grid, setting, bias=table)

        def from_table(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
            return _sdpa(q, k, v, bias_matrix(table, grid).to(q.dtype)[None])

        found = [
            Contender(OURS, passing(ours, (q, k, v, table), BOTH)),
            Contender(MATH_WITH_MASK, passing(_only(_sdpa, "math"), (q, k, v, mask), BOTH)),
        ]
        for name in BACKENDS:
            own = _only(from_table, name)
            found.append(Contender(f"SDPA {name}, the mask from the table", passing(own, (q, k, v, table), BOTH)))
        flex = Lazily(lambda: _flex(grid, setting))
        found.append(Contender("flex_attention, compiled", passing(flex, (q, k, v, table), BOTH)))
        for name, build in compile_modes(from_table, (q, k, v, table), BOTH, setting):
            found.append(Contender(f"{name} of SDPA, the mask from the table", build))
        efficient = with_peer("xformers", lambda m: _xformers(m, q, k, v, mask))
        found.append(Contender("xformers, the mask made beforehand", efficient))
        return found

    bar = Bar("faster", 2.0, MATH_WITH_MASK)
    return [Case(f"attention3d with bias {BOTH}, {told}", moved, counted, "bfloat16", contenders, (bar,))]


def dense_cases(setting: Setting) -> list[Case]:
    """4,096 tokens without a bias, where PyTorch's own kernels are the ones to beat."""
    grid: Grid = (2, 2, 3) if setting.tiny else (16, 16, 16)
    heads, d = (2, 16) if setting.tiny else (8, 64)
    return [_plain_case(setting, grid, heads, d, None, BOTH)]


def window_cases(setting: Setting) -> list[Case]:
    """Windows of 1 x 7 x 7: 4,096 tokens, where a mask fits, and 65,536, where none does."""
    if setting.tiny:
        return [_plain_case(setting, (2, 3, 4), 2, 16, (1, 3, 3), BOTH)]
    return [_plain_case(setting, grid, 4, 64, (1, 7, 7), BOTH) for grid in ((4, 32, 32), (16, 64, 64))]


def _plain_case(
    setting: Setting, grid: Grid, heads: int, d: int, window: Grid | None, direction: Direction
) -> Case:  # fmt: skip
    T = math.prod(grid)
    q = _meta(heads, d, T)
    moved = bytes_moved(q) + bytes_moved(q, backward=True)
    counted = operations(q, grid, window) + operations(q, grid, window, backward=True)

    def contenders() -> Sequence[Contender]:
        tokens = tuple(normal(setting, 1, heads, T, d) for _ in range(3))
        first = tuple(each.transpose(1, 2).contiguous() for each in tokens)  # (N, T, heads, d)
        views = tuple(each.transpose(2, 3).contiguous().transpose(2, 3) for each in tokens)

        def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return _ours(q, k, v, grid, setting, window=window)

        found = [
            Contender(OURS, passing(ours, tokens, direction)),
            Contender(f"{OURS}, channels-first memory", passing(ours, views, direction)),
        ]
        if window is None:
            for name in BACKENDS:
                found.append(Contender(f"SDPA {name}", passing(_only(_sdpa, name), tokens, direction)))
            found.append(Contender("flash-attn", with_peer("flash-attn", lambda m: _flash(m, first, direction))))
            found.append(Contender("xformers", with_peer("xformers", lambda m: _xformers(m, *tokens))))
            return found
        if T <= 4096:
            mask = seen_by(grid, window, setting.device)
            for name in ("memory-efficient", "cuDNN", "math"):
                own = _only(lambda q, k, v: _sdpa(q, k, v, mask), name)
                found.append(Contender(f"SDPA {name} with a mask", passing(own, tokens, direction)))
        own_flex = Lazily(lambda: _flex_windows(grid, window, setting))
        found.append(Contender("flex_attention in windows, compiled", passing(own_flex, tokens, direction)))
        found.append(Contender("NATTEN", with_peer("NATTEN", lambda m: _natten(m, first, grid, window, direction))))
        return found

    kind = "dense" if window is None else f"windows of {'x'.join(map(str, window))}"
    told = f"{heads} heads of {d}, {'x'.join(map(str, grid))} = {T} tokens bf16"
    return Case(f"attention3d {kind} {direction}, {told}", moved, counted, "bfloat16", contenders)


def pool_cases(setting: Setting) -> list[Case]:
    """The published pooling's attention: 16 heads of 16 channels over 256 tokens, averaged over the queries."""
    N, heads, T, d = (2, 2, 12, 16) if setting.tiny else (8, 16, 256, 16)
    found = []
    for direction in ("forward", BOTH):
        q = torch.empty(N, heads, T, d, dtype=torch.bfloat16, device="meta")
        moved = pool_bytes_moved(q) + (pool_bytes_moved(q, backward=True) if direction == BOTH else 0)
        counted = 2 * N * heads * T * T * d * (1 if direction == "forward" else 5)
        found.append(
            Case(
                f"attention_pool {direction}, {N} x {heads} heads of {d}, {T} tokens bf16", moved, counted, "bfloat16",
                lambda direction=direction: _pool(setting, (N, heads, T, d), direction),
            )
        )  # fmt: skip
    return found


def _pool(setting: Setting, shape: tuple[int, ...], direction: Direction) -> Sequence[Contender]:
    tokens = tuple(normal(setting, *shape) for _ in range(3))

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_pool(q, k, v, backend=setting.backend)

    def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _sdpa(q, k, v).mean(dim=2)

    return [
        Contender(OURS, passing(ours, tokens, direction)),
        Contender("SDPA and mean", passing(attended, tokens, direction)),
        Contender("plain PyTorch", passing(pool_reference, tokens, direction)),
        *(
            Contender(f"{name} of SDPA and mean", build)
            for name, build in compile_modes(attended, tokens, direction, setting)
        ),
    ]


def block_cases(setting: Setting) -> list[Case]:
    """The published network's attention block, 256 tokens of 256 channels and one head, at batch 1 and 8."""
    width, sides = (32, (1, 3, 4)) if setting.tiny else (256, (1, 16, 16))
    cases: tuple[tuple[int, Direction], ...] = ((1, "forward"), (8, "forward"), (8, BOTH))
    return [_block_case(setting, (batch, width, *sides), direction) for batch, direction in cases]


def _block_case(setting: Setting, shape: tuple[int, ...], direction: Direction) -> Case:
    width = shape[1]
    sizes = (width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)
    x, *parameters = (torch.empty(size, dtype=torch.bfloat16, device="meta") for size in (shape, *sizes))
    both = (False, True) if direction == BOTH else (False,)
    moved = sum(block_bytes_moved(x, *parameters, backward=backward) for backward in both)
    counted = sum(block_operations(x, backward=backward) for backward in both)

    def contenders() -> Sequence[Contender]:
        x = normal(setting, *shape, mean=0.3)
        parameters = [normal(setting, *size) * (width**-0.5 if len(size) == 2 else 0.3) for size in sizes]
        first, last = (x, *parameters), (channels_last(x), *parameters)

        def ours(x: Tensor, *parameters: Tensor) -> Tensor:
            return attention_block(x, 32, *parameters, backend=setting.backend)

        def plain(x: Tensor, *parameters: Tensor) -> Tensor:
            return block_reference(x, 32, *parameters)

        def one_by_one(x: Tensor, *parameters: Tensor) -> Tensor:
            return _block_of_ops(setting, x, *parameters)

        corners: tuple[tuple[str, Function, tuple[Tensor, ...]], ...] = (
            (Corner.KERNELS_LAST, ours, last), (Corner.KERNELS_CONTIGUOUS, ours, first),
            (Corner.PLAIN_CONTIGUOUS, plain, first), (Corner.PLAIN_LAST, plain, last),
            (Corner.UNFUSED_CONTIGUOUS, one_by_one, first), (f"{OURS} unfused, channels-last", one_by_one, last),
        )  # fmt: skip
        found = [Contender(name, passing(function, tensors, direction)) for name, function, tensors in corners]
        for name, build in compile_modes(plain, last, direction, setting):
            found.append(Contender(f"{name}, channels-last", build))
        return found

    told = f"{'x'.join(map(str, shape))} bf16"
    return Case(f"attention_block {direction}, {told}", moved, counted, "bfloat16", contenders)


def _block_of_ops(setting: Setting, x: Tensor, *parameters: Tensor) -> Tensor:
    """The block as ``accelerate`` computed it before: normalisation in one op, PyTorch's products and its SDPA."""
    weight, bias, qkv_weight, qkv_bias, proj_weight, proj_bias = parameters
    tokens = group_norm_silu(x, 32, weight, bias, activation=None, backend=setting.backend).flatten(2).transpose(1, 2)
    q, k, v = F.linear(tokens, qkv_weight, qkv_bias)[:, None].chunk(3, dim=3)
    attended = F.linear(_sdpa(q, k, v)[:, 0], proj_weight, proj_bias)
    return x + attended.transpose(1, 2).unflatten(2, x.shape[2:])


def _meta(heads: int, d: int, tokens: int) -> Tensor:
    return torch.empty(1, heads, d, tokens, dtype=torch.bfloat16, device="meta")


def _ours(q: Tensor, k: Tensor, v: Tensor, grid: Grid, setting: Setting, **options: Any) -> Tensor:
    """(N, heads, T, d) in and out, the kernels by name: "auto" would give dense calls to PyTorch."""
    q, k, v = (part.transpose(2, 3) for part in (q, k, v))
    return attention3d(q, k, v, grid, backend=setting.backend, **options).transpose(2, 3)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _only(function: Function, backend: str) -> Function:
    """A function whose attention is one of PyTorch's backends; it raises where that one does not take the call."""

    def restricted(*tensors: Tensor) -> Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return function(*tensors)

    return restricted


def _flex(grid: Grid, setting: Setting) -> Function:
    """PyTorch's flex_attention with the bias read from the table inside the kernel."""
    from torch.nn.attention.flex_attention import flex_attention

    call = compiled(flex_attention, setting)
    D, H, W = grid
    at = torch.meshgrid(*(torch.arange(side, device=setting.device) for side in grid), indexing="ij")
    code = ((at[0] * (2 * H - 1) + at[1]) * (2 * W - 1) + at[2]).flatten()
    middle = ((D - 1) * (2 * H - 1) + H - 1) * (2 * W - 1) + W - 1

    def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        flat = table.flatten(1)

        def biased(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score + flat[head, code[query] - code[key] + middle]

        found: Tensor = call(q, k, v, score_mod=biased)
        return found

    return attend


def _flex_windows(grid: Grid, window: Grid, setting: Setting) -> Function:
    """PyTorch's flex_attention with blocks that no window reaches left out."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    call, T = compiled(flex_attention, setting), math.prod(grid)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        found = query >= 0
        for axis, (side, places) in enumerate(zip(grid, window, strict=True)):
            behind = math.prod(grid[axis + 1 :])
            own, other = query // behind % side, key // behind % side
            first = (own - places // 2).clamp(0, side - places)
            found = found & (other >= first) & (other < first + places)
        return found

    blocks = create_block_mask(seen, None, None, T, T, device=str(setting.device))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found: Tensor = call(q, k, v, block_mask=blocks)
        return found

    return attend


def _flash(module: Any, tokens: Sequence[Tensor], direction: Direction) -> Callable[[], object]:
    build: Callable[[], object] = passing(lambda q, k, v: module.flash_attn_func(q, k, v), tokens, direction)()
    return build


def _xformers(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Callable[[], object]:
    tokens = [part.transpose(1, 2).contiguous() for part in (q, k, v)]
    given = tokens if mask is None else [*tokens, mask]

    def attend(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
        found: Tensor = module.memory_efficient_attention(q, k, v, attn_bias=bias[0] if bias else None)
        return found

    build: Callable[[], object] = passing(attend, given, BOTH)()
    return build


def _natten(
    module: Any, tokens: Sequence[Tensor], grid: Grid, window: Grid, direction: Direction
) -> Callable[[], object]:
    volumes = [each.unflatten(1, grid) for each in tokens]  # (N, D, H, W, heads, d)
    build: Callable[[], object] = passing(
        lambda q, k, v: module.na3d(q, k, v, kernel_size=window), volumes, direction
    )()  # fmt: skip
    return build
