"""The shoulder's eight findings, as they look on fluid-sensitive series, and the harmless things that resemble them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from orthokernels.data.phantom.lesions import finer, oriented, patch, shell, stretch, swollen
from orthokernels.data.phantom.parts import Part
from orthokernels.data.phantom.shoulder_anatomy import CARTILAGE_REACH, Variation, bursa, labral_rim
from orthokernels.data.phantom.solids import Blueprint, Solid, cord, ellipsoid, near

Rng = np.random.Generator

# Where each tendon meets the humerus, the way along it to the muscle, and the way across it.
FOOTPRINTS = {
    "supraspinatus": ((18.0, 1.0, 20.0), (-0.88, 0.0, 0.48), (0.0, 1.0, 0.0)),
    "infraspinatus": ((19.0, -15.0, 12.0), (-0.75, -0.62, 0.2), (0.15, 0.2, 0.97)),
    "subscapularis": ((4.0, 26.0, 0.0), (-0.86, 0.5, 0.0), (0.0, 0.1, 1.0)),
}
_AC = np.array([-9.5, 2.5, 41.0])  # the acromioclavicular joint


def confound(b: Blueprint, v: Variation, rng: Rng) -> None:
    """What healthy shoulders show too: grey spots in the cuff, red marrow, small cysts, a little wear."""
    chance = rng.random(6)
    u = rng.uniform(-1.0, 1.0, 8)
    if chance[0] < 0.35:  # collagen at the magic angle, or early wear: grey, never as bright as fluid
        name = ("supraspinatus", "infraspinatus", "subscapularis")[int(rng.integers(3))]
        site, along, across = (np.array(a) for a in FOOTPRINTS[name])
        spot = oriented(
            site + (9.0 + 4.0 * u[0]) * along + 4.0 * u[1] * across, (6.0, 4.0 + 1.5 * u[2], 5.0), along, across
        )
        inside = near("humerus", CARTILAGE_REACH + 0.8 * v.cuff), near("humerus", CARTILAGE_REACH + 0.8).removed(0.3)
        b.add("grey spot", Part.DEGENERATE_FIBRES, *inside, spot.limiting(), before=f"{name} tendon")
    if chance[1] < 0.5:
        red = patch((9.0, -2.0, -40.0 + 6.0 * u[3]), (8.0, 8.0, 12.0), rng)
        b.add("red marrow", Part.FAINT_MARROW_OEDEMA, *red, near("humerus", -3.0).limiting(), before="humerus shaft")
    if chance[2] < 0.3:
        cyst = ellipsoid((20.0 + u[4], -13.0 + 2.0 * u[5], 7.0 + 3.0 * u[4]), (1.6, 1.8, 1.7))
        b.add("bare area cyst", Part.FLUID, cyst, before="humerus")
    if chance[3] < 0.35:
        x, y, z = _AC + 2.0 * u[:3]
        b.add("AC fluid", Part.FLUID, near("scapula", 1.5), near("clavicle", 1.5).limiting(0.3),
              ellipsoid((x, y, z), (6.0, 3.0, 2.5)).limiting(), before="AC disc")  # fmt: skip
    if chance[4] < 0.25:
        x, y, z = labral_rim(np.radians(90.0 + 15.0 * u[6]))
        b.add("sublabral recess", Part.FLUID, ellipsoid((x - 0.6, y, z - 1.6), (1.6, 3.0, 0.5)), before="labrum")
    if chance[5] < 0.3:
        b.change("LHBT", lambda rows: [swollen(r, 1.0 + 0.2 * abs(float(u[7]))) for r in rows])


def add_findings(b: Blueprint, v: Variation, findings: Mapping[str, bool], rng: Rng) -> None:
    """Give the shoulder its findings, each from a generator of its own; KeyError for one it cannot have."""
    if unknown := [key for key in findings if key not in _FINDINGS]:
        raise KeyError(f"a shoulder has no finding {unknown}: {', '.join(_FINDINGS)}")
    for (key, finding), own in zip(_FINDINGS.items(), rng.spawn(len(_FINDINGS)), strict=True):
        if findings.get(key, False):
            finding(b, v, own)


def _tear(b: Blueprint, v: Variation, name: str, rng: Rng) -> None:
    """Tear a tendon of the cuff near its footprint: through with retraction, on one side of it, or inside it."""
    site, along, across = (np.array(a) for a in FOOTPRINTS[name])
    site = site + rng.uniform(-3.5, 3.5) * across
    width = rng.uniform(4.5, 10.0)
    low, high = CARTILAGE_REACH, CARTILAGE_REACH + v.cuff
    before = f"{name} tendon"
    kind = rng.choice(3, p=(0.45, 0.35, 0.2))
    if kind == 0:
        retraction = rng.uniform(4.0, 13.0)
        centre, half = site + (retraction - 2.0) * along, (retraction, width, 12.0)
        inner, outer = low - 1.0, high + rng.uniform(0.3, 1.2)
    else:
        centre, half = site + rng.uniform(2.0, 7.0) * along, (rng.uniform(4.0, 7.5), 0.7 * width, 12.0)
        inner, outer = (low - 0.6, low + rng.uniform(0.45, 0.65) * v.cuff)
        if kind == 2:
            inner, outer = low + 0.2 * v.cuff, high - 0.15 * v.cuff
        elif rng.random() < 0.4:
            inner, outer = high - rng.uniform(0.45, 0.65) * v.cuff, high + 0.6
    hole = oriented(centre, half, along, across)
    b.add(f"{name} tear", Part.FLUID, *shell("humerus", inner, outer), hole.limiting(1.0), before=before)
    frayed = hole.grown(rng.uniform(1.2, 3.0))
    b.add(
        f"{name} torn fibres",
        Part.TORN_FIBRES,
        *shell("humerus", low - 0.2, high + 0.2),
        frayed.limiting(1.0),
        before=before,
    )
    if kind == 0:  # the muscle's end draws back with its tendon
        b.change(f"{name} band", lambda rows: [*rows, hole.removed(1.0)])
    if rng.random() < 0.4:
        bone = patch((site[0] - 4.0 * abs(site[0]) / 25.0, site[1] * 0.8, site[2] * 0.75), (5.0, 5.0, 5.0), rng)
        b.add(f"{name} footprint oedema", Part.MARROW_OEDEMA, *bone, near("humerus", -0.9).limiting(), before="humerus")


def _lhbt_injury(b: Blueprint, v: Variation, rng: Rng) -> None:
    """The tendon of the long head frayed and swollen, split, out of its groove, or torn and drawn down the arm."""
    (tendon,) = b.groups["LHBT"].rows
    kind = rng.integers(4)
    if kind == 0:
        times = rng.uniform(1.35, 1.8)
        thick = swollen(finer(tendon, 24), lambda t: 1.0 + (times - 1.0) * np.exp(-(((t - 0.4) / 0.2) ** 2)))
        core = swollen(stretch(thick, rng.uniform(0.1, 0.25), rng.uniform(0.5, 0.65)), rng.uniform(0.65, 0.85))
        b.change("LHBT", lambda _: [thick])
        b.add("LHBT torn fibres", Part.TORN_FIBRES, core, before="LHBT")
    elif kind == 1:
        piece = stretch(finer(tendon, 16), 0.3, 0.75)
        apart = rng.uniform(1.5, 2.3)
        halves = [_aside(swollen(piece, 0.75), dx * apart) for dx in (-1.0, 1.0)]
        b.change("LHBT", lambda rows: [stretch(tendon, 0.0, 0.32), stretch(tendon, 0.73, 1.0), *halves])
        b.add("LHBT cleft", Part.FLUID, swollen(piece, 0.6), before="LHBT")
        b.add("LHBT split sheath", Part.TORN_FIBRES, swollen(piece, 1.5), before="LHBT sheath")
    elif kind == 2:
        b.change("LHBT", lambda _: [_out_of_groove(finer(tendon, 20), rng.uniform(6.5, 10.0), rng.uniform(4.0, 5.5))])
        groove = swollen(stretch(finer(tendon, 16), 0.34, 0.6), rng.uniform(0.7, 1.2))
        b.add("LHBT empty groove", Part.FLUID, groove, before="LHBT sheath")
    else:
        end = rng.uniform(0.5, 0.7)
        stump = swollen(stretch(tendon, end, 1.0), lambda t: 1.0 + 0.8 * np.exp(-((t / 0.15) ** 2)))
        gone = stretch(finer(tendon, 16), rng.uniform(0.2, 0.3), end)
        b.change("LHBT", lambda _: [stump])
        b.add("LHBT debris", Part.TORN_FIBRES, swollen(stretch(gone, 0.5, 1.0), 0.6), before="LHBT")
        b.add("LHBT empty groove", Part.FLUID, swollen(gone, rng.uniform(0.9, 1.3)), before="LHBT sheath")


def _aside(band: Solid, mm: float) -> Solid:
    """A cord moved across the groove by ``mm`` in its middle, and not at its ends."""
    share = np.sin(np.pi * np.linspace(0.0, 1.0, len(band.numbers)))[:, None]
    return band.placed(lambda points: points + share * np.array([0.8, -0.55, 0.0]) * mm)


def _out_of_groove(band: Solid, medial: float, forward: float) -> Solid:
    """The long head over the lesser tuberosity, medial of its groove."""
    z = band.numbers[:, 2]
    share = (np.exp(-(((z + 8.0) / 22.0) ** 2)) * (band.numbers[:, 1] > 10.0))[:, None]
    return band.placed(lambda points: points + share * np.array([-medial, forward, 0.0]))


def _lhbt_effusion(b: Blueprint, v: Variation, rng: Rng) -> None:
    """Fluid that distends the tendon's sheath all around, most where it hangs lowest."""
    (course,) = (r for r in b.groups["LHBT sheath"].rows)
    wide = rng.uniform(1.6, 4.0)
    low = rng.uniform(-48.0, -26.0)
    points = finer(course, 12).numbers.copy()
    share = np.clip((6.0 - points[:, 2]) / 10.0, 0.0, 1.0) * np.clip((points[:, 2] - low) / 6.0, 0.0, 1.0)
    points[:, 3] += wide * share * rng.uniform(0.75, 1.0, len(points))
    points[:, 0] += 0.3 * wide * rng.uniform(-1.0, 1.0) * share
    points[:, 1] += 0.35 * wide * share
    b.add("LHBT effusion", Part.FLUID, cord(*map(tuple, points)), before="LHBT sheath")


