"""The shoulder in numbers: an average adult right shoulder, drawn around it.

Everything is in mm, in the scapula's own plane: x to lateral along the supraspinatus muscle, y to anterior across it,
z to superior, the origin in the centre of the humeral head, the arm hanging.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from orthokernels.data.phantom.parts import Part
from orthokernels.data.phantom.solids import (
    Blueprint,
    Solid,
    block,
    column,
    cord,
    ellipsoid,
    jitter,
    near,
    shifted,
    strap,
)

HEAD_RADIUS = 23.5
CARTILAGE_REACH = 1.6  # where the cuff begins, in mm from the humerus
_ALONG_SCAPULA = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])  # a column's heights run along x


class Variation(NamedTuple):
    """What differs between healthy shoulders, in mm: fat, the cuff's thickness, and how much fluid lies where."""

    fat: float
    cuff: float
    gap: float
    effusion: float
    bursa: float
    sheath: float


def healthy_shoulder(rng: np.random.Generator) -> tuple[Blueprint, Variation]:
    """A shoulder of its own shape, and the measures that findings are laid by."""
    variation = Variation(
        fat=rng.uniform(4.0, 11.0), cuff=rng.uniform(4.4, 5.8), gap=rng.uniform(3.0, 3.5),
        effusion=rng.uniform(0.5, 1.0) ** -1.3, bursa=rng.uniform(0.15, 0.6), sheath=rng.uniform(0.2, 0.8),
    )  # fmt: skip
    b = Blueprint()
    _body(b, variation)
    _humerus(b, rng)
    _scapula(b, variation, rng)
    _chest(b)
    _articulation(b, variation, rng)
    _biceps(b, variation, rng)
    _cuff(b, variation)
    _bursa(b, variation)
    _ligaments(b, rng)
    _vessels(b, rng)
    _recesses(b, variation)
    _cuff_muscles(b, rng)
    _muscles(b, variation, rng)
    return b, variation


def _body(b: Blueprint, variation: Variation) -> None:
    arm = column(
        (-130, 12, -3, 46, 48), (-60, 12, -2, 49, 53), (-25, 8, -1, 49, 57), (5, 5, -1, 46, 56), (25, 2, -2, 41, 50),
        (40, 0, -3, 32, 42), square=0.15,
    )  # fmt: skip
    chest = ellipsoid((-115, -6, -70), (86, 84, 132))
    slope = ellipsoid((-75, -10, 26), (66, 40, 34), y=14.0)
    cap, front = ellipsoid((1, -5, 26), (38, 46, 28)), ellipsoid((-48, 2, -22), (58, 57, 60))
    b.body(arm, cap.united(8.0), front.united(20.0), chest.united(26.0), slope.united(26.0))
    b.envelope(near("body", -variation.fat))


def _humerus(b: Blueprint, rng: np.random.Generator) -> None:
    x, y, z = jitter(rng, 0.8)
    size = rng.uniform(-0.7, 0.7)
    b.bone(
        "humerus",
        ellipsoid((0, 0, 0), (HEAD_RADIUS + 0.5 * size, HEAD_RADIUS + size, HEAD_RADIUS + 0.3 * size)),
        column(
            (-130, 11, -4, 10.5, 10.5), (-60, 10, -3, 11, 11.5), (-35, 8, -1, 13.5, 14.5), (-18, 5, 0, 18, 19),
            (-6, 4, 0, 18, 19), square=0.1,
        ).united(6.0),
        ellipsoid((14 + x, -3, 2), (13, 17, 17.5)).united(5.0),
        ellipsoid((7, 17.5 + y, -3 + z), (8, 9.5, 12)).united(4.0),
        cord((15, 25, 14, 3.3), (15.8, 23.8, -6, 3.5), (14.5, 19.5, -28, 3.0), (13.5, 16, -50, 2.2)).removed(2.0),
        cortex=0.9,
    )  # fmt: skip
    shaft = block((8, 0, -128), (60, 60, 80)).limiting(12.0)
    b.add("humerus shaft", Part.BONE_CORTEX, near("humerus"), near("humerus", -2.8).removed(), shaft, before="humerus")


