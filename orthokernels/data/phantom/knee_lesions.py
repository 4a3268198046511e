"""What injury changes inside a knee: a table of small solids, each of which turns some parts into others.

A torn ligament is still a ligament where it swells and loosens, so its course and radii say that. What shows as
signal within a structure, such as a cleft in a meniscus or oedema of marrow, is a row of this table: where a point
lies inside the row's solid and its part is one that the row's kind changes, it becomes another part.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np

from orthokernels.data.phantom.distance import compiled, ellipsoid
from orthokernels.data.phantom.parts import Part

ROWS, NUMBERS = 120, 18
ELLIPSOID, PLATE = 0, 1
RIM = 0.8  # mm of intact fibres around the signal within a meniscus that is no tear


class Kind(IntEnum):
    """What a lesion does to the parts it meets."""

    NONE = 0
    MARROW_OEDEMA = 1
    FAINT_MARROW_OEDEMA = 2
    SOFT_OEDEMA = 3
    POOL = 4
    ACL_TEAR = 5
    ACL_GAP = 6
    ACL_MUCOID = 7
    PCL_TEAR = 8
    PCL_GAP = 9
    BAND_TEAR = 10
    BAND_GAP = 11
    MENISCUS_TEAR = 12
    MENISCUS_GAP = 13
    MENISCUS_SIGNAL = 14
    MEDIAL_FRAGMENT = 15
    LATERAL_FRAGMENT = 16
    FIBRES = 17


WITHIN = float(Kind.MENISCUS_SIGNAL)
_LOOSE = (Part.DEEP_FAT, Part.HOFFA_FAT, Part.SYNOVIUM, Part.FAT_OEDEMA, Part.FLUID)
_MENISCI = (
    Part.MEDIAL_MENISCUS, Part.LATERAL_MENISCUS, Part.TORN_MEDIAL_MENISCUS, Part.TORN_LATERAL_MENISCUS,
    Part.DEGENERATE_MEDIAL_MENISCUS, Part.DEGENERATE_LATERAL_MENISCUS,
)  # fmt: skip
_CHANGES: dict[Kind, dict[Part, Part]] = {
    Kind.MARROW_OEDEMA: {
        Part.FEMUR_MARROW: Part.FEMUR_OEDEMA, Part.FAINT_FEMUR_OEDEMA: Part.FEMUR_OEDEMA,
        Part.TIBIA_MARROW: Part.TIBIA_OEDEMA, Part.FAINT_TIBIA_OEDEMA: Part.TIBIA_OEDEMA,
        Part.PATELLA_MARROW: Part.PATELLA_OEDEMA, Part.FAINT_PATELLA_OEDEMA: Part.PATELLA_OEDEMA,
        Part.FIBULA_MARROW: Part.FIBULA_OEDEMA,
    },
    Kind.FAINT_MARROW_OEDEMA: {
        Part.FEMUR_MARROW: Part.FAINT_FEMUR_OEDEMA, Part.TIBIA_MARROW: Part.FAINT_TIBIA_OEDEMA,
        Part.PATELLA_MARROW: Part.FAINT_PATELLA_OEDEMA,
    },
    Kind.SOFT_OEDEMA: {
        Part.SUBCUTANEOUS_FAT: Part.FAT_OEDEMA, Part.DEEP_FAT: Part.FAT_OEDEMA, Part.HOFFA_FAT: Part.FAT_OEDEMA,
        Part.SYNOVIUM: Part.FAT_OEDEMA, Part.MUSCLE: Part.MUSCLE_OEDEMA,
    },
    Kind.POOL: dict.fromkeys((*_LOOSE, Part.MUSCLE, Part.MUSCLE_OEDEMA), Part.FLUID),
    Kind.ACL_TEAR: {Part.ACL: Part.TORN_ACL, Part.MUCOID_ACL: Part.TORN_ACL},
    Kind.ACL_GAP: dict.fromkeys((Part.ACL, Part.MUCOID_ACL, Part.TORN_ACL), Part.SYNOVIUM),
    Kind.ACL_MUCOID: {Part.ACL: Part.MUCOID_ACL},
    Kind.PCL_TEAR: {Part.PCL: Part.TORN_PCL},
    Kind.PCL_GAP: {Part.PCL: Part.SYNOVIUM, Part.TORN_PCL: Part.SYNOVIUM},
    Kind.BAND_TEAR: {Part.LIGAMENT: Part.TORN_FIBRES, Part.TENDON: Part.TORN_FIBRES},
    Kind.BAND_GAP: dict.fromkeys((Part.LIGAMENT, Part.TENDON, Part.TORN_FIBRES), Part.FAT_OEDEMA),
    Kind.MENISCUS_TEAR: dict(zip(_MENISCI, 3 * (Part.TORN_MEDIAL_MENISCUS, Part.TORN_LATERAL_MENISCUS), strict=True)),
    Kind.MENISCUS_GAP: dict.fromkeys(_MENISCI, Part.FLUID),
    Kind.MENISCUS_SIGNAL: {
        Part.MEDIAL_MENISCUS: Part.DEGENERATE_MEDIAL_MENISCUS, Part.LATERAL_MENISCUS: Part.DEGENERATE_LATERAL_MENISCUS,
    },
    Kind.MEDIAL_FRAGMENT: dict.fromkeys(_LOOSE, Part.MEDIAL_MENISCUS),
    Kind.LATERAL_FRAGMENT: dict.fromkeys(_LOOSE, Part.LATERAL_MENISCUS),
    Kind.FIBRES: {Part.TORN_ACL: Part.ACL, Part.TORN_PCL: Part.PCL, Part.TORN_FIBRES: Part.LIGAMENT},
}  # fmt: skip


def _becomes() -> np.ndarray:
    """(kinds, parts) int64: what a part becomes where it meets a lesion of each kind."""
    table = np.tile(np.arange(len(Part)), (len(Kind), 1))
    for kind, changes in _CHANGES.items():
        for part, other in changes.items():
            table[kind, part] = other
    return table


_BECOMES = _becomes()


class Lesions:
    """A table of lesions that grows row by row. Later rows meet what earlier ones left."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []

    def add(
        self, kind: Kind, centre: np.ndarray, half: tuple[float, float, float] | np.ndarray,
        axes: np.ndarray | None = None, *, plate: bool = False, rough: float = 0.0,
    ) -> None:  # fmt: skip
        """Add an ellipsoid, or a plate with flat sides.

        Args:
            kind: what it does.
            centre: (3,) mm in the knee's frame.
            half: (3,) its half-axes in mm.
            axes: (3, 3) unit vectors, one a row, that the half-axes follow; x, y and z where not given.
            plate: flat sides in place of an ellipsoid.
            rough: how far its surface wanders to and fro, in mm.
        """
        turn = np.eye(3) if axes is None else axes
        self._rows.append(
            np.concatenate([[kind, PLATE if plate else ELLIPSOID], centre, half, np.ravel(turn), [rough]])
        )

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """(ROWS, NUMBERS) float64 with zeros where no lesion is, and (1,) how many there are."""
        table = np.zeros((ROWS, NUMBERS))
        table[: len(self._rows)] = self._rows or np.zeros((0, NUMBERS))
        return table, np.array([float(len(self._rows))])