def _ac(b: Blueprint, v: Variation, rng: Rng) -> None:
    """A worn or sprained acromioclavicular joint: two or three of swelling, fluid, oedema and spurs."""
    signs = rng.permutation(4)[: int(rng.integers(2, 4))]
    x, y, z = _AC + rng.uniform(-0.8, 0.8, 3)
    if 0 in signs:
        wide = rng.uniform(4.0, 7.0)
        b.change("clavicle", lambda rows: [*rows, ellipsoid((x, y, z), (wide, 9.0, 8.0)).removed(1.0)])
        b.add(
            "AC effusion",
            Part.FLUID,
            ellipsoid((x, y, z + 0.5), (0.85 * wide, 7.0, rng.uniform(5.0, 8.0))),
            before="labrum",
        )
    if 1 in signs:
        wide = rng.uniform(7.5, 11.0)
        capsule = ellipsoid((x, y, z), (wide, rng.uniform(9.0, 12.0), rng.uniform(9.0, 11.5)))
        b.add("AC swollen capsule", Part.TORN_FIBRES, *([capsule, near("fascia", -0.5).limiting()]), before="AC disc")
    if 2 in signs:
        for bone in ("clavicle", "scapula"):
            towards = -6.0 if bone == "clavicle" else 5.0
            half = (rng.uniform(5, 9), rng.uniform(6, 9), rng.uniform(5, 7))
            spot = patch((x + towards, y, z), half, rng)
            b.add(f"AC {bone} oedema", Part.MARROW_OEDEMA, *spot, near(bone, -1.0).limiting(), before="humerus")
    if 3 in signs:
        size = rng.uniform(2.6, 4.2)
        spurs = [
            ellipsoid((x + dx, y + 1.0, z + dz), (size, 5.0, size))
            for dx, dz in ((-5.0, -6.0), (5.0, -5.5), (-5.0, 6.0))
        ]
        b.bone("AC spurs", *(s.united(0.05) for s in spurs), cortex=0.8, before="labrum")


