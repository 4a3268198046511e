"""Segmentation heads: the published one, straight up from the bottleneck, and one that reads every resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthokernels.models.orthodiffusion.convolution import Conv3d
from orthokernels.models.orthodiffusion.unet import GroupNorm, UNet, fold, level_starts, unfold


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with group normalisation, added to the input, ReLU last."""

    def __init__(self, channels: int, groups: int = 8) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Conv3d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.ReLU(inplace=True),
            Conv3d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.block(x))


class SegmentationHead(nn.Module):
    """Class logits from a map of 1/16 resolution, by four doublings; it sees no finer features.

    Args:
        in_channels: channels of the feature map.
        classes: background and structures; 12 for this project's eleven structures, 11 as published.

    Forward: [batch, in_channels, D, H, W] -> [batch, classes, 16 D, 16 H, 16 W].
    """

    def __init__(self, in_channels: int = 256, classes: int = 12) -> None:
        super().__init__()
        self.classes = classes

        def double(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.ConvTranspose3d(inputs, outputs, 4, stride=2, padding=1), nn.ReLU(inplace=True)]

        self.net = nn.Sequential(
            *double(in_channels, 128),
            ResidualBlock(128),
            *double(128, 64),
            ResidualBlock(64),
            *double(64, 32),
            *double(32, 16),
            Conv3d(16, classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class MultiscaleSegmentationHead(nn.Module):
    """Class logits from the encoder's features at every resolution, the middle's, and the volume itself.

    A bottleneck of 1/16 the resolution can't draw cartilage. This head starts from the middle's map, adds the
    encoder's map of each level on the way up (each normalised, then projected by a 1x1x1 convolution), and refines the
    sum with a residual convolution. The classes of a patch's voxels come from the patch's own channels (sub-pixel
    convolution, Shi et al., arXiv 1609.05158): nothing runs at full resolution where the network folds its input.

    Args:
        widths: channels of the encoder's last map of each level, finest first, then the middle's: one more than levels.
        classes: background and structures.
        channels: width of this head at each level, finest first; by default the level's own, at most 32 and, where the
            network folds nothing, 16 at the finest.
        patch: voxels along depth, height and width that the network folds into one, as its own ``patch``.
        input_skip: also read the volume (one channel), folded by ``patch``, at the finest level: structures thinner
            than a patch are in it and not in the features.
        convolutions: residual convolutions at the finest level; one at each other.

    Raises:
        ValueError: too few widths, or as many ``channels`` as there are not levels.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 64, 128, 128, 256, 256),
        classes: int = 12,
        *,
        channels: Sequence[int] | None = None,
        patch: Sequence[int] = (1, 1, 1),
        input_skip: bool = True,
        convolutions: int = 2,
    ) -> None:
        super().__init__()
        *levels, middle = widths
        self.patch = (patch[0], patch[1], patch[2])
        folded = math.prod(self.patch)
        if channels is None:
            channels = [min(width, 32) for width in levels]
            channels[:1] = [16 if folded == 1 else 32] * len(channels[:1])
        if not levels or len(channels) != len(levels):
            raise ValueError(f"widths {list(widths)} name {len(levels)} levels and a middle; channels {list(channels)}")
        self.classes = classes
        self.input_skip = input_skip
        self.start = _Projection(middle, channels[-1])
        self.skips = nn.ModuleList(map(_Projection, levels, channels))
        self.ups = nn.ModuleList(Conv3d(a, b, 1) for a, b in zip(channels[1:], channels[:-1], strict=True))
        self.refine = nn.ModuleList(
            nn.Sequential(*(_Refinement(width) for _ in range(convolutions if level == 0 else 1)))
            for level, width in enumerate(channels)
        )
        self.volume = Conv3d(folded, channels[0], 3, padding=1) if input_skip else None
        self.out = nn.Sequential(_norm(channels[0]), nn.SiLU(), Conv3d(channels[0], classes * folded, 1))

    def feature_names(self, unet: UNet) -> tuple[str, ...]:
        """The maps of ``unet`` that ``forward`` needs: the last of each encoder level, finest first, and the middle's.

        Raises:
            ValueError: the network has another number of levels.
        """
        names = level_names(unet)
        if len(names) != len(self.skips) + 1:
            raise ValueError(f"the head reads {len(self.skips)} levels, the network has {len(names) - 1}")
        return names

    def forward(self, features: Mapping[str, Tensor], volume: Tensor | None = None) -> Tensor:
        """Logits [batch, classes, D, H, W].

        Args:
            features: the maps of ``feature_names``, in that order.
            volume: the clean volume [batch, 1, D, H, W] in [-1, 1]; needed with ``input_skip``.

        Raises:
            ValueError: a map too few or too many, or no volume with ``input_skip``.
        """
        *levels, middle = features.values()
        if len(levels) != len(self.skips):
            raise ValueError(f"the head reads {len(self.skips) + 1} maps, not {', '.join(features)}")
        x = self.start(middle)
        for level in reversed(range(len(levels))):
            if level < len(self.ups):
                x = self.ups[level](x)  # narrower first: the interpolation is then cheaper
            if x.shape[2:] != levels[level].shape[2:]:
                x = F.interpolate(x, size=levels[level].shape[2:], mode="trilinear", align_corners=False)
            x = x + self.skips[level](levels[level])
            if level == 0 and self.volume is not None:
                if volume is None:
                    raise ValueError("the head also reads the volume, and none was given")
                x = x + self.volume(fold(volume, self.patch))
            x = self.refine[level](x)
        return unfold(self.out(x), self.patch)


def level_names(unet: UNet) -> tuple[str, ...]:
    """The encoder's last feature of each level, finest first, and the middle's last."""
    last = [n - 1 for n in level_starts(unet)[1:]] + [len(unet.input_blocks) - 1]
    return (*(f"in_{n}" for n in last), f"mid_{len(unet.middle_block) - 1}")


def _norm(channels: int) -> GroupNorm:
    """Normalisation in up to 8 groups, as many as divide the channels."""
    return GroupNorm(math.gcd(8, channels), channels)


class _Projection(nn.Sequential):
    """A feature map to another width. Levels differ in scale by orders of magnitude, so it is normalised first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(_norm(inputs), Conv3d(inputs, outputs, 1))

    def forward(self, input: Tensor) -> Tensor:
        # A frozen encoder's maps have no gradient, and PyTorch's channels-last group normalisation on the CPU then
        # writes the one it need not compute through a null pointer (seen with 2.13).
        frozen = torch.is_grad_enabled() and not input.requires_grad
        return super().forward(input.detach().requires_grad_() if frozen else input)


class _Refinement(nn.Module):
    """Norm, SiLU and a 3x3x3 convolution, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(_norm(channels), nn.SiLU(), Conv3d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)
