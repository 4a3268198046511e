"""From a sampled knee to a magnitude image: coil sensitivity, receiver noise, and the blur of a finite k-space."""

from __future__ import annotations

import numpy as np

# The share of k-space that is acquired along each axis of a slice; the rest is zero-filled, as scanners do.
ACQUIRED = 0.86

# Full scale of a 12-bit receiver is left for a vessel or an artefact; joint fluid comes to about a third of it.
UNITS_PER_SIGNAL = 2600.0


def sensitivity(to_knee: np.ndarray, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Sensitivity of a knee coil at every voxel, (i, j, k) float32, about 1 at the knee's centre.

    A smooth quadratic of the place in the coil: stronger towards one side, weaker towards the coil's ends.
    """
    tilt = rng.uniform(-0.0022, 0.0022, 3)
    rise = np.array([3.0e-5, 3.0e-5, -2.6e-5]) * rng.uniform(0.7, 1.3, 3)
    i, j, k = (np.arange(n, dtype=np.float32) for n in shape)
    field = np.ones(shape, np.float32)
    for axis in range(3):
        a, b, c, d = to_knee[axis].astype(np.float32)
        place = (a * i)[:, None, None] + (b * j)[None, :, None] + (c * k)[None, None, :] + d
        field += np.float32(tilt[axis]) * place + np.float32(rise[axis]) * place * place
    return np.maximum(field, np.float32(0.25))


def _window(n: int) -> np.ndarray:
    """A Tukey-like window over the acquired share of an axis of k-space, in ``numpy.fft`` order, (n,) float32."""
    frequency = np.abs(np.fft.fftfreq(n)) * 2.0
    edge = np.clip((ACQUIRED - frequency) / 0.3, 0.0, 1.0)
    return (0.5 - 0.5 * np.cos(np.pi * edge)).astype(np.float32)


def receive(signal: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """The magnitude image of a series: (i, j, k) float32 in, (i, j, k) uint16 out.

    Noise is complex and white before the window of k-space, so that it is Rician in the picture and correlated over
    neighbouring pixels as a scanner's is. ``noise`` is its standard deviation in the units of ``signal``.
    """
    window = _window(signal.shape[0])[:, None] * _window(signal.shape[1])
    received = np.empty(signal.shape, np.uint16)
    for k in range(signal.shape[2]):
        grain = rng.standard_normal((2, *signal.shape[:2]), dtype=np.float32) * np.float32(noise)
        slice_ = np.fft.fft2(signal[:, :, k] + grain[0] + 1j * grain[1])
        magnitude = np.abs(np.fft.ifft2(slice_ * window)) * UNITS_PER_SIGNAL
        received[:, :, k] = np.minimum(np.rint(magnitude), 4095.0)
    return received
