"""The published segmentation head: from the bottleneck's features straight up to the input's resolution."""

from __future__ import annotations

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with group normalisation, added to the input, ReLU last."""

    def __init__(self, channels: int, groups: int = 8) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv3d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels, channels, 3, padding=1),
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
            nn.Conv3d(16, classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