def _scapula(b: Blueprint, variation: Variation, rng: np.random.Generator) -> None:
    move = jitter(rng, 1.0)
    acromion = np.array([2.0, -11.0, 39.0]) + jitter(rng, 1.2)
    slope = float(rng.uniform(-4.0, 10.0))
    blade = block((-100, -5, -28), (56, 1.5, 52), x=-2.0)
    coracoid = cord((-36, 6, 14, 7.5), (-29, 19, 22, 6.5), (-21 + move[0], 30, 20, 6), (-14 + move[0], 36.5, 10, 5))
    rows = (
        ellipsoid((-37, -2, -1), (13, 13.5, 19)),
        ellipsoid((-52, -4, -6), (18, 7.5, 22)).united(5.0),
        blade.united(5.0),
        cord((-42, -2, -18, 5.5), (-60, -5, -50, 4.5), (-78, -7, -95, 4)).united(4.0),
        coracoid.united(4.0),
        strap(
            (-125, -12, 6, 11, 2.2), (-66, -17, 17, 13, 2.6), (-40, -24, 27, 9, 3.2), (-14, -27, 36, 8, 4),
            across=(0, -0.75, 0.66),
        ).united(4.0),
        ellipsoid((acromion[0], acromion[1], acromion[2]), (16, 24, 5.2), x=slope, y=4.0, z=-14.0).united(4.0),
        ellipsoid((acromion[0] - 6, acromion[1] + 6, acromion[2] + 0.5), (11, 14, 5), z=-14.0).united(3.0),
    )  # fmt: skip
    b.bone("scapula", *rows, near("humerus", variation.gap).removed(2.0), cortex=0.9)
    clavicle = shifted(
        rng, 1.0, (-140, 38, 50, 7), (-85, 30, 50, 6.5), (-48, 17, 48, 6.5), (-22, 6, 43.5, 6.8), (-14, 3, 41.5, 6)
    )
    b.bone("clavicle", cord(*clavicle, blend=2.0), near("scapula", rng.uniform(1.9, 2.7)).removed(1.5), cortex=1.0)


def _chest(b: Blueprint) -> None:
    lung = np.array([-158.0, 0.0, -85.0]), np.array([76.0, 72.0, 118.0])
    b.add("lung", Part.AIR, ellipsoid(tuple(lung[0]), tuple(lung[1])), before="humerus")
    ribs = []
    for height in (-8.0, -36.0, -64.0, -92.0, -120.0):
        points = []
        for angle in np.radians(np.arange(-75.0, 80.0, 25.0)):
            z = height - 8.0 * np.sin(angle)
            across = np.sqrt(max(1.0 - ((z - lung[0][2]) / lung[1][2]) ** 2, 0.05))
            reach = lung[1][:2] * across + 5.0
            points.append((lung[0][0] + reach[0] * np.cos(angle), reach[1] * np.sin(angle), z, 4.2))
        ribs.append(cord(*points))
    b.bone("ribs", *(rib.united(0.05) for rib in ribs), cortex=1.0)


def _articulation(b: Blueprint, variation: Variation, rng: np.random.Generator) -> None:
    thick = 0.5 * variation.gap - 0.1
    b.add("head cartilage", Part.CARTILAGE, near("humerus", thick), ellipsoid((-14, -3, 6), (26, 25, 26)).limiting())
    glenoid = ellipsoid((-27, 0, -1), (8, 14, 20)).limiting()
    b.add(
        "glenoid cartilage",
        Part.CARTILAGE,
        near("scapula", thick),
        near("humerus", variation.gap + 0.2).limiting(0.5),
        glenoid,
    )
    b.add("labrum", Part.LABRUM, _labrum(float(rng.uniform(2.3, 2.9))), near("humerus", thick).removed(0.5))
    b.add(
        "joint film",
        Part.FLUID,
        near("humerus", variation.gap + 0.2),
        near("scapula", variation.gap + 0.2).limiting(0.5),
    )
    b.add("AC disc", Part.DEGENERATE_FIBRES, near("scapula", 3.0), near("clavicle", 3.0).limiting(1.0))


def labral_rim(clock: float) -> tuple[float, float, float]:
    """The point of the glenoid's rim at an angle in radians from anterior over superior."""
    y, z = 13.2 * np.cos(clock), -1.0 + 18.6 * np.sin(clock)
    radius = HEAD_RADIUS + 3.6
    return -float(np.sqrt(radius * radius - y * y - z * z)), float(y), float(z)


def _labrum(radius: float) -> Solid:
    return cord(*((*labral_rim(a), radius) for a in np.linspace(0.0, 2.0 * np.pi, 15)))


# The long head of the biceps: over the head, through its groove, down the arm. x, y, z and radius.
_BICEPS = (
    (-23, 4, 17.5, 1.9), (-12, 12, 23, 2.0), (0, 19.2, 20.5, 2.1), (9, 23, 14, 2.2), (14.6, 24, 5, 2.3),
    (15.6, 23.6, -8, 2.4), (14.4, 19.6, -28, 2.3), (13.5, 17, -50, 2.3), (12, 16, -120, 2.6),
)  # fmt: skip


