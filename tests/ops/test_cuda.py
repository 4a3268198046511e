"""The CUDA C++ kernels. Without a GPU: their arithmetic by a C++ compiler, their machine code by nvcc, their arguments.

What only a GPU can tell stands at the end, and is skipped where CuPy or a GPU is missing.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from orthokernels import arrays
from orthokernels.backends import registry
from orthokernels.backends.cuda import attention_pool as cuda_attention_pool
from orthokernels.backends.cuda import denoise_step as cuda_denoise_step
from orthokernels.backends.cuda import sources
from orthokernels.backends.cuda.launch import TYPES
from orthokernels.backends.registry import BackendUnavailable, choose, ops_of
from orthokernels.backends.torch.denoise_step import stepped
from orthokernels.backends.torch.philox import _uniform, normal, philox
from orthokernels.ops import attention_pool, denoise_step
from orthokernels.ops.attention_pool import reference as pooled_reference
from orthokernels.ops.denoise_step import reference as stepped_reference

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
needs_gpu = pytest.mark.skipif(
    find_spec("cupy") is None or not torch.cuda.is_available(), reason="CuPy or a CUDA device is missing"
)
KERNELS = {
    "denoise_step": [f"denoise_step_{x}_{output}" for x in TYPES for output in TYPES],
    "attention_pool": [
        f"attention_pool_{kernel}_{kind}"
        for kernel in ("rows", "columns", "pooled", "row_gradients", "column_gradients")
        for kind in TYPES
    ],
}

# The headers' arithmetic for a CPU: products and sums are rounded one by one, as in PyTorch.
_ON_CPU = """
#include "philox.cuh"
#include "softmax.cuh"
#include "step.cuh"

extern "C" void draw(
    long long count, const long long* counters, unsigned step, long long seed, long long* words, float* uniforms,
    float* normal) {
  for (long long i = 0; i < count; ++i) {
    const Words own = philox(static_cast<unsigned>(counters[i]), step, seed);
    const Normals numbers = normals(static_cast<unsigned>(counters[i]), step, seed);
    for (int n = 0; n < 4; ++n) {
      words[4 * i + n] = own.at[n];
      uniforms[4 * i + n] = uniform(own.at[n]);
      normal[4 * i + n] = numbers.at[n];
    }
  }
}

extern "C" void go(
    long long count, const float* x, const float* output, const float* given, float bound, int divided, float* found,
    float* x0) {
  const Coefficients c = {given[0], given[1], given[2], given[3], given[4], given[5], given[6]};
  for (long long i = 0; i < count; ++i) {
    x0[i] = clamped(clean(c, x[i], output[i]), bound);
    if (divided) x0[i] /= bound;
    found[i] = advanced(c, x[i], output[i], x0[i]);
  }
}

