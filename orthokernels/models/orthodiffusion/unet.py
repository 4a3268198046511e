"""The denoiser of OrthoDiffusion: the guided-diffusion U-Net (Dhariwal & Nichol, arXiv 2105.05233) in three dimensions.

With its default arguments ``UNet()`` is the published network: 34,524,545 parameters under the published names, one
network per plane, and not told which plane it sees. Module names follow the checkpoint, so that its ``ema`` weights
load with ``strict=True``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from orthokernels.models.orthodiffusion.convolution import Conv3d


def timestep_embedding(timesteps: Tensor, dim: int, *, max_period: float = 1000.0) -> Tensor:
    """Sinusoidal embedding of timesteps (Vaswani et al., section 3.5), all cosines first, then all sines.

    Args:
        timesteps: [batch], integer or floating point.
        dim: width of the embedding; an odd width ends in a zero.
        max_period: slowest period over 2 pi. The published network uses 1000, not the customary 10000.

    Returns:
        [batch, dim], float64 for float64 timesteps and float32 for all others.
    """
    dtype = torch.float64 if timesteps.dtype == torch.float64 else torch.float32
    half = dim // 2
    steps = torch.arange(half, dtype=dtype, device=timesteps.device)
    angles = timesteps[:, None].to(dtype) * torch.exp(steps * (-math.log(max_period) / half))  # [batch, half]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, dim % 2))


class GroupNorm(nn.GroupNorm):
    """Group normalisation with float32 arithmetic for half-precision input; the output keeps the input's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        dtype = torch.promote_types(input.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return F.group_norm(input.to(dtype), self.num_groups, weight, bias, self.eps).to(input.dtype)


class SiLU(nn.SiLU):
    """SiLU behind a normalisation, whose output nobody else reads: in place wherever no gradient is recorded."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input, inplace=not (torch.is_grad_enabled() and input.requires_grad))


class ResBlock(nn.Module):
    """Norm, SiLU, conv; plus the time embedding; norm, SiLU, dropout, conv; plus the input.

    The last convolution starts at zero, so that a new block is the identity (up to its 1x1x1 skip).
    """

    def __init__(self, in_channels: int, out_channels: int, embed_dim: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm(groups, in_channels), SiLU(), Conv3d(in_channels, out_channels, 3, padding=1)
        )
        # nn.SiLU, not the in-place one: every block reads the same time embedding.
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(groups, out_channels),
            SiLU(),
            nn.Dropout(dropout),
            zero_init(Conv3d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if in_channels == out_channels else Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        # Both sums go into a convolution's fresh output, which no backward pass reads: at full size a new tensor is
        # 268 MB, and its page faults cost more than the addition. Types differ only under autocast.
        h = self.in_layers(x)
        h.add_(self.emb_layers(emb).to(h.dtype)[:, :, None, None, None])
        h, skip = self.out_layers(h), self.skip_connection(x)
        return h.add_(skip) if h.dtype == skip.dtype else h + skip


class AttentionBlock(nn.Module):
    """Self-attention over all voxels, added to its input. The projection of the result starts at zero."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2))  # [batch, channels, voxels]
        # Legacy order of guided-diffusion: the channels are split into heads first, then each head into q, k, v.
        q, k, v = self.qkv(tokens).unflatten(1, (self.heads, -1)).transpose(2, 3).chunk(3, dim=3)
        # Half of the usual scale on each side, before the product, keeps half precision from overflowing.
        scale = q.shape[-1] ** -0.25
        h = F.scaled_dot_product_attention(q * scale, k * scale, v, scale=1.0)  # [batch, heads, voxels, head channels]
        h = self.proj_out(h.transpose(2, 3).flatten(1, 2))
        return x + h.reshape(x.shape)


