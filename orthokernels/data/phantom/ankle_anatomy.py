"""The ankle in numbers: bones, ligaments, tendons and muscles of an average adult right ankle, drawn around them.

Everything is in mm: x to lateral, y to anterior, z to superior, the origin on top of the talar dome, the sole level.
The foot turns about the dome's axis by its own angle, and what crosses the joint bends with it.
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
    turn_of,
)

_AXIS = np.array([0.0, 0.0, -20.0])  # of the talar dome
_ALONG_FOOT = turn_of(x=-90.0).T  # a column's heights run along y, its second axis down


class Foot:
    """Where the foot's points go: turned about the dome's axis, and about its own length."""

    def __init__(self, flexion: float, inversion: float) -> None:
        self.flexion, self.inversion = flexion, inversion
        self.turn = turn_of(x=-flexion, y=inversion)

    def __call__(self, solid: Solid) -> Solid:
        return solid.moved(self.turn, _AXIS)

    def bend(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 3) of what crosses the joint: fixed above it, turned with the foot below it."""
        share = np.clip((12.0 - points[:, 2] + 0.35 * np.abs(points[:, 1])) / 32.0, 0.0, 1.0)
        turned = [
            turn_of(x=-s * self.flexion, y=s * self.inversion) @ (p - _AXIS) for s, p in zip(share, points, strict=True)
        ]
        return np.array(turned) + _AXIS


class Variation(NamedTuple):
    """What else differs between healthy ankles."""

    fat: float
    effusion: float
    sheath: float


def healthy_ankle(rng: np.random.Generator) -> tuple[Blueprint, Foot]:
    """An ankle of its own shape and flexion, and where its foot is."""
    foot = Foot(rng.uniform(-6.0, 16.0), rng.uniform(-5.0, 5.0))
    variation = Variation(rng.uniform(2.5, 7.0), rng.uniform(0.5, 1.0) ** -1.2, rng.uniform(0.2, 1.2))
    blueprint = Blueprint()
    _body(blueprint, foot, variation)
    cartilage = rng.uniform(1.05, 1.45)
    _bones(blueprint, foot, 2.0 * cartilage + rng.uniform(0.15, 0.4), rng)
    _cartilage(blueprint, foot, cartilage)
    _ligaments(blueprint, foot, rng)
    _tendons(blueprint, foot, rng)
    _vessels(blueprint, foot, rng)
    _fluid(blueprint, foot, variation)
    _muscles(blueprint, foot, rng)
    return blueprint, foot


def _body(b: Blueprint, foot: Foot, variation: Variation) -> None:
    leg = column(
        (130, 3, -11, 45, 45), (90, 3, -12, 38, 41), (60, 2, -12, 34, 40), (30, 0, -12, 33.5, 41), (5, 0, -12, 35, 43),
        (-20, 0, -12, 34, 46), (-45, 0, -14, 29, 44), square=0.1,
    )  # fmt: skip
    sole = column(
        (-70, 2, 52, 9, 12), (-66, 2, 52, 18, 22), (-58, 2, 52, 26, 30), (-40, 2, 52, 30, 33), (-15, 3, 51, 34, 33),
        (15, 0, 49, 38, 34), (40, -1, 47, 41, 33), (65, -1, 51, 43, 28), (110, 0, 56, 44, 20),
        square=0.45, turn=_ALONG_FOOT,
    )  # fmt: skip
    b.body(leg, foot(sole).united(24.0))
    heel_pad = foot(block((0.0, 0.0, 129.0), (200.0, 200.0, 200.0)))
    b.envelope(near("body", -variation.fat), heel_pad.limiting(6.0))


