"""The segmentation heads beyond the published one's golden figures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from orthokernels.models.orthodiffusion.segmentation import (
    MultiscaleSegmentationHead,
    ResidualBlock,
    SegmentationHead,
)
from orthokernels.models.orthodiffusion.unet import UNet
from tests.models.golden import fill, wave

# Float64 through eleven layers, each a sum of up to 27 * 128 products that errs by the square root.
ROUNDING = 11 * 60 * 2**-52


@pytest.mark.parametrize(("channels", "classes", "size"), [(256, 12, (1, 2, 2)), (48, 3, (2, 1, 3))])
def test_map_comes_back_at_sixteen_times_its_size(channels, classes, size):
    head = fill(SegmentationHead(channels, classes))
    with torch.inference_mode():
        logits = head(wave((1, channels, *size), 0.2, 0.7))
    assert logits.shape == (1, classes, *(16 * n for n in size))
    assert bool(logits.isfinite().all())
    assert float(logits.std(dim=(0, 2, 3, 4)).min()) > 0


def test_residual_block_is_two_normalised_convolutions_around_the_input():
    block = fill(ResidualBlock(16, groups=4)).double()
    x = wave((2, 16, 3, 4, 5), 0.1, 0.7).double()
    first, first_norm, _, second, second_norm = block.block
    h = nn.functional.conv3d(x, first.weight, first.bias, padding=1)
    h = nn.functional.group_norm(h, 4, first_norm.weight, first_norm.bias).clamp(min=0)
    h = nn.functional.conv3d(h, second.weight, second.bias, padding=1)
    h = nn.functional.group_norm(h, 4, second_norm.weight, second_norm.bias)
    torch.testing.assert_close(block(x), (x + h).clamp(min=0), rtol=0, atol=ROUNDING)


def test_in_place_activations_leave_the_feature_map_alone():
    x = wave((1, 32, 1, 2, 2), 0.2, 0.7)
    with torch.no_grad():
        fill(SegmentationHead(32, 3))(x)
        fill(ResidualBlock(32))(x)
    assert torch.equal(x, wave((1, 32, 1, 2, 2), 0.2, 0.7))


def test_channels_last_equals_contiguous():
    head = fill(SegmentationHead(32, 3)).double()
    x = wave((2, 32, 1, 2, 3), 0.2, 0.7).double()
    with torch.inference_mode():
        contiguous = head(x)
        last = head.to(memory_format=torch.channels_last_3d)(x.to(memory_format=torch.channels_last_3d))
    assert float((last - contiguous).norm() / contiguous.norm()) <= ROUNDING


def test_gradient_reaches_every_parameter():
    head = fill(SegmentationHead(32, 3))
    nn.functional.cross_entropy(head(wave((1, 32, 1, 2, 2), 0.2, 0.7)), torch.zeros(1, 16, 32, 32).long()).backward()
    for name, parameter in head.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, name


def multiscale(patch=(1, 2, 2), **options):
    """A small denoiser with three levels and the head that fits it."""
    torch.manual_seed(0)
    unet = UNet(base_channels=8, channel_mults=(1, 2, 2), groups=4, attention_rates=(4,), patch=patch)
    return unet, MultiscaleSegmentationHead((8, 16, 16, 16), 3, patch=patch, **options)


def maps_of(unet, head, x):
    return unet.features(x, torch.zeros(x.shape[0]), head.feature_names(unet))


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("size", [(16, 16, 24), (3, 10, 6)])
def test_multiscale_logits_have_the_volumes_own_size(patch, size):
    unet, head = multiscale(patch)
    x = wave((2, 1, *size), 0.2, 0.7)
    logits = head(maps_of(unet, head, x), x)
    assert logits.shape == (2, 3, *size)
    assert bool(logits.isfinite().all())


def test_multiscale_head_reads_the_last_map_of_every_level():
    unet, head = multiscale()
    assert head.feature_names(unet) == ("in_1", "in_3", "in_5", "mid_2")
    deeper = UNet(base_channels=8, channel_mults=(1, 2), groups=4, res_blocks=2)
    assert MultiscaleSegmentationHead((8, 16, 16), 3).feature_names(deeper) == ("in_2", "in_5", "mid_2")
    with pytest.raises(ValueError, match="reads 3 levels, the network has 2"):
        head.feature_names(deeper)


def test_multiscale_head_of_the_demo_network_is_small():
    head = MultiscaleSegmentationHead((16, 32, 32, 48, 48), 12, patch=(1, 2, 2))
    assert 100_000 < sum(p.numel() for p in head.parameters()) < 250_000


def test_multiscale_gradients_reach_every_parameter_and_the_encoder():
    unet, head = multiscale()
    x = wave((1, 1, 4, 8, 8), 0.2, 0.7)
    F.cross_entropy(head(maps_of(unet, head, x), x), torch.arange(256).reshape(1, 4, 8, 8) % 3).backward()
    for name, parameter in head.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, name
    assert float(unet.input_blocks[0][0].weight.grad.abs().max()) > 0


def test_multiscale_gradients_equal_finite_differences():
    unet, head = multiscale(channels=(4, 4, 4))
    unet, head = unet.double(), head.double()
    x = wave((1, 1, 8, 8, 8), 0.2, 0.7).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: head(maps_of(unet, head, v), v), x, fast_mode=True)


def test_multiscale_head_without_the_volume_says_so():
    unet, head = multiscale()
    x = wave((1, 1, 4, 8, 8), 0.2, 0.7)
    with pytest.raises(ValueError, match="also reads the volume"):
        head(maps_of(unet, head, x))
    _, blind = multiscale(input_skip=False)
    assert blind(maps_of(unet, blind, x)).shape == (1, 3, 4, 8, 8)


def test_multiscale_head_draws_lines_thinner_than_a_patch():
    unet, head = multiscale()
    torch.manual_seed(0)
    truth = (torch.arange(16).view(1, 1, 1, 16) % 8 == torch.tensor([2, 5]).view(2, 1, 1, 1)).expand(2, 4, 16, 16)
    x = truth[:, None].float() + 0.1 * torch.randn(2, 1, 4, 16, 16)
    found = {name: m.detach() for name, m in maps_of(unet, head, x).items()}
    optimiser = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(head(found, x), truth.long()).backward()
        optimiser.step()
    # Lines one voxel wide, at a signal ten times the noise: all of them.
    assert torch.equal(head(found, x).argmax(dim=1) == 1, truth)


def test_multiscale_head_learns_on_a_frozen_channels_last_encoder():
    unet, head = multiscale()
    x = wave((2, 1, 8, 16, 16), 0.2, 0.7).to(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        found = maps_of(unet.to(memory_format=torch.channels_last_3d), head, x)
    F.cross_entropy(head(found, x), torch.zeros(2, 8, 16, 16).long()).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in head.parameters())