def _biceps(b: Blueprint, variation: Variation, rng: np.random.Generator) -> None:
    times = rng.uniform(0.9, 1.1)
    tendon = cord(*((x, y, z, times * r) for x, y, z, r in _BICEPS))
    b.add("LHBT", Part.TENDON, tendon)
    wide = variation.sheath
    sheath = cord(*((x, y + 0.3, z, r + (wide if -35 < z < 6 else 0.1)) for x, y, z, r in _BICEPS[3:8]))
    b.add("LHBT sheath", Part.FLUID, sheath)


# Which part of the cuff's shell is whose tendon: centre and half-axes.
CUFF = {
    "supraspinatus": ((-2.0, 1.0, 18.0), (27.0, 13.0, 19.0)),
    "infraspinatus": ((4.0, -21.0, 8.0), (22.0, 13.0, 16.0)),
    "teres minor": ((6.0, -23.0, -13.0), (15.0, 10.0, 8.0)),
    "subscapularis": ((-4.0, 22.0, -1.0), (20.0, 13.0, 16.0)),
}


def _cuff(b: Blueprint, variation: Variation) -> None:
    bands: dict[str, list[Solid]] = {
        "supraspinatus": [
            strap((-58, -1, 25, 2, 0.8), (-34, 1, 27.5, 4, 1.2), (-16, 1, 28.5, 9, 2.0), across=(0, 1, 0))
        ],
        "infraspinatus": [strap((-50, -19, 2, 3, 0.8), (-24, -25, 4, 6, 1.3), (-8, -28, 6, 9, 2.0), across=(0, 0, 1))],
        "teres minor": [],
        "subscapularis": [
            strap((-48, 10, z - 4, 2, 0.8), (-24, 20, z - 1, 3, 1.1), (-9, 27, z, 5, 1.5), across=(0, 0, 1))
            for z in (-9, 0, 8)
        ],
    }
    for name, (centre, half) in CUFF.items():
        shell = near("humerus", CARTILAGE_REACH + variation.cuff), ellipsoid(centre, half).limiting(2.0)
        b.add(f"{name} tendon", Part.TENDON, *shell)
        if bands[name]:
            b.add(f"{name} band", Part.TENDON, *bands[name])


def bursa(mm: float, variation: Variation, times: float = 1.0) -> tuple[Solid, ...]:
    """The bursa between the cuff and the deltoid muscle, as a layer ``mm`` thick; ``times`` as far down and around."""
    under = CARTILAGE_REACH + variation.cuff + 0.5
    reach = ellipsoid((9, 1, 17), (21 * times, 20 * times, 21 * times))
    return near("humerus", under + mm), near("humerus", under).removed(0.1), reach.limiting(2.0 * mm)


def _bursa(b: Blueprint, variation: Variation) -> None:
    b.add("bursa", Part.FLUID, *bursa(variation.bursa, variation))


def _ligaments(b: Blueprint, rng: np.random.Generator) -> None:
    arch = strap((-13, 35, 15, 6, 0.8), (-3, 22, 26, 5, 0.8), (5, 8, 34, 5, 0.9), across=(0.8, 0.6, 0))
    b.add("coracoacromial", Part.LIGAMENT, arch)
    b.add(
        "coracoclavicular", Part.LIGAMENT, cord((-27, 22, 27, 2.2), (-26, 12, 40, 2.2)).united(0.05),
        cord((-33, 18, 26, 2.4), (-40, 16, 43, 2.4)).united(0.05),
    )  # fmt: skip
    pouch = strap(
        (-22, -2, -21, 8, 0.8), (-16, -2, -29 - rng.uniform(0, 2), 9, 0.8), (-5, -2, -27, 9, 0.8), across=(0, 1, 0)
    )
    b.add("inferior capsule", Part.LIGAMENT, pouch)
    b.add("anterior capsule", Part.LIGAMENT, strap((-23, 15, 2, 8, 0.7), (-16, 23, -2, 9, 0.7), across=(0, 0, 1)))
    b.add("AC capsule", Part.LIGAMENT, near("scapula", 4.2), near("clavicle", 4.2).limiting(1.0))


def _vessels(b: Blueprint, rng: np.random.Generator) -> None:
    course = ((-120, 30, 24), (-80, 28, 4), (-44, 22, -26), (-20, 10, -58), (-14, 6, -125))
    for name, part, dy, dz, radius in (
        ("axillary artery", Part.ARTERY, 0.0, 0.0, 3.0), ("axillary vein", Part.VEIN, 4.0, -6.5, 3.8),
        ("plexus", Part.NERVE, -5.0, 3.5, 2.2), ("radial nerve", Part.NERVE, -6.5, -2.5, 2.0),
    ):  # fmt: skip
        move = jitter(rng, 1.0)
        b.add(name, part, cord(*((x + move[0], y + dy + move[1], z + dz, radius) for x, y, z in course)))
    cephalic = shifted(rng, 2.0, (-26, 30, 36, 1.5), (-24, 46, 4, 1.6), (-14, 50, -40, 1.7), (4, 48, -120, 1.7))
    b.add("cephalic vein", Part.VEIN, cord(*cephalic))
    circumflex = shifted(rng, 1.0, (-14, 2, -44, 1.5), (0, -17, -38, 1.5), (20, -17, -36, 1.3), (27, 2, -34, 1.1))
    b.add("circumflex vein", Part.VEIN, cord(*circumflex))


