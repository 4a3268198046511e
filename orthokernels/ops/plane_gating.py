"""The planes' logits mixed by a gate of their own, for all labels of all studies at once.

For a study's label, with the logits l[p] of P planes, and one small network for all labels:

    r    = relu(weight1 l + bias1)            hidden units
    w    = softmax over planes of weight2 r + bias2
    out  = sum over planes of w[p] l[p]

The publication calls it its multi-plane adaptive expert, and loops over labels.

Backward, with the gradients dout and dw that the results have, e[p] = dout l[p] + dw[p] and u = weight1 l + bias1:

    ds[p] = w[p] (e[p] - sum over planes of w e)
    du    = (weight2^T ds) where u is above 0
    dl[p] = dout w[p] + (weight1^T du)[p]
    dweight2 = sum ds r^T, dbias2 = sum ds, dweight1 = sum du l^T, dbias1 = sum du     over studies and labels
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthokernels.backends.registry import choose
from orthokernels.ops.registration import called, differentiable_once, implements

NAME = "plane_gating"
PLANES_AT_MOST, HIDDEN_AT_MOST = 8, 128


def plane_gating(
    logits: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Mix the planes' logits.

    Args:
        logits: (N, P, labels), up to 8 planes; float32, float16 or bfloat16, and float64 in plain PyTorch.
        weight1, bias1: (hidden, P) and (hidden,), up to 128 hidden units; in logits' dtype or float32.
        weight2, bias2: (P, hidden) and (P,).
        backend: "auto", "torch" or "triton".

    Returns:
        Mixed logits (N, labels) and the planes' weights (N, P, labels), in logits' dtype; sums are float32.
        Differentiable once in everything.

    Raises:
        ValueError: a shape or dtype that does not fit.
        BackendUnavailable: a backend was asked for by name and can not run; the message says why.
    """
    if logits.ndim != 3 or not logits.is_floating_point() or not logits.numel() or logits.shape[1] > PLANES_AT_MOST:
        told = f"{logits.dtype} of shape {tuple(logits.shape)}"
        raise ValueError(f"logits: {told}; allowed are floating point (N, P, labels), P up to {PLANES_AT_MOST}.")
    planes = logits.shape[1]
    hidden = weight1.shape[0] if weight1.ndim == 2 else 0
    if not 1 <= hidden <= HIDDEN_AT_MOST:
        raise ValueError(f"weight1: shape {tuple(weight1.shape)}; must be (hidden, P), hidden 1 to {HIDDEN_AT_MOST}.")
    wanted = {
        "weight1": (weight1, (hidden, planes)), "bias1": (bias1, (hidden,)),
        "weight2": (weight2, (planes, hidden)), "bias2": (bias2, (planes,)),
    }  # fmt: skip
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape or tensor.device != logits.device:
            told = f"shape {tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{name}: {told}; must be {shape} on {logits.device}.")
        if tensor.dtype not in (logits.dtype, torch.float32):
            raise ValueError(f"{name}: {tensor.dtype}; must be {logits.dtype}, as the logits, or torch.float32.")
    return called(NAME, logits, weight1, bias1, weight2, bias2, backend)


def reference(logits: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, in plain PyTorch."""
    by_label = logits.transpose(1, 2)
    gates = ((by_label @ weight1.T + bias1).relu() @ weight2.T + bias2).softmax(dim=2).transpose(1, 2)
    return (gates * logits).sum(dim=1), gates


def bytes_moved(logits: Tensor, *, backward: bool = False) -> int:
    """Bytes of logits, weights and results that are read and written at least; the network is small."""
    own, mixed = logits.nbytes, logits.nbytes // logits.shape[1]
    return 3 * own + mixed if backward else 2 * own + mixed


_INPUTS = "Tensor logits, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2"
torch.library.define(
    f"orthokernels::{NAME}", f"({_INPUTS}, str backend) -> (Tensor mixed, Tensor gates)",
    tags=(torch.Tag.pt2_compliant_tag,),
)  # fmt: skip
torch.library.define(
    f"orthokernels::{NAME}_backward",
    f"(Tensor dmixed, Tensor dgates, {_INPUTS}, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake(f"orthokernels::{NAME}")
def _outputs(
    logits: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    N, planes, labels = logits.shape
    return logits.new_empty((N, labels)), logits.new_empty((N, planes, labels))


@torch.library.register_fake(f"orthokernels::{NAME}_backward")
def _gradients(
    dmixed: Tensor, dgates: Tensor, logits: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    given = logits, weight1, bias1, weight2, bias2
    first, *rest = (own.new_empty(own.shape) for own in given)
    return first, rest[0], rest[1], rest[2], rest[3]


@implements(NAME)
def _forward(
    logits: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    found = _outputs(logits, weight1, bias1, weight2, bias2, backend)
    given = tuple(own.contiguous() for own in (logits, weight1, bias1, weight2, bias2))
    choose(NAME, backend, logits).forward(*given, *found)
    return found


@implements(f"{NAME}_backward")
def _backward(
    dmixed: Tensor, dgates: Tensor, logits: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    found = _gradients(dmixed, dgates, logits, weight1, bias1, weight2, bias2, backend)
    given = tuple(own.contiguous() for own in (dmixed, dgates, logits, weight1, bias1, weight2, bias2))
    choose(NAME, backend, logits).backward(*given, *found)
    return found


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *given, ctx.backend = inputs
    ctx.save_for_backward(*given)


def _differentiate(ctx: Any, dmixed: Tensor, dgates: Tensor) -> tuple[Tensor | None, ...]:
    found = torch.ops.orthokernels.plane_gating_backward(dmixed, dgates, *ctx.saved_tensors, ctx.backend)
    return *found, None


torch.library.register_autograd(f"orthokernels::{NAME}", _differentiate, setup_context=_keep)
differentiable_once(NAME)
