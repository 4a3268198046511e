"""What each graph computes, as a PyTorch module that takes and gives plain tensors.

Nothing here has weights of its own: each module holds a plain copy of the model's (``plain``).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from orthokernels.acceleration import restore
from orthokernels.models.orthodiffusion.convolution import Conv3d
from orthokernels.models.orthodiffusion.diffusion import GaussianDiffusion
from orthokernels.models.orthodiffusion.patient_data import LateFusion
from orthokernels.models.orthodiffusion.regional_pooling import StructurePool
from orthokernels.models.orthodiffusion.segmentation import MultiscaleSegmentationHead, SegmentationHead
from orthokernels.models.orthodiffusion.unet import ResBlock, UNet, timestep_embedding


def plain(module: nn.Module) -> nn.Module:
    """A copy for inference on the CPU in float32 whose every layer is PyTorch's own.

    What ``accelerate`` put in is taken out again, since no runtime knows this package's ops, and so is the convolution
    that asks for the batch's size, which a graph leaves open.
    """
    own = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
    restore(own)
    for layer in own.modules():
        if type(layer) is Conv3d:
            layer.__class__ = nn.Conv3d  # type: ignore[assignment]
    return own


class _TimedResBlock(nn.Module):
    """A residual block at one timestep: the time embedding is in the bias of the convolution that it was added to."""

    def __init__(self, block: ResBlock, emb: Tensor) -> None:
        super().__init__()
        convolution = block.in_layers[2]
        convolution.bias = nn.Parameter(convolution.bias + block.emb_layers(emb)[0], requires_grad=False)
        self.in_layers, self.out_layers, self.skip_connection = block.in_layers, block.out_layers, block.skip_connection

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layers(self.in_layers(x)) + self.skip_connection(x)


@torch.no_grad()
def at_timestep(unet: UNet, timestep: int) -> UNet:
    """A plain copy of a denoiser that does not read the timesteps it is given: it knows this one alone."""
    own = plain(unet)
    assert isinstance(own, UNet)
    emb = own.time_embed(timestep_embedding(torch.tensor([timestep]), own.base_channels))
    for parent in list(own.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ResBlock):
                setattr(parent, name, _TimedResBlock(child, emb))
    return own


class FeaturePass(nn.Module):
    """Clean volumes and unit noise to the maps of ``blocks``, at a fixed timestep.

    Forward: two tensors [batch, 1, 16, size, size] -> a map [batch, channels, depth, height, width] for each block.
    """

    def __init__(self, unet: UNet, timestep: int, blocks: Sequence[str]) -> None:
        super().__init__()
        self.unet, self.blocks = at_timestep(unet, timestep), tuple(blocks)
        alpha_bar = GaussianDiffusion().alpha_bar[timestep]
        self.of_volume, self.of_noise = float(alpha_bar.sqrt()), float((1 - alpha_bar).sqrt())

    def forward(self, volume: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        noisy = self.of_volume * volume + self.of_noise * noise
        found = self.unet.features(noisy, noisy.new_zeros(noisy.shape[0]), self.blocks)
        return tuple(found[block] for block in self.blocks)


class Denoiser(nn.Module):
    """The whole network: noisy volumes [batch, 1, 16, size, size] and timesteps [batch], float32 -> their noise."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = plain(unet)

    def forward(self, noisy: Tensor, timestep: Tensor) -> tuple[Tensor]:
        return (self.unet(noisy, timestep),)


class Segmentation(nn.Module):
    """Maps in the order of ``blocks``, and the clean volume where the head reads it -> logits."""

    def __init__(self, head: SegmentationHead | MultiscaleSegmentationHead, blocks: Sequence[str]) -> None:
        super().__init__()
        self.head, self.blocks = plain(head), tuple(blocks)

    def forward(self, *tensors: Tensor) -> tuple[Tensor]:
        maps = dict(zip(self.blocks, tensors, strict=False))
        if not isinstance(self.head, MultiscaleSegmentationHead):
            return (self.head(*maps.values()),)
        return (self.head(maps, tensors[-1] if self.head.input_skip else None),)


class Pooling(nn.Module):
    """A map, for "structures" also the class logits and the clean volume -> a slab's vector (or its sums)."""

    def __init__(self, pooling: nn.Module) -> None:
        super().__init__()
        self.pooling = plain(pooling)
        self.reads_structures = isinstance(pooling, StructurePool)

    def forward(self, *tensors: Tensor) -> tuple[Tensor]:
        return (self.pooling(*tensors),)


class Logits(nn.Module):
    """A head over one vector, or a fusion over the planes' vectors -> logits [batch, labels]."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = plain(head)

    def forward(self, *vectors: Tensor) -> tuple[Tensor]:
        return (self.head(*vectors),)


class Gating(nn.Module):
    """The planes' logits [batch, 3, labels] -> logits [batch, labels] and each plane's share [batch, 3, labels]."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.fusion = plain(fusion)

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        logits, shares = self.fusion(planes)
        return logits, shares


class LateFusionPass(nn.Module):
    """``LateFusion`` with the event as a one-hot row, as sex and patient type are, so that every input is float32.

    Forward: the planes' vectors and the patient's columns -> logits [batch, labels], and the MRI's share in each.
    """

    def __init__(self, fusion: LateFusion) -> None:
        super().__init__()
        own = plain(fusion)
        assert isinstance(own, LateFusion)
        self.fusion = own

    def forward(
        self, sagittal: Tensor, coronal: Tensor, axial: Tensor, continuous: Tensor, sex: Tensor, patient_type: Tensor,
        event: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        own = self.fusion
        columns = torch.cat([continuous, sex, patient_type, event @ own.event_embed.weight], dim=1)
        mri, tabular = own.mri_head(torch.cat([sagittal, coronal, axial], dim=1)), own.tab_head(own.tab_proj(columns))
        alpha = own.alpha_param.sigmoid()
        return alpha * mri + (1 - alpha) * tabular, alpha.expand_as(mri)
