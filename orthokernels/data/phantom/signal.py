"""From parts to signal: what a fat-suppressed, proton-density weighted spin echo makes of each tissue.

Relaxation times of cartilage, synovial fluid, muscle, fat and marrow are those measured in knees at 3 T by Gold et
al., AJR 183 (2004) 343-351. The others are of the order that ultra-short echo imaging finds; at the echo times used
here all of those are dark.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from orthokernels.data.phantom.parts import Part

# What spectral fat suppression leaves of the fat's signal.
FAT_RESIDUE = 0.13


class Tissue(NamedTuple):
    """``water`` and ``fat`` are proton densities, 1 for pure water; ``t1`` and ``t2`` are the water's, in ms.

    ``texture`` is the standard deviation of the tissue's own unevenness, as a fraction of its signal.
    """

    water: float
    fat: float
    t1: float
    t2: float
    texture: float


_FAT_T1, _FAT_T2 = 371.0, 133.0

_CARTILAGE = Tissue(0.82, 0.0, 1240.0, 37.0, 0.07)
_CORTEX = Tissue(0.15, 0.03, 500.0, 2.0, 0.05)
_MARROW = Tissue(0.07, 0.85, 1200.0, 45.0, 0.14)
_SCAR = Tissue(0.10, 0.35, 900.0, 15.0, 0.1)
_FIBROUS = Tissue(0.55, 0.03, 800.0, 9.0, 0.15)
_MENISCUS = Tissue(0.70, 0.0, 900.0, 11.0, 0.10)

TISSUES = {
    Part.AIR: Tissue(0.0, 0.0, 1000.0, 1.0, 0.0),
    Part.SKIN: Tissue(0.55, 0.1, 900.0, 24.0, 0.1),
    Part.SUBCUTANEOUS_FAT: Tissue(0.06, 0.88, 1000.0, 50.0, 0.18),
    Part.FASCIA: Tissue(0.45, 0.1, 800.0, 11.0, 0.1),
    Part.DEEP_FAT: Tissue(0.10, 0.82, 1000.0, 50.0, 0.20),
    Part.HOFFA_FAT: Tissue(0.13, 0.80, 1000.0, 55.0, 0.25),
    Part.MUSCLE: Tissue(0.74, 0.05, 1420.0, 32.0, 0.10),
    Part.TENDON: _FIBROUS._replace(t2=6.0),
    Part.LIGAMENT: _FIBROUS,
    Part.ARTERY: Tissue(0.9, 0.0, 1900.0, 12.0, 0.1),  # blood that leaves the slice between pulses: a flow void
    Part.VEIN: Tissue(0.9, 0.0, 1700.0, 70.0, 0.1),
    Part.NERVE: Tissue(0.7, 0.1, 1400.0, 50.0, 0.15),
    Part.FLUID: Tissue(1.0, 0.0, 3620.0, 767.0, 0.03),
    Part.SYNOVIUM: Tissue(0.50, 0.35, 1500.0, 60.0, 0.35),
    Part.FEMUR_CORTEX: _CORTEX,
    Part.FEMUR_MARROW: _MARROW,
    Part.FEMUR_SCAR: _SCAR,
    Part.TIBIA_CORTEX: _CORTEX,
    Part.TIBIA_MARROW: _MARROW,
    Part.TIBIA_SCAR: _SCAR,
    Part.PATELLA_CORTEX: _CORTEX,
    Part.PATELLA_MARROW: _MARROW,
    Part.FIBULA_CORTEX: _CORTEX,
    Part.FIBULA_MARROW: _MARROW,
    Part.FEMORAL_CARTILAGE: _CARTILAGE,
    Part.TIBIAL_CARTILAGE: _CARTILAGE,
    Part.PATELLAR_CARTILAGE: _CARTILAGE._replace(t2=39.0),
    Part.MEDIAL_MENISCUS: _MENISCUS,
    Part.LATERAL_MENISCUS: _MENISCUS,
    Part.ACL: _FIBROUS._replace(t2=16.0, texture=0.25),
    Part.PCL: _FIBROUS._replace(t2=8.0),
}


def spin_echo(tissue: Tissue, echo_time: float, repetition_time: float) -> float:
    """Signal of a fat-suppressed spin echo, M0 (1 - exp(-TR / T1)) exp(-TE / T2) over water and what is left of fat.

    Times are in ms; pure water with endless T1 recovery and no decay gives 1.
    """
    water = tissue.water * (1.0 - math.exp(-repetition_time / tissue.t1)) * math.exp(-echo_time / tissue.t2)
    fat = tissue.fat * (1.0 - math.exp(-repetition_time / _FAT_T1)) * math.exp(-echo_time / _FAT_T2)
    return water + FAT_RESIDUE * fat


def signal_of_part(echo_time: float, repetition_time: float) -> np.ndarray:
    """Signal of each part and its unevenness, (parts, 2) float32: mean and standard deviation."""
    table = np.zeros((len(Part), 2), np.float32)
    for part, tissue in TISSUES.items():
        mean = spin_echo(tissue, echo_time, repetition_time)
        table[part] = mean, mean * tissue.texture
    return table


@njit(cache=True, nogil=True)
def _noise_at(texture: np.ndarray, x: float, y: float, z: float) -> float:
    """Periodic noise between its lattice points, trilinear."""
    size = len(texture)
    i, j, k = math.floor(x), math.floor(y), math.floor(z)
    fx, fy, fz = x - i, y - j, z - k
    total = 0.0
    for n in range(8):
        a, b, c = n & 1, (n >> 1) & 1, (n >> 2) & 1
        weight = (fx if a else 1.0 - fx) * (fy if b else 1.0 - fy) * (fz if c else 1.0 - fz)
        total += weight * texture[(int(i) + a) % size, (int(j) + b) % size, (int(k) + c) % size]
    return total


@njit(cache=True, nogil=True)
def mix(parts: np.ndarray, table: np.ndarray, texture: np.ndarray, to_knee: np.ndarray) -> np.ndarray:
    """Signal of every voxel: the mean over its samples, made uneven by noise that belongs to the place.

    Args:
        parts: (k, i, j, samples) uint8.
        table: (parts, 2) float32 from ``signal_of_part``.
        texture: (n, n, n) float32 periodic noise of unit variance.
        to_knee: (4, 4) float64 from (i, j, k) to mm in the knee's frame, where the noise is at rest.

    Returns:
        (k, i, j) float32.
    """
    count_k, count_i, count_j, samples = parts.shape
    signal = np.empty((count_k, count_i, count_j), np.float32)
    for k in range(count_k):
        for i in range(count_i):
            for j in range(count_j):
                mean, uneven = 0.0, 0.0
                for n in range(samples):
                    mean += table[parts[k, i, j, n], 0]
                    uneven += table[parts[k, i, j, n], 1]
                if uneven > 0.0:
                    x, y, z = to_knee[:3, 0] * i + to_knee[:3, 1] * j + to_knee[:3, 2] * k + to_knee[:3, 3]
                    # Two sizes of grain: 1.4 mm, as trabeculae and fibres look, and 6 mm.
                    grain = _noise_at(texture, x / 1.4, y / 1.4, z / 1.8) + 0.7 * _noise_at(texture, x / 6, y / 6, z / 9)
                    mean += uneven * grain
                signal[k, i, j] = max(mean, 0.0) / samples
    return signal
