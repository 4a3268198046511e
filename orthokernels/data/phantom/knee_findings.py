"""The knee's eight findings, as they look on fluid-sensitive series, and the harmless things that resemble them.

Each finding stays what its label says: an injury of a ligament comes with oedema and bruised marrow, but with no more
joint fluid than a healthy knee may have, since effusion is a finding of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from orthokernels.data.phantom.knee_form import Knee, at_share, length_of
from orthokernels.data.phantom.knee_injury import (
    Injury,
    bruise,
    bulge,
    course_axes,
    gap_across,
    oedema,
    radii_at,
    slacken,
    strands,
    tear_along,
)
from orthokernels.data.phantom.knee_lesions import Kind
from orthokernels.data.phantom.knee_menisci import intrasubstance_signal, tear_meniscus


def add_findings(
    knee: Knee, findings: Mapping[str, bool], for_confounders: np.random.Generator, rng: np.random.Generator
) -> Knee:
    """A healthy knee with findings, each from a generator of its own; KeyError for one it cannot have."""
    if unknown := [key for key in findings if key not in _FINDINGS]:
        raise KeyError(f"a knee has no finding {unknown}: {', '.join(_FINDINGS)}")
    injury = Injury(knee)
    confound(injury, for_confounders)
    for (key, finding), own in zip(_FINDINGS.items(), rng.spawn(len(_FINDINGS)), strict=True):
        if findings.get(key, False):
            finding(injury, own)
    return injury.knee()


def confound(injury: Injury, rng: np.random.Generator) -> None:
    """What healthy knees show too: marrow spots, mucoid ligaments, signal within menisci, cysts, swelling of fat."""
    spot, mucoid, medial, lateral, cyst, swelling, pad, wet = rng.random(8)
    place, size = rng.uniform(-1.0, 1.0, 3), rng.uniform(0.7, 1.2)
    if spot < 0.3:
        sites = (
            injury.femur(-20.0, 12.0, 16.0), injury.femur(18.0, -4.0, 20.0), injury.femur(2.0, 20.0, 58.0),
            (-18.0, 4.0, -9.0), (12.0, 14.0, -14.0),
        )  # fmt: skip
        centre = np.array(sites[int(rng.integers(len(sites)))]) + 3.0 * place
        half = np.array([5.0, 5.0, 4.0]) * size
        injury.lesions.add(Kind.FAINT_MARROW_OEDEMA, centre, half, rough=1.0)
        if spot < 0.08:
            injury.lesions.add(Kind.MARROW_OEDEMA, centre, 0.6 * half, rough=0.8)
    if mucoid < 0.15:
        tear_along(injury, Kind.ACL_MUCOID, injury["acl"], 0.15, 0.85, 0.6, (0.1, 0.1), rng)
    for name, chance in (("medial_meniscus", medial), ("lateral_meniscus", lateral)):
        if chance < 0.3:
            intrasubstance_signal(injury, name, rng)
    if cyst < 0.12:
        half = np.array([5.0, 4.0, 12.0]) * size
        injury.lesions.add(Kind.POOL, np.array([-22.0, -31.0, 10.0]) + 2.0 * place, half)
    if swelling < 0.25:
        front = np.array([0.0, 64.0, 30.0]), (14.0, 3.0, 16.0)
        inside = np.array([-50.0, 6.0, 10.0]), (2.5, 12.0, 18.0)
        centre, shape = front if swelling < 0.15 else inside
        oedema(injury, centre + 3.0 * place, shape, rng)
    if pad < 0.15:
        oedema(injury, np.array([8.0, 36.0, 18.0]) + 3.0 * place, (5.0, 3.5, 5.0), rng, count=2)
    if wet < 0.25:
        injury.lesions.add(Kind.POOL, np.array([2.0, 5.0, 14.0]) + 2.0 * place, np.array([1.6, 3.5, 4.0]) * size)


def _acl(injury: Injury, rng: np.random.Generator) -> None:
    """Complete: parted, fallen off the femur and slack, or swollen beyond telling fibres; or partial."""
    course = injury["acl"]
    kind = rng.choice(["parted", "fallen", "swollen", "partial"], p=[0.35, 0.25, 0.2, 0.2])
    level, length = rng.uniform(0.25, 0.75), length_of(course)
    back_and_down = np.array([0.0, -0.55, -0.83])
    if kind == "fallen":
        level = rng.uniform(0.06, 0.16)
        course[:, 3] *= rng.uniform(1.1, 1.35)
        course[:-1, :3] += np.linspace(1.0, 0.0, len(course))[:-1, None] * back_and_down * rng.uniform(4.0, 7.0)
        slacken(course, rng.uniform(1.5, 3.5), back_and_down, 1.0, rng)
        tear_along(injury, Kind.ACL_TEAR, course, 0.0, rng.uniform(0.6, 0.9), 0.9, (0.0, 0.0), rng)
        strands(injury, course, 0.2, 0.8, rng)
        gap_across(injury, Kind.ACL_GAP, course, level, rng.uniform(2.0, 3.5))
    elif kind == "parted":
        course[:, 3] *= bulge(len(course), level, 0.35, rng.uniform(1.15, 1.5))
        slacken(course, rng.uniform(1.0, 2.5), back_and_down, 2.0, rng)
        half = rng.uniform(2.0, 4.5)
        reach = half / length + rng.uniform(0.2, 0.35)
        tear_along(
            injury, Kind.ACL_TEAR, course, max(level - reach, 0.0), min(level + reach, 1.0), 0.95, (0.0, 0.0), rng
        )
        strands(injury, course, max(level - reach, 0.0), min(level + reach, 1.0), rng)
        gap_across(injury, Kind.ACL_GAP, course, level, half)
    elif kind == "swollen":
        course[:, 3] *= bulge(len(course), level, 0.45, rng.uniform(1.4, 1.8))
        slacken(course, rng.uniform(1.0, 2.0), back_and_down, 3.0, rng)
        tear_along(injury, Kind.ACL_TEAR, course, 0.05, 0.95, rng.uniform(0.95, 1.1), (0.0, 0.0), rng)
        strands(injury, course, 0.15, 0.85, rng)
    else:
        course[:, 3] *= bulge(len(course), level, 0.4, rng.uniform(1.15, 1.35))
        half = rng.uniform(0.28, 0.4)
        side = rng.choice([-0.35, 0.35])
        tear_along(
            injury, Kind.ACL_TEAR, course, max(level - half, 0.0), min(level + half, 1.0), 0.75, (0.1, side), rng
        )
    middle = at_share(course, level)[:3]
    oedema(injury, middle, (5.0, 6.0, 6.0), rng, count=2)
    if rng.random() < 0.5:
        oedema(injury, middle, (2.5, 3.0, 3.0), rng, kind=Kind.POOL, count=2)
    if rng.random() < (0.4 if kind == "partial" else 0.75):
        x, y, z = injury.femur(20.0 + rng.uniform(-3, 3), 17.0 + rng.uniform(-4, 4), 11.0 + rng.uniform(-1, 3))
        bruise(injury, (x, y, z), (rng.uniform(5, 10), rng.uniform(6, 11), rng.uniform(4, 8)), rng)
        where = (21.0 + rng.uniform(-3, 3), -12.0 + rng.uniform(-3, 3), -5.0 - rng.uniform(0, 3))
        bruise(injury, where, (rng.uniform(6, 11), rng.uniform(5, 9), rng.uniform(4, 8)), rng)


def _pcl(injury: Injury, rng: np.random.Generator) -> None:
    """Thick and bright over a long stretch, or parted."""
    course = injury["pcl"]
    level, length = rng.uniform(0.3, 0.75), length_of(course)
    parted = rng.random() < 0.4
    course[:, 3] *= bulge(len(course), level, 0.35, rng.uniform(1.2, 1.5))
    half = rng.uniform(2.0, 4.0)
    reach = rng.uniform(0.25, 0.42) if not parted else half / length + rng.uniform(0.15, 0.3)
    fill = rng.uniform(0.7, 0.95)
    tear_along(injury, Kind.PCL_TEAR, course, max(level - reach, 0.0), min(level + reach, 1.0), fill, (0.0, 0.0), rng)
    strands(injury, course, max(level - reach, 0.0), min(level + reach, 1.0), rng)
    if parted:
        slacken(course, rng.uniform(1.0, 2.0), np.array([0.0, 1.0, 0.0]), 2.0, rng)
        gap_across(injury, Kind.PCL_GAP, course, level, half)
    oedema(injury, at_share(course, level)[:3], (4.0, 7.0, 6.0), rng, count=2)
    if rng.random() < 0.4:  # a blow on the front of the tibia
        where = (rng.uniform(-12, 12), 17.0 + rng.uniform(-3, 2), -10.0 - rng.uniform(0, 6))
        bruise(injury, where, (rng.uniform(6, 11), rng.uniform(4, 7), rng.uniform(4, 8)), rng)


def _collateral(injury: Injury, name: str, outwards: float, level: float, rng: np.random.Generator) -> None:
    """A sprain with oedema around, or a rupture with slack ends."""
    course = injury[name]
    length = length_of(course)
    thick = 4 if course.shape[1] == 8 else 3
    ruptured = rng.random() < 0.55
    most = rng.uniform(1.7, 2.4) if ruptured else rng.uniform(1.4, 2.0)
    reach = rng.uniform(9.0, 16.0) / length
    course[:, thick] *= bulge(len(course), level, 1.2 * reach, most)
    sideways = np.array([outwards, 0.0, 0.0])
    half = rng.uniform(2.0, 4.5)
    if ruptured:
        slacken(course, rng.uniform(1.2, 2.6), sideways, rng.uniform(3.0, 5.0), rng)
    start, end = max(level - reach, 0.0), min(level + reach, 1.0)
    fill = rng.uniform(0.9, 1.1) if ruptured else rng.uniform(0.65, 0.85)
    offset = (rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4))
    tear_along(injury, Kind.BAND_TEAR, course, start, end, fill, offset, rng)
    if ruptured:
        gap_across(injury, Kind.BAND_GAP, course, level, half)
    axes = course_axes(course, level)
    if course.shape[1] == 4:
        axes = axes[[0, 2, 1]]  # a sheet beside a round cord is as wide from front to back as one beside a strap
    middle = at_share(course, level)[:3]
    width, thickness = radii_at(course, level)
    sheet = (rng.uniform(12.0, 24.0), width + rng.uniform(3.0, 8.0), rng.uniform(1.6, 3.0))
    oedema(injury, middle + sideways * (thickness + 1.0), sheet, rng, axes, count=3)
    oedema(injury, middle - sideways * (thickness + 0.6), (0.7 * sheet[0], 0.8 * sheet[1], 1.4), rng, axes, count=2)
    if ruptured:
        pool = (0.5 * sheet[0], 0.7 * sheet[1], rng.uniform(0.8, 1.6))
        oedema(injury, middle + sideways * (thickness + 0.6), pool, rng, axes, Kind.POOL, 2)


def _mcl(injury: Injury, rng: np.random.Generator) -> None:
    _collateral(injury, "mcl", -1.0, rng.uniform(0.08, 0.42), rng)
    if rng.random() < 0.35:  # the other side is knocked
        x, y, z = injury.femur(22.0, 14.0 + rng.uniform(-5, 5), 13.0)
        bruise(injury, (x, y, z), (rng.uniform(5, 8), rng.uniform(5, 9), rng.uniform(4, 7)), rng)


def _lcl(injury: Injury, rng: np.random.Generator) -> None:
    level = rng.uniform(0.12, 0.88)
    _collateral(injury, "lcl", 1.0, level, rng)
    if level > 0.65 and rng.random() < 0.5:
        centre = np.array([39.0, -12.5, -20.0]) + rng.uniform(-1.0, 1.0, 3)
        injury.lesions.add(Kind.MARROW_OEDEMA, centre, rng.uniform(4.0, 7.0, 3), rough=1.0)


def _pd(injury: Injury, rng: np.random.Generator) -> None:
    """A patella beside a shallow groove, tilted, its inner edge and the outer condyle bruised, its medial hold torn."""
    shift, tilt = rng.uniform(6.0, 18.0), math.radians(rng.uniform(10.0, 28.0))
    flat = rng.uniform(1.5, 4.0)
    injury["groove"][:2, 1] += flat
    patella, turn = injury["patella"], injury["patella_turn"]
    patella[0] += shift
    patella[1] += 0.5 * flat - 0.2 * max(shift - 12.0, 0.0)
    angle = math.atan2(turn[1], turn[0]) + tilt
    turn[:] = math.cos(angle), math.sin(angle)
    injury["patellar_tendon"][:, 0] += shift * np.array([1.0, 0.55, 0.0])
    injury["quadriceps_tendon"][:, 0] += shift * np.array([1.0, 0.45, 0.1])
    x, y, z = patella[:3]
    medial = np.array([x - 0.85 * patella[3] * math.cos(angle), y + 0.7 * patella[3] * math.sin(angle) - 2.0, z])
    if rng.random() < 0.8:
        where = medial + np.array([4.0, 0.0, rng.uniform(-5.0, 1.0)])
        bruise(injury, where, (rng.uniform(4, 7), rng.uniform(4, 6), rng.uniform(5, 8)), rng)
    if rng.random() < 0.8:
        a, b, c = injury.femur(30.0 + rng.uniform(-2, 2), 27.0 + rng.uniform(-5, 5), 24.0 + rng.uniform(-5, 6))
        bruise(injury, (a, b, c), (rng.uniform(4, 8), rng.uniform(6, 10), rng.uniform(6, 10)), rng)
    oedema(injury, medial - np.array([5.0, 3.0, 0.0]), (rng.uniform(6, 10), rng.uniform(4, 7), rng.uniform(9, 16)), rng)
    torn = rng.uniform(0.25, 0.75)
    place = (1.0 - torn) * medial + torn * np.array([-39.0, 12.0, 33.0]) + (0.0, 3.0, 0.0)
    oedema(injury, place, (4.0, 5.0, 8.0), rng)
    oedema(injury, medial - np.array([3.0, 2.0, 0.0]), (1.6, 1.6, 6.0), rng, kind=Kind.POOL, count=2)


def _effu(injury: Injury, rng: np.random.Generator) -> None:
    """Fluid that distends the suprapatellar pouch and, the more there is, what lies beside and behind the joint."""
    recesses = injury["recesses"]
    much = rng.random()
    half = 3.4 + 4.6 * much
    pouch, top, medial_horn, lateral_horn, medial_gutter, lateral_gutter, *behind = range(len(recesses))
    recesses[pouch] = (
        1.0 + rng.uniform(-3, 3), 41.5, 64.0 + rng.uniform(-2, 3), rng.uniform(19, 24), half, rng.uniform(16, 21)
    )  # fmt: skip
    recesses[top, 2:] = (
        82.0 + rng.uniform(-4, 6), rng.uniform(11, 17), half * rng.uniform(0.45, 0.8), rng.uniform(9, 15)
    )  # fmt: skip
    for horn in (medial_horn, lateral_horn):
        recesses[horn, 3:] = rng.uniform(7, 11), half * rng.uniform(0.5, 0.9), rng.uniform(9, 14)
    for gutter in (medial_gutter, lateral_gutter):
        recesses[gutter, 3:] = (
            1.2 + 3.5 * much * rng.uniform(0.5, 1.0), rng.uniform(8, 13), rng.uniform(11, 17)
        )  # fmt: skip
        recesses[gutter, 0] += np.sign(recesses[gutter, 0]) * 1.5 * much
    for n in behind:
        recesses[n, 3:] *= (1.2, 1.3 + 2.2 * much * rng.uniform(0.4, 1.0), 1.3)


def _mm(injury: Injury, rng: np.random.Generator) -> None:
    tear_meniscus(injury, "medial_meniscus", rng)


def _lm(injury: Injury, rng: np.random.Generator) -> None:
    tear_meniscus(injury, "lateral_meniscus", rng)


_FINDINGS: dict[str, Callable[[Injury, np.random.Generator], None]] = {
    "ACL": _acl,
    "PCL": _pcl,
    "MM": _mm,
    "LM": _lm,
    "MCL": _mcl,
    "LCL": _lcl,
    "PD": _pd,
    "EFFU": _effu,
}
