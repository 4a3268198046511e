"""The denoiser's loss in one read of prediction and clean volume: noise, target, weight and mean in one op.

Of a sample with two numbers (a, b) for its target and a weight w:

    error = prediction - (a x0 + b noise)
    loss  = mean over all samples and voxels of w error^2      ("l2")
    loss  = mean over all samples and voxels of w |error|      ("l1")

``target_shares`` gives (a, b) for every prediction: the noise (DDPM, arXiv 2006.11239), the sample, the velocity
(arXiv 2202.00512), and rectified flow's (arXiv 2209.03003). Weights are the caller's: min-SNR (arXiv 2303.09556) is a
number a sample.

Backward: dprediction = dloss w 2 error / count, or with the error's sign. Noise is drawn again, nothing is stored.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from orthokernels.backends.registry import choose
from orthokernels.backends.torch.add_noise import by_sample
from orthokernels.ops.add_noise import check_noised
from orthokernels.ops.layout import conform, dense, empty_volume, layout_of
from orthokernels.ops.registration import called, differentiable_once, implements, refuse_gradients

NAME = "diffusion_loss"
Prediction = Literal["epsilon", "sample", "v_prediction", "flow"]


def diffusion_loss(
    prediction: Tensor,
    x0: Tensor,
    target: Tensor,
    *,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
    step: int = 0,
    weight: Tensor | None = None,
    norm: Literal["l1", "l2"] = "l2",
    backend: str = "auto",
) -> Tensor:
    """The mean error of a prediction.

    Args:
        prediction: (N, C, *voxels); another floating-point dtype than x0's is allowed.
        x0: the clean volumes, of the same shape.
        target: (N, 2) float32, of ``target_shares``.
        noise, seed, step: as ``add_noise`` was given them.
        weight: (N,) float32; ones by default.
        norm: "l2" or "l1".
        backend: "auto", "torch" or "triton".

    Returns:
        A scalar, float32 (float64 for float64 volumes). Differentiable once, in ``prediction`` alone.

    Raises:
        ValueError: a shape, dtype or name that does not fit, or another input that wants a gradient.
        BackendUnavailable: a backend was asked for by name and can not run; the message says why.
    """
    check_noised(x0, target, "target", noise, seed)
    if prediction.shape != x0.shape or not prediction.is_floating_point() or prediction.device != x0.device:
        told = f"{prediction.dtype} of shape {tuple(prediction.shape)} on {prediction.device}"
        raise ValueError(f"prediction: {told}; must be floating point of shape {tuple(x0.shape)} on {x0.device}.")
    if weight is not None:
        own, wanted = (weight.dtype, tuple(weight.shape), weight.device), (torch.float32, (len(x0),), x0.device)
        if own != wanted:
            told, allowed = (f"{dtype} of shape {shape} on {device}" for dtype, shape, device in (own, wanted))
            raise ValueError(f"weight: {told}; must be {allowed}.")
    if norm not in ("l1", "l2"):
        raise ValueError(f'norm: {norm!r}; allowed are "l1" and "l2".')
    told = "the loss has one for the prediction alone. Detach it."
    refuse_gradients(told, x0=x0, target=target, noise=noise, weight=weight)
    return called(NAME, prediction, x0, target, noise, seed, step, weight, norm == "l2", backend)


def target_shares(prediction: Prediction, shares: Tensor) -> Tensor:
    """What is predicted as shares of clean volume and noise, (N, 2) float32.

    Args:
        prediction: "epsilon", "sample", "v_prediction" or "flow" (the noise less the sample).
        shares: (N, 2), of signal and noise, as ``add_noise`` takes them.

    Raises:
        ValueError: an unknown name.
    """
    signal, noise = shares.float().unbind(1)
    zero, one = torch.zeros_like(signal), torch.ones_like(signal)
    pairs = {"epsilon": (zero, one), "sample": (one, zero), "v_prediction": (-noise, signal), "flow": (-one, one)}
    if prediction not in pairs:
        raise ValueError(f"prediction: {prediction!r}; there are {', '.join(pairs)}.")
    return torch.stack(pairs[prediction], dim=1)


def reference(
    prediction: Tensor, x0: Tensor, target: Tensor, noise: Tensor, *, weight: Tensor | None = None, norm: str = "l2"
) -> Tensor:
    """The definition, in plain PyTorch."""
    a, b = by_sample(target, x0)
    error = prediction.to(x0.dtype) - (a * x0 + b * noise)
    each = (error.square() if norm == "l2" else error.abs()).flatten(1)
    return (each if weight is None else weight.to(each.dtype)[:, None] * each).mean()


def bytes_moved(prediction: Tensor, x0: Tensor, noise: Tensor | None = None, *, backward: bool = False) -> int:
    """Bytes that are read and written at least."""
    volumes = x0.element_size() * (1 if noise is None else 2)
    return x0.numel() * (volumes + prediction.element_size() * (2 if backward else 1))


_INPUTS = (
    "Tensor prediction, Tensor x0, Tensor target, Tensor? noise, Tensor? seed, int step, Tensor? weight, "
    "bool squared, str backend"
)
torch.library.define(f"orthokernels::{NAME}", f"({_INPUTS}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
torch.library.define(
    f"orthokernels::{NAME}_backward", f"(Tensor dloss, {_INPUTS}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)


@torch.library.register_fake(f"orthokernels::{NAME}")
def _loss(
    prediction: Tensor, x0: Tensor, target: Tensor, noise: Tensor | None, seed: Tensor | None, step: int,
    weight: Tensor | None, squared: bool, backend: str,
) -> Tensor:  # fmt: skip
    return x0.new_empty((), dtype=torch.promote_types(x0.dtype, torch.float32))


@torch.library.register_fake(f"orthokernels::{NAME}_backward")
def _gradient(
    dloss: Tensor, prediction: Tensor, x0: Tensor, target: Tensor, noise: Tensor | None, seed: Tensor | None,
    step: int, weight: Tensor | None, squared: bool, backend: str,
) -> Tensor:  # fmt: skip
    return empty_volume(prediction, layout=layout_of(x0))


@implements(NAME)
def _forward(
    prediction: Tensor, x0: Tensor, target: Tensor, noise: Tensor | None, seed: Tensor | None, step: int,
    weight: Tensor | None, squared: bool, backend: str,
) -> Tensor:  # fmt: skip
    prediction, x0, noise = _alike(prediction, x0, noise)
    target, weight = dense(target, weight)
    return choose(NAME, backend, x0).forward(prediction, x0, target, noise, seed, step, weight, squared)


@implements(f"{NAME}_backward")
def _backward(
    dloss: Tensor, prediction: Tensor, x0: Tensor, target: Tensor, noise: Tensor | None, seed: Tensor | None,
    step: int, weight: Tensor | None, squared: bool, backend: str,
) -> Tensor:  # fmt: skip
    prediction, x0, noise = _alike(prediction, x0, noise)
    target, weight = dense(target, weight)
    found = empty_volume(prediction, layout=layout_of(x0))
    choose(NAME, backend, x0).backward(dloss, prediction, x0, target, noise, seed, step, weight, squared, found)
    return found


def _alike(prediction: Tensor, x0: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """All in x0's layout: noise is numbered by it."""
    layout = layout_of(x0)
    return conform(prediction, layout), conform(x0, layout), None if noise is None else conform(noise, layout)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    prediction, x0, target, noise, seed, ctx.step, weight, ctx.squared, ctx.backend = inputs
    ctx.save_for_backward(prediction, x0, target, noise, seed, weight)


def _differentiate(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
    prediction, x0, target, noise, seed, weight = ctx.saved_tensors
    found = torch.ops.orthokernels.diffusion_loss_backward(
        dloss, prediction, x0, target, noise, seed, ctx.step, weight, ctx.squared, ctx.backend
    )
    return found, *[None] * 8


torch.library.register_autograd(f"orthokernels::{NAME}", _differentiate, setup_context=_keep)
differentiable_once(NAME)
