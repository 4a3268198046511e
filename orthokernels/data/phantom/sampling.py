"""What a series' samples are made of: contrast, labels, and each tissue's grain; and how a joint is asked about.

What was tried, in seconds of one core for the three series of a knee at 128 x 128, one sitting:

    3.3    every solid asked at every sample, seven samples, grain at every sample
    1.6    flags by block for what can matter, halving from 16 voxels down; sine waves become parabolas
    1.0    compiled without counting references: half of a call's time was that
    0.9    the middle sample first and its clearance for the others; grain once for each part of a voxel
    0.9    eight samples, four of them only where the first four disagree: thin films in thick slices no longer speckle

With findings and on a busier machine that became 1.05, and there, against 200 points a voxel read at 96 places:

    1.05   as above: root mean square error of the signal 0.0083, mean Dice of the labels 0.960
    0.56   ``lattice``: one lattice for all series, eight points a voxel read at eight places; 0.0098, 0.952
    0.40   four points read at sixteen places: places matter more than points; 0.0081, 0.959
    0.37   four points read at twelve; 0.0087, 0.956, so sixteen stayed
           not kept: waves made linear within a block and calls inlined, which took 0.04 off the 0.56

Beside a lot of other work (processor time, good for the ratio alone): filling the lattice 0.35, and 0.29 once blocks of
eight and four points that no series meets are left out, to the byte the same voxels.

Filling alone, beside training, again for the ratio alone:

    0.31   each point asked about by itself
    0.11   eighths of a block together, and all points of the smallest: loops over points become vectors; the same parts
           not kept: rows of a batch as numbers that Numba does not know beforehand: compiled in two thirds of the time,
           but then it must be tested whether rows overlap, or there are no vectors: 0.21

Reading, likewise: 0.147, and 0.127 where a voxel within one part is read once (35 of 5.4 million voxels differ, and no
label) and where a mixed one's parts are counted before they are looked up. Not kept: a voxel's places in vectors, or as
integers, which was no faster; the parts of a tile's voxels first and then the grain of all in one loop: the same
voxels to the byte, 1.27 times the time.

Then 0.18 and 0.13, the same to the byte: one flat table in place of a scan's five arrays, which were 45 arguments of
each call, and no call for parts without grain, such as the air that two voxels of five lie in. Not kept: voxels of two
parts, most of the mixed ones, counted by comparing alone (another 0.005).

An average hides films: at 256 x 256 four points bead fluid on cartilage, so there the lattice has eight.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from orthokernels.data.phantom import field, scene
from orthokernels.data.phantom.distance import compiled
from orthokernels.data.phantom.parts import Part

KNEE, SCENE = 0, 1  # anatomies: which compiled functions read a packed joint

# Distances may overstate clearance where outlines flare and waves bend them. Within a voxel a mistake costs one sample.
MARGIN = 1.35

SUBCUTANEOUS_FAT, DEEP_FAT, HOFFA_FAT = int(Part.SUBCUTANEOUS_FAT), int(Part.DEEP_FAT), int(Part.HOFFA_FAT)
MUSCLE = int(Part.MUSCLE)


# Texture of each part: strength, and grain in mm along x, y and z of the knee.
_TEXTURES: dict[Part, tuple[float, float, float, float]] = {
    Part.SUBCUTANEOUS_FAT: (0.22, 4.0, 4.0, 8.0),
    Part.DEEP_FAT: (0.28, 4.0, 4.0, 8.0),
    Part.HOFFA_FAT: (0.40, 4.0, 4.0, 5.0),
    Part.MUSCLE: (0.09, 1.8, 1.8, 14.0),
    Part.SYNOVIUM: (0.30, 1.8, 1.8, 2.4),
    Part.FEMUR_MARROW: (0.13, 1.3, 1.3, 2.6),
    Part.TIBIA_MARROW: (0.13, 1.3, 1.3, 2.6),
    Part.PATELLA_MARROW: (0.11, 1.3, 1.3, 1.3),
    Part.FIBULA_MARROW: (0.11, 1.3, 1.3, 2.6),
    Part.FEMORAL_CARTILAGE: (0.08, 3.0, 3.0, 3.0),
    Part.TIBIAL_CARTILAGE: (0.08, 3.0, 3.0, 3.0),
    Part.PATELLAR_CARTILAGE: (0.08, 3.0, 3.0, 3.0),
    Part.ACL: (0.35, 1.5, 1.5, 9.0),
    Part.PCL: (0.15, 1.5, 1.5, 6.0),
    Part.VEIN: (0.15, 3.0, 3.0, 12.0),
    Part.BONE_MARROW: (0.13, 1.3, 1.3, 2.6),
    Part.CARTILAGE: (0.08, 3.0, 3.0, 3.0),
    Part.MARROW_OEDEMA: (0.30, 2.2, 2.2, 2.6),
    Part.FAINT_MARROW_OEDEMA: (0.25, 2.2, 2.2, 2.6),
    Part.FAT_OEDEMA: (0.40, 2.6, 2.6, 3.5),
    Part.TORN_FIBRES: (0.40, 1.4, 1.4, 2.4),
    Part.DEGENERATE_FIBRES: (0.40, 1.6, 1.6, 2.4),
    Part.MUSCLE_OEDEMA: (0.12, 1.8, 1.8, 14.0),
    Part.TORN_ACL: (0.45, 1.3, 1.3, 4.0),
    Part.MUCOID_ACL: (0.40, 1.5, 1.5, 9.0),
    Part.TORN_PCL: (0.35, 1.3, 1.3, 4.0),
    Part.FEMUR_OEDEMA: (0.20, 1.8, 1.8, 2.6),
    Part.FAINT_FEMUR_OEDEMA: (0.18, 1.8, 1.8, 2.6),
    Part.TIBIA_OEDEMA: (0.20, 1.8, 1.8, 2.6),
    Part.FAINT_TIBIA_OEDEMA: (0.18, 1.8, 1.8, 2.6),
    Part.PATELLA_OEDEMA: (0.20, 1.8, 1.8, 1.8),
    Part.FAINT_PATELLA_OEDEMA: (0.18, 1.8, 1.8, 1.8),
    Part.FIBULA_OEDEMA: (0.20, 1.8, 1.8, 2.6),
}


class Scan(NamedTuple):
    """A series' grid and contrast, as the sampler reads them.

    Attributes:
        to_joint: (4, 4) float64, voxel indices (i, j, k) to the joint's frame in mm.
        thickness: a slice's thickness as a share of the distance between slices.
        signal: (parts,) float32.
        label: (parts,) uint8.
        texture: (parts, 4) float64, strength and grain.
        lattice: (32, 32, 32) float32, the noise that gives the grain.
        anatomy: KNEE or SCENE.
    """

    to_joint: np.ndarray
    thickness: float
    signal: np.ndarray
    label: np.ndarray
    texture: np.ndarray
    lattice: np.ndarray
    anatomy: int = KNEE


def texture_of_parts() -> np.ndarray:
    """(parts, 4) float64: strength and grain of each part; strength 0 where there is none."""
    table = np.zeros((len(Part), 4))
    table[:, 1:] = 1.0
    for part, texture in _TEXTURES.items():
        table[part] = texture
    return table


# What stands in each part's row of ``table_of``; the last three of a row's numbers are the sizes of its grain.
SIGNAL, LABEL, STRENGTH, GRAIN, ROW = 0, 1, 2, 3, 6


def table_of(scan: Scan) -> np.ndarray:
    """All that is read of a part, row by row in one flat array, (parts x ROW,) float64.

    Compiled functions hand each other an array as seven numbers or more: with a scan's five, a call took longer than
    what was called.
    """
    return np.column_stack([scan.signal, scan.label, scan.texture]).astype(np.float64).reshape(-1)


@compiled
def noise_at(x: float, y: float, z: float, lattice: np.ndarray) -> float:
    """Periodic value noise, trilinear between the points of ``lattice``, (32 x 32 x 32,)."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    i, j, k = int(fx) & 31, int(fy) & 31, int(fz) & 31
    i1, j1, k1 = ((i + 1) & 31) << 10, ((j + 1) & 31) << 5, (k + 1) & 31
    i, j = i << 10, j << 5
    tx, ty, tz = x - fx, y - fy, z - fz
    # Numba looks for negative indices unless they can't be.
    a = (1.0 - tx) * lattice[np.uint64(i + j + k)] + tx * lattice[np.uint64(i1 + j + k)]
    b = (1.0 - tx) * lattice[np.uint64(i + j1 + k)] + tx * lattice[np.uint64(i1 + j1 + k)]
    c = (1.0 - tx) * lattice[np.uint64(i + j + k1)] + tx * lattice[np.uint64(i1 + j + k1)]
    d = (1.0 - tx) * lattice[np.uint64(i + j1 + k1)] + tx * lattice[np.uint64(i1 + j1 + k1)]
    return (1.0 - tz) * ((1.0 - ty) * a + ty * b) + tz * ((1.0 - ty) * c + ty * d)


