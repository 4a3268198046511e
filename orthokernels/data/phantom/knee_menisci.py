"""Tears of a meniscus, and the signal within it that is none because it reaches no surface."""

from __future__ import annotations

import math

import numpy as np

from orthokernels.data.phantom.knee_form import Meniscus
from orthokernels.data.phantom.knee_injury import Injury, axes_along, turned
from orthokernels.data.phantom.knee_lesions import Kind

# Angles about the middle of a meniscus, in degrees from the direction of its opening, where its horns and its body lie.
_ZONES = {"posterior": (-128.0, -86.0), "body": (-200.0, -160.0), "anterior": (88.0, 122.0)}
_TYPES = ("horizontal", "vertical", "oblique", "radial", "displaced")


class Place:
    """A place on a meniscus: ``depth`` goes from 0 at its outer rim to 1 at its free edge.

    Attributes:
        axes: (3, 3) unit vectors outwards, along the rim and up.
        width: from the rim to the free edge, in mm.
        thick: about the meniscus' height at its rim, in mm.
    """

    def __init__(self, injury: Injury, name: str, degrees: float) -> None:
        self._shape = Meniscus(*injury[name])
        self._slope, self._tibial = float(injury["plateau"][0]), float(injury["cartilage"][1])
        m, self._angle = self._shape, math.radians(degrees)
        v = math.sin(self._angle)
        ahead = _smooth(-0.6, 0.6, v)
        free = _smooth(0.0, 0.7, abs(math.remainder(self._angle, 2.0 * math.pi)) - m.opening)
        self.width = (m.posterior_width + (m.anterior_width - m.posterior_width) * ahead) * (0.45 + 0.55 * free)
        self.thick = m.height
        along = np.array([-m.toward * m.half_width * v, m.half_length * math.cos(self._angle), 0.0])
        up = np.array([0.0, -self._slope, 1.0])
        outwards = np.array([m.toward * m.half_width * math.cos(self._angle), m.half_length * v, 0.0])
        across = axes_along(along, up)
        self.axes = np.array([np.cross(across[0], across[1]), across[0], across[1]])
        if self.axes[0] @ outwards < 0.0:
            self.axes[0] *= -1.0

    def at(self, depth: float, share: float) -> np.ndarray:
        """A point, (3,), at a depth and a share of the height there: 0 on the tibial, 1 on the femoral surface."""
        m = self._shape
        radius = 1.0 - depth * self.width / math.sqrt(m.half_width * m.half_length)
        x = m.x + m.toward * m.half_width * radius * math.cos(self._angle)
        y = m.y + m.half_length * radius * math.sin(self._angle)
        dish = ((x - m.x) / 15.0) ** 2 + ((y - 1.0) / 20.0) ** 2
        plateau = self._slope * (y - 2.0) - (1.3 if m.x < 0.0 else 0.3) * math.exp(-dish)
        rise = 1.0 - depth
        floor = self._tibial * (1.0 - 0.6 * rise)
        # The femoral condyle leaves some four fifths of the room that the meniscus' own form would take.
        return np.array([x, y, plateau + floor + 0.8 * share * (0.8 + (m.height - 0.8) * rise)])


