"""The planes' logits mixed by a gate, in Triton, forward and backward.

A program takes some studies' labels and has the whole network before it: one launch instead of some six, or of as many
a label in the published loop. What is moved is small; launches are what it saves. Gradients of the network are summed
by program, then over programs in their order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from orthokernels.backends.triton.configuration import Configuration
from orthokernels.backends.triton.volumes import wrong_dtype

_ROWS = 32  # studies' labels of a program
_WARPS = 4


@triton.jit
def _network(p_logits, p_weight1, p_bias1, p_weight2, p_bias2, place, o_h, o_p, m_r, labels, hidden, planes):
    """Logits [BR, BP], hidden units' inside [BR, BH] and weights of the planes [BR, BP]."""
    m_h, m_p = o_h < hidden, o_p < planes
    logits = tl.load(p_logits + place[:, None] + (o_p * labels)[None, :], m_r[:, None] & m_p[None, :], other=0.0).to(
        tl.float32
    )
    weight1 = tl.load(p_weight1 + o_h[:, None] * planes + o_p[None, :], m_h[:, None] & m_p[None, :], other=0.0)
    inside = tl.sum(logits[:, None, :] * weight1.to(tl.float32)[None, :, :], 2)
    inside += tl.load(p_bias1 + o_h, m_h, other=0.0).to(tl.float32)[None, :]
    weight2 = tl.load(p_weight2 + o_p[:, None] * hidden + o_h[None, :], m_p[:, None] & m_h[None, :], other=0.0)
    scores = tl.sum(tl.maximum(inside, 0.0)[:, None, :] * weight2.to(tl.float32)[None, :, :], 2)
    scores += tl.load(p_bias2 + o_p, m_p, other=0.0).to(tl.float32)[None, :]
    scores = tl.where(m_p[None, :], scores, -float("inf"))
    gates = tl.exp(scores - tl.max(scores, 1)[:, None])
    return logits, inside, gates / tl.sum(gates, 1)[:, None]