def _bones(b: Blueprint, foot: Foot, gap: float, rng: np.random.Generator) -> None:
    x, y, z = jitter(rng, 0.8)
    talus = (
        cord((-60, 0, -20, 20), (60, 0, -20, 20)),
        block((0, -1, -12), (14.5 + 0.5 * x, 19 + 0.5 * y, 13), y=0.0).limiting(3.0),
        cord((-1, 10, -15, 9.5), (-6 + x, 22, -17, 10), (-9 + x, 29, -19, 11.5 + 0.5 * z)).united(5.0),
        ellipsoid((-1, -19.5 + y, -16), (9, 7, 7.5)).united(4.0),
        ellipsoid((14, -1, -18), (5, 8, 6.5)).united(4.0),
    )
    calcaneus = (
        column(
            (-60, 2, 51, 7, 9), (-55, 2, 51, 13, 18), (-42, 2, 49.5, 12.5, 19), (-28, 3, 45.5, 11.5, 17),
            (-15, 4, 42.5, 13, 16.5), (0, 6, 43.5, 12, 13.5), (12, 8, 44, 10.5, 12), (22, 9, 44, 10, 11),
            square=0.35, turn=_ALONG_FOOT, origin=jitter(rng, 1.0),
        ),
        ellipsoid((-9, 2, -33), (8, 9, 5)).united(5.0),
    )  # fmt: skip
    b.bone("talus", *map(foot, talus), cortex=0.8)
    b.bone("calcaneus", *map(foot, calcaneus), near("talus", gap - 0.3).removed(1.5), cortex=0.8)
    navicular = ellipsoid((-10, 37, -21), (15, 9, 13.5), x=20.0, z=14.0)
    b.bone("navicular", foot(navicular), near("talus", 2.5).removed(1.0), cortex=0.7)
    cuboid = foot(ellipsoid((10, 37, -44), (12.5, 15, 12)))
    b.bone("cuboid", cuboid, near("calcaneus", 2.3).removed(), near("navicular", 2.0).removed(), cortex=0.7)
    wedges = foot(ellipsoid((-9, 57, -28), (17, 13, 13)))
    b.bone("cuneiforms", wedges, near("navicular", 2.2).removed(), near("cuboid", 2.0).removed(), cortex=0.7)
    rays = foot(cord((12, 54, -47, 9), (18, 95, -60, 6))), foot(cord((-12, 74, -32, 10), (-16, 110, -48, 7)))
    b.bone("metatarsals", *rays, *(near(n, 2.0).removed() for n in ("cuboid", "cuneiforms")), cortex=1.2)
    fibula = column(
        (120, 22, -6, 6, 7), (70, 23, -8, 6, 7), (30, 22.5, -8, 6, 7.5), (12, 21.5, -7.5, 7, 9),
        (-4, 22, -7, 6.5, 9.5), (-16, 21.8, -8, 5.5, 7.5), (-24, 20.5, -9, 2.5, 3.5), square=0.15,
        origin=jitter(rng, 0.8),
    )  # fmt: skip
    b.bone("fibula", fibula, near("talus", gap - 0.2).removed(1.5), cortex=1.0)
    tibia = column(
        (120, -3, 2, 11.5, 13), (70, -4, 1, 12.5, 13.5), (35, -3.5, 0, 15, 15), (18, -3, -1, 19, 17.5),
        (8, -3, -1.5, 21.5, 19), (-4, -3, -1.5, 21.5, 19), square=0.35, origin=jitter(rng, 0.6),
    )  # fmt: skip
    malleolus = ellipsoid((-20.5, 1, -5.5), (6.5, 11.5, 11.5 + rng.uniform(-1, 1)))
    cut = near("fibula", 1.6).removed(2.0), near("talus", gap).removed(1.5)
    b.bone("tibia", tibia, malleolus.united(5.0), *cut, cortex=0.9)
    for name, thickness in (("fibula", 2.0), ("tibia", 3.2)):
        shaft = block((0, 0, 105), (60, 60, 65)).limiting(10.0)
        b.add(
            f"{name} shaft", Part.BONE_CORTEX, near(name), near(name, -thickness).removed(1.0), shaft, before=name
        )  # fmt: skip


