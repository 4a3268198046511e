"""What a knee is in numbers: the fields of a drawn knee, and how courses and outlines become rows of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from orthokernels.data.phantom.distance import TABLE_ROWS, TABLE_START, TABLE_STEP

Point = tuple[float, float, float]


class Meniscus(NamedTuple):
    """A C of wedge-shaped section. ``opening`` is the half-angle in radians left free towards the notch."""

    x: float
    y: float
    half_width: float
    half_length: float
    opening: float
    toward: float
    anterior_width: float
    posterior_width: float
    height: float


class Knee(NamedTuple):
    """One knee in numbers, float64 but for ``texture``. ``packed`` is the form that ``field.part_at`` reads.

    Attributes:
        size: (3,) scale of the whole knee along x, y, z.
        warp: (6, 5) two sine waves for each axis: amplitude, three wave numbers in rad/mm, phase.
        hinge: (7,) y, z, flexion in radians, cosine and sine for the femur and for the patella.
        columns: (n, TABLE_ROWS, 6) outlines for ``distance.column``: fascia, femur, tibia, fibula, then muscles.
        column_ends: (n, 2) lowest and highest z of each.
        column_boxes: (n, 6) the box around each, lowest x, y, z and highest.
        medial_meniscus, lateral_meniscus: (9,) as ``Meniscus``.
        cartilage: (3,) thickness in mm, femoral, tibial and patellar.
        plateau: (1,) the plateaus' posterior slope, as a tangent.
        patella_turn: (2,) cosine and sine of the patella's tilt, its lateral edge backwards.
        lesions: (ROWS, NUMBERS) as ``knee_lesions.Lesions.table``, and ``lesion_count`` (1,) how many there are.
        fat: (1,) mean thickness of subcutaneous fat in mm.
        texture: (32, 32, 32) float32 periodic noise of mean 0 and standard deviation 1.

    Ellipsoids are (n, 6) centre and half-axes; cords (n, 4) points and radii; straps (n, 8) as ``distance.strap``.
    """

    size: np.ndarray
    warp: np.ndarray
    hinge: np.ndarray
    columns: np.ndarray
    column_ends: np.ndarray
    column_boxes: np.ndarray
    femur_box: np.ndarray
    tibia_box: np.ndarray
    condyles: np.ndarray
    epicondyles: np.ndarray
    notch: np.ndarray
    groove: np.ndarray
    tuberosity: np.ndarray
    pcl_facet: np.ndarray
    patella: np.ndarray
    patella_turn: np.ndarray
    recesses: np.ndarray
    synovium: np.ndarray
    hoffa: np.ndarray
    medial_meniscus: np.ndarray
    lateral_meniscus: np.ndarray
    acl: np.ndarray
    pcl: np.ndarray
    patellar_tendon: np.ndarray
    quadriceps_tendon: np.ndarray
    mcl: np.ndarray
    lcl: np.ndarray
    iliotibial_band: np.ndarray
    popliteus_tendon: np.ndarray
    small_tendons: np.ndarray
    artery: np.ndarray
    vein: np.ndarray
    nerve: np.ndarray
    saphenous_vein: np.ndarray
    cartilage: np.ndarray
    plateau: np.ndarray
    fat: np.ndarray
    lesions: np.ndarray
    lesion_count: np.ndarray
    texture: np.ndarray

    def packed(self) -> np.ndarray:
        """All but the texture in one flat float64 array, in the order of the fields; ``places`` says what is where."""
        return np.concatenate([values.ravel() for values in self[:-1]])


class Turn:
    """Points of the straight leg's femur or patella, to where flexion takes them."""

    def __init__(self, y: float, z: float, angle: float) -> None:
        self.y, self.z, self.cosine, self.sine = y, z, math.cos(angle), math.sin(angle)

    def __call__(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        dy, dz = y - self.y, z - self.z
        return x, self.y + self.cosine * dy - self.sine * dz, self.z + self.sine * dy + self.cosine * dz


def tapered(ends: np.ndarray) -> np.ndarray:
    """How a muscle's half-axes shrink over the last 14 mm to an end within the field, (TABLE_ROWS,)."""
    z = TABLE_START + TABLE_STEP * np.arange(TABLE_ROWS)
    to_end = np.minimum(z - ends[0] if ends[0] > -110.0 else 99.0, ends[1] - z if ends[1] < 110.0 else 99.0)
    return np.sqrt(np.clip(to_end / 14.0, 0.03, 1.0))


def boxes(tables: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The box around each column, (n, 6); an outline's turn is allowed for by its longer half-axis."""
    z = TABLE_START + TABLE_STEP * np.arange(TABLE_ROWS)
    boxes = np.empty((len(tables), 6))
    for table, (low, high), box in zip(tables, ends, boxes, strict=True):
        rows = table[(z > low - TABLE_STEP) & (z < high + TABLE_STEP)]
        turned = np.abs(rows[:, 5:6]) > 1e-6
        reach = np.where(turned, rows[:, 2:4].max(axis=1, keepdims=True), rows[:, 2:4])
        box[:2], box[3:5] = (rows[:, :2] - reach).min(axis=0), (rows[:, :2] + reach).max(axis=0)
        box[2], box[5] = low, high
    return boxes


def table(levels: np.ndarray) -> np.ndarray:
    """Outlines at every row of a column's table, smoothed over about 10 mm of height."""
    z = TABLE_START + TABLE_STEP * np.arange(TABLE_ROWS)
    window = np.hanning(9)[1:-1]
    window /= window.sum()
    rows = np.stack([np.interp(z, levels[:, 0], levels[:, n]) for n in range(1, 6)], axis=1)
    padded = np.pad(rows, ((3, 3), (0, 0)), mode="edge")
    smooth = np.stack([np.convolve(padded[:, n], window, "valid") for n in range(5)], axis=1)
    turn = np.radians(smooth[:, 4])
    return np.column_stack([smooth[:, :4], np.cos(turn), np.sin(turn)])


def finer(course: np.ndarray, count: int) -> np.ndarray:
    """A cord or a strap by ``count`` points in even steps, so that it can swell and sag between its ends."""
    return np.array([at_share(course, share) for share in np.linspace(0.0, 1.0, count)])


def length_of(course: np.ndarray) -> float:
    """Length of a cord or a strap along its points, in mm."""
    return float(np.linalg.norm(np.diff(course[:, :3], axis=0), axis=1).sum())


def at_share(course: np.ndarray, share: float) -> np.ndarray:
    """The numbers of a cord (4,) or a strap (8,) at a share of its length."""
    steps = np.linalg.norm(np.diff(course[:, :3], axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    return np.array([np.interp(share, along, course[:, n]) for n in range(course.shape[1])])


def chain(*points: tuple[float, float, float, float]) -> np.ndarray:
    """A cord's rows, (n, 4)."""
    return np.array(points, float)


def cord(
    a: tuple[float, float, float], ra: float, b: tuple[float, float, float], rb: float,
    c: tuple[float, float, float], rc: float,
) -> np.ndarray:  # fmt: skip
    """A cord through three points, (3, 4)."""
    return chain((*a, ra), (*b, rb), (*c, rc))


def strap(
    *points: tuple[tuple[float, float, float], float, float], across: tuple[float, float, float] = (1.0, 0.0, 0.0)
) -> np.ndarray:
    """A strap's rows, (n, 8)."""
    return np.array([(*p, half_width, half_thickness, *across) for p, half_width, half_thickness in points], float)


def texture(rng: np.random.Generator) -> np.ndarray:
    """Periodic noise of mean 0 and standard deviation 1, (32, 32, 32) float32."""
    noise = rng.normal(size=(32, 32, 32))
    return (noise / noise.std()).astype(np.float32)
