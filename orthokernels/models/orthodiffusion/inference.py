"""One slab through one plane's modules: the noisy passes that its heads need, then the heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orthokernels.models.orthodiffusion.diffusion import GaussianDiffusion
from orthokernels.models.orthodiffusion.features import Network, features
from orthokernels.models.orthodiffusion.regional_pooling import StructurePool
from orthokernels.models.orthodiffusion.segmentation import MultiscaleSegmentationHead
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.orthodiffusion.weights import PlaneWeights


@dataclass(frozen=True)
class SlabFeatures:
    """Feature maps of a slab by block, [1, channels, depth, height, width]: what each task reads."""

    segmentation: dict[str, Tensor]
    diagnosis: dict[str, Tensor]


@dataclass(frozen=True)
class SlabOutput:
    """What the heads make of a slab; None where the weights have no such head.

    Attributes:
        logits: of every class, [1, classes, 16, size, size].
        vector: what the pooling makes of it, [1, width]; ``series_vector`` makes the series' vector of its slabs'.
    """

    logits: Tensor | None
    vector: Tensor | None


def segmentation_blocks(weights: PlaneWeights, unet: UNet) -> tuple[str, ...]:
    """The blocks of ``unet`` whose maps the segmentation head reads."""
    if isinstance(weights.segmentation, MultiscaleSegmentationHead):
        return weights.segmentation.feature_names(unet)
    return (weights.segmentation_point.block,)


def slab_features(
    weights: PlaneWeights,
    x0: Tensor,
    *,
    seed: int,
    draws: int = 1,
    sample: int = 0,
    engines: Mapping[UNet, Network] | None = None,
) -> SlabFeatures:
    """The feature maps that the heads read; those of the diagnosis where there is no head at all.

    Tasks that read the same network at the same timestep share a pass; a fine-tuned encoder costs a pass of its own.

    Args:
        x0: [1, 1, 16, size, size], values in [-1, 1].
        seed, draws: of the features' noise, as in ``features``.
        sample: which noise this slab gets; the pipeline gives the number of its first slice.
        engines: what computes a network's features, where not the network itself.
    """
    for_segmentation = (weights.segmentation_encoder or weights.denoiser, weights.segmentation_point.timestep)
    for_diagnosis = (weights.encoder or weights.denoiser, weights.timestep)
    blocks = segmentation_blocks(weights, for_segmentation[0]) if weights.segmentation is not None else ()
    wanted: dict[tuple[UNet, int], set[str]] = {}
    if blocks:
        wanted.setdefault(for_segmentation, set()).update(blocks)
    if weights.pooling is not None or weights.segmentation is None:
        wanted.setdefault(for_diagnosis, set()).add(weights.block)
    diffusion = GaussianDiffusion()
    maps: dict[tuple[UNet, int], dict[str, Tensor]] = {}
    for (unet, timestep), names in wanted.items():
        engine = (engines or {}).get(unet, unet)
        maps[unet, timestep] = features(
            engine, diffusion, x0, sorted(names), timestep=timestep, seed=seed, draws=draws, first_sample=sample
        )
    shared = maps.get(for_segmentation, {})
    return SlabFeatures({name: shared[name] for name in blocks}, maps.get(for_diagnosis, {}))


def slab_output(weights: PlaneWeights, found: SlabFeatures, x0: Tensor) -> SlabOutput:
    """The heads' logits and pooled vector of one slab, from its features; arguments as in ``slab_features``."""
    head, logits = weights.segmentation, None
    if isinstance(head, MultiscaleSegmentationHead):
        logits = head(found.segmentation, x0)
    elif head is not None:
        logits = head(found.segmentation[weights.segmentation_point.block])
    vector, pooling = None, weights.pooling
    if isinstance(pooling, StructurePool):
        assert logits is not None  # weights are not loaded without the head that this pooling reads
        vector = pooling(found.diagnosis[weights.block], logits, x0)
    elif pooling is not None:
        vector = pooling(found.diagnosis[weights.block])
    return SlabOutput(logits, vector)


def series_vector(weights: PlaneWeights, slabs: Sequence[Tensor]) -> Tensor:
    """A series' vector, [1, width]: the mean over its slabs', brought to numbers by the pooling where it needs to."""
    mean = torch.stack(list(slabs)).mean(dim=0)
    return weights.pooling.of_series(mean) if isinstance(weights.pooling, StructurePool) else mean
