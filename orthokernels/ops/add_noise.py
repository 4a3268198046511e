"""The way to a noisy volume, for training: noise is drawn where it is added.

    x = signal x0 + noise_share noise        (DDPM, arXiv 2006.11239, eq. 4: sqrt(alpha_bar), sqrt(1 - alpha_bar))

with two numbers a sample. Noise is that of ``denoise_step``: Philox by seed, step and place in memory, so that
``diffusion_loss`` draws the same again and nobody stores it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orthokernels.backends.registry import choose
from orthokernels.backends.torch.add_noise import by_sample
from orthokernels.ops.layout import conform, empty_volume, layout_of
from orthokernels.ops.registration import called, implements, refuse_gradients

NAME = "add_noise"


def add_noise(
    x0: Tensor,
    shares: Tensor,
    *,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
    step: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Noise clean volumes.

    Args:
        x0: (N, C, *voxels), floating point.
        shares: (N, 2) float32 on x0's device: of the signal, of the noise.
        noise: like x0; drawn inside where a ``seed`` is given instead.
        seed: (1,) int64 on x0's device.
        step: counts what shares a seed: the training step.
        backend: "auto", "torch", "cpu" or "triton".

    Returns:
        Noisy volumes like x0. Arithmetic is float32, float64 for float64 volumes.

    Raises:
        ValueError: a shape or dtype that does not fit, both or neither of noise and seed, or an input that wants a
            gradient: noising has none.
        BackendUnavailable: a backend was asked for by name and can not run; the message says why.
    """
    check_noised(x0, shares, "shares", noise, seed)
    refuse_gradients("noising has none. Detach it.", x0=x0, shares=shares, noise=noise)
    return called(NAME, x0, shares, noise, seed, step, backend)


def reference(x0: Tensor, shares: Tensor, noise: Tensor) -> Tensor:
    """The definition, in plain PyTorch."""
    signal, share = by_sample(shares, x0)
    return signal * x0 + share * noise


def bytes_moved(x0: Tensor, noise: Tensor | None = None) -> int:
    """Bytes that are read and written at least."""
    return x0.numel() * x0.element_size() * (2 if noise is None else 3)


def check_noised(x0: Tensor, numbers: Tensor, name: str, noise: Tensor | None, seed: Tensor | None) -> None:
    """What noising and the loss ask of their inputs alike."""
    if x0.ndim < 2 or not x0.is_floating_point() or not x0.numel():
        raise ValueError(f"x0: {x0.dtype} of shape {tuple(x0.shape)}; allowed are floating point (N, C, *voxels).")
    if (noise is None) == (seed is None):
        raise ValueError("noise and seed: give one of them: the noise, or what it is drawn from.")
    wanted = {
        name: (numbers, (len(x0), 2), torch.float32), "noise": (noise, tuple(x0.shape), x0.dtype),
        "seed": (seed, (1,), torch.int64),
    }  # fmt: skip
    for what, (tensor, shape, dtype) in wanted.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{what}: {tensor!r}; must be a tensor, {dtype} of shape {shape} on {x0.device}.")
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            told = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise ValueError(f"{what}: {told}; must be {dtype} of shape {shape}.")
        if tensor.device != x0.device:
            raise ValueError(f"{what}: lies on {tensor.device}; x0 lies on {x0.device}.")


torch.library.define(
    f"orthokernels::{NAME}",
    "(Tensor x0, Tensor shares, Tensor? noise, Tensor? seed, int step, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake(f"orthokernels::{NAME}")
def _output(x0: Tensor, shares: Tensor, noise: Tensor | None, seed: Tensor | None, step: int, backend: str) -> Tensor:
    return empty_volume(x0)


@implements(NAME)
def _add(x0: Tensor, shares: Tensor, noise: Tensor | None, seed: Tensor | None, step: int, backend: str) -> Tensor:
    layout = layout_of(x0)
    x0, noise = conform(x0, layout), None if noise is None else conform(noise, layout)
    found = empty_volume(x0)
    choose(NAME, backend, x0).forward(x0, shares.contiguous(), noise, seed, step, found)
    return found
