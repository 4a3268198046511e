"""A graph file opened by an engine: named arrays in, named arrays out."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from orthokernels.bundle.manifest import ENGINES_OF, GraphEngine
from orthokernels.errors import InputError, need
from orthokernels.models.study_model import Array
from orthokernels.models.weights_folder import first_line
from orthokernels.system import threads

# Computes a graph: inputs by name to outputs by name, float32.
Session = Callable[[Mapping[str, Array]], dict[str, Array]]

ENGINES: tuple[GraphEngine, ...] = ENGINES_OF["fp32"]


def open_graph(path: Path, engine: GraphEngine) -> Session:
    """A session on the CPU, which raises InputError where the engine can't compute what it is given.

    Raises:
        InputError: the engine is not installed, or can't read this file.
    """
    need(f"the {engine} engine", engine, engine)
    # ONNX Runtime's own errors have no base but Exception, OpenVINO's are RuntimeErrors.
    try:
        session = {"openvino": _openvino, "onnxruntime": _onnxruntime}[engine](path)
    except Exception as error:
        raise InputError(f"{path}: {engine} can't open it ({first_line(error)}). Try another --engine.") from error

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return session(inputs)
        except Exception as error:
            raise InputError(f"{path}: {engine} can't run it ({first_line(error)}). Try another --engine.") from error

    return run


def openvino_runtime() -> Any:
    """OpenVINO, which is to be imported here alone, and before NNCF.

    Both tell their maker what is used of them, OpenVINO at every import, by a package of its own that keeps an id of
    the user in the home folder. They do without where that can't be imported.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's, one for the whole process.

    When the last one goes, its plugin is unloaded, but what that had asked to be called at a fork stays asked for: the
    next fork then ends the process (seen with 2026.4, in PyTorch's data loader).
    """
    core = openvino_runtime().Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin, and so keeps it: whoever else uses it, too
    return core


def _openvino(path: Path) -> Session:
    core, properties = openvino_core(), openvino_runtime().properties
    model = core.read_model(path)
    names = [output.get_any_name() for output in model.outputs]  # a compiled model may call them by inner names
    compiled = core.compile_model(
        model,
        "CPU",
        {
            properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
            properties.inference_num_threads: threads(),
            # bfloat16 is what OpenVINO would choose by itself where the processor has it: not what was admitted.
            properties.hint.inference_precision: "f32",
        },
    )
    request = compiled.create_infer_request()

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        # The request owns its outputs and writes them anew with the next call.
        made = request.infer({name: np.ascontiguousarray(own) for name, own in inputs.items()}, share_inputs=True)
        return {name: np.array(made[n], dtype=np.float32) for n, name in enumerate(names)}

    return run


def onnx_runtime() -> Any:
    """ONNX Runtime, which is to be imported here alone.

    From 1.32 on it keeps an id of the machine in the user's cache and sends what it is used for to its maker, unless
    the environment forbids that before it is loaded.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def _onnxruntime(path: Path) -> Session:
    onnxruntime = onnx_runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # Its arena keeps what a call needed and adds to it with the next: two feature passes at full size leave 2.3 GB
    # with it and 1.2 GB without, in the same time (bench/NOTES.md).
    options.enable_cpu_mem_arena = False
    session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run
