"""Stage I on frozen features: a pooling and one linear layer per plane, trained on maps that were computed before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orthokernels.models.orthodiffusion.pooling import POOLINGS, GlobalLocalPool, SelfAttentionPool
from orthokernels.training.config_heads import HeadConfig
from orthokernels.training.features import SlabMaps, mean_per_series
from orthokernels.training.fusion_training import Standardisation, fit, seeded


def pooling_arguments(name: str, channels: int, heads: int) -> dict[str, Any]:
    """Constructor arguments of a pooling, as its card keeps them."""
    return {"channels": channels, "heads": heads} if name == "selfattn" else {"channels": channels}


class PlaneClassifier(nn.Module):
    """A series' slabs to logits: each slab's map pooled, the mean over slabs, one linear layer, as the pipeline does.

    Forward: (maps [slabs, channels, depth, height, width], owner [slabs]) -> logits [series, labels].
    """

    def __init__(self, pooling: nn.Module, labels: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.head = nn.Linear(int(pooling.out_channels), labels)  # type: ignore[arg-type]
        self.scale: Standardisation | None = None  # of the maps' channels, while training

    def vectors(self, maps: Tensor, owner: Tensor) -> Tensor:
        """Pooled vectors [series, width]."""
        if self.scale is not None:
            channels = (1, -1, 1, 1, 1)
            maps = (maps - self.scale.mean.view(channels)) / self.scale.deviation.view(channels)
        return mean_per_series(self.pooling(maps), owner)

    def forward(self, series: tuple[Tensor, Tensor]) -> Tensor:
        return self.head(self.vectors(*series))

    def fold_scale(self) -> None:
        """Bring the standardisation into the layers that read maps, so that raw maps give the same logits."""
        if self.scale is None:
            return
        mean, deviation = self.scale.mean, self.scale.deviation
        if isinstance(self.pooling, SelfAttentionPool):
            for layer in (self.pooling.q_proj, self.pooling.k_proj, self.pooling.v_proj):
                self.scale.fold_into(layer)
            # The attended half of the vector comes out of a projection, and is as it was.
            mean = torch.cat([mean, torch.zeros_like(mean)])
            deviation = torch.cat([deviation, torch.ones_like(deviation)])
        elif isinstance(self.pooling, GlobalLocalPool):
            self.scale.fold_into(self.pooling.attn[0])  # type: ignore[arg-type]
            mean, deviation = mean.repeat(2), deviation.repeat(2)  # a weighted mean is standardised like a mean
        Standardisation(mean, deviation).fold_into(self.head)
        self.scale = None


def new_classifier(pooling: str, channels: int, heads: int, labels: int, *, seed: int) -> PlaneClassifier:
    """An untrained pooling and head; the same seed gives the same weights."""
    arguments = pooling_arguments(pooling, channels, heads)
    return seeded(lambda: PlaneClassifier(POOLINGS[pooling](**arguments), labels), seed)


def train_probe(
    maps: SlabMaps, truth: Tensor, weight: Tensor, pooling: str, heads: int, config: HeadConfig, *, seed: int
) -> PlaneClassifier:
    """Train a pooling and a head on maps of series.

    Args:
        maps: of the series.
        truth: [series, labels], NaN where unknown.
        weight: [series].
        pooling: of ``POOLINGS``.
        heads: attention heads, for "selfattn".
    """
    classifier = new_classifier(pooling, maps.maps.shape[1], heads, truth.shape[1], seed=seed)
    if config.standardise:
        classifier.scale = Standardisation.of(maps.maps.float().transpose(0, 1).flatten(1).T)
    fit(classifier, [maps], truth, weight, config, seed=seed)
    classifier.fold_scale()
    return classifier


@torch.no_grad()
def vectors_of(classifier: PlaneClassifier, maps: SlabMaps, batch: int = 64) -> Tensor:
    """Pooled vectors of all series, [series, width]."""
    rows = torch.arange(len(maps)).split(batch)
    return torch.cat([classifier.vectors(*maps[chosen]) for chosen in rows])
