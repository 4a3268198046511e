"""A knee while it is being injured, and what injuries have in common: tears, bruises, oedema, slack courses."""

from __future__ import annotations

import math

import numpy as np

from orthokernels.data.phantom.knee_form import Knee, Turn, at_share, length_of
from orthokernels.data.phantom.knee_lesions import Kind, Lesions


class Injury:
    """The fields of a knee, free to be changed, and its lesions.

    ``femur`` takes points of the straight leg's femur to where flexion has taken them.
    """

    def __init__(self, knee: Knee) -> None:
        self._knee = knee
        self.lesions = Lesions()
        self.changed: dict[str, np.ndarray] = {}
        self.femur = Turn(float(knee.hinge[0]), float(knee.hinge[1]), float(knee.hinge[2]))

    def __getitem__(self, field: str) -> np.ndarray:
        """A field of the knee as it is by now; change it in place."""
        return self.changed.setdefault(field, getattr(self._knee, field).copy())

    def knee(self) -> Knee:
        """The injured knee."""
        lesions, count = self.lesions.table()
        return self._knee._replace(**self.changed, lesions=lesions, lesion_count=count)


def axes_along(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Three unit vectors, one a row: along ``first`` (3,), nearly along ``second`` (3,), and across both."""
    u = first / np.linalg.norm(first)
    v = second - (second @ u) * u
    v /= np.linalg.norm(v)
    return np.array([u, v, np.cross(u, v)])


def turned(axes: np.ndarray, around: int, degrees: float) -> np.ndarray:
    """Axes (3, 3), one a row, turned about one of themselves."""
    a, b = (around + 1) % 3, (around + 2) % 3
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    result = axes.copy()
    result[a], result[b] = cosine * axes[a] + sine * axes[b], cosine * axes[b] - sine * axes[a]
    return result


def bulge(count: int, level: float, half: float, most: float) -> np.ndarray:
    """Factors (count,) along a course: 1 far from ``level``, ``most`` at it."""
    shares = np.linspace(0.0, 1.0, count)
    return 1.0 + (most - 1.0) * np.exp(-(((shares - level) / half) ** 2))


def radii_at(course: np.ndarray, share: float) -> tuple[float, float]:
    """Half the width and half the thickness of a strap, or a cord's radius twice."""
    row = at_share(course, share)
    return (float(row[3]), float(row[4])) if course.shape[1] == 8 else (float(row[3]), float(row[3]))


def course_axes(course: np.ndarray, share: float) -> np.ndarray:
    """Axes (3, 3) at a share of a cord or a strap: along it, across its width, across its thickness."""
    along = at_share(course, min(share + 0.06, 1.0))[:3] - at_share(course, max(share - 0.06, 0.0))[:3]
    across = at_share(course, share)[5:8] if course.shape[1] == 8 else np.array([1.0, 0.0, 0.0])
    return axes_along(along, across)


def tear_along(
    injury: Injury, kind: Kind, course: np.ndarray, start: float, end: float, fill: float, offset: tuple[float, float],
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Turn a stretch of a cord or a strap into torn fibres, by four ellipsoids in a row.

    Args:
        injury: gets the lesions.
        kind: ACL_TEAR, PCL_TEAR, BAND_TEAR or ACL_MUCOID.
        course: (n, 4) or (n, 8).
        start, end: shares of its length.
        fill: half-axes across, as a share of the course's own.
        offset: where they lie across width and thickness, as shares of the course's own half-axes.
        rng: makes them uneven.
    """
    pieces = 4
    step = (end - start) / pieces
    for n in range(pieces):
        share = start + (n + 0.5) * step
        axes = course_axes(course, share)
        width, thickness = radii_at(course, share)
        centre = at_share(course, share)[:3]
        centre = centre + axes[1] * width * (offset[0] + rng.uniform(-0.12, 0.12))
        centre = centre + axes[2] * thickness * (offset[1] + rng.uniform(-0.12, 0.12))
        uneven = rng.uniform(0.85, 1.15, 3)
        half = uneven * (0.85 * step * length_of(course) + 0.3, fill * width, fill * thickness)
        injury.lesions.add(kind, centre, half, axes, rough=0.3)


def strands(injury: Injury, course: np.ndarray, start: float, end: float, rng: np.random.Generator) -> None:
    """Three bundles of fibres that a tear has left, within the stretch that ``tear_along`` has torn."""
    for _ in range(3):
        share = rng.uniform(start, end)
        axes = course_axes(course, share)
        width, thickness = radii_at(course, share)
        centre = at_share(course, share)[:3] + rng.uniform(-0.7, 0.7, 2) * (width, thickness) @ axes[1:]
        half = (rng.uniform(2.5, 6.0), rng.uniform(0.12, 0.25) * width, rng.uniform(0.12, 0.25) * thickness)
        injury.lesions.add(Kind.FIBRES, centre, half, turned(axes, 1, rng.uniform(-15.0, 15.0)), rough=0.15)


def gap_across(injury: Injury, kind: Kind, course: np.ndarray, level: float, half: float) -> None:
    """Part a cord or a strap at a share of its length, ``half`` mm to either side."""
    width, thickness = radii_at(course, level)
    across = (1.15 * half, 2.2 * width, 2.8 * thickness)
    injury.lesions.add(kind, at_share(course, level)[:3], across, course_axes(course, level), rough=0.4)


def bruise(
    injury: Injury, centre: tuple[float, float, float] | np.ndarray, half: tuple[float, float, float],
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Marrow oedema of about the half-axes ``half``: a bright core of two and a faint rim of two ellipsoids."""
    middle, size = np.array(centre), np.array(half)
    for kind, spread in ((Kind.FAINT_MARROW_OEDEMA, 1.35), (Kind.MARROW_OEDEMA, 0.9)):
        for _ in range(2):
            place = middle + size * rng.uniform(-0.35, 0.35, 3)
            injury.lesions.add(kind, place, spread * size * rng.uniform(0.7, 1.05, 3), rough=1.0)


def oedema(
    injury: Injury, centre: np.ndarray, half: tuple[float, float, float], rng: np.random.Generator,
    axes: np.ndarray | None = None, kind: Kind = Kind.SOFT_OEDEMA, count: int = 3,
) -> None:  # fmt: skip
    """An uneven patch of oedema or fluid of about the half-axes ``half``."""
    turn = np.eye(3) if axes is None else axes
    for _ in range(count):
        place = centre + (np.array(half) * rng.uniform(-0.5, 0.5, 3)) @ turn
        injury.lesions.add(
            kind, place, np.array(half) * rng.uniform(0.6, 1.0, 3), turn, rough=min(0.2 * min(half), 0.8)
        )


def slacken(course: np.ndarray, mm: float, towards: np.ndarray, waves: float, rng: np.random.Generator) -> None:
    """Let a cord or a strap sag by up to ``mm`` towards a direction (3,), in ``waves`` half-waves, ends held."""
    shares = np.linspace(0.0, 1.0, len(course))
    shape = np.sin(math.pi * waves * shares) * np.minimum(1.0, 4.0 * np.minimum(shares, 1.0 - shares))
    jitter = rng.uniform(0.75, 1.25, len(course))
    course[:, :3] += (mm * shape * jitter)[:, None] * towards
