"""One step of a sampler, whichever it is, in one read and one write of the volume.

Every first- or second-order sampler of the Gaussian family is the same sum with other coefficients:

    x0   = x0_x x + x0_output output                      the clean volume that the network's output means
    x0   = clamp(x0, -clip, clip)                         or thresholded: clamp(x0, -s, s) / s, s of its sample
    next = next_x x + next_output output + next_x0 x0 + next_previous previous + next_noise noise

``previous`` is the x0 of the step before, which DPM-Solver++(2M) extrapolates from. ``Coefficients`` names the seven
numbers; ``orthokernels.schedulers`` computes them for DDPM, DDIM, DPM-Solver++ and rectified flow.

Noise is Philox-4x32-10 (Salmon et al., SC 2011) through Box and Muller's transform, numbered by the place in memory,
so that it depends on seed and step alone: four neighbours share a counter (place // 4, step, 0, 0). Every backend draws
the same bits; the normal numbers differ by the rounding of logarithm and cosine.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from orthokernels.backends.registry import choose
from orthokernels.backends.torch.denoise_step import stepped
from orthokernels.ops.layout import conform, dense, empty_volume, layout_of
from orthokernels.ops.registration import called, implements, refuse_gradients

NAME = "denoise_step"


class Coefficients(NamedTuple):
    """The numbers of a step, as in the head of this file."""

    x0_x: float
    x0_output: float
    next_x: float = 0.0
    next_output: float = 0.0
    next_x0: float = 0.0
    next_previous: float = 0.0
    next_noise: float = 0.0


def denoise_step(
    x: Tensor,
    output: Tensor,
    coefficients: Tensor,
    *,
    previous: Tensor | None = None,
    clip: float | None = None,
    threshold: Tensor | None = None,
    seed: Tensor | None = None,
    step: int = 0,
    keep_x0: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Go from a noisy volume to the less noisy one before it.

    Coefficients, threshold and seed are read on the device, so that a loop of steps can be captured in a CUDA graph;
    ``step`` is captured with it. A graph that is replayed draws the same noise again: advance ``seed`` in place between
    replays.

    Args:
        x: (N, C, *voxels), floating point.
        output: of the network for x, of x's shape; another floating-point dtype is allowed.
        coefficients: (7,) float32 on x's device, in the order of ``Coefficients``.
        previous: x0 of the step before, like x; taken as 0 where it is missing.
        clip: clamps x0 to [-clip, clip].
        threshold: (N,) float32, s of each sample; excludes ``clip``.
        seed: (1,) int64 on x's device; no noise without.
        step: counts the steps that share a seed.
        keep_x0: also return x0.
        backend: "auto", "torch", "cpu", "triton" or "cuda".

    Returns:
        The next volume, like x, and x0, like x, or None. Arithmetic is float32, float64 for float64 volumes.

    Raises:
        ValueError: a shape or dtype that does not fit, or an input that wants a gradient: sampling has none.
        BackendUnavailable: a backend was asked for by name and can not run; the message says why.
    """
    _check(x, output, coefficients, previous, clip, threshold, seed)
    found, x0 = called(NAME, x, output, coefficients, previous, threshold, seed, step, clip, keep_x0, backend)
    return found, x0 if keep_x0 else None


def reference(
    x: Tensor,
    output: Tensor,
    coefficients: Tensor,
    *,
    previous: Tensor | None = None,
    clip: float | None = None,
    threshold: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, in plain PyTorch, with the noise given; returns the next volume and x0."""
    return stepped(x, output, coefficients, previous, clip, threshold, noise)


def bytes_moved(x: Tensor, output: Tensor, *, previous: bool = False, keep_x0: bool = False) -> int:
    """Bytes that a step reads and writes at least."""
    return x.numel() * (x.element_size() * (2 + previous + keep_x0) + output.element_size())


def _check(
    x: Tensor,
    output: Tensor,
    coefficients: Tensor,
    previous: Tensor | None,
    clip: float | None,
    threshold: Tensor | None,
    seed: Tensor | None,
) -> None:
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"x: {x.dtype} of shape {tuple(x.shape)}; allowed are floating point (N, C, *voxels).")
    if clip is not None and threshold is not None:
        raise ValueError("clip and threshold: both are given; each bounds x0, give one.")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: {clip}; must be above 0.")
    wanted = {
        "output": (output, x.shape, None), "coefficients": (coefficients, (7,), torch.float32),
        "previous": (previous, x.shape, x.dtype), "threshold": (threshold, x.shape[:1], torch.float32),
        "seed": (seed, (1,), torch.int64),
    }  # fmt: skip
    for name, (tensor, shape, dtype) in wanted.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            told = "floating point" if dtype is None else dtype
            raise ValueError(f"{name}: {tensor!r}; must be a tensor, {told} of shape {tuple(shape)} on {x.device}.")
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}; must be {tuple(shape)}.")
        if dtype is not None and tensor.dtype != dtype:
            raise ValueError(f"{name}: {tensor.dtype}; must be {dtype}.")
        if tensor.device != x.device:
            raise ValueError(f"{name}: lies on {tensor.device}; x lies on {x.device}.")
    if not output.is_floating_point():
        raise ValueError(f"output: {output.dtype}; must be floating point.")
    given = {"x": x, **{name: tensor for name, (tensor, *_) in wanted.items()}}
    refuse_gradients("a sampling step has none. Use torch.no_grad().", **given)


torch.library.define(
    f"orthokernels::{NAME}",
    "(Tensor x, Tensor output, Tensor coefficients, Tensor? previous, Tensor? threshold, Tensor? seed, int step, "
    "float? clip, bool keep_x0, str backend) -> (Tensor found, Tensor x0)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake(f"orthokernels::{NAME}")
def _outputs(
    x: Tensor, output: Tensor, coefficients: Tensor, previous: Tensor | None, threshold: Tensor | None,
    seed: Tensor | None, step: int, clip: float | None, keep_x0: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return empty_volume(x), empty_volume(x) if keep_x0 else x.new_empty((0,))


@implements(NAME)
def _step(
    x: Tensor, output: Tensor, coefficients: Tensor, previous: Tensor | None, threshold: Tensor | None,
    seed: Tensor | None, step: int, clip: float | None, keep_x0: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    layout = layout_of(x)
    x, output = conform(x, layout), conform(output, layout)
    previous = None if previous is None else conform(previous, layout)
    coefficients, threshold = dense(coefficients, threshold)
    found, x0 = _outputs(x, output, coefficients, previous, threshold, seed, step, clip, keep_x0, backend)
    choose(NAME, backend, x).forward(
        x, output, coefficients, previous, threshold, seed, step, clip, found, x0 if keep_x0 else None
    )
    return found, x0