@compiled
def textured(part: int, x: float, y: float, z: float, table: np.ndarray, noise: np.ndarray) -> float:
    """A part's signal with its grain; septa divide fat into lobules, strands of fat cross muscle.

    ``table`` is ``table_of`` a scan, ``noise`` its flat lattice.
    """
    row = np.uint64(ROW * part)
    signal, strength = table[row], table[row + np.uint64(STRENGTH)]
    if strength == 0.0:
        return signal
    grain = row + np.uint64(GRAIN)
    fine = noise_at(x / table[grain], y / table[grain + np.uint64(1)], z / table[grain + np.uint64(2)], noise)
    broad = noise_at(x / 11.0 + 7.3, y / 11.0 + 2.9, z / 16.0 + 5.1, noise)
    if part in (SUBCUTANEOUS_FAT, DEEP_FAT, HOFFA_FAT):
        septum = max(0.0, 1.0 - abs(fine - 0.2) / 0.25) * max(0.0, min(1.0, 0.3 + broad))
        return signal * max(1.0 + strength * (0.25 * broad + 0.2 * fine - 2.0 * septum), 0.2)
    signal *= max(1.0 + strength * (fine + 0.5 * broad), 0.2)
    if part == MUSCLE:
        strand = noise_at(x / 4.5 + 3.7, y / 4.5 + 1.3, z / 26.0 + 8.2, noise)
        share = max(0.0, 1.0 - abs(strand - 0.55) / 0.13) * max(0.0, min(1.0, broad + 0.6))
        signal += 0.7 * share * (table[np.uint64(ROW * DEEP_FAT + SIGNAL)] - signal)
    return signal


@compiled
def prune_scene(
    x: float, y: float, z: float, radius: float, joint: np.ndarray, active: np.ndarray, p: np.ndarray
) -> None:
    """``scene.prune`` with the arguments of ``field.prune``."""
    scene.prune(x, y, z, radius, joint, active)


@compiled
def parts_of_scene(p: np.ndarray, q: np.ndarray, count: int, joint: np.ndarray, active: np.ndarray) -> None:
    """``scene.part_at`` of many points, with the arguments of ``field.parts_at``."""
    for n in range(count):
        part, clear = scene.part_at(p[field.X + n], p[field.Y + n], p[field.Z + n], joint, active)
        p[field.PART + n], p[field.CLEAR + n] = part, clear


def code_digest() -> str:
    """A digest of the compiled code's sources: Numba itself looks at the date of one file alone."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
