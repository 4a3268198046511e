"""Poolings that keep where something was: in the cells of a grid, and in the structures that the segmentation found.

A finding is a small thing at a certain place, and a mean over all voxels forgets the place. Both poolings make many
numbers and keep the few that training chose; neither is published.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of a structure's intensities, next to mean and deviation: a tear is a few voxels of another brightness.
PERCENTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def grid_numbers(x: Tensor, cells: tuple[int, int], *, mirror: bool) -> Tensor:
    """A map's means, then its maxima, in the cells of a grid over height and width.

    Depth is pooled over, since slabs of a series lie at different slices.

    Args:
        x: [batch, channels, depth, height, width].
        cells: along height and width.
        mirror: join each cell with its mirror image along the width, for views in which the other side is mirrored.

    Returns:
        [batch, 2 x channels x cells].
    """
    means = F.adaptive_avg_pool3d(x, (1, *cells))
    maxima = F.adaptive_max_pool3d(x, (1, *cells))
    if mirror:
        means = (means + means.flip(-1)) / 2
        maxima = torch.maximum(maxima, maxima.flip(-1))
    return torch.cat([means.flatten(1), maxima.flatten(1)], dim=1)


class GridPool(nn.Module):
    """Of ``grid_numbers`` those that training kept ("grid").

    Args:
        channels: of the map.
        cells: of the grid, along height and width.
        kept: how many of the 2 x channels x height x width numbers make the vector; ``places`` says which.
        mirror: as in ``grid_numbers``.

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
        """All numbers, [batch, 2 x channels x height x width]."""
        return grid_numbers(x, self.cells, mirror=self.mirror)

    def forward(self, x: Tensor) -> Tensor:
        return self.every(x).index_select(1, self.places)