def _cartilage(b: Blueprint, foot: Foot, thick: float) -> None:
    dome = foot(block((0, 0, 0), (22, 17.5, 16)))
    b.add("talar cartilage", Part.CARTILAGE, near("talus", thick), dome.limiting(1.0))
    b.add("tibial cartilage", Part.CARTILAGE, near("tibia", thick), near("talus", 3.4).limiting(0.5))
    posterior, anterior = ellipsoid((3, -12, -27), (13, 13, 8)), ellipsoid((-9, 33, -20), (13, 10, 12))
    cuboid = foot(ellipsoid((9, 24, -44), (10, 5, 10)))
    for name, bone, where in (
        ("subtalar", "talus", foot(posterior)), ("calcaneal", "calcaneus", foot(posterior)),
        ("talar head", "talus", foot(anterior)), ("navicular", "navicular", foot(anterior)),
        ("calcaneocuboid", "calcaneus", cuboid), ("cuboid", "cuboid", cuboid),
    ):  # fmt: skip
        b.add(f"{name} cartilage", Part.CARTILAGE, near(bone, 1.05), where.limiting(1.0))


def _ligaments(b: Blueprint, foot: Foot, rng: np.random.Generator) -> None:
    bands = {
        "ATFL": strap(
            *shifted(rng, 0.4, (19.8, 0, -13, 3, 1.1), (18.6, 7, -14, 2.9, 1.05), (14.3, 14, -15, 3, 1.15)),
            across=(0, 0, 1),
        ),
        "CFL": strap(
            *shifted(
                rng,
                0.4,
                (20.5, -8, -21, 2.4, 1.4),
                (20, -12, -29, 2.4, 1.3),
                (18, -17, -38, 2.4, 1.3),
                (16.5, -20, -43, 2.6, 1.4),
            ),
            across=(0, 0.85, -0.5),
        ),
        "PTFL": strap((17.5, -11, -15, 3.2, 1.5), (8, -20, -14.5, 3.2, 1.7), across=(0, 0, 1)),
        "deep deltoid": strap((-19.5, 1, -15, 5, 1.5), (-14.5, 0, -20, 4, 1.4), across=(0, 1, 0)),
        "superficial deltoid": strap(
            (-23, 2, -13, 6, 1.1), (-19, 0, -24, 6, 1.1), (-16, 0, -32, 5, 1.1), across=(0, 1, 0)
        ),
        "interosseous": strap((2, 4, -24, 4, 1.3), (6, 3, -33, 4, 1.3), across=(1, 0, 0)),
        "long plantar": strap((4, -38, -66, 7, 1.5), (7, 0, -60, 6, 1.6), (8, 30, -57, 6, 1.2), across=(1, 0, 0)),
    }
    for name, band in bands.items():
        b.add(name, Part.LIGAMENT, band.placed(foot.bend))
    b.add("anterior syndesmosis", Part.LIGAMENT, strap((11, 15, 9, 3, 1.2), (20, 1, 2, 3, 1.3), across=(0, 0, 1)))
    b.add("posterior syndesmosis", Part.LIGAMENT, strap((9, -19, 8, 4, 1.4), (19, -15, 1, 4, 1.5), across=(0, 0, 1)))
    aponeurosis = strap(
        (0, -50, -69, 7, 1.6), (-1, -20, -71, 8, 1.5), (-2, 30, -69, 10, 1.2), (-2, 90, -68, 12, 1), across=(1, 0, 0)
    )
    b.add("plantar fascia", Part.TENDON, foot(aponeurosis))


