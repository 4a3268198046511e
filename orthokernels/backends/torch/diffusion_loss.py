"""The denoiser's loss in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from orthokernels.backends.torch.add_noise import by_sample, drawn


def forward(
    prediction: Tensor, x0: Tensor, target: Tensor, noise: Tensor | None, seed: Tensor | None, step: int,
    weight: Tensor | None, squared: bool,
) -> Tensor:  # fmt: skip
    """The mean error, a scalar."""
    error = _error(prediction, x0, target, noise, seed, step)
    each = (error.square() if squared else error.abs()).flatten(1).mean(dim=1)
    return (each if weight is None else weight.to(each.dtype) * each).mean()


def backward(
    dloss: Tensor, prediction: Tensor, x0: Tensor, target: Tensor, noise: Tensor | None, seed: Tensor | None,
    step: int, weight: Tensor | None, squared: bool, found: Tensor,
) -> None:  # fmt: skip
    """Write the gradient of the prediction."""
    error = _error(prediction, x0, target, noise, seed, step)
    slope = 2 * error if squared else error.sign()
    if weight is not None:
        slope = weight.to(slope.dtype).view(-1, *[1] * (slope.ndim - 1)) * slope
    found.copy_(dloss.to(slope.dtype) / slope.numel() * slope)


def _error(
    prediction: Tensor, x0: Tensor, target: Tensor, noise: Tensor | None, seed: Tensor | None, step: int
) -> Tensor:
    noise, x = drawn(x0, noise, seed, step)
    a, b = by_sample(target, x)
    return prediction.to(x.dtype) - (a * x + b * noise)
