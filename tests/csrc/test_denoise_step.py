"""Native noise, noising and sampler's step: bits of the noise, threads, and what bad input gets; values: tests/ops."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
native = pytest.importorskip("orthokernels._native")

SHAPE = (3, 1237)  # samples that begin within the four neighbours of a counter, and within a run of 256 places
SEED = -(2**61) + 12345


def volume(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def poisoned(shape=SHAPE) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def noise(seed: int, step: int, shape=SHAPE, threads: int = 1) -> np.ndarray:
    """Noise alone: no signal, a share of 1."""
    found = poisoned(shape)
    shares = np.tile(np.float32([0, 1]), (shape[0], 1))
    native.add_noise(np.zeros(shape, np.float32), shares, found, seed=seed, step=step, threads=threads)
    return found


@pytest.mark.parametrize("step", [0, 7, 2**32 - 1])
@pytest.mark.parametrize("seed", [0, 5, 2**40 + 5, SEED, 2**63 - 1])
def test_noise_is_plain_pytorch_s(seed, step):
    from orthokernels.backends.torch.philox import normal

    want = normal(SHAPE[0] * SHAPE[1], torch.tensor([seed]), step).numpy().reshape(SHAPE)
    # One other word would be another number; these differ by the rounding of logarithm, root and cosine, at most 6.
    np.testing.assert_allclose(noise(seed, step), want, rtol=0, atol=2e-6)


def test_noise_is_as_exact_as_plain_pytorch_s():
    from orthokernels.backends.torch.philox import _uniform, normal, philox

    count, seed = 400_000, torch.tensor([SEED])
    words = [_uniform(word).double() for word in philox(torch.arange(count // 4), 3, seed)]
    exact = []
    for n in (0, 2):
        radius = torch.sqrt(-2 * torch.log(words[n].clamp(min=1e-7)))
        exact += [radius * turn(2 * torch.pi * words[n + 1]) for turn in (torch.cos, torch.sin)]
    exact = torch.stack(exact, dim=1).flatten()
    own = torch.from_numpy(noise(SEED, 3, (1, count))[0])
    assert (own - exact).abs().max() <= 2 * (normal(count, seed, 3) - exact).abs().max()


def test_any_number_of_threads_gives_the_same_bytes():
    x, output, previous, coefficients = volume(0), volume(1), volume(2), volume(3, (7,))
    found = set()
    for threads in (1, 2, 3, 7):
        after, x0 = poisoned(), poisoned()
        native.denoise_step(
            x, output, coefficients, after, previous=previous, threshold=np.float32([1, 2, 0.5]), seed=SEED, step=4,
            x0=x0, threads=threads,
        )  # fmt: skip
        assert np.isfinite(after).all()
        found.add(after.tobytes() + x0.tobytes() + noise(SEED, 9, threads=threads).tobytes())
    assert len(found) == 1


def test_a_number_that_is_none_stays_none():
    x, after, x0 = volume(0), poisoned(), np.zeros(SHAPE, np.float32)
    x[1, 5] = np.nan
    native.denoise_step(x, volume(1), np.ones(7, np.float32), after, clip=1.0, x0=x0)
    assert np.isnan(x0[1, 5])
    assert np.isnan(after).sum() == np.isnan(x0).sum() == 1


def test_bad_input_gets_a_sentence():
    x, output, coefficients, found = volume(0), volume(1), volume(3, (7,)), poisoned()
    for changes, told in [
        ({"x": x[0]}, r"x: shape \(1237\); must be \(any, any\)."),
        ({"output": output.astype(np.float64)}, "output: type float64"),
        ({"output": output[:, ::2]}, "output: shape"),
        ({"coefficients": coefficients[:6]}, r"coefficients: shape \(6\); must be \(7\)."),
        ({"threshold": np.ones(2, np.float32)}, r"threshold: shape \(2\); must be \(3\)."),
        ({"threshold": np.ones(3, np.float32), "clip": 1.0}, "clip: is given, and threshold too."),
        ({"clip": 0.0}, "clip: 0.0"),
        ({"clip": np.nan}, "clip: nan"),
        ({"found": x}, "found: overlaps x, which is read."),
        ({"x0": found}, "found: overlaps x0, which is written too."),
        ({"threads": -1}, "threads: -1"),
    ]:
        arguments = {"x": x, "output": output, "coefficients": coefficients, "found": found, **changes}
        with pytest.raises(ValueError, match=told):
            native.denoise_step(**arguments)
    shares = np.ones((3, 2), np.float32)
    for changes, told in [
        ({}, "noise: give it, or the seed"),
        ({"seed": 1, "noise": output}, "noise: give it, or the seed"),
        ({"shares": shares[:2], "seed": 1}, r"shares: shape \(2, 2\); must be \(3, 2\)."),
        ({"noise": output[:2]}, "noise: shape"),
        ({"noisy": x, "seed": 1}, "noisy: overlaps x0, which is read."),
    ]:
        with pytest.raises(ValueError, match=told):
            native.add_noise(**{"x0": x, "shares": shares, "noisy": found, **changes})
    with pytest.raises(TypeError):
        native.add_noise(x, shares, found, seed=2**63)
    assert np.isnan(found).all()