# Courses of the tendons: x, y, z and radius.
_TENDONS = {
    "tibialis posterior": (
        (-6, -14, 110, 2), (-15, -13, 50, 2.2), (-21.5, -13, 10, 2.6), (-23, -11, -8, 2.7), (-22.5, 2, -22, 2.7),
        (-22, 18, -27, 2.8), (-22, 32, -26, 3.2),
    ),
    "flexor digitorum": (
        (-14, -17, 110, 1.6), (-17, -18.5, 40, 1.6), (-21.5, -18, 8, 1.8), (-22, -15, -12, 1.8), (-20, 0, -33, 1.8),
        (-13, 30, -46, 1.7),
    ),
    "flexor hallucis": (
        (2, -24, 50, 1.6), (-4, -26, 12, 2.2), (-7, -26.5, -12, 2.4), (-9, -16, -32, 2.3), (-12, 0, -42, 2.3),
        (-8, 25, -50, 2),
    ),
    "peroneus brevis": (
        (22, -17, 60, 1.8), (22, -19, 15, 2), (22.5, -18, -12, 2.1), (22.5, -9, -28, 2.1), (22, 10, -37, 2),
        (22, 36, -49, 2),
    ),
    "peroneus longus": (
        (26, -21, 60, 2), (25, -23, 15, 2.2), (25, -22, -12, 2.3), (23.5, -16, -33, 2.3), (21, 8, -46, 2.2),
        (9, 27, -58, 2.1),
    ),
    "tibialis anterior": (
        (2, 22, 110, 2.4), (-3, 22, 50, 2.6), (-9, 25, 6, 2.8), (-15, 36, -4, 2.8), (-21, 60, -18, 2.6),
    ),
    "extensor hallucis": ((4, 21, 60, 1.6), (0, 26, 6, 1.8), (-4, 38, -5, 1.7), (-9, 70, -12, 1.6)),
    "extensor digitorum": ((11, 20, 60, 1.8), (9, 25, 6, 2.3), (7, 38, -8, 2.1), (6, 72, -16, 1.8)),
}  # fmt: skip
_ACHILLES = (
    (2, -42, 120, 6, 2.0), (2, -46, 80, 6.4, 2.4), (2, -49, 45, 6.6, 2.7), (2, -51, 15, 6.8, 2.8),
    (2, -53.5, -10, 7.4, 2.9), (2, -58, -30, 9, 2.8), (2, -61.5, -48, 10, 2.0),
)  # fmt: skip


def _tendons(b: Blueprint, foot: Foot, rng: np.random.Generator) -> None:
    achilles = strap(*shifted(rng, 1.0, *_ACHILLES), across=(1, 0, 0))
    b.add("Achilles", Part.TENDON, achilles.placed(foot.bend))
    for name, points in _TENDONS.items():
        course = cord(*shifted(rng, 0.6, *points)).placed(foot.bend)
        b.add(name, Part.TENDON, course)


def _vessels(b: Blueprint, foot: Foot, rng: np.random.Generator) -> None:
    tunnel = ((-8, -22, 110), (-14, -23, 50), (-18, -22.5, 5), (-18.5, -18, -22), (-16, 0, -42), (-12, 25, -52))
    for name, part, dx, dy, radius in (
        ("posterior tibial artery", Part.ARTERY, 0.0, 0.0, 1.4), ("first vein", Part.VEIN, -2.6, -1.6, 1.5),
        ("second vein", Part.VEIN, 1.2, -3.0, 1.3), ("tibial nerve", Part.NERVE, 4.6, -2.4, 1.9),
    ):  # fmt: skip
        course = cord(*((x + dx, y + dy, z, radius) for x, y, z in tunnel))
        b.add(name, part, course.placed(foot.bend))
    dorsal = cord((5, 17, 110, 1.4), (4, 21, 30, 1.3), (3, 23.5, 4, 1.2), (0, 36, -8, 1.1), (-4, 60, -16, 1.0))
    b.add("dorsalis pedis", Part.VEIN, dorsal.placed(foot.bend))
    saphenous = ((-26, 12, 110, 1.5), (-26, 14, 40, 1.5), (-27.5, 18, 0, 1.6), (-26, 30, -14, 1.4)), (
        (14, -38, 110, 1.3), (20, -33, 30, 1.3), (24, -27, -15, 1.2), (27, -5, -40, 1.1),
    )  # fmt: skip
    for name, points in zip(("great saphenous", "small saphenous"), saphenous, strict=True):
        b.add(name, Part.VEIN, cord(*shifted(rng, 1.5, *points)).placed(foot.bend))


