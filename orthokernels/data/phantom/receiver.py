"""From a sampled joint to a magnitude image: coil sensitivity, motion between the lines of k-space, noise and blur."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.fft

# The share of k-space that is acquired along each axis of a slice; the rest is zero-filled, as scanners do.
ACQUIRED = 0.86

# Full scale of a 12-bit receiver is left for a vessel or an artefact; joint fluid comes to about a third of it.
UNITS_PER_SIGNAL = 2600.0

# Nobody lies quite still for four minutes: the leg drifts by some tenths of a millimetre, and in one series of four
# something beats (a pulse, a breath) and leaves a ghost of a percent or two along the phase direction.
DRIFT_MM = (0.02, 0.25)
GHOSTING = 0.25
GHOST = (0.005, 0.02)

# Coils: relative rise of sensitivity per mm squared across the leg, and the length along it where it falls to 61 %.
_TO_SKIN = (2.0e-5, 7.0e-5)
_REACH_MM = (64.0, 84.0)


class Motion(NamedTuple):
    """What the leg did while k-space was filled, line by line along the phase axis.

    Attributes:
        shift: (2, lines) float64, the leg's shift along i and j in pixels when each line was read, in the order of
            ``numpy.fft.fftfreq``; its mean over the lines is 0.
        gain: (lines,) float64, what the line's signal was multiplied by.
        phase_axis: 0 where lines follow each other along i, 1 along j.
    """

    shift: np.ndarray
    gain: np.ndarray
    phase_axis: int


def sensitivity(to_joint: np.ndarray, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Sensitivity of a coil at every voxel, (i, j, k) float32, about 1 at the joint's centre.

    A product of one smooth curve for each axis of the grid: stronger towards one side and towards the skin, and down
    to about a half where the field of view ends along the leg, which is the joint's third axis.

    Args:
        to_joint: (4, 4) voxel indices to the joint's frame in mm.
        shape: voxels along i, j and k.
        rng: draws the coil.
    """
    tilt = rng.uniform(-0.0022, 0.0022, 3)
    rise = np.array([*rng.uniform(*_TO_SKIN, 2), 0.0])
    reach, middle = rng.uniform(*_REACH_MM), rng.uniform(-8.0, 8.0)
    centre = np.linalg.solve(to_joint[:3, :3], -to_joint[:3, 3])
    curves = []
    for axis, n in enumerate(shape):
        direction = to_joint[:3, axis]
        place = np.arange(n) - centre[axis]
        curve = 1.0 + (tilt @ direction) * place + (rise @ (direction * direction)) * place * place
        along = abs(direction[2]) / np.linalg.norm(direction)
        curve *= np.exp(-0.5 * ((direction[2] * place - along * middle) / reach) ** 2)
        curves.append(np.maximum(curve, 0.1).astype(np.float32))
    return curves[0][:, None, None] * curves[1][:, None] * curves[2]


def draw_motion(matrix: int, pixel_mm: float, echo_train: int, rng: np.random.Generator) -> Motion:
    """Slight motion of one series: a slow drift, a small step between shots, and now and then a ghost.

    Args:
        matrix: lines of k-space, and pixels along each side.
        pixel_mm: side of a pixel in mm.
        echo_train: lines read in one shot, so that shots are ``matrix / echo_train``.
        rng: draws the motion.
    """
    shots = -(-matrix // echo_train)
    time = np.linspace(0.0, 1.0, shots)
    size = rng.uniform(*DRIFT_MM)
    waves = np.arange(1, 4)
    phase = rng.uniform(0.0, 2.0 * np.pi, (2, 3, 1))
    strength = rng.normal(size=(2, 3)) / waves
    course = np.einsum("an,ans->as", strength, np.sin(np.pi * waves[:, None] * time + phase))
    course += 0.15 * rng.normal(size=course.shape)
    course *= size / max(float(np.sqrt((course**2).mean())), 1e-6) / pixel_mm
    # Each shot reads every n-th line of the phase axis, so that the centre is met by all shots alike.
    order = np.fft.ifftshift(np.arange(matrix) % shots)
    shift = course[:, order]
    shift -= shift.mean(axis=1, keepdims=True)
    gain = np.ones(matrix)
    beats, share, apart, start = rng.random(), rng.uniform(*GHOST), rng.uniform(0.12, 0.4), rng.uniform(0.0, 2 * np.pi)
    if beats < GHOSTING:
        gain += 2.0 * share * np.cos(2.0 * np.pi * apart * np.fft.fftfreq(matrix, 1.0 / matrix) + start)
    return Motion(shift, gain, int(rng.integers(2)))


def _window(n: int) -> np.ndarray:
    """A Tukey-like window over the acquired share of an axis of k-space, in ``numpy.fft`` order, (n,) float64."""
    frequency = np.abs(np.fft.fftfreq(n)) * 2.0
    edge = np.clip((ACQUIRED - frequency) / 0.3, 0.0, 1.0)
    return 0.5 - 0.5 * np.cos(np.pi * edge)


def transfer(shape: tuple[int, int], motion: Motion | None = None) -> np.ndarray:
    """What each point of a slice's k-space is multiplied by, (i, j) complex64: the window, and motion's phase ramps."""
    window = _window(shape[0])[:, None] * _window(shape[1])
    if motion is None:
        return window.astype(np.complex64)
    frequency = np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])
    along = (slice(None), None) if motion.phase_axis == 0 else (None, slice(None))
    turns = frequency[0] * motion.shift[0][along] + frequency[1] * motion.shift[1][along]
    return (window * motion.gain[along] * np.exp(-2j * np.pi * turns)).astype(np.complex64)


def receive(signal: np.ndarray, noise: float, rng: np.random.Generator, motion: Motion | None = None) -> np.ndarray:
    """The magnitude image of a series: (i, j, k) float32 in, (i, j, k) uint16 out.

    Noise is complex and white before the window of k-space, so that it is Rician in the picture and correlated over
    neighbouring pixels as a scanner's is.

    Args:
        signal: (i, j, k) float32, in units of water's signal at TE 0 and infinite TR.
        noise: the standard deviation of each part of the complex noise, before the window, in the same units.
        rng: draws the noise.
        motion: what ``draw_motion`` gave; without it the leg lay still.
    """
    grain = rng.standard_normal((*signal.shape, 2), dtype=np.float32)
    grain *= np.float32(noise)
    grain[..., 0] += signal
    space = scipy.fft.fft2(grain.view(np.complex64)[..., 0], axes=(0, 1), overwrite_x=True)
    space *= transfer(signal.shape[:2], motion)[:, :, None]
    magnitude = np.abs(scipy.fft.ifft2(space, axes=(0, 1), overwrite_x=True))
    magnitude *= np.float32(UNITS_PER_SIGNAL)
    return np.minimum(np.rint(magnitude, out=magnitude), np.float32(4095.0)).astype(np.uint16)