@triton.jit
def _mix(
    p_logits, p_weight1, p_bias1, p_weight2, p_bias2, p_mixed, p_gates, rows, labels, hidden, planes,
    BR: tl.constexpr, BH: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    o_r = tl.program_id(0) * BR + tl.arange(0, BR)
    o_h, o_p = tl.arange(0, BH), tl.arange(0, BP)
    m_r = o_r < rows
    place = (o_r // labels).to(tl.int64) * (planes * labels) + o_r % labels
    logits, _, gates = _network(
        p_logits, p_weight1, p_bias1, p_weight2, p_bias2, place, o_h, o_p, m_r, labels, hidden, planes
    )
    tl.store(p_mixed + o_r, tl.sum(gates * logits, 1).to(p_mixed.dtype.element_ty), m_r)
    m = m_r[:, None] & (o_p < planes)[None, :]
    tl.store(p_gates + place[:, None] + (o_p * labels)[None, :], gates.to(p_gates.dtype.element_ty), m)


@triton.jit
def _gradients(
    p_dmixed, p_dgates, p_logits, p_weight1, p_bias1, p_weight2, p_bias2, p_dlogits, p_part, rows, labels, hidden,
    planes, BR: tl.constexpr, BH: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """dlogits, and into p_part [programs, 2 P + 1, hidden, and P] a program's share of the network's gradients."""
    o_r = tl.program_id(0) * BR + tl.arange(0, BR)
    o_h, o_p = tl.arange(0, BH), tl.arange(0, BP)
    m_r, m_h, m_p = o_r < rows, o_h < hidden, o_p < planes
    m = m_r[:, None] & m_p[None, :]
    place = (o_r // labels).to(tl.int64) * (planes * labels) + o_r % labels
    logits, inside, gates = _network(
        p_logits, p_weight1, p_bias1, p_weight2, p_bias2, place, o_h, o_p, m_r, labels, hidden, planes
    )
    dmixed = tl.load(p_dmixed + o_r, m_r, other=0.0).to(tl.float32)[:, None]
    each = dmixed * logits
    each += tl.load(p_dgates + place[:, None] + (o_p * labels)[None, :], m, other=0.0).to(tl.float32)
    ds = gates * (each - tl.sum(gates * each, 1)[:, None])
    ds = tl.where(m, ds, 0.0)
    weight2 = tl.load(p_weight2 + o_p[:, None] * hidden + o_h[None, :], m_p[:, None] & m_h[None, :], other=0.0)
    du = tl.sum(ds[:, :, None] * weight2.to(tl.float32)[None, :, :], 1)
    du = tl.where(inside > 0, du, 0.0)
    weight1 = tl.load(p_weight1 + o_h[:, None] * planes + o_p[None, :], m_h[:, None] & m_p[None, :], other=0.0)
    dlogits = dmixed * gates + tl.sum(du[:, :, None] * weight1.to(tl.float32)[None, :, :], 1)
    tl.store(p_dlogits + place[:, None] + (o_p * labels)[None, :], dlogits.to(p_dlogits.dtype.element_ty), m)
    part = p_part + tl.program_id(0).to(tl.int64) * ((2 * planes + 1) * hidden + planes)
    m_ph = m_p[:, None] & m_h[None, :]
    of_weight2 = tl.sum(ds[:, :, None] * tl.maximum(inside, 0.0)[:, None, :], 0)  # [BP, BH]
    of_weight1 = tl.sum(logits[:, :, None] * du[:, None, :], 0)  # [BP, BH]
    tl.store(part + o_p[:, None] * hidden + o_h[None, :], of_weight1, m_ph)
    tl.store(part + (planes + o_p[:, None]) * hidden + o_h[None, :], of_weight2, m_ph)
    tl.store(part + 2 * planes * hidden + o_h, tl.sum(du, 0), m_h)
    tl.store(part + (2 * planes + 1) * hidden + o_p, tl.sum(ds, 0), m_p)


def forward(
    logits: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, mixed: Tensor, gates: Tensor
) -> None:
    """Write the mixed logits and the planes' weights; everything is contiguous."""
    N, planes, labels = logits.shape
    rows, hidden = N * labels, len(bias1)
    _mix[(triton.cdiv(rows, _ROWS),)](
        logits, weight1, bias1, weight2, bias2, mixed, gates, rows, labels, hidden, planes, **_tile(hidden, planes)
    )


def backward(
    dmixed: Tensor, dgates: Tensor, logits: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    dlogits: Tensor, dweight1: Tensor, dbias1: Tensor, dweight2: Tensor, dbias2: Tensor,
) -> None:  # fmt: skip
    """Write all gradients; everything is contiguous."""
    N, planes, labels = logits.shape
    rows, hidden = N * labels, len(bias1)
    programs = triton.cdiv(rows, _ROWS)
    sizes = planes * hidden, planes * hidden, hidden, planes
    part = torch.empty(programs, sum(sizes), dtype=torch.float32, device=logits.device)
    _gradients[(programs,)](
        dmixed, dgates, logits, weight1, bias1, weight2, bias2, dlogits, part, rows, labels, hidden, planes,
        **_tile(hidden, planes),
    )  # fmt: skip
    of_weight1, of_weight2, of_bias1, of_bias2 = part.sum(dim=0).split(sizes)
    dweight1.copy_(of_weight1.view(planes, hidden).T)
    dweight2.copy_(of_weight2.view(planes, hidden))
    dbias1.copy_(of_bias1)
    dbias2.copy_(of_bias2)


def _tile(hidden: int, planes: int) -> dict[str, int]:
    return {
        "BR": _ROWS, "BH": triton.next_power_of_2(hidden), "BP": triton.next_power_of_2(planes), "num_warps": _WARPS,
    }  # fmt: skip


def can_run(x: Tensor) -> str | None:
    """Why the kernels can not take logits, or None."""
    return wrong_dtype(x)


def configurations() -> Iterator[Configuration]:
    """The published gate: three planes, 32 hidden units, 8 labels of 64 studies."""
    for pointer in ("*fp32", "*bf16"):
        for kernel in (_mix, _gradients):
            named: dict[str, object] = {"rows": 512, "labels": 8, "hidden": 32, "planes": 3, "p_part": "*fp32"}
            named |= {"BR": _ROWS, "BH": 32, "BP": 4}
            arguments = {name: named.get(name, pointer) for name in kernel.arg_names}
            yield Configuration("plane_gating", kernel, arguments, _WARPS)