def _fluid(b: Blueprint, foot: Foot, variation: Variation) -> None:
    amount = variation.effusion
    b.add("joint film", Part.FLUID, near("talus", 3.2), near("tibia", 3.2).limiting(0.5))
    recesses = (
        ellipsoid((-1, 19, -3), (9, 1.5 * amount, 4.0)), ellipsoid((1, -20.5, -5), (7, 1.1 * amount, 4.0)),
        ellipsoid((1, -24.5, -25), (6, 1.2 * amount, 2.5)), ellipsoid((16.5, 9, -12), (0.8 * amount, 5, 5)),
    )  # fmt: skip
    b.add("recesses", Part.FLUID, *(foot(r).united(2.0) for r in recesses))
    sheath = cord((-5, -26.5, 6, 2.6), (-7, -26.5, -12, 2.6 + variation.sheath), (-9, -17, -30, 2.6), blend=0.5)
    b.add("flexor hallucis sheath", Part.FLUID, sheath.placed(foot.bend))


def _muscles(b: Blueprint, foot: Foot, rng: np.random.Generator) -> None:
    legs = {
        "soleus": ((120, 3, -28, 31, 15), (60, 4, -32, 24, 11.5), (35, 3, -38, 15, 8), (8, 2, -46, 3, 2.5)),
        "flexor hallucis belly": (
            (120, 11, -17, 13, 9), (50, 9, -21, 13, 9), (20, 4, -26, 11, 7.5), (-6, -3, -27, 3, 3),
        ),
        "deep flexors": ((120, -8, -14, 13, 9), (60, -13, -15, 10, 8), (22, -18, -16, 4, 3.5)),
        "peronei": ((120, 29, -16, 9, 13), (50, 26, -18, 7, 9), (2, 24.5, -22, 3.5, 4)),
        "extensors": ((120, 14, 14, 14, 11), (60, 14, 13, 12, 8.5), (14, 11, 21, 4, 3)),
        "tibialis anterior belly": ((120, 2, 19, 11, 8), (80, 1, 20, 7, 6), (48, -2, 20, 2.5, 2.5)),
    }  # fmt: skip
    soles = {
        "flexor brevis": ((-46, -1, 65, 5, 2.5), (-20, -1, 63, 11, 6), (20, -2, 61, 12, 6.5), (100, -2, 61, 13, 5)),
        "abductor hallucis": ((-42, -12, 62, 3, 3), (-10, -20, 54, 7, 9.5), (30, -23, 50, 7, 9), (100, -26, 54, 6, 7)),
        "abductor minimi": ((-44, 14, 66, 3, 3), (0, 20, 60, 6, 8), (40, 25, 58, 6, 7), (100, 28, 60, 5, 6)),
        "quadratus": ((-32, -7, 58, 3, 3), (-5, -8, 52, 8, 6), (40, -4, 55, 8, 5), (60, -3, 56, 3, 2)),
        "interossei": ((48, 2, 54, 4, 3), (66, 4, 50, 14, 8), (100, 4, 54, 18, 8)),
        "extensor brevis": ((-2, 17, 30, 2, 2), (16, 16, 27, 7, 5), (40, 11, 25, 8, 3.5), (70, 6, 22, 3, 1.5)),
    }
    for name, levels in legs.items():
        x, y, _ = jitter(rng, 1.0)
        b.muscle(name, column(*levels, origin=(x, y, 0.0)))
    for name, levels in soles.items():
        x, _, z = jitter(rng, 1.0)
        b.muscle(name, foot(column(*levels, turn=_ALONG_FOOT, origin=(x, 0.0, z))))