// Lanes take every third group of four scores, and are merged as a warp merges them.
extern "C" float log_sum(long long count, const float* scores) {
  Softmax lanes[3] = {no_scores(), no_scores(), no_scores()};
  for (long long first = 0; first < count; first += 4) {
    float four[4] = {};
    const int there = count - first < 4 ? static_cast<int>(count - first) : 4;
    for (int n = 0; n < there; ++n) four[n] = scores[first + n];
    absorb(lanes[first / 4 % 3], four, there);
  }
  return log_sum_of(merged(merged(lanes[0], lanes[1]), lanes[2]));
}
"""


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not on PATH")
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "on_cpu.cpp").write_text(_ON_CPU)
    command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-I", str(sources.folder())]
    subprocess.run([*command, "-o", str(folder / "on_cpu.so"), str(folder / "on_cpu.cpp")], check=True)
    library = ctypes.CDLL(str(folder / "on_cpu.so"))
    library.log_sum.restype = ctypes.c_float
    return library


def address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize("seed", [0, 2**40 + 5, -(2**63), -1])
@pytest.mark.parametrize("step", [0, 3, 2**31 + 1])
def test_noise_has_the_bits_of_plain_pytorch_s(on_cpu, seed, step):
    counters = torch.cat([torch.arange(257), 2**32 - 1 - torch.arange(7)])
    words = torch.zeros(len(counters), 4, dtype=torch.int64)
    uniforms, numbers = (torch.full(words.shape, float("nan")) for _ in range(2))
    on_cpu.draw(
        ctypes.c_longlong(len(counters)), address(counters), ctypes.c_uint(step), ctypes.c_longlong(seed),
        address(words), address(uniforms), address(numbers),
    )  # fmt: skip
    assert torch.equal(words, torch.stack(philox(counters, step, torch.tensor([seed])), dim=1))
    assert torch.equal(uniforms, _uniform(words))
    # Two libraries' logarithm, root, sine and cosine, and a product of them: four roundings of a radius below 5.7.
    want = normal(4 * 257, torch.tensor([seed]), step)
    torch.testing.assert_close(numbers[:257].flatten(), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("divided", [False, True])
def test_a_step_has_the_bits_of_plain_pytorch_s(on_cpu, divided):
    draw = torch.Generator().manual_seed(0)
    x, output, given = (torch.randn(size, generator=draw) for size in (1001, 1001, 7))
    x[7] = float("nan")  # stays, and is no bound
    found, x0 = torch.full_like(x, float("nan")), torch.full_like(x, float("nan"))
    on_cpu.go(
        ctypes.c_longlong(x.numel()), address(x), address(output), address(given), ctypes.c_float(0.75),
        ctypes.c_int(divided), address(found), address(x0),
    )  # fmt: skip
    bound = {"clip": None, "threshold": torch.tensor([0.75])} if divided else {"clip": 0.75, "threshold": None}
    want, want_x0 = stepped(x[None], output[None], given, None, noise=None, **bound)
    assert want_x0[0, 7].isnan()
    torch.testing.assert_close(found, want[0], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(x0, want_x0[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 300])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_a_softmax_s_denominator_needs_no_infinities(on_cpu, count, size):
    scores = size * torch.randn(count, generator=torch.Generator().manual_seed(count))
    found = on_cpu.log_sum(ctypes.c_longlong(count), address(scores))
    want = scores.double().logsumexp(dim=0)
    # The sum of up to 300 roundings under a logarithm, and one of the result.
    assert abs(found - want) <= 300 * 6e-8 + 6e-8 * abs(want)


def test_a_softmax_of_scores_that_are_not_numbers_is_none(on_cpu):
    scores = torch.tensor([float("nan")] * 4 + [1.0])
    found = on_cpu.log_sum(ctypes.c_longlong(5), address(scores))
    assert found != found


@needs_nvcc
@pytest.mark.parametrize("target", [80, 90, 100])
@pytest.mark.parametrize("op", list(KERNELS))
def test_every_kernel_compiles_and_spills_nothing(op, target):
    from orthokernels.bench.compile import compile_cuda

    rows = list(compile_cuda(op, target))
    assert len(rows) == len(KERNELS[op])
    assert len({(row.kernel, row.types) for row in rows}) == len(rows)
    assert all(row.registers > 0 and row.fault is None for row in rows), [row for row in rows if row.fault]
    assert all(row.shared <= 48 * 1024 for row in rows)  # what a kernel gets without asking for more


def entries(op: str, folder) -> dict[str, list[str]]:
    """Parameters of each kernel as the compiler sees them, in PTX's types."""
    ptx = folder / "ptx"
    source = str(sources.folder() / f"{op}.cu")
    subprocess.run(["nvcc", *sources.OPTIONS, "-arch=sm_80", "-ptx", "-o", str(ptx), source], check=True)
    found = re.findall(r"\.visible \.entry (\w+)\((.*?)\)", ptx.read_text(), flags=re.DOTALL)
    return {name: re.findall(r"\.param \.([a-z]\d+)", parameters) for name, parameters in found}


def launched(monkeypatch, module) -> dict[str, tuple[tuple[int, ...], list[int | float]]]:
    """Grid and arguments of every launch, which goes nowhere."""
    taken: dict[str, tuple[tuple[int, ...], list[int | float]]] = {}

    def record(op, kernel, grid, arguments, beside):
        taken[f"{op}_{kernel}"] = grid, arguments

    monkeypatch.setattr(module, "launch", record)
    return taken


def assert_fit(taken, parameters) -> None:
    for name, (_, arguments) in taken.items():
        assert ["f32" if isinstance(one, float) else "u64" for one in arguments] == parameters[name], name


