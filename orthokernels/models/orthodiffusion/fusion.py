"""From the planes' pooled vectors to one set of logits per study.

Every fusion but the gate takes the planes' vectors ([batch, width] each, in the order sagittal, coronal, axial of this
project) and gives logits [batch, labels]. The gate takes the logits of three single-plane heads instead. The order in
which the published scripts number the planes is not documented; published fusion weights need their own order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module):
    """Logits from a vector: one linear layer, or with ``hidden`` a layer of half the width before it.

    Forward: [batch, width] -> [batch, labels].
    """

    def __init__(self, width: int, labels: int, *, hidden: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        self.net: nn.Module = nn.Linear(width, labels)
        if hidden:
            self.net = nn.Sequential(
                nn.Linear(width, width // 2), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width // 2, labels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ConcatFusion(Head):
    """The planes' vectors side by side, then a head (published as "simple_concat", the default)."""

    def __init__(self, width: int = 512, labels: int = 8, *, hidden: bool = False) -> None:
        super().__init__(3 * width, labels, hidden=hidden)

    def forward(self, *planes: Tensor) -> Tensor:
        return self.net(torch.cat(planes, dim=1))


class _Projections(nn.Module):
    """One linear map per plane."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.proj1 = nn.Linear(width, out_width)
        self.proj2 = nn.Linear(width, out_width)
        self.proj3 = nn.Linear(width, out_width)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.proj1(a), self.proj2(b), self.proj3(c)


class LinearConcatFusion(nn.Module):
    """Each plane projected, then side by side, then a head."""

    def __init__(self, width: int = 512, labels: int = 8, *, out_width: int = 512, hidden: bool = False) -> None:
        super().__init__()
        self.fusion = _Projections(width, out_width)
        self.head = Head(3 * out_width, labels, hidden=hidden)

    def forward(self, *planes: Tensor) -> Tensor:
        return self.head(torch.cat(self.fusion(*planes), dim=1))


class LinearAddFusion(nn.Module):
    """Each plane projected, then summed, then a head."""

    def __init__(self, width: int = 512, labels: int = 8, *, out_width: int = 512, hidden: bool = False) -> None:
        super().__init__()
        self.fusion = _Projections(width, out_width)
        self.head = Head(out_width, labels, hidden=hidden)

    def forward(self, *planes: Tensor) -> Tensor:
        a, b, c = self.fusion(*planes)
        return self.head(a + b + c)


class _CrossAttention(_Projections):
    """Each plane attends to the next one round the circle; residual and one shared normalisation."""

    def __init__(self, width: int, out_width: int, heads: int) -> None:
        super().__init__(width, out_width)
        self.cross12 = nn.MultiheadAttention(out_width, heads, batch_first=True)
        self.cross23 = nn.MultiheadAttention(out_width, heads, batch_first=True)
        self.cross31 = nn.MultiheadAttention(out_width, heads, batch_first=True)
        self.norm = nn.LayerNorm(out_width)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = super().forward(a, b, c)
        return (
            self._attend(self.cross12, a, b),
            self._attend(self.cross23, b, c),
            self._attend(self.cross31, c, a),
        )

    def _attend(self, attention: nn.MultiheadAttention, query: Tensor, key: Tensor) -> Tensor:
        # A softmax over one key is 1: what is attended is the key's value, and queries and keys have no gradient.
        width = key.shape[-1]
        value = F.linear(key, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
        return self.norm(query + attention.out_proj(value))


class CrossAttentionFusion(nn.Module):
    """Each plane's vector refined by attention to the next plane's, then side by side, then a head.

    With one key per query the softmax is 1 and attention is two linear maps, which is how it is computed. Parameters
    are those of attention, so that the published weights load.
    """

    def __init__(
        self, width: int = 512, labels: int = 8, *, out_width: int = 512, heads: int = 4, hidden: bool = False
    ) -> None:
        super().__init__()
        self.fusion = _CrossAttention(width, out_width, heads)
        self.head = Head(3 * out_width, labels, hidden=hidden)

    def forward(self, *planes: Tensor) -> Tensor:
        return self.head(torch.cat(self.fusion(*planes), dim=1))


class _Gate(nn.Module):
    """Weights of the planes from their logits, one small network for all labels."""

    def __init__(self, planes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(planes, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, planes))

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [batch, planes, labels] -> weights of the same shape that sum to 1 over the planes."""
        return self.net(logits.transpose(1, 2)).softmax(dim=2).transpose(1, 2)


class GatingFusion(nn.Module):
    """Single-plane logits mixed with a weight per plane and label (the publication's multi-plane adaptive expert).

    Args:
        stacking: pass the mixed logits through one more network, which sees all labels at once.

    Forward: logits [batch, 3, labels] -> logits [batch, labels] and weights [batch, 3, labels].
    """

    def __init__(
        self, labels: int = 8, *, planes: int = 3, hidden: int = 32, stacking: bool = False, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.gate = _Gate(planes, hidden, dropout)
        self.meta: nn.Module | None = None
        if stacking:
            self.meta = nn.Sequential(nn.Linear(labels, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, labels))

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.gate(logits)
        mixed = (weights * logits).sum(dim=1)
        return (mixed if self.meta is None else self.meta(mixed)), weights


FUSIONS: dict[str, type[nn.Module]] = {
    "simple_concat": ConcatFusion,
    "linear_concat": LinearConcatFusion,
    "linear_add": LinearAddFusion,
    "crossattn": CrossAttentionFusion,
    "gating": GatingFusion,
}
