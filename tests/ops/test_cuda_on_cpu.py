"""The CUDA C++ source of ``attention_pool`` itself, run on a CPU, a block's threads taking turns between barriers.

What a GPU adds is not shown: its own rounding of exponentials, products and sums in one rounding, memory out of order.
"""

from __future__ import annotations

import ctypes
import importlib
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orthokernels.backends.cuda import attention_pool as cuda_attention_pool
from orthokernels.backends.cuda import sources
from orthokernels.backends.cuda.launch import THREADS, TYPES
from orthokernels.ops import attention_pool
from orthokernels.ops.attention_pool import reference

KERNELS = [
    f"attention_pool_{kernel}_{kind}"
    for kernel in ("rows", "columns", "pooled", "row_gradients", "column_gradients")
    for kind in TYPES
]
_ON_CPU = """
#include "grid_on_cpu.h"
#include "attention_pool.cu"

extern "C" int launch(
    const char* kernel, const unsigned* grid, int threads, int reversed, const unsigned long long* words) {
%s
  return -1;
}
"""
_CALL = '  if (!strcmp(kernel, "{0}")) return on_cpu::run(grid, threads, reversed, on_cpu::call({0}, words));'
# (batch, heads, tokens, channels of a head): two tiles with a rest, one token, three tiles and two blocks of channels.
SHAPES = [(2, 3, 105, 16), (1, 2, 1, 8), (1, 1, 130, 100)]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not on PATH")
    folder = tmp_path_factory.mktemp("cuda")
    for header in ("cuda_bf16.h", "cuda_fp16.h"):  # their types are in grid_on_cpu.h
        (folder / header).write_text("")
    (folder / "on_cpu.cpp").write_text(_ON_CPU % "\n".join(map(_CALL.format, KERNELS)))
    command = ["g++", "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-o", str(folder / "on_cpu.so")]
    places = [f"-I{place}" for place in (folder, Path(__file__).parent, sources.folder())]
    subprocess.run([*command, *places, str(folder / "on_cpu.cpp")], check=True)
    return ctypes.CDLL(str(folder / "on_cpu.so"))


@pytest.fixture
def turned(library, monkeypatch) -> list[bool]:
    """Kernels run on the CPU; whether a block's threads take their turns from the last one on."""
    reversed_: list[bool] = [False]

    def launch(op, kernel, grid, arguments, beside) -> None:
        words = [struct.pack("<fI", one, 0) if isinstance(one, float) else struct.pack("<q", one) for one in arguments]
        sides = (ctypes.c_uint * 3)(*grid, *[1] * (3 - len(grid)))
        given = ctypes.create_string_buffer(b"".join(words))
        assert library.launch(f"{op}_{kernel}".encode(), sides, THREADS, int(reversed_[0]), given) == 1

    monkeypatch.setattr(cuda_attention_pool, "launch", launch)
    op = importlib.import_module("orthokernels.ops.attention_pool")
    monkeypatch.setattr(op, "choose", lambda *_: cuda_attention_pool)
    return reversed_


def both_ways(function, tokens: list[Tensor]) -> list[Tensor]:
    leaves = [part.detach().requires_grad_() for part in tokens]
    out = function(*leaves)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(tokens[0].dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def made(shape, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k and v, views into one projection."""
    N, heads, T, d = shape
    joint = torch.randn(N, T, 3 * heads * d, generator=torch.Generator().manual_seed(0)).to(dtype)
    return [part.unflatten(2, (heads, d)).transpose(1, 2) for part in joint.chunk(3, dim=2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("turned")
def test_the_source_computes_what_is_defined(shape, dtype):
    tokens = made(shape, dtype)
    exact, plain = both_ways(reference, [part.double() for part in tokens]), both_ways(reference, tokens)
    for own, other, want in zip(both_ways(attention_pool, tokens), plain, exact, strict=True):
        rounding = max(torch.finfo(dtype).eps, 1e-6) * want.abs().max() + 1e-7  # a lone token's dq and dk are 0
        assert own.dtype == dtype
        assert (own - want).abs().max() <= 2 * (other - want).abs().max() + rounding


def test_the_order_of_threads_between_barriers_does_not_matter(turned):
    first = both_ways(attention_pool, made(SHAPES[0]))
    turned[0] = True
    assert all(torch.equal(a, b) for a, b in zip(both_ways(attention_pool, made(SHAPES[0])), first, strict=True))