@needs_nvcc
def test_launches_give_what_the_kernels_take(monkeypatch, tmp_path):
    taken = launched(monkeypatch, cuda_denoise_step)
    for x in (torch.float32, torch.float16, torch.bfloat16):
        for output in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            volumes = torch.zeros(2, 1, 3, 5, 7, dtype=x), torch.zeros(2, 1, 3, 5, 7, dtype=output)
            cuda_denoise_step.forward(*volumes, torch.zeros(7), None, None, None, -1, 0.5, volumes[0], None)
    assert set(taken) == set(KERNELS["denoise_step"])
    assert_fit(taken, entries("denoise_step", tmp_path))
    assert taken["denoise_step_float32_float32"][1][-3] == 2**32 - 1  # the step, as Philox takes it

    taken = launched(monkeypatch, cuda_attention_pool)
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        q, sums = torch.zeros(2, 3, 65, 70, dtype=kind), torch.zeros(2, 3, 65)
        cuda_attention_pool.forward(q, q, q, 1.0, q[:, :, 0], sums, sums)
        cuda_attention_pool.backward(sums, q, q, sums, 1.0, q, q)
    assert set(taken) == set(KERNELS["attention_pool"])
    assert_fit(taken, entries("attention_pool", tmp_path))
    assert taken["attention_pool_rows_float16"][0] == (6, 2)
    assert taken["attention_pool_row_gradients_float16"][0] == (6, 2, 2)


@pytest.mark.parametrize("op", list(KERNELS))
def test_a_source_carries_its_own_headers_once(op):
    text = sources.text(op)
    assert '#include "' not in text
    assert "#pragma once" not in text
    assert text.count("#define ORTHO_DEVICE __device__") == 1


def test_a_backend_that_can_not_run_says_why(monkeypatch):
    assert set(ops_of("cuda")) == {"attention_pool", "denoise_step"}
    x = torch.zeros(1, 1, 4)
    with pytest.raises(BackendUnavailable, match="'cuda' can not compute denoise_step here: the tensor lies on cpu"):
        denoise_step(x, x, torch.zeros(7), backend="cuda")
    tokens = torch.zeros(1, 1, 4, 4)
    with pytest.raises(BackendUnavailable, match="attention_pool here: the tensor lies on cpu"):
        attention_pool(tokens, tokens, tokens, backend="cuda")
    on_gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="CuPy is not installed"):
        choose("denoise_step", "cuda", on_gpu)
    if not torch.cuda.is_available():
        monkeypatch.setattr(registry, "find_spec", lambda name: name)
        with pytest.raises(BackendUnavailable, match="no CUDA device is visible"):
            choose("denoise_step", "cuda", on_gpu)


def test_arrays_without_cupy_are_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(arrays, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="CuPy is not installed"):
        arrays.attention_pool(*[torch.zeros(1, 1, 4, 4)] * 3)


class _Array:
    """Of a CuPy that is not here, on one of its GPUs."""

    def __init__(self, device: int) -> None:
        self.device, self.shape, self.ndim, self.dtype = SimpleNamespace(id=device), (2, 3, 4, 8), 4, "float32"


@pytest.mark.parametrize("name", ["k", "v"])
def test_arrays_on_two_gpus_are_refused_by_name(monkeypatch, name):
    cupy = SimpleNamespace(ndarray=_Array, cuda=SimpleNamespace(is_available=lambda: True))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(arrays, "find_spec", lambda name: name)
    given = {**{own: _Array(1) for own in "qkv"}, name: _Array(0)}
    with pytest.raises(ValueError, match=rf"^{name}: lies on cuda:0; must lie where q does, on cuda:1.$"):
        arrays.attention_pool(**given)
    given = {own: _Array(0) for own in ("x", "output", "coefficients")}
    with pytest.raises(ValueError, match=r"^seed: lies on cuda:2; must lie where x does, on cuda:0.$"):
        arrays.denoise_step(**given, seed=_Array(2))


def test_arrays_import_no_framework():
    code = "import sys, orthokernels.arrays; print({'torch', 'cupy', 'triton', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


SHAPES = [(2, 1, 3, 5, 7), (3, 2, 1, 1, 1), (2, 4, 8, 16, 16)]
POOLED = [(2, 3, 105, 16), (1, 2, 1, 8), (1, 2, 300, 20), (1, 1, 33, 128)]


@pytest.fixture
def poisoned_arrays(monkeypatch):
    """What ``arrays`` allocates is NaN: an element that nobody wrote is found."""
    plain = arrays._empty

    def nan(*arguments):
        made = plain(*arguments)
        made[...] = float("nan")
        return made

    monkeypatch.setattr(arrays, "_empty", nan)


def given_as(kind: str, tensor: Tensor):
    if kind == "torch":
        return tensor.cuda()
    import cupy

    return cupy.from_dlpack(tensor.cuda())


