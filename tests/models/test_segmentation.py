"""The segmentation head beyond its golden figures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orthokernels.models.orthodiffusion.segmentation import ResidualBlock, SegmentationHead
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