def _ghj(b: Blueprint, v: Variation, rng: Rng) -> None:
    """The glenohumeral joint: two or three of effusion, worn cartilage, a torn labrum, oedema with cysts, spurs."""
    signs = set(rng.permutation(5)[: int(rng.integers(2, 4))].tolist())
    if 0 in signs:
        a = rng.uniform(3.0, 6.5)
        pools = (ellipsoid((-14, -2, -26 - 0.5 * a), (10, 12, a)), ellipsoid((-27, 20, 11), (8, 0.8 * a, 8)),
                 ellipsoid((-18, -22, -2), (4, 0.7 * a, 13)))  # fmt: skip
        b.add("GHJ effusion", Part.FLUID, *(p.united(3.0) for p in pools), before="supraspinatus tendon")
        b.change(
            "inferior capsule", lambda rows: [r.placed(lambda p: p - np.array([0.0, 0.0, 1.5 * a - 2.5])) for r in rows]
        )
    if 1 in signs:
        worn = ellipsoid((-23, rng.uniform(-8, 8), rng.uniform(-8, 10)), (8, rng.uniform(7, 12), rng.uniform(8, 13)))
        b.add("GHJ worn cartilage", Part.FLUID, near("humerus", v.gap), near("scapula", v.gap).limiting(0.3),
              worn.limiting(), before="head cartilage")  # fmt: skip
    if 2 in signs:
        _labral_tear(b, rng)
    if 3 in signs:
        for bone, x, spread in (("humerus", -18.0, 9.0), ("scapula", -31.0, 8.0)):
            y, z = rng.uniform(-7.0, 7.0), rng.uniform(-9.0, 12.0)
            size = spread * rng.uniform(0.6, 1.1)
            cysts = [
                ellipsoid((x + 2.0 * p, y + 3.0 * q, z + 3.0 * r), (1.8, 2.0, 2.2))
                for p, q, r in rng.uniform(-1, 1, (2, 3))
            ]
            b.add(f"GHJ {bone} cysts", Part.FLUID, *cysts, near(bone, -0.6).limiting(0.3), before="humerus")
            spot = patch((x, y, z), (size, size, size), rng)
            b.add(f"GHJ {bone} oedema", Part.MARROW_OEDEMA, *spot, near(bone, -0.9).limiting(), before="humerus")
    if 4 in signs:
        size = rng.uniform(3.0, 5.5)
        spurs = (ellipsoid((-10.0 - 0.4 * size, -2.0, -21.5 - 0.3 * size), (size, 9.0, size)),
                 ellipsoid((-27.0, 0.0, -21.5), (0.8 * size, 7.0, 0.7 * size)).united(0.05))  # fmt: skip
        b.bone("GHJ spurs", *spurs, cortex=0.8, before="humerus")