@compiled
def bump(turns: float) -> float:
    """A wave of parabolas: like a sine of so many turns, for a fifth of its cost."""
    t = turns - math.floor(turns + 0.5)
    return t * (8.0 - 16.0 * abs(t))


@compiled
def lesion_at(x: float, y: float, z: float, s: np.ndarray, at: int) -> float:
    """Distance to the lesion whose row begins at ``at``."""
    dx, dy, dz = x - s[at + 2], y - s[at + 3], z - s[at + 4]
    # A ball around it spares most of the arithmetic.
    most = s[at + 5] + s[at + 6] + s[at + 7] + 2.0 * s[at + 17]
    away = math.sqrt(dx * dx + dy * dy + dz * dz)
    if away > most + 6.0:
        return away - most
    u = s[at + 8] * dx + s[at + 9] * dy + s[at + 10] * dz
    v = s[at + 11] * dx + s[at + 12] * dy + s[at + 13] * dz
    w = s[at + 14] * dx + s[at + 15] * dy + s[at + 16] * dz
    if s[at + 1] == PLATE:
        d = max(abs(u) - s[at + 5], abs(v) - s[at + 6], abs(w) - s[at + 7])
    else:
        d = ellipsoid(u + s[at + 2], v + s[at + 3], w + s[at + 4], s, at + 2)
    rough = s[at + 17]
    if rough > 0.0:
        # Two waves of about 10 and 6 mm; divided by how much faster than distance the sum can change.
        wander = bump(0.07 * x + 0.05 * y - 0.05 * z) + 0.6 * bump(0.12 * z - 0.08 * x + 0.09 * y + 0.3)
        d = (d + rough * wander) / (1.0 + 1.7 * rough)
    return d


@compiled
def prune_lesions(x: float, y: float, z: float, reach: float, s: np.ndarray, at: int, active: np.ndarray) -> None:
    """Mark in ``active`` (1 + ROWS,) bool which lesions lie within ``reach``: any at all, then each."""
    if not active[0]:
        return
    some = False
    for n in range(int(s[at + ROWS * NUMBERS])):
        if active[1 + n]:
            active[1 + n] = lesion_at(x, y, z, s, at + NUMBERS * n) < reach
            some |= active[1 + n]
    active[0] = some


@compiled
def injured(
    part: int, near: float, x: float, y: float, z: float, s: np.ndarray, at: int, active: np.ndarray
) -> tuple[int, float]:
    """What the lesions make of a part and of the clearance around it; ``active`` as ``prune_lesions`` fills it."""
    for n in range(int(s[at + ROWS * NUMBERS])):
        if active[1 + n]:
            row = at + NUMBERS * n
            other = _BECOMES[int(s[row]), part]
            if other != part:
                d = lesion_at(x, y, z, s, row)
                if s[row] == WITHIN:
                    d = max(d, RIM - near)
                near = min(near, abs(d))
                if d < 0.0:
                    part = other
    return part, near
