"""Features of a noisy pass: whose noise it is, what it repeats, and what it averages."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from orthokernels.models.orthodiffusion import GaussianDiffusion, UNet, feature_noise, features
from tests.models.golden import fill, wave

SHAPE = (1, 4, 8, 8)
# The same float64 sums in another order: 60 layers of sums of 27 * 32 products, each erring by the square root.
REORDERED = 60 * math.sqrt(27 * 32) * 2**-52


@pytest.fixture(scope="module")
def diffusion():
    return GaussianDiffusion()


@pytest.fixture
def unet():
    return fill(UNet(base_channels=8, channel_mults=(1, 2, 2), attention_rates=(4,), groups=4)).double()


@pytest.fixture
def x0():
    return wave((3, *SHAPE), 0.5, 0.37).double()


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_noise_is_standard_normal_and_repeats():
    shape = (1, 16, 64, 64)
    noise = feature_noise(shape, seed=3, draw=1, sample=2)
    assert noise.shape == shape
    assert noise.dtype == torch.float32
    assert torch.equal(noise, feature_noise(shape, seed=3, draw=1, sample=2))
    # Five standard errors of the mean and of the variance.
    assert abs(float(noise.mean())) <= 5 / math.sqrt(noise.numel())
    assert float(noise.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / noise.numel()))


@pytest.mark.parametrize("count", [16, 17, 4096, 16 * 61 * 67 + 5])
def test_noise_is_the_stream_of_pytorch_on_a_cpu(count):
    noise = feature_noise((count,), seed=7)
    seed = 7 * 0x9E3779B97F4A7C15 % 2**63
    # Radii reach 5.8 and the angle 2 pi: each transcendental function may be off by a few units in the last place.
    assert torch.allclose(noise, torch.randn(count, generator=torch.Generator().manual_seed(seed)), rtol=0, atol=2e-6)


def test_fewer_numbers_than_a_run_are_its_first():
    assert torch.equal(feature_noise((5,), seed=2), feature_noise((16,), seed=2)[:5])


def test_noise_of_neighbouring_seeds_draws_and_samples_is_unrelated():
    keys = list(itertools.product((-1, 0, 1), (0, 1), (0, 1)))
    noise = torch.stack(
        [feature_noise((4096,), seed=seed, draw=draw, sample=sample) for seed, draw, sample in keys]
    ).double()
    correlation = torch.corrcoef(noise) - torch.eye(len(keys), dtype=torch.float64)
    # Five standard errors of a correlation; the same or a shifted seed used twice would give 1.
    assert float(correlation.abs().max()) <= 5 / math.sqrt(4096)


def test_features_are_those_of_the_noised_volume(unet, diffusion, x0):
    noise = torch.stack([feature_noise(SHAPE, seed=4, sample=n) for n in range(3)]).double()
    timesteps = torch.full((3,), 100)
    expected = unet.features(diffusion.add_noise(x0, timesteps, noise), timesteps, ("in_1", "mid_2"))
    found = features(unet, diffusion, x0, ("in_1", "mid_2"), seed=4)
    assert list(found) == ["in_1", "mid_2"]
    for name, feature in expected.items():
        assert torch.equal(found[name], feature)


def test_features_of_a_sample_do_not_depend_on_its_batch(unet, diffusion, x0):
    with torch.inference_mode():
        together = features(unet, diffusion, x0, seed=1, draws=2)["mid_2"]
        for n in range(3):
            alone = features(unet, diffusion, x0[n : n + 1], seed=1, draws=2, first_sample=n)["mid_2"]
            assert relative_error(alone, together[n : n + 1]) <= REORDERED
            other = features(unet, diffusion, x0[n : n + 1], seed=1, draws=2, first_sample=n + 1)["mid_2"]
            assert relative_error(other, together[n : n + 1]) > 1e-3


def test_features_repeat_whatever_the_global_generator_does(unet, diffusion, x0):
    with torch.inference_mode():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = features(unet, diffusion, x0, seed=7)["mid_2"]
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(features(unet, diffusion, x0, seed=7)["mid_2"], first)
        assert not torch.equal(features(unet, diffusion, x0, seed=8)["mid_2"], first)


def test_draws_are_averaged(unet, diffusion, x0):
    timesteps = torch.full((3,), 50)
    with torch.inference_mode():
        passes = []
        for draw in range(3):
            noise = torch.stack([feature_noise(SHAPE, seed=2, draw=draw, sample=n) for n in range(3)]).double()
            passes.append(unet.features(diffusion.add_noise(x0, timesteps, noise), timesteps, ("mid_0",))["mid_0"])
        found = features(unet, diffusion, x0, ("mid_0",), timestep=50, seed=2, draws=3)["mid_0"]
    # Three roundings of sums and one of the quotient.
    bound = 4 * 2**-52 * float(found.abs().max())
    torch.testing.assert_close(found, torch.stack(passes).mean(dim=0), rtol=0, atol=bound)


def test_less_noise_brings_features_nearer_to_those_of_the_clean_volume(unet, diffusion, x0):
    with torch.inference_mode():
        distances = []
        for t in (10, 200, 600):
            clean = unet.features(x0 * diffusion.alpha_bar[t].sqrt(), torch.full((3,), t), ("mid_2",))["mid_2"]
            distances.append(relative_error(features(unet, diffusion, x0, timestep=t)["mid_2"], clean))
    assert distances == sorted(distances)


def test_gradient_reaches_the_network_through_the_features(unet, diffusion, x0):
    features(unet, diffusion, x0, draws=2)["mid_2"].square().mean().backward()
    assert float(unet.input_blocks[0][0].weight.grad.abs().max()) > 0


def test_wrong_requests_are_refused(unet, diffusion, x0):
    with pytest.raises(ValueError, match="draws must be at least 1, not 0"):
        features(unet, diffusion, x0, draws=0)
    with pytest.raises(ValueError, match="0 to 999"):
        features(unet, diffusion, x0, timestep=1000)
    with pytest.raises(ValueError, match="no feature called 'mid_9'"):
        features(unet, diffusion, x0, ("mid_9",))
