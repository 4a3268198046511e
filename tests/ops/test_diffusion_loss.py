"""Noising and the denoiser's loss: every backend against the float64 definition, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orthokernels.backends.torch.philox import normal
from orthokernels.models.orthodiffusion import GaussianDiffusion
from orthokernels.ops import add_noise, diffusion_loss
from orthokernels.ops.add_noise import reference as noised
from orthokernels.ops.diffusion_loss import reference, target_shares

pytest.importorskip("triton", reason="Triton is not installed")

SHAPES = [(2, 1, 3, 5, 7), (3, 2, 1, 1, 1), (2, 4, 5, 11, 13)]
SEED = torch.tensor([2**40 + 5])
SHARES = torch.tensor([[0.8, 0.6], [0.28, 0.96], [1.0, 0.0]])


def volume(shape, seed: int, *, channels_last=False, dtype=torch.float32) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return made.contiguous(memory_format=torch.channels_last_3d) if channels_last else made


def drawn(x: Tensor, step: int) -> Tensor:
    return normal(x.numel(), SEED, step).as_strided(x.shape, x.stride())


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("inside", [True, False])
def test_noise_is_added_as_defined(shape, channels_last, backend, inside):
    x0, shares = volume(shape, 0, channels_last=channels_last), SHARES[: shape[0]]
    noise = drawn(x0, 3) if inside else volume(shape, 1)
    given = {"seed": SEED, "step": 3} if inside else {"noise": noise}
    found = add_noise(x0, shares, **given, backend=backend)
    # Two products of numbers below 4 and their sum, rounded to float32, and the noise's logarithm and cosine.
    torch.testing.assert_close(found.double(), noised(x0.double(), shares, noise.double()), rtol=0, atol=2e-6)
    assert found.stride() == x0.stride()


def both_ways(function, prediction: Tensor, *arguments, **options) -> list[Tensor]:
    leaf = prediction.detach().requires_grad_()
    loss = function(leaf, *arguments, **options)
    return [loss.detach(), *torch.autograd.grad(3 * loss, leaf)]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow"])
@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
def test_loss_and_gradient_are_their_definition(shape, kind, weighted, norm, backend):
    x0, prediction = volume(shape, 0), volume(shape, 2, channels_last=True)
    target, weight = target_shares(kind, SHARES[: shape[0]]), torch.tensor([0.3, 2.0]) if weighted else None
    options = {"weight": weight, "norm": norm}
    found = both_ways(diffusion_loss, prediction, x0, target, seed=SEED, step=3, **options, backend=backend)
    exact = both_ways(reference, prediction.double(), x0.double(), target, drawn(x0, 3).double(), **options)
    # A mean of some thousand float32 numbers below 20; a gradient is one of them over their count.
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[1].double(), exact[1], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_loss_draws_the_noise_that_was_added(backend):
    x0 = volume(SHAPES[2], 0)
    noisy = add_noise(x0, SHARES[:2], seed=SEED, step=9, backend=backend)
    signal, share = (own.view(-1, 1, 1, 1, 1) for own in SHARES[:2].unbind(1))
    perfect = (noisy - signal * x0) / share  # predicts just the noise that was added
    loss = diffusion_loss(perfect, x0, target_shares("epsilon", SHARES[:2]), seed=SEED, step=9, backend=backend)
    assert loss < 1e-11
    other = diffusion_loss(perfect, x0, target_shares("epsilon", SHARES[:2]), seed=SEED, step=10, backend=backend)
    assert other > 1.5  # of two independent unit normals


def test_it_is_what_pre_training_minimises():
    diffusion, x0 = GaussianDiffusion(), volume(SHAPES[2], 0)
    noise, timesteps, prediction = volume(SHAPES[2], 1), torch.tensor([10, 900]), volume(SHAPES[2], 2)
    want = diffusion.loss(lambda x, t: prediction, x0, timesteps, noise, "l2", min_snr_gamma=5)
    alpha_bar = diffusion.alpha_bar[timesteps].double()
    shares = torch.stack([alpha_bar.sqrt(), (1 - alpha_bar).sqrt()], dim=1).float()
    weight = ((alpha_bar / (1 - alpha_bar)).clamp(max=5) / (alpha_bar / (1 - alpha_bar))).float()
    target = target_shares("epsilon", shares)
    found = diffusion_loss(prediction, x0, target, noise=noise, weight=weight, backend="triton")
    torch.testing.assert_close(found, want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    shape = SHAPES[2]
    x0, noise, prediction = (volume(shape, seed, dtype=dtype) for seed in range(3))
    target = target_shares("v_prediction", SHARES[:2])
    found = both_ways(diffusion_loss, prediction, x0, target, noise=noise, backend="triton")
    exact = both_ways(reference, prediction.double(), x0.double(), target, noise.double())
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-5, atol=0)
    assert found[1].dtype == dtype
    # One rounding; gradients of 1e-4 are below float16's normal numbers, whose steps are 6e-8.
    torch.testing.assert_close(found[1].double(), exact[1], rtol=2e-3, atol=6e-8)


def test_two_runs_give_the_same_bytes():
    x0, prediction = volume((2, 4, 9, 17, 13), 0), volume((2, 4, 9, 17, 13), 1)
    target = target_shares("epsilon", SHARES[:2])
    runs = [both_ways(diffusion_loss, prediction, x0, target, seed=SEED, backend="triton") for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_registration_passes_opcheck(channels_last, backend):
    x0, prediction = (volume((2, 4, 1, 2, 3), seed, channels_last=channels_last) for seed in (0, 1))
    target = target_shares("epsilon", SHARES[:2])
    torch.library.opcheck(torch.ops.orthokernels.add_noise.default, (x0, SHARES[:2], None, SEED, 1, backend))
    arguments = (prediction.requires_grad_(), x0, target, None, SEED, 1, torch.ones(2), True, backend)
    torch.library.opcheck(torch.ops.orthokernels.diffusion_loss.default, arguments)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_gradient_passes_gradcheck(norm):
    x0, noise, prediction = (volume((2, 1, 2, 2, 3), seed, dtype=torch.float64) for seed in range(3))
    target, weight = target_shares("v_prediction", SHARES[:2]), torch.tensor([0.5, 2.0])
    assert torch.autograd.gradcheck(
        lambda p: diffusion_loss(p, x0, target, noise=noise, weight=weight, norm=norm), prediction.requires_grad_()
    )


def test_bad_arguments_are_named():
    x0, shares = volume(SHAPES[0], 0), SHARES[:2]
    target = target_shares("epsilon", shares)
    with pytest.raises(ValueError, match=r"^noise and seed: give one of them"):
        add_noise(x0, shares)
    with pytest.raises(ValueError, match=r"^shares: .* must be torch.float32 of shape \(2, 2\)"):
        add_noise(x0, shares[:1], seed=SEED)
    with pytest.raises(ValueError, match=r"^x0: wants a gradient"):
        add_noise(x0.clone().requires_grad_(), shares, seed=SEED)
    with pytest.raises(ValueError, match=r"^prediction: "):
        diffusion_loss(x0[:1], x0, target, seed=SEED)
    with pytest.raises(ValueError, match=r"^weight: "):
        diffusion_loss(x0, x0, target, seed=SEED, weight=torch.ones(3))
    with pytest.raises(ValueError, match=r"^norm: 'huber'"):
        diffusion_loss(x0, x0, target, seed=SEED, norm="huber")
    with pytest.raises(ValueError, match=r"^weight: wants a gradient"):
        diffusion_loss(x0, x0, target, seed=SEED, weight=torch.ones(2, requires_grad=True))
    with pytest.raises(ValueError, match=r"^prediction: 'x'; there are epsilon, sample"):
        target_shares("x", shares)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_weight_of_any_strides_is_read_as_it_is(backend):
    x0, prediction = volume((3, 2, 1, 2, 3), 0), volume((3, 2, 1, 2, 3), 2)
    target = target_shares("v_prediction", SHARES)
    apart = torch.tensor([[0.3, 9.0], [2.0, 9.0], [0.7, 9.0]])[:, 0]
    for weight in (torch.tensor(0.4).expand(3), apart):
        found, want = (
            both_ways(diffusion_loss, prediction, x0, target, seed=SEED, weight=own, backend=backend)
            for own in (weight, weight.clone(memory_format=torch.contiguous_format))
        )
        assert all(torch.equal(own, other) for own, other in zip(found, want, strict=True))
