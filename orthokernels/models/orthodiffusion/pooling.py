"""From a feature map to a vector: the three poolings that the published diagnosis heads choose from, and ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orthokernels.models.orthodiffusion.regional_pooling import GridPool, StructurePool


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


POOLINGS: dict[str, type[nn.Module]] = {
    "selfattn": SelfAttentionPool,
    "local": GlobalLocalPool,
    "none": GlobalAveragePool,
    "grid": GridPool,
    "structures": StructurePool,
}
