"""A sampler's step: every backend against the definition, the noise inside against the generator's known answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orthokernels.backends.torch.philox import normal, philox
from orthokernels.ops import denoise_step
from orthokernels.ops.denoise_step import reference

pytest.importorskip("triton", reason="Triton is not installed")

SHAPES = [(2, 1, 3, 5, 7), (3, 2, 1, 1, 1), (1, 4, 5, 11, 13)]
SEED = torch.tensor([2**40 + 5])


def made(shape, dtype=torch.float32, *, channels_last=False) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    found = {name: torch.randn(shape, generator=draw).to(dtype) for name in ("x", "output", "previous")}
    if channels_last:
        found = {name: volume.contiguous(memory_format=torch.channels_last_3d) for name, volume in found.items()}
    return found | {"coefficients": torch.randn(7, generator=draw)}


def noise_of(x: Tensor, step: int) -> Tensor:
    return normal(x.numel(), SEED, step).as_strided(x.shape, x.stride())


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bound", [{}, {"clip": 0.7}, {"threshold": 1.5}], ids=str)
def test_step_is_its_definition(shape, channels_last, backend, bound):
    given = made(shape, channels_last=channels_last)
    if "threshold" in bound:
        bound = {"threshold": torch.linspace(1.0, 1.5, shape[0])}
    found, x0 = denoise_step(**given, **bound, seed=SEED, step=3, keep_x0=True, backend=backend)
    exact = {name: tensor.double() for name, tensor in given.items()}
    want, want_x0 = reference(**exact, **bound, noise=noise_of(given["x"], 3).double())
    # Five products of numbers below 4 and their sums, each rounded to float32; the noise's logarithm and cosine too.
    torch.testing.assert_close(found.double(), want, rtol=0, atol=4e-6)
    torch.testing.assert_close(x0.double(), want_x0, rtol=0, atol=4e-6)
    assert found.stride() == given["x"].stride()


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("bound", [{"clip": 0.7}, {"threshold": torch.tensor([1.0, 1.5])}], ids=["clip", "threshold"])
def test_a_bound_hides_no_nan(bound, backend):
    given = made(SHAPES[0])
    given["x"][0, 0, 1, 2, 3] = float("nan")
    for found in denoise_step(**given, **bound, keep_x0=True, backend=backend):
        assert torch.equal(found.isnan(), given["x"].isnan())


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_half_precision_is_rounded_once(backend):
    given = made(SHAPES[0], torch.float16)
    found, _ = denoise_step(**given, backend=backend)
    want, _ = reference(**{name: tensor.double() for name, tensor in given.items()})
    assert (found.double() - want).abs().max() <= 0.51 * want.abs().max() * torch.finfo(torch.float16).eps


def test_an_output_of_another_dtype_is_taken_as_it_is():
    given = made(SHAPES[0])
    given["output"] = given["output"].half()
    found = [denoise_step(**given, backend=backend)[0] for backend in ("torch", "triton")]
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(*found, rtol=0, atol=4e-6)


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
def test_small_tensors_of_any_strides_are_read_as_they_are(backend):
    given = made(SHAPES[1])
    given["coefficients"] = torch.stack([given["coefficients"], torch.full((7,), 9.0)], dim=1)[:, 0]
    bound = {"threshold": torch.tensor(1.2).expand(3)}
    dense = {name: own.clone(memory_format=torch.contiguous_format) for name, own in (given | bound).items()}
    assert torch.equal(denoise_step(**given, **bound, backend=backend)[0], denoise_step(**dense, backend=backend)[0])


def test_noise_is_philox_s():
    # The known answer of Random123 for philox4x32-10 with counter and key of zeros.
    zero = philox(torch.tensor([0]), 0, torch.tensor([0]))
    assert [int(word) for word in zero] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_noise_is_unit_normal_and_new_at_every_step():
    first, second = normal(400_000, SEED, 0).double(), normal(400_000, SEED, 1).double()
    # Five standard errors of mean, variance, kurtosis and correlation at so many numbers.
    error = 5 / 400_000**0.5
    assert abs(first.mean()) < error
    assert abs(first.var() - 1) < error * 2**0.5
    assert abs((first**4).mean() - 3) < error * 96**0.5
    assert abs((first * second).mean()) < error
    assert abs((first[1:] * first[:-1]).mean()) < error
    assert torch.equal(first, normal(400_000, SEED, 0).double())


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("full", [True, False])
def test_registration_passes_opcheck(backend, full):
    given = made(SHAPES[0], channels_last=True)
    rest = (
        (given["previous"], torch.tensor([1.0, 1.5]), SEED, 2, None, True)
        if full
        else (None, None, None, 0, 1.0, False)
    )
    arguments = (given["x"], given["output"], given["coefficients"], *rest, backend)
    torch.library.opcheck(torch.ops.orthokernels.denoise_step.default, arguments)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"coefficients": torch.zeros(6)}, r"coefficients: shape \(6,\); must be \(7,\)"),
        ({"output": torch.zeros(2, 1, 3, 5, 6)}, "output: shape"),
        ({"previous": torch.zeros(2, 1, 3, 5, 7).half()}, r"previous: torch\.float16; must be torch\.float32"),
        ({"clip": 1.0, "threshold": torch.ones(2)}, "clip and threshold: both are given"),
        ({"clip": -1.0}, "clip: -1.0; must be above 0"),
        ({"seed": torch.tensor(3)}, r"seed: shape \(\)"),
        ({"x": torch.zeros(2, 1, 3, 5, 7, requires_grad=True)}, "wants a gradient"),
    ],
)
def test_bad_arguments_are_named(changes, told):
    with pytest.raises(ValueError, match=told):
        denoise_step(**{**made(SHAPES[0]), **changes})


@pytest.mark.parametrize("step", [2**31 - 1, 2**31, 2**32 - 1, 2**32 + 5])
def test_a_step_of_any_size_is_the_counter_s_word(step):
    given = {**made(SHAPES[0]), "seed": SEED}
    want = denoise_step(**given, step=step % 2**32, backend="torch")[0]
    for backend in ("torch", "triton"):
        torch.testing.assert_close(denoise_step(**given, step=step, backend=backend)[0], want, rtol=0, atol=4e-6)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 5), (2, 2, 0, 4, 5)])
def test_of_nothing_comes_nothing(shape):
    x, coefficients = torch.zeros(shape), torch.ones(7)
    found, x0 = denoise_step(x, x, coefficients, seed=SEED, keep_x0=True, backend="triton")
    assert (found.shape, x0.shape) == (shape, shape)
