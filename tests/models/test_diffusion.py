"""The diffusion process against its own definition: Bayes' rule, an oracle, and data whose best denoiser is known."""

from __future__ import annotations

import math

import pytest
import torch

from orthokernels.models.orthodiffusion.diffusion import GaussianDiffusion, cosine_schedule
from tests.models.golden import wave

SHAPE = (2, 1, 4, 8, 8)
# Float64 arithmetic of a few operations on numbers of size 1; at the last timesteps the division by
# sqrt(alpha_bar) = 5e-5 amplifies by 2e4.
FEW_ROUNDINGS = 20 * 2**-52
AMPLIFIED = 2e4 * FEW_ROUNDINGS


@pytest.fixture(scope="module")
def diffusion():
    return GaussianDiffusion()


def volumes(start):
    return wave(SHAPE, start, 0.7).double()


def unit_noise(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class GaussianDenoiser:
    """The exact noise predictor for voxels drawn from N(mean, std**2), which is linear; remembers its timesteps.

    x = sqrt(a) x0 + sqrt(1 - a) eps is jointly Gaussian with eps, so E[eps | x] follows from their covariance
    sqrt(1 - a) and the variance of x, a std**2 + 1 - a.
    """

    def __init__(self, diffusion, mean, std):
        self.alpha_bar, self.mean, self.std = diffusion.alpha_bar, mean, std
        self.timesteps = []

    def __call__(self, x, timesteps):
        assert timesteps.shape == x.shape[:1]
        self.timesteps.append(int(timesteps[0]))
        a = float(self.alpha_bar[timesteps[0]])
        return math.sqrt(1 - a) * (x - math.sqrt(a) * self.mean) / (a * self.std**2 + 1 - a)


def test_schedule_of_any_length_ends_in_noise():
    for steps in (10, 1000):
        betas = cosine_schedule(steps)
        assert betas.shape == (steps,)
        assert betas.dtype == torch.float64
        assert bool((betas[1:] >= betas[:-1]).all())
        assert float(betas.min()) > 0
        assert float(betas.max()) == 0.999
        assert float(GaussianDiffusion(betas).alpha_bar[-1]) < 1e-4


def test_noising_mixes_signal_and_noise_so_that_variance_is_kept(diffusion):
    ones, zeros = torch.ones(SHAPE, dtype=torch.float64), torch.zeros(SHAPE, dtype=torch.float64)
    for t in (0, 100, 999):
        timesteps = torch.full((2,), t)
        signal, sigma = diffusion.add_noise(ones, timesteps, zeros), diffusion.add_noise(zeros, timesteps, ones)
        expected = torch.full_like(signal, math.sqrt(float(diffusion.alpha_bar[t])))
        torch.testing.assert_close(signal, expected, rtol=FEW_ROUNDINGS, atol=0)
        torch.testing.assert_close(signal**2 + sigma**2, ones, rtol=FEW_ROUNDINGS, atol=0)


def test_noising_has_the_mean_and_variance_of_equation_4(diffusion):
    shape = (2, 1, 16, 64, 64)
    noisy = diffusion.add_noise(torch.full(shape, 0.5), torch.tensor([100, 700]), unit_noise(0, shape).float())
    count = math.prod(shape[1:])
    for volume, t in zip(noisy.double(), (100, 700), strict=True):
        a = float(diffusion.alpha_bar[t])
        # Five standard errors: sigma / sqrt(n) of a mean, sqrt(2 / n) relative of a variance.
        assert float(volume.mean()) == pytest.approx(0.5 * math.sqrt(a), abs=5 * math.sqrt((1 - a) / count))
        assert float(volume.var()) == pytest.approx(1 - a, rel=5 * math.sqrt(2 / count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noising_keeps_the_dtype(diffusion, dtype):
    x0, noise = volumes(0.1).to(dtype), volumes(0.2).to(dtype)
    found = diffusion.add_noise(x0, torch.tensor([5, 600]), noise)
    assert found.dtype == dtype
    exact = diffusion.add_noise(x0.double(), torch.tensor([5, 600]), noise.double())
    # Four roundings (two coefficients, two products) and that of the sum, each of half an epsilon of at most 1.42.
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=5 * 0.5 * torch.finfo(dtype).eps * 1.42)


def test_clean_volume_is_recovered_from_the_true_noise(diffusion):
    x0, noise, timesteps = volumes(0.1), unit_noise(1), torch.tensor([0, 999])
    found = diffusion.predict_x0(diffusion.add_noise(x0, timesteps, noise), timesteps, noise)
    torch.testing.assert_close(found, x0, rtol=0, atol=AMPLIFIED)


@pytest.mark.parametrize(("kind", "expected"), [("l1", 0.5), ("l2", 0.25)])
def test_loss_is_the_mean_error_of_the_noise(diffusion, kind, expected):
    x0, noise, timesteps = volumes(0.1), unit_noise(2), torch.tensor([3, 500])
    seen = []

    def denoiser(x, t):
        seen.append((x, t))
        return noise + 0.5

    assert float(diffusion.loss(denoiser, x0, timesteps, noise, kind)) == pytest.approx(expected, rel=1e-12)
    assert torch.equal(seen[0][0], diffusion.add_noise(x0, timesteps, noise))
    assert torch.equal(seen[0][1], timesteps)


def test_loss_of_unknown_kind_is_refused(diffusion):
    with pytest.raises(ValueError, match="'huber'"):
        diffusion.loss(lambda x, t: x, volumes(0.1), torch.tensor([3, 4]), volumes(0.2), "huber")


@pytest.mark.parametrize("t", [1, 100, 900, 998])
def test_ddpm_step_draws_from_the_posterior_of_bayes(diffusion, t):
    x0, noise = volumes(0.1), unit_noise(3)
    x = diffusion.add_noise(x0, torch.tensor([t, t]), noise)
    # q(x_{t-1} | x_t, x_0) is the product of two Gaussians in x_{t-1}: what one step adds noise to, and what x_0 says.
    beta, before = float(diffusion.betas[t]), float(diffusion.alpha_bar[t - 1])
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = (math.sqrt(1 - beta) / beta * x + math.sqrt(before) / (1 - before) * x0) / precision
    found = diffusion.ddpm_step(x, t, noise, torch.zeros_like(x), clip=False)
    torch.testing.assert_close(found, mean, rtol=0, atol=AMPLIFIED)
    spread = diffusion.ddpm_step(x, t, noise, torch.ones_like(x), clip=False) - found
    torch.testing.assert_close(spread, torch.full_like(spread, precision**-0.5), rtol=0, atol=AMPLIFIED)


def test_last_ddpm_step_gives_the_clean_volume_without_noise(diffusion):
    x0, noise = volumes(0.1), unit_noise(4)
    x = diffusion.add_noise(x0, torch.tensor([0, 0]), noise)
    found = diffusion.ddpm_step(x, 0, noise, torch.full(SHAPE, torch.nan))
    torch.testing.assert_close(found, x0, rtol=0, atol=FEW_ROUNDINGS)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("t", [0, 1, 100, 900, 999])
def test_ddim_with_eta_1_to_the_next_timestep_is_ddpm(diffusion, t, clip):
    x, predicted, fresh = 0.8 * unit_noise(5), unit_noise(6), unit_noise(7)
    ddpm = diffusion.ddpm_step(x, t, predicted, fresh, clip=clip)
    ddim = diffusion.ddim_step(x, t, t - 1, predicted, fresh, eta=1.0, clip=clip)
    # Unclipped, the predicted volume at t = 999 is 2e4 large, and its errors are as much larger.
    torch.testing.assert_close(ddim, ddpm, rtol=AMPLIFIED, atol=AMPLIFIED)


@pytest.mark.parametrize("target", [98, 40, -1])
def test_ddim_step_with_the_true_noise_stays_on_its_path(diffusion, target):
    x0, noise = volumes(0.1), unit_noise(8)
    x = diffusion.add_noise(x0, torch.tensor([99, 99]), noise)
    found = diffusion.ddim_step(x, 99, target, noise, torch.full(SHAPE, 5.0), eta=0.0, clip=False)
    expected = x0 if target < 0 else diffusion.add_noise(x0, torch.tensor([target, target]), noise)
    torch.testing.assert_close(found, expected, rtol=0, atol=FEW_ROUNDINGS)


@pytest.mark.parametrize(("eta", "steps"), [(None, 1000), (0.0, 1000), (0.0, 100), (0.5, 250), (1.0, 1000)])
def test_whole_loop_with_the_exact_denoiser_gives_the_data(diffusion, eta, steps):
    mean, std, shape = 0.3, 0.2, (1, 1, 16, 32, 32)
    denoiser = GaussianDenoiser(diffusion, mean, std)
    found = diffusion.sample(denoiser, shape, seed=1, steps=steps, eta=eta, clip=False, dtype=torch.float64)
    count = math.prod(shape)
    assert len(denoiser.timesteps) == steps
    # Four standard errors of the draw, and what finite steps cost: 1000 steps leave the deviation within 1% of the
    # data's, and the error of these first-order samplers grows in proportion to the length of a step.
    coarse = 0.01 * 1000 / steps
    assert float(found.mean()) == pytest.approx(mean, abs=std * (4 / math.sqrt(count) + coarse))
    assert float(found.std()) == pytest.approx(std, rel=4 / math.sqrt(2 * count) + coarse)


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
def test_ddim_visits_the_asked_number_of_timesteps_from_pure_noise_down(diffusion, steps):
    denoiser = GaussianDenoiser(diffusion, 0.0, 0.5)
    found = diffusion.sample(denoiser, SHAPE, seed=0, steps=steps, eta=0.0)
    visited = denoiser.timesteps
    assert len(visited) == steps
    assert visited[0] == 999
    assert visited == sorted(set(visited), reverse=True)
    assert bool(found.isfinite().all())


def test_sampling_repeats_its_seed_and_leaves_the_global_generator_alone(diffusion):
    denoiser = GaussianDenoiser(diffusion, 0.1, 0.3)
    for settings in ({}, {"steps": 20, "eta": 0.0}, {"steps": 20, "eta": 0.7}):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = diffusion.sample(denoiser, SHAPE, seed=5, **settings)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(diffusion.sample(denoiser, SHAPE, seed=5, **settings), first)
        assert not torch.equal(diffusion.sample(denoiser, SHAPE, seed=6, **settings), first)


def test_clipping_keeps_a_wild_denoiser_inside_the_data(diffusion):
    def wild(x, _timesteps):
        return -100 * torch.ones_like(x)

    for settings in ({}, {"steps": 10, "eta": 0.0}, {"steps": 10, "eta": 1.0}):
        found = diffusion.sample(wild, SHAPE, seed=0, **settings)
        # The last step returns the clipped volume itself, up to the rounding of its coefficients.
        assert float(found.abs().max()) <= 1 + 4 * 2**-23
        assert float(diffusion.sample(wild, SHAPE, seed=0, clip=False, **settings).abs().max()) > 1.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": 50}, "give eta=0"), ({"steps": 0, "eta": 0.0}, "not 0"), ({"steps": 1001, "eta": 0.0}, "not 1001")],
)
def test_steps_that_a_sampler_cannot_take_are_refused(diffusion, settings, message):
    with pytest.raises(ValueError, match=message):
        diffusion.sample(lambda x, t: x, SHAPE, seed=0, **settings)


def test_timesteps_outside_the_schedule_and_foreign_noise_are_refused(diffusion):
    x0 = volumes(0.1)
    for t in (-1, 1000):
        with pytest.raises(ValueError, match=rf"0 to 999, not \[0, {t}\]"):
            diffusion.add_noise(x0, torch.tensor([0, t]), x0)
    with pytest.raises(ValueError, match="noise has shape"):
        diffusion.add_noise(x0, torch.tensor([0, 1]), x0[:1])