class Downsample(nn.Module):
    """Convolution of stride 2 in depth, height and width; odd sizes round up, so a depth of 1 stays 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = Conv3d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Trilinear interpolation to the size of the skip that comes next, then a convolution.

    For an even skip this is the published doubling. An odd skip (or a depth of 1) came from a rounded-up half, and is
    met by interpolating straight to its size.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="trilinear", align_corners=False))


class Block(nn.Sequential):
    """One numbered block of encoder or decoder: each layer is given what it needs of embedding and target size."""

    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, size: torch.Size | None = None
    ) -> Tensor:
        for layer in self:
            x = _apply(layer, x, emb, size)
        return x


def _apply(layer: nn.Module, x: Tensor, emb: Tensor, size: torch.Size | None) -> Tensor:
    if isinstance(layer, Block):
        return layer(x, emb, size)
    if isinstance(layer, ResBlock):
        return layer(x, emb)
    if isinstance(layer, Upsample):
        return layer(x, size)
    return layer(x)


class UNet(nn.Module):
    """Predicts the noise in a noisy volume, and gives away every intermediate feature map on the way.

    Args:
        in_channels: channels of the volume.
        out_channels: channels of the prediction.
        base_channels: width of the first level, and of the sinusoidal time embedding.
        channel_mults: width of each level as a multiple of ``base_channels``; one halving of depth, height and width
            between two levels.
        res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_rates: down-sampling rates (1, 2, 4, ...) whose blocks end in self-attention. The middle always has
            one.
        heads: attention heads.
        head_channels: channels per head, instead of ``heads``.
        groups: groups of every normalisation; must divide the width of every level.
        dropout: probability, before the last convolution of a residual block.
        patch: voxels along depth, height and width that the network sees as one, their values as channels: the input
            is unfolded once, the prediction folded back, and every feature map is that much smaller. (1, 1, 1) is the
            published network.
        checkpoint: recompute each block in the backward pass instead of keeping its activations.

    Raises:
        ValueError: ``groups`` or the heads do not divide a width.

    ``feature_names`` lists what ``features`` can return, in the order of computation.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        base_channels: int = 64,
        channel_mults: tuple[int, ...] = (1, 1, 2, 2, 4),
        res_blocks: int = 1,
        attention_rates: Iterable[int] = (16,),
        heads: int = 1,
        head_channels: int | None = None,
        groups: int = 32,
        dropout: float = 0.0,
        patch: tuple[int, int, int] = (1, 1, 1),
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        widths = [base_channels * mult for mult in channel_mults]
        if any(width % groups for width in [base_channels, *widths]):
            raise ValueError(f"groups={groups} does not divide every width: {base_channels} at first, levels {widths}")
        self.base_channels = base_channels
        self.heads, self.head_channels, self.groups = heads, head_channels, groups
        self.patch = (patch[0], patch[1], patch[2])
        self.checkpoint = checkpoint
        folded = math.prod(self.patch)
        embed_dim = 4 * base_channels
        attended = {level for level in range(len(widths)) if 2**level in set(attention_rates)}

        def residual(inputs: int, outputs: int) -> ResBlock:
            return ResBlock(inputs, outputs, embed_dim, groups, dropout)

        def attention(channels: int) -> AttentionBlock:
            if channels % (head_channels or heads):
                raise ValueError(f"a width of {channels} does not split into {heads=}, {head_channels=}")
            return AttentionBlock(channels, channels // head_channels if head_channels else heads, groups)

        self.time_embed = nn.Sequential(nn.Linear(base_channels, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim))

        encoder = [Block(Conv3d(in_channels * folded, base_channels, 3, padding=1))]
        skips = [base_channels]
        for level, width in enumerate(widths):
            for _ in range(res_blocks):
                layers: list[nn.Module] = [residual(skips[-1], width)]
                if level in attended:
                    layers.append(attention(width))
                encoder.append(Block(*layers))
                skips.append(width)
            if level < len(widths) - 1:
                encoder.append(Block(Downsample(width)))
                skips.append(width)
        self.input_blocks = nn.ModuleList(encoder)

        width = widths[-1]
        self.middle_block = nn.ModuleList([residual(width, width), attention(width), residual(width, width)])

        decoder = []
        inputs = width
        for level, width in reversed(list(enumerate(widths))):
            for index in range(res_blocks + 1):
                layers = [residual(inputs + skips.pop(), width)]
                if level in attended:
                    layers.append(attention(width))
                if level > 0 and index == res_blocks:
                    layers.append(Upsample(width))
                decoder.append(Block(*layers))
                inputs = width
        self.output_blocks = nn.ModuleList(decoder)

        self.out = nn.Sequential(
            GroupNorm(groups, inputs), SiLU(), zero_init(Conv3d(inputs, out_channels * folded, 3, padding=1))
        )
        self.feature_names = tuple(name for name, _ in self._blocks())

    def _blocks(self) -> list[tuple[str, nn.Module]]:
        """Every block with its public name, in the order of computation."""
        named = (("in", self.input_blocks), ("mid", self.middle_block), ("out", self.output_blocks))
        blocks = [(f"{part}_{i}", block) for part, blocks in named for i, block in enumerate(blocks)]
        return [*blocks, ("final", self.out)]

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            x: noisy volumes [batch, in_channels, depth, height, width], any size, contiguous or channels-last.
            timesteps: [batch], integer or floating point.

        Returns:
            [batch, out_channels, depth, height, width].
        """
        return self.features(x, timesteps, ("final",))["final"]

    def features(self, x: Tensor, timesteps: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Compute feature maps, and nothing behind the last of them.

        Args:
            x: noisy volumes [batch, in_channels, depth, height, width].
            timesteps: [batch], integer or floating point.
            names: of ``feature_names``: "in_0" on, "mid_0" to "mid_2", "out_0" on, and "final", the prediction.

        Returns:
            Each name with its map [batch, channels, depth', height', width'], in the order of computation.

        Raises:
            ValueError: an unknown name, no name at all, timesteps of another shape than [batch], or a side that the
                patch does not divide.
        """
        wanted = tuple(names)
        unknown = [name for name in wanted if name not in self.feature_names]
        if unknown or not wanted:
            asked = f"no feature called {', '.join(map(repr, unknown))}" if unknown else "no feature was asked for"
            raise ValueError(f"{asked}; this network has {', '.join(self.feature_names)}")
        if timesteps.shape != x.shape[:1]:
            raise ValueError(f"timesteps of shape {tuple(timesteps.shape)} for a batch of {x.shape[0]}")

        x = fold(x, self.patch)
        last = max(self.feature_names.index(name) for name in wanted)
        # Without a decoder to come, an encoder feature is let go of as soon as the next block has read it.
        decodes = last >= self.feature_names.index("out_0")
        skips: list[Tensor] = []
        found: dict[str, Tensor] = {}
        emb = self._embed(timesteps)
        for name, block in self._blocks()[: last + 1]:
            if name.startswith("out_"):
                x = self._join(x, skips.pop())
            size = skips[-1].shape[2:] if skips else None
            if self.checkpoint and torch.is_grad_enabled():
                x = recompute(_apply, block, x, emb, size, use_reentrant=False)
            else:
                x = _apply(block, x, emb, size)
            if decodes and name.startswith("in_"):
                skips.append(x)
            if name in wanted:
                found[name] = unfold(x, self.patch) if name == "final" else x
        return found

    def _join(self, x: Tensor, skip: Tensor) -> Tensor:
        """What a block of the decoder is given."""
        return torch.cat([x, skip], dim=1)

    def _embed(self, timesteps: Tensor) -> Tensor:
        dtype = next(self.time_embed.parameters()).dtype
        if dtype == torch.float64:
            timesteps = timesteps.double()
        return self.time_embed(timestep_embedding(timesteps, self.base_channels).to(dtype))


def level_starts(unet: UNet) -> list[int]:
    """The encoder block at which each level begins, finest first."""
    return [0, *(n for n, block in enumerate(unet.input_blocks) if isinstance(block[0], Downsample))]  # type: ignore[index]


def fold(x: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Space to channels: [batch, C, D, H, W] -> [batch, C d h w, D / d, H / h, W / w] for a patch (d, h, w).

    Place (i, j, k) of the patch in channel c becomes channel ((c d + i) h + j) w + k, in ``pixel_unshuffle``'s order.
    The memory format is kept.

    Raises:
        ValueError: the patch does not divide a side.
    """
    if patch == (1, 1, 1):
        return x
    batch, channels, *sides = x.shape
    if any(side % p for side, p in zip(sides, patch, strict=True)):
        raise ValueError(f"a patch of {patch} does not divide a volume of {tuple(sides)}")
    (d, h, w), (depth, height, width) = patch, (side // p for side, p in zip(sides, patch, strict=True))
    apart = x.reshape(batch, channels, depth, d, height, h, width, w).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return apart.reshape(batch, channels * d * h * w, depth, height, width).contiguous(memory_format=_format(x))


def unfold(x: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Channels to space, the inverse of ``fold``: [batch, C d h w, D, H, W] -> [batch, C, D d, H h, W w]."""
    if patch == (1, 1, 1):
        return x
    batch, channels, depth, height, width = x.shape
    d, h, w = patch
    apart = x.reshape(batch, channels // (d * h * w), d, h, w, depth, height, width).permute(0, 1, 5, 2, 6, 3, 7, 4)
    whole = apart.reshape(batch, channels // (d * h * w), depth * d, height * h, width * w)
    return whole.contiguous(memory_format=_format(x))


def _format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
    return torch.channels_last_3d if last else torch.contiguous_format


def zero_init(conv: nn.Conv1d | nn.Conv3d) -> nn.Module:
    """The convolution with weight and bias set to zero."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