class StructurePool(nn.Module):
    """Of ``grid_numbers`` and of what each found structure looks like, those that training kept ("structures").

    A structure is told by its size, by mean, deviation and percentiles of the volume's intensities inside it and in a
    rim of two pixels around it, and by mean and deviation of the map's channels inside it. A slab gives sums that can
    be averaged over a series' slabs (histograms, sums of features); ``of_series`` makes numbers of their mean, so that
    a structure cut by two slabs counts as one.

    Args:
        channels: of the map.
        cells, mirror: of the grid, as in ``GridPool``.
        kept: numbers of the vector; ``places`` says which.
        classes: of the segmentation, with the background.
        bins: of the histograms over intensities from -1 to 1.

    Forward: (map [batch, C, D', H', W'], class logits [batch, classes, D, H, W], volume [batch, 1, D, H, W]) -> sums
    [batch, width].
    """

    places: Tensor
    usual: Tensor

    def __init__(
        self,
        channels: int = 256,
        *,
        cells: tuple[int, int] = (8, 8),
        kept: int = 128,
        mirror: bool = False,
        classes: int = 12,
        bins: int = 64,
    ) -> None:
        super().__init__()
        self.channels, self.cells, self.mirror = channels, (cells[0], cells[1]), mirror
        self.structures, self.bins, self.out_channels = classes - 1, bins, kept
        grid = 2 * channels * cells[0] * cells[1]
        self.widths = (grid, 2 * self.structures * bins, self.structures * (1 + 2 * channels))
        self.register_buffer("places", torch.arange(kept) % grid)
        self.register_buffer("usual", torch.zeros(kept))  # in place of a structure that was not found

    def arguments(self) -> dict[str, Any]:
        """What builds another one like it."""
        return {
            "channels": self.channels, "cells": list(self.cells), "kept": self.out_channels, "mirror": self.mirror,
            "classes": self.structures + 1, "bins": self.bins,
        }  # fmt: skip

    def forward(self, x: Tensor, logits: Tensor, volume: Tensor) -> Tensor:
        return torch.cat([grid_numbers(x, self.cells, mirror=self.mirror), *self._sums(x, logits, volume)], dim=1)

    def _sums(self, x: Tensor, logits: Tensor, volume: Tensor) -> tuple[Tensor, Tensor]:
        """Histograms inside the structures and around them, and sums of the map's channels and their squares inside."""
        found = logits.argmax(dim=1, keepdim=True)
        classes = torch.arange(1, self.structures + 1, device=x.device).view(1, -1, 1, 1, 1)
        inside = (found == classes).to(x.dtype)
        reach = F.max_pool3d(inside, (1, 5, 1), stride=1, padding=(0, 2, 0))  # slices lie millimetres apart
        reach = F.max_pool3d(reach, (1, 1, 5), stride=1, padding=(0, 0, 2))
        regions = torch.cat([inside, reach - inside], dim=1).flatten(2)
        which = ((volume[:, 0] + 1) * (self.bins / 2)).long().clamp(0, self.bins - 1).flatten(1)
        # Counts are whole numbers: no order of additions changes them.
        histograms = regions.new_zeros((*regions.shape[:2], self.bins))
        histograms.scatter_add_(2, which[:, None].expand_as(regions), regions)
        share = F.adaptive_avg_pool3d(inside, (x.shape[2], x.shape[3], x.shape[4])).flatten(
            2
        )  # of a map's voxel that a structure fills
        values = x.flatten(2).transpose(1, 2)
        sums = [share.sum(dim=2, keepdim=True), torch.bmm(share, values), torch.bmm(share, values.square())]
        return histograms.flatten(1), torch.cat(sums, dim=2).flatten(1)

    def every(self, sums: Tensor) -> Tensor:
        """All numbers of series from the mean of their slabs' sums; NaN where a structure was not found.

        Returns:
            [series, numbers]: the grid's; of structures, then rims, each mean, deviation and percentiles of the
            intensities; of structures the logarithm of the size, mean and deviation of each channel.
        """
        grid, histograms, features = sums.double().split(self.widths, dim=1)
        counts = histograms.view(len(sums), 2 * self.structures, self.bins)
        shares, values, squares = features.view(len(sums), self.structures, -1).split(
            [1, self.channels, self.channels], dim=2
        )
        size = counts[:, : self.structures].sum(dim=2, keepdim=True)
        mean = values / shares
        deviation = (squares / shares - mean.square()).clamp(min=0).sqrt()
        looks = torch.cat([(1 + size).log(), mean, deviation], dim=2)
        return torch.cat([grid, _spread(counts).flatten(1), looks.flatten(1)], dim=1).to(sums.dtype)

    def of_series(self, sums: Tensor) -> Tensor:
        """The vector of series, [series, kept], from the mean of their slabs' sums."""
        kept = self.every(sums).index_select(1, self.places)
        return torch.where(kept.isfinite(), kept, self.usual.to(kept))


def _spread(counts: Tensor) -> Tensor:
    """Mean, deviation and ``PERCENTILES`` of histograms [..., bins] over -1 to 1, [..., 7]; NaN where one is empty."""
    bins = counts.shape[-1]
    share = counts / counts.sum(dim=-1, keepdim=True)
    centres = (torch.arange(bins, device=counts.device, dtype=counts.dtype) + 0.5) * (2 / bins) - 1
    mean = (share * centres).sum(dim=-1)
    deviation = ((share * centres.square()).sum(dim=-1) - mean.square()).clamp(min=0).sqrt()
    below = share.cumsum(dim=-1)
    found = []
    for percentile in PERCENTILES:
        bin_of = (below < percentile).sum(dim=-1, keepdim=True).clamp(max=bins - 1)
        own = share.gather(-1, bin_of)
        part = (percentile - (below.gather(-1, bin_of) - own)) / own  # of the bin, up to the percentile
        found.append(((bin_of + part) * (2 / bins) - 1)[..., 0])
    return torch.stack([mean, deviation, *found], dim=-1)