def _smooth(low: float, high: float, value: float) -> float:
    t = min(max((value - low) / (high - low), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


def _place(injury: Injury, name: str, rng: np.random.Generator, posterior: float) -> Place:
    """A place in the posterior horn with probability ``posterior``, else in the body or the anterior horn."""
    rest = 1.0 - posterior
    zone = str(rng.choice(list(_ZONES), p=[posterior, 0.65 * rest, 0.35 * rest]))
    return Place(injury, name, float(rng.uniform(*_ZONES[zone])))


def intrasubstance_signal(injury: Injury, name: str, rng: np.random.Generator) -> None:
    """Mild signal inside the posterior horn or the body: a globule, or a line that stops before the surfaces."""
    place = _place(injury, name, rng, 0.8)
    line = rng.random() < 0.5
    half = (0.2 * place.width, rng.uniform(2.0, 4.0), rng.uniform(0.35, 0.5)) if line else rng.uniform(0.7, 1.1, 3)
    injury.lesions.add(Kind.MENISCUS_SIGNAL, place.at(rng.uniform(0.22, 0.36), 0.5), half, place.axes)


def tear_meniscus(injury: Injury, name: str, rng: np.random.Generator) -> None:
    """A tear of one of five types: a sheet or a wedge like fluid that reaches a surface."""
    kind = str(rng.choice(_TYPES, p=[0.26, 0.2, 0.24, 0.16, 0.14]))
    place = _place(injury, name, rng, 0.7)
    half, length = rng.uniform(0.5, 0.8), rng.uniform(4.0, 7.5)
    tear = Kind.MENISCUS_TEAR
    if kind == "horizontal":  # from the free edge, or from below, outwards
        depth = rng.uniform(0.15, 0.35)
        axes = turned(place.axes, 1, rng.uniform(-6.0, 10.0))
        across = 0.5 * (1.1 - depth) * place.width
        injury.lesions.add(
            tear, place.at(0.5 * (1.1 + depth), 0.5), (1.15 * across, 1.2 * length, half), axes, rough=0.15
        )
    elif kind == "vertical":  # along the rim, through the whole height
        depth = rng.uniform(0.22, 0.5)
        axes = turned(place.axes, 1, rng.uniform(-12.0, 12.0))
        injury.lesions.add(tear, place.at(depth, 0.5), (half, length, 7.0), axes, plate=True, rough=0.2)
    elif kind == "oblique":  # from the tibial surface up and outwards
        axes = turned(place.axes, 1, rng.choice([-1.0, 1.0]) * rng.uniform(30.0, 50.0))
        centre = place.at(rng.uniform(0.35, 0.55), 0.2)
        injury.lesions.add(tear, centre, (rng.uniform(3.2, 4.4), 1.2 * length, half), axes, rough=0.15)
    elif kind == "radial":  # from the free edge outwards, across the fibres
        depth = rng.uniform(0.1, 0.45)
        across = 0.5 * (1.2 - depth) * place.width
        axes = turned(place.axes, 2, rng.uniform(-20.0, 20.0))
        injury.lesions.add(
            tear, place.at(0.5 * (1.2 + depth), 0.5), (across, 1.3 * half, 7.0), axes, plate=True, rough=0.2
        )
    else:
        _displace(injury, name, place, length, rng)


def _displace(injury: Injury, name: str, place: Place, length: float, rng: np.random.Generator) -> None:
    """The inner part is gone, its edge is torn, and a fragment lies in the notch."""
    depth = rng.uniform(0.4, 0.6)
    across = 0.5 * (1.25 - depth) * place.width
    middle = place.at(0.5 * (1.25 + depth), 0.5)
    injury.lesions.add(Kind.MENISCUS_GAP, middle, (across, length, 7.0), place.axes, plate=True, rough=0.3)
    edge = place.at(depth - 0.05, 0.5)
    injury.lesions.add(
        Kind.MENISCUS_TEAR, edge, (rng.uniform(0.8, 1.4), length, 7.0), place.axes, plate=True, rough=0.3
    )
    medial = name == "medial_meniscus"
    kind = Kind.MEDIAL_FRAGMENT if medial else Kind.LATERAL_FRAGMENT
    x, y = (-6.5 if medial else 8.5) + rng.uniform(-1.0, 1.0), rng.uniform(-6.0, 6.0)
    lies = np.array([x, y, 8.0 + rng.uniform(-1.0, 1.5)])
    injury.lesions.add(kind, lies, (rng.uniform(1.8, 2.6), rng.uniform(4.0, 7.0), rng.uniform(1.5, 2.4)))