def _labral_tear(b: Blueprint, rng: Rng) -> None:
    """A cleft of fluid through the labrum over some of its clock, now and then with a cyst beside it."""
    middle, half = rng.uniform(0.0, 2.0 * np.pi), np.radians(rng.uniform(18.0, 40.0))
    rim = [labral_rim(a) for a in np.linspace(middle - half, middle + half, 6)]
    cleft = cord(*((x - 0.4, y, z, 0.95) for x, y, z in rim))
    b.add("labral tear", Part.FLUID, cleft, before="labrum")
    b.add("labral fibres", Part.TORN_FIBRES, swollen(cleft, 2.0), near("labrum").limiting(), before="labrum")
    if rng.random() < 0.5:
        x, y, z = labral_rim(middle)
        size = rng.uniform(2.0, 5.0)
        cyst = patch((x - 6.0, 1.3 * y, 1.3 * z), (1.3 * size, size, size), rng)
        b.add("paralabral cyst", Part.FLUID, *cyst, before="supraspinatus band")


def _sasd(b: Blueprint, v: Variation, rng: Rng) -> None:
    """The bursa under the acromion and the deltoid distended with fluid."""
    mm, times = rng.uniform(1.6, 4.5), rng.uniform(1.0, 1.35)
    b.add("SASD fluid", Part.FLUID, *bursa(mm, v, times), before="bursa")


_FINDINGS: dict[str, Callable[[Blueprint, Variation, Rng], None]] = {
    "SSP": lambda b, v, rng: _tear(b, v, "supraspinatus", rng),
    "ISP": lambda b, v, rng: _tear(b, v, "infraspinatus", rng),
    "SSC": lambda b, v, rng: _tear(b, v, "subscapularis", rng),
    "LHBT injury": _lhbt_injury,
    "AC": _ac,
    "GHJ": _ghj,
    "LHBT effusion": _lhbt_effusion,
    "SASD": _sasd,
}
