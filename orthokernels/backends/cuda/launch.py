"""Kernels that CuPy compiles, launched on arrays where they lie: torch tensors and CuPy arrays alike.

NVRTC compiles an op's source when one of its kernels is first launched on a device, and CuPy keeps the machine code on
disk. The types' headers come with the CUDA toolkit, or with ``pip install 'cupy-cuda13x[ctk]'``. CuPy has subnormal
float32 numbers taken as zeros (``-ftz=true``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orthokernels.backends.cuda import sources

THREADS = 256
TYPES = ("float32", "float16", "bfloat16")


def is_tensor(array: Any) -> bool:
    """A torch tensor, and no CuPy array."""
    return hasattr(array, "data_ptr")


def type_of(array: Any) -> str:
    """The element type as in the kernels' names: float32, float16, bfloat16, or another that they do not take."""
    return str(array.dtype).removeprefix("torch.")


def pointer(array: Any) -> int:
    """The address of the first element; 0 for an array that is not given."""
    if array is None:
        return 0
    return int(array.data_ptr() if is_tensor(array) else array.data.ptr)


def strides(array: Any) -> tuple[int, ...]:
    """In elements."""
    if is_tensor(array):
        return tuple(array.stride())
    return tuple(step // array.itemsize for step in array.strides)


def wrong_type(array: Any) -> str | None:
    """Why no kernel takes an array of this element type, or None."""
    if type_of(array) not in TYPES:
        return f"its kernels take float32, float16 and bfloat16, not {array.dtype}"
    return None


def launch(op: str, kernel: str, grid: tuple[int, ...], arguments: list[int | float], beside: Any) -> None:
    """Launch ``op_kernel`` on the current stream of the device where ``beside`` lies.

    Whole numbers and addresses are 64 bits wide in every kernel, other numbers are float32.
    """
    import numpy as np

    taken = tuple(np.float32(one) if isinstance(one, float) else np.int64(one) for one in arguments)
    with _current_stream(beside):
        _kernel(op, kernel)(grid, (THREADS,), taken)


@functools.cache
def _kernel(op: str, kernel: str) -> Any:
    """A kernel for any device: CuPy loads it on each where it is launched."""
    import cupy

    return cupy.RawModule(code=sources.text(op), options=sources.OPTIONS).get_function(f"{op}_{kernel}")


@contextmanager
def _current_stream(array: Any) -> Iterator[None]:
    """CuPy on an array's device, and on the stream that its own library would use there."""
    import cupy

    if not is_tensor(array):
        with array.device:
            yield
        return
    import torch

    index, stream = array.device.index, torch.cuda.current_stream(array.device).cuda_stream
    with cupy.cuda.Device(index), cupy.cuda.ExternalStream(stream, index):
        yield
