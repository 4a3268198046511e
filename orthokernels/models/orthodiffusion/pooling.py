"""From a feature map to a vector: the three poolings that the published diagnosis heads choose from, and ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def global_average(x: Tensor) -> Tensor:
    """Mean over voxels: [batch, channels, depth, height, width] -> [batch, channels]."""
    return x.flatten(2).mean(dim=2)


class GlobalAveragePool(nn.Module):
    """The mean over voxels alone (published as "none"): [batch, C, D, H, W] -> [batch, C]."""

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return global_average(x)


class SelfAttentionPool(nn.Module):
    """Self-attention over all voxels, averaged (published as "selfattn", the default).

    Forward: [batch, C, D, H, W] -> [batch, 2 C], the global average first, then the attended mean. There is no
    positional code, so the pooling does not know where a voxel was.
    """

    def __init__(self, channels: int = 256, heads: int = 16) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels")
        self.heads = heads
        self.out_channels = 2 * channels
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # [batch, voxels, channels]
        q, k, v = (
            projection(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v)  # [batch, heads, voxels, head channels]
        # The mean over queries comes before the projection, which is linear, so that one vector is projected.
        mean = attended.mean(dim=2).flatten(1)
        return torch.cat([global_average(x), self.out_proj(mean)], dim=1)


class GlobalLocalPool(nn.Module):
    """A mean weighted by a small network's softmax over voxels (published as "local").

    Forward: [batch, C, D, H, W] -> [batch, 2 C], the global average first, then the weighted mean.
    """

    def __init__(self, channels: int = 256, hidden: int = 32) -> None:
        super().__init__()
        self.out_channels = 2 * channels
        self.attn = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # [batch, voxels, channels]
        weights = self.attn(tokens).softmax(dim=1)  # [batch, voxels, 1]
        return torch.cat([global_average(x), (weights * tokens).sum(dim=1)], dim=1)


class GridPool(nn.Module):
    """Means and maxima of the cells of a grid, and of those the ones that training kept (ours: "grid").

    A mean over all voxels forgets where something was, and a finding is a small thing at a certain place. Depth is
    pooled over, since slabs of a series lie at different slices.

    Args:
        channels: of the map.
        cells: of the grid, along height and width.
        kept: how many of the 2 x channels x height x width numbers make the vector; ``places`` says which.
        mirror: a cell is joined with its mirror image along the width, for views in which the other side is mirrored.

    Forward: [batch, C, D, H, W] -> [batch, kept].
    """

    places: Tensor

    def __init__(
        self, channels: int = 256, *, cells: tuple[int, int] = (8, 8), kept: int = 128, mirror: bool = False
    ) -> None:
        super().__init__()
        self.cells, self.mirror, self.out_channels = (cells[0], cells[1]), mirror, kept
        self.register_buffer("places", torch.arange(kept) % (2 * channels * cells[0] * cells[1]))

    def every(self, x: Tensor) -> Tensor:
        """All numbers [batch, 2 x channels x height x width]: the cells' means, then their maxima."""
        means = nn.functional.adaptive_avg_pool3d(x, (1, *self.cells))
        maxima = nn.functional.adaptive_max_pool3d(x, (1, *self.cells))
        if self.mirror:
            means = (means + means.flip(-1)) / 2
            maxima = torch.maximum(maxima, maxima.flip(-1))
        return torch.cat([means.flatten(1), maxima.flatten(1)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.every(x).index_select(1, self.places)


POOLINGS: dict[str, type[SelfAttentionPool] | type[GlobalLocalPool] | type[GlobalAveragePool] | type[GridPool]] = {
    "selfattn": SelfAttentionPool,
    "local": GlobalLocalPool,
    "none": GlobalAveragePool,
    "grid": GridPool,
}
