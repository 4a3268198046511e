"""What else runs a PyTorch module on a CPU: each made ready once for its inputs, in its own memory format, then called.

A peer that is not installed, or that can not take the module, is left out with its reason.
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from orthokernels.runtime.sessions import onnx_runtime, openvino_core

Call = Callable[[], np.ndarray]
Inputs = tuple[np.ndarray, ...]
Make = Callable[[nn.Module, Inputs, int], Call]

CALIBRATION_VOLUMES = 2


def torch_eager(module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """Plain eager PyTorch, contiguous memory."""
    return _torch_call(module, inputs, torch.contiguous_format, threads)


def torch_channels_last(module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """Plain eager PyTorch, weights and volumes channels last."""
    return _torch_call(module, inputs, torch.channels_last_3d, threads)


def torch_compile(module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """torch.compile with its defaults, contiguous memory, compiled here for these shapes."""
    torch._dynamo.reset()  # what was compiled before counts against its limits
    call = _torch_call(module, inputs, torch.contiguous_format, threads, torch.compile)
    call()
    return call


def _torch_call(
    module: nn.Module, inputs: Inputs, memory_format: torch.memory_format, threads: int,
    made: Callable[[nn.Module], Any] = lambda own: own,
) -> Call:  # fmt: skip
    own = made(copy.deepcopy(module).to(memory_format=memory_format))  # type: ignore[call-overload]
    volumes = [torch.from_numpy(x) for x in inputs]
    volumes = [x.contiguous(memory_format=memory_format) if x.ndim == 5 else x for x in volumes]

    def call() -> np.ndarray:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return np.asarray(own(*volumes).numpy())

    return call


def onnxruntime_fp32(module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """ONNX Runtime's CPU provider, all graph optimisations."""
    onnxruntime = onnx_runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with exported_file(module, inputs) as path:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {own.name: x for own, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: np.asarray(session.run(None, given)[0])


def openvino_fp32(module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """OpenVINO on the CPU, float32 throughout, tuned for latency."""
    with exported_file(module, inputs) as path:
        return _openvino_call(openvino_core().read_model(path), inputs, threads)


def openvino_int8(module: nn.Module, inputs: Inputs, threads: int) -> Call:
    """OpenVINO on the CPU, weights and activations quantised to INT8 by NNCF on noise like the inputs."""
    with exported_file(module, inputs) as path:
        return _openvino_call(quantised(path, inputs), inputs, threads)


def quantised(path: Path, inputs: Inputs) -> Any:
    """An ONNX file as OpenVINO's model in INT8, calibrated on noise of the inputs' shapes."""
    core = openvino_core()  # first, so that NNCF tells nobody of it
    import nncf

    rng = np.random.default_rng(1)
    drawn = [[rng.standard_normal(x.shape, dtype=np.float32) for x in inputs] for _ in range(CALIBRATION_VOLUMES)]
    nncf.set_log_level(40)  # errors
    return nncf.quantize(core.read_model(path), nncf.Dataset(drawn), fast_bias_correction=True)


@contextmanager
def exported_file(module: nn.Module, inputs: Inputs) -> Iterator[Path]:
    """The module as an ONNX file."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "module.onnx"
        torch.onnx.export(module, tuple(map(torch.from_numpy, inputs)), str(path), dynamo=True, verbose=False)
        yield path


def _openvino_call(model: Any, inputs: Inputs, threads: int) -> Call:
    settings = {
        "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
    }  # fmt: skip
    compiled = openvino_core().compile_model(model, "CPU", settings)
    return lambda: np.asarray(compiled(list(inputs))[0])


# Each peer's name in a result, how it is made, and what it needs beside PyTorch.
PEERS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "torch_eager": (torch_eager, ()),
    "torch_channels_last": (torch_channels_last, ()),
    "torch_compile": (torch_compile, ("torch._inductor",)),
    "onnxruntime_fp32": (onnxruntime_fp32, ("onnxruntime", "onnx", "onnxscript")),
    "openvino_fp32": (openvino_fp32, ("openvino", "onnx", "onnxscript")),
    "openvino_int8": (openvino_int8, ("openvino", "nncf", "onnx", "onnxscript")),
}


def made_ready(
    module: nn.Module, inputs: Inputs, threads: int, left_out: dict[str, str], *, exported: bool = True
) -> Iterator[tuple[str, Call]]:
    """Every peer that can take a module; the others go into ``left_out`` with the reason, where they have none yet.

    ``exported`` is False for what is no network, such as a sampler's loop: PyTorch alone runs it.
    """
    for name, (make, needed) in PEERS.items():
        if name in left_out:
            continue
        if needed and not exported:
            left_out[name] = "it takes networks, and this is a loop or a single op in PyTorch"
            continue
        missing = [package for package in needed if not find_spec(package)]
        if missing:
            left_out[name] = f"{missing[0]} is not installed"
            continue
        try:
            with redirect_stdout(sys.stderr):  # progress bars
                call = make(module, inputs, threads)
            yield name, call
        except Exception as error:  # whatever a converter may raise: the others are measured all the same
            left_out[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