def _recesses(b: Blueprint, variation: Variation) -> None:
    a = variation.effusion
    recesses = (
        ellipsoid((-14, -2, -26.5), (7, 8, 1.1 * a)), ellipsoid((-27, 18, 12), (4, 1.0 * a, 4)),
        ellipsoid((-19, -19.5, -2), (2.5, 0.8 * a, 7)),
    )  # fmt: skip
    b.add("recesses", Part.FLUID, *(r.united(2.0) for r in recesses))


def _cuff_muscles(b: Blueprint, rng: np.random.Generator) -> None:
    bellies = {  # x, then centre and half-axes along y and z
        "supraspinatus": ((-130, -4, 14, 10, 8), (-85, -3, 21, 16, 13), (-58, -1, 25, 14, 13), (-36, 1, 26.5, 11, 9),
                          (-16, 1, 28.5, 8, 4), (-2, 1, 29, 4, 1.5)),
        "infraspinatus": ((-130, -15, -18, 9, 34), (-90, -17, -14, 12, 31), (-60, -20, -9, 13, 23),
                          (-35, -24, -2, 11, 16), (-14, -28.5, 3, 7, 11), (2, -29.5, 6, 3, 6)),
        "teres minor": ((-105, -16, -66, 6, 7), (-60, -20, -42, 8, 9), (-26, -25, -22, 7, 8), (-4, -26.5, -15, 4, 6),
                        (6, -26, -13, 2, 3)),
        "subscapularis": ((-130, 1, -26, 5, 44), (-90, 4, -24, 9, 40), (-60, 7, -17, 12, 30), (-36, 13, -9, 11, 22),
                          (-16, 23, -4, 7, 16), (-3, 27.5, -2, 3, 11)),
    }  # fmt: skip
    for name, levels in bellies.items():
        move = jitter(rng, 1.0)
        b.muscle(name, column(*levels, turn=_ALONG_SCAPULA, origin=(0.0, move[1], move[2])))


def _muscles(b: Blueprint, variation: Variation, rng: np.random.Generator) -> None:
    around = column(
        (-128, 22, -4, 6, 8), (-95, 19, -3, 24, 30), (-60, 14, -2, 35, 42), (-25, 9, -1, 41, 50), (5, 6, -1, 40, 50),
        (28, 3, -3, 34, 44), (41, 0, -5, 22, 30), square=0.1,
    )  # fmt: skip
    reach = HEAD_RADIUS + CARTILAGE_REACH + variation.cuff + rng.uniform(1.8, 3.2)
    dome = ellipsoid((3, -1, -1), (reach + 0.5, reach, reach)).removed(3.0)
    within = block((-64, 0, -60), (52, 27, 130)).removed(8.0)
    b.muscle("deltoid", around, near("humerus", 3.0).removed(3.0), dome, within)
    b.muscle("short biceps", cord((-13, 36, 4, 3), (-9, 32, -25, 8), (-2, 25, -65, 12), (4, 22, -130, 15), blend=3.0))
    b.muscle("biceps belly", cord((13, 20, -62, 3), (14, 22, -95, 12), (14, 22, -130, 15), blend=3.0))
    b.muscle("pectoralis minor", cord((-17, 34, 4, 3), (-48, 40, -24, 9), (-90, 44, -58, 11), blend=3.0))
    b.muscle(
        "pectoralis major",
        strap(
            (16, 19, -58, 12, 2.5),
            (-14, 42, -42, 22, 5),
            (-66, 56, -38, 40, 8),
            (-130, 58, -40, 45, 9),
            across=(0, 0.1, 1),
        ),
    )
    b.muscle(
        "teres major", cord((8, 8, -66, 4), (-20, -14, -66, 10), (-70, -28, -82, 14), (-130, -40, -100, 14), blend=3.0)
    )
    b.muscle("triceps", cord((-31, -7, -25, 3), (-24, -14, -46, 9), (-4, -20, -82, 14), (8, -20, -130, 17), blend=3.0))
    b.muscle(
        "trapezius",
        strap((-8, -14, 47, 12, 2.0), (-45, -18, 48, 22, 4), (-100, -24, 54, 26, 8), across=(0, 0.95, -0.25)),
    )
    b.muscle("chest wall", near("lung", 13.0), block((-150, 0, -80), (140, 100, 110)).limiting())
