"""Ops for CuPy arrays, by the CUDA C++ kernels: neither Triton nor PyTorch is needed.

    from orthokernels import arrays

    volume, _ = arrays.denoise_step(volume, output, coefficients, seed=seed, step=3)

An array may be CuPy's, a torch tensor, or anything else on a GPU that hands out its memory by DLPack. Kernels run on
the memory where it lies, on the current stream of CuPy, or of PyTorch where the first array is a tensor. There are no
gradients here: ``orthokernels.ops`` has them, for tensors.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

from orthokernels.backends.cuda import attention_pool as _attention_pool
from orthokernels.backends.cuda import denoise_step as _denoise_step
from orthokernels.backends.cuda.launch import TYPES, is_tensor, strides, type_of
from orthokernels.backends.registry import BackendUnavailable


def denoise_step(
    x: Any,
    output: Any,
    coefficients: Any,
    *,
    previous: Any | None = None,
    clip: float | None = None,
    threshold: Any | None = None,
    seed: Any | None = None,
    step: int = 0,
    keep_x0: bool = False,
) -> tuple[Any, Any | None]:
    """Go from a noisy volume to the less noisy one before it; the formulas stand in ``orthokernels.ops.denoise_step``.

    Args:
        x: (N, C, *voxels), float32, float16 or bfloat16, dense in memory in any order of its axes.
        output: of the network for x, of x's shape and order; another of the three types is allowed.
        coefficients: (7,) float32, in the order of ``orthokernels.ops.denoise_step.Coefficients``.
        previous: x0 of the step before, like x; taken as 0 where it is missing.
        clip: clamps x0 to [-clip, clip].
        threshold: (N,) float32, s of each sample; excludes ``clip``, and wants N to be x's outermost axis in memory.
        seed: (1,) int64; no noise without.
        step: counts the steps that share a seed.
        keep_x0: also return x0.

    Returns:
        The next volume, like x, and x0, like x, or None: tensors where x is one, else CuPy arrays.

    Raises:
        BackendUnavailable: CuPy or a CUDA device is missing.
        TypeError: something that hands out no memory.
        ValueError: a shape, type or order in memory that does not fit, arrays on two devices, or a tensor that wants a
            gradient.
    """
    x, output, coefficients, previous, threshold, seed = _taken(
        x=x, output=output, coefficients=coefficients, previous=previous, threshold=threshold, seed=seed
    )
    if clip is not None and threshold is not None:
        raise ValueError("clip and threshold: both are given; each bounds x0, give one.")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: {clip}; must be above 0.")
    _check_type("x", x, TYPES)
    _check_type("output", output, TYPES)
    if x.ndim < 2 or not _is_dense(x):
        raise ValueError(f"x: shape {tuple(x.shape)}, strides {strides(x)}; must be (N, C, *voxels), dense in memory.")
    if threshold is not None and x.shape[0] > 1 and strides(x)[0] != math.prod(x.shape[1:]):
        raise ValueError(f"x: strides {strides(x)}; for a threshold, samples must follow each other in memory.")
    for name, volume in (("output", output), ("previous", previous)):
        if volume is not None and _places(volume) != _places(x):
            raise ValueError(
                f"{name}: shape {tuple(volume.shape)}, strides {strides(volume)}; must be as x, {tuple(x.shape)} and "
                f"{strides(x)}."
            )
    if previous is not None:
        _check_type("previous", previous, (type_of(x),))
    for name, own, size, kind in (
        ("coefficients", coefficients, 7, "float32"), ("threshold", threshold, x.shape[0], "float32"),
        ("seed", seed, 1, "int64"),
    ):  # fmt: skip
        if own is not None:
            _check_type(name, own, (kind,))
            if tuple(own.shape) != (size,) or not _is_dense(own):
                raise ValueError(f"{name}: shape {tuple(own.shape)}; must be ({size},), dense in memory.")
    found = _empty(x)
    x0 = _empty(x) if keep_x0 else None
    _denoise_step.forward(x, output, coefficients, previous, threshold, seed, step, clip, found, x0)
    return found, x0


def attention_pool(q: Any, k: Any, v: Any, *, scale: float | None = None) -> Any:
    """Attend over all tokens, and average over the queries; the formulas stand in ``orthokernels.ops.attention_pool``.

    Args:
        q, k, v: (N, heads, T, d), of any strides. float32 with d up to 128, float16 or bfloat16 with d up to 256.
        scale: of the scores; 1 / sqrt(d) by default.

    Returns:
        (N, heads, d) in q's type: a tensor where q is one, else a CuPy array.

    Raises:
        BackendUnavailable: CuPy or a CUDA device is missing.
        TypeError: something that hands out no memory.
        ValueError: shapes, types or devices that differ or are not taken, or a tensor that wants a gradient.
    """
    q, k, v = _taken(q=q, k=k, v=v)
    if q.ndim != 4 or not math.prod(q.shape):
        raise ValueError(f"q: shape {tuple(q.shape)}; must be (N, heads, T, d), and not empty.")
    if reason := _attention_pool.can_run(q):
        raise ValueError(f"q: {reason}.")
    for name, own in (("k", k), ("v", v)):
        if own.shape != q.shape or own.dtype != q.dtype:
            told = f"{own.dtype} of shape {tuple(own.shape)}"
            raise ValueError(f"{name}: {told}; must be as q, {q.dtype} of shape {tuple(q.shape)}.")
    out = _empty(q, (*q.shape[:2], q.shape[3]))
    looked_at, log_sum = (_empty(q, tuple(q.shape[:3]), "float32") for _ in range(2))
    _attention_pool.forward(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, out, looked_at, log_sum)
    return out


def _taken(**given: Any | None) -> list[Any]:
    """Everything in the kind of the first, over the memory it has: tensors, or CuPy arrays."""
    if not find_spec("cupy"):
        raise BackendUnavailable("CuPy is not installed (pip install 'cupy-cuda12x' or 'cupy-cuda13x[ctk]').")
    import cupy

    if not cupy.cuda.is_available():
        raise BackendUnavailable("No CUDA device is visible to CuPy.")
    as_tensors = is_tensor(next(iter(given.values())))
    found = {name: None if array is None else _in_kind(name, array, as_tensors) for name, array in given.items()}
    (first, leading), *rest = ((name, array) for name, array in found.items() if array is not None)
    for name, array in rest:
        if _device_of(array) != _device_of(leading):
            own, wanted = _device_of(array), _device_of(leading)
            raise ValueError(f"{name}: lies on cuda:{own}; must lie where {first} does, on cuda:{wanted}.")
    return list(found.values())


def _device_of(array: Any) -> int:
    """The number of the GPU that an array lies on."""
    return int(array.device.index if is_tensor(array) else array.device.id)


def _in_kind(name: str, array: Any, as_tensor: bool) -> Any:
    import cupy

    if is_tensor(array):
        import torch

        if array.device.type != "cuda":
            raise ValueError(f"{name}: lies on {array.device}; must lie on a CUDA device.")
        if array.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: wants a gradient; here is none. Use orthokernels.ops, or torch.no_grad().")
        return array if as_tensor else cupy.from_dlpack(array.detach())
    if not isinstance(array, cupy.ndarray):
        if not hasattr(array, "__dlpack__"):
            raise TypeError(f"{name}: {type(array).__name__}; must be a CuPy array, a torch tensor, or speak DLPack.")
        array = cupy.from_dlpack(array)
    if not as_tensor:
        return array
    from torch.utils.dlpack import from_dlpack

    return from_dlpack(array)


def _check_type(name: str, array: Any, allowed: tuple[str, ...]) -> None:
    if type_of(array) not in allowed:
        raise ValueError(f"{name}: {array.dtype}; must be {' or '.join(allowed)}.")


def _places(array: Any) -> tuple[tuple[int, ...], list[int]]:
    """What decides where elements lie: the shape, and the strides of axes that are longer than 1."""
    shape = tuple(array.shape)
    return shape, [step for step, side in zip(strides(array), shape, strict=True) if side > 1]


def _is_dense(array: Any) -> bool:
    """Elements fill a stretch of memory without gaps, in some order of the axes."""
    size = 1
    for step, side in sorted(zip(strides(array), array.shape, strict=True)):
        if side > 1:
            if step != size:
                return False
            size *= side
    return True


def _empty(like: Any, shape: tuple[int, ...] | None = None, kind: str | None = None) -> Any:
    """A new array beside another: like it in places and type, or of a shape and type of its own."""
    if is_tensor(like):
        import torch

        dtype = like.dtype if kind is None else getattr(torch, kind)
        return torch.empty_like(like) if shape is None else like.new_empty(shape, dtype=dtype)
    import cupy

    with like.device:
        return cupy.empty_like(like) if shape is None else cupy.empty(shape, dtype=kind or like.dtype)