def back(kind: str, array) -> Tensor:
    assert isinstance(array, Tensor) == (kind == "torch")
    return torch.from_dlpack(array).cpu()


@needs_gpu
@pytest.mark.parametrize("kind", ["torch", "cupy"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bound", [{}, {"clip": 0.7}, {"threshold": 1.5}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.usefixtures("poisoned_arrays")
def test_arrays_step_as_defined(kind, shape, bound, dtype):
    draw = torch.Generator().manual_seed(0)
    x, output, previous = (torch.randn(shape, generator=draw).to(dtype) for _ in range(3))
    coefficients, seed = torch.randn(7, generator=draw), torch.tensor([2**40 + 5])
    bound = {"threshold": torch.linspace(1.0, 1.5, shape[0])} if "threshold" in bound else bound
    options = {
        name: given_as(kind, value) if isinstance(value, Tensor) else value
        for name, value in {"previous": previous, "seed": seed, **bound}.items()
    }
    places = [given_as(kind, one) for one in (x, output, coefficients)]
    found, x0 = arrays.denoise_step(*places, **options, step=3, keep_x0=True)
    want, want_x0 = stepped_reference(
        x.double(), output.double(), coefficients.double(), previous=previous.double(),
        noise=normal(x.numel(), seed, 3).view(shape).double(), **bound,
    )  # fmt: skip
    # As in test_denoise_step: float32 arithmetic, and one rounding to the volume's type.
    for own, exact in ((found, want), (x0, want_x0)):
        rounding = 0.51 * exact.abs().max() * torch.finfo(dtype).eps if dtype == torch.float16 else 0.0
        torch.testing.assert_close(back(kind, own).double(), exact, rtol=0, atol=4e-6 + float(rounding))


@needs_gpu
@pytest.mark.parametrize("kind", ["torch", "cupy"])
@pytest.mark.parametrize("shape", POOLED, ids=str)
@pytest.mark.usefixtures("poisoned_arrays")
def test_arrays_are_pooled_as_exactly_as_in_plain_pytorch(kind, shape):
    N, heads, T, d = shape
    joint = torch.randn(N, T, 3 * heads * d, generator=torch.Generator().manual_seed(0))
    q, k, v = (part.unflatten(2, (heads, d)).transpose(1, 2) for part in joint.chunk(3, dim=2))
    found = [back(kind, arrays.attention_pool(*(given_as(kind, part) for part in (q, k, v)))) for _ in range(2)]
    exact, plain = pooled_reference(q.double(), k.double(), v.double()), pooled_reference(q, k, v)
    assert torch.equal(*found)
    assert (found[0] - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-6 * exact.abs().max()


@needs_gpu
@pytest.mark.parametrize("shape", [*POOLED, (1, 1, 130, 100)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradients_are_as_exact_as_plain_pytorch_s(shape, dtype):
    N, heads, T, d = shape
    joint = torch.randn(N, T, 3 * heads * d, generator=torch.Generator().manual_seed(0)).to(dtype).cuda()
    tokens = [part.unflatten(2, (heads, d)).transpose(1, 2) for part in joint.chunk(3, dim=2)]
    upstream = torch.randn(N, heads, d, generator=torch.Generator().manual_seed(1)).to(dtype).cuda()

    def gradients(function, tokens, **options):
        leaves = [part.detach().requires_grad_() for part in tokens]
        return torch.autograd.grad(function(*leaves, **options), leaves, upstream.to(tokens[0].dtype))

    found = [gradients(attention_pool, tokens, backend="cuda") for _ in range(2)]
    exact = gradients(pooled_reference, [part.double() for part in tokens])
    plain = gradients(pooled_reference, tokens)
    for own, again, other, want in zip(*found, plain, exact, strict=True):
        rounding = max(torch.finfo(dtype).eps, 1e-6) * want.abs().max() + 1e-7
        assert torch.equal(own, again)
        assert (own - want).abs().max() <= 2 * (other - want).abs().max() + rounding


@needs_gpu
def test_kernels_run_on_the_current_stream():
    x = torch.zeros(1, 1, 16, 64, 64, device="cuda")
    coefficients = torch.tensor([1.0, 0, 0, 0, 1, 0, 0], device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        x.add_(1.0)  # what runs on another stream would not see it
        found, _ = denoise_step(x, x, coefficients, backend="cuda")
    stream.synchronize()
    assert (found == 1).all()
