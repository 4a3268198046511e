"""The ankle's four findings, as they look on fluid-sensitive series, and the harmless things that resemble them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from orthokernels.data.phantom.ankle_anatomy import Foot
from orthokernels.data.phantom.lesions import (
    at_share,
    bulge,
    finer,
    length_of,
    narrowed,
    part_in_two,
    patch,
    stretch,
    swollen,
)
from orthokernels.data.phantom.parts import Part
from orthokernels.data.phantom.solids import Blueprint, cord, ellipsoid, near


def confound(b: Blueprint, foot: Foot, rng: np.random.Generator) -> None:
    """What healthy ankles show too: oedema under the skin, red marrow, an Achilles tendon with a grey core."""
    chance = rng.random(5)
    side, *place = rng.uniform(-1.0, 1.0, 7)
    size = rng.uniform(0.6, 1.3, 4)
    if chance[0] < 0.25:
        centre = (29.0, 2.0 + 10.0 * place[0], -14.0 + 8.0 * place[1])
        swelling = patch(centre, (4.0, 11.0 * size[0], 9.0 * size[0]), rng)
        b.add("lateral oedema", Part.FAT_OEDEMA, *swelling, near("body", -2.0).limiting(), before="talus")
    if chance[1] < 0.3:
        spot = foot(ellipsoid((3.0, -20.0 + 16.0 * place[2], -44.0 + 4.0 * place[3]), (7.0, 7.0 * size[1], 6.0)))
        b.add("red marrow", Part.FAINT_MARROW_OEDEMA, spot, near("calcaneus", -1.5).limiting(), before="calcaneus")
    if chance[2] < 0.25:
        (tendon,) = b.groups["Achilles"].rows
        core = stretch(tendon, 0.45 + 0.15 * place[4], 0.95)
        b.add("Achilles core", Part.DEGENERATE_FIBRES, narrowed(core, 0.35, 0.3), before="Achilles")
    if chance[3] < 0.25:
        name = "ATFL" if side > 0.0 else "CFL"  # an old sprain that has healed: thick, but dark and whole
        b.change(name, lambda rows: [swollen(rows[0], 1.2 + 0.3 * size[2])])
    if chance[4] < 0.25:
        sheath = cord(*((x, y, z, 3.4 + 0.6 * size[3]) for x, y, z in ((25, -22, -4), (24, -18, -24), (22.5, -8, -33))))
        b.add("peroneal sheath", Part.FLUID, sheath.placed(foot.bend), before="posterior tibial artery")


def add_findings(b: Blueprint, foot: Foot, findings: Mapping[str, bool], rng: np.random.Generator) -> None:
    """Give the ankle its findings, each from a generator of its own; KeyError for one it cannot have."""
    if unknown := [key for key in findings if key not in _FINDINGS]:
        raise KeyError(f"an ankle has no finding {unknown}: {', '.join(_FINDINGS)}")
    for (key, finding), own in zip(_FINDINGS.items(), rng.spawn(len(_FINDINGS)), strict=True):
        if findings.get(key, False):
            finding(b, foot, own)


def _sprain(b: Blueprint, name: str, rng: np.random.Generator) -> np.ndarray:
    """Tear a ligament in part or through, with fluid where it parts and oedema around; where, (3,)."""
    (band,) = b.groups[name].rows
    middle = rng.uniform(0.3, 0.7)
    x, y, z, *_ = at_share(band, middle)
    length = length_of(band)
    if rng.random() < 0.6:
        half = rng.uniform(1.8, 4.0) / length
        part_in_two(b, name, (middle - half, middle + half), rng.uniform(1.4, 2.2), rng.uniform(0.4, 0.9), rng)
        radii = rng.uniform(2.2, 4.0, 3)
        pool = ellipsoid((x, y, z), (radii[0], radii[1], radii[2]))
        b.add(f"{name} fluid", Part.FLUID, pool, before=f"{name} torn ends")
    else:
        thick = swollen(band, bulge(middle, rng.uniform(0.3, 0.6), rng.uniform(1.8, 2.8)))
        b.change(name, lambda _: [thick])
        torn = swollen(stretch(thick, max(middle - 0.4, 0.0), min(middle + 0.4, 1.0)), 0.8)
        b.add(f"{name} torn fibres", Part.TORN_FIBRES, torn, before=name)
    reach = rng.uniform(4.0, 8.0, 3)
    around = patch((x + 1.0, y, z), (reach[0], reach[1], reach[2]), rng)
    b.add(f"{name} oedema", Part.FAT_OEDEMA, *around, near("fascia", -0.6).limiting(), before="soleus")
    return np.array([x, y, z])


def _atfl(b: Blueprint, foot: Foot, rng: np.random.Generator) -> None:
    x, y, z = _sprain(b, "ATFL", rng)
    if rng.random() < 0.7:
        gutter = ellipsoid((x - 1.5, y + 1.0, z + 2.0), (rng.uniform(1.2, 2.6), rng.uniform(5, 8), rng.uniform(4, 7)))
        b.add("ATFL gutter", Part.FLUID, gutter, before="joint film")
    if rng.random() < 0.7:
        skin = patch((x + 9.0, y, z), (rng.uniform(3, 5), rng.uniform(7, 14), rng.uniform(6, 12)), rng)
        b.add("ATFL swelling", Part.FAT_OEDEMA, *skin, near("body", -2.0).limiting(), before="talus")


def _cfl(b: Blueprint, foot: Foot, rng: np.random.Generator) -> None:
    _sprain(b, "CFL", rng)
    if rng.random() < 0.7:
        radius = rng.uniform(3.6, 5.0)
        sheath = cord((25, -22, -2, 2.8), (24.5, -20, -18, radius), (22.5, -9, -33, radius), (22, 6, -42, 2.8))
        b.add("CFL sheath", Part.FLUID, sheath.placed(foot.bend), before="posterior tibial artery")


def _atr(b: Blueprint, foot: Foot, rng: np.random.Generator) -> None:
    """Achilles rupture 2 to 6 cm above the heel: parted with a gap, or swollen with torn fibres and clefts in it."""
    (band,) = b.groups["Achilles"].rows
    length = length_of(band)
    middle = 1.0 - rng.uniform(25.0, 60.0) / length
    x, y, z, *_ = at_share(band, middle)
    if rng.random() < 0.5:
        half = rng.uniform(3.0, 11.0) / length
        part_in_two(b, "Achilles", (middle - half, middle + half), rng.uniform(1.5, 2.1), rng.uniform(0.12, 0.25), rng)
        blood = (rng.uniform(5.5, 8.0), rng.uniform(3.5, 5.5), half * length + rng.uniform(3.0, 7.0))
        b.add("Achilles gap", Part.FLUID, ellipsoid((x, y, z), blood), before="Achilles torn ends")
        strands = [
            cord((x + dx, y + dy, z - 14, 0.6), (x - 0.5 * dy, y, z, 0.5), (x + dy, y + dx / 3, z + 14, 0.6))
            for dx, dy in rng.uniform(-3.0, 3.0, (3, 2))
        ]
        b.add("Achilles strands", Part.DEGENERATE_FIBRES, *(s.united(0.05) for s in strands), before="Achilles gap")
    else:
        half = rng.uniform(14.0, 24.0) / length
        swell = swollen(finer(band, 24), bulge(middle, half, rng.uniform(1.9, 2.9)))
        b.change("Achilles", lambda _: [swell])
        core = stretch(swell, middle - half, middle + half)
        core = narrowed(core, rng.uniform(0.55, 0.8), rng.uniform(0.5, 0.75))
        b.add("Achilles torn fibres", Part.TORN_FIBRES, core, before="Achilles")
        cleft = ellipsoid((x, y, z), (rng.uniform(2.5, 5.0), rng.uniform(0.9, 1.8), rng.uniform(5.0, 12.0)))
        b.add("Achilles cleft", Part.FLUID, cleft, before="Achilles torn fibres")
    fat = patch((x, y + 7.0, z), (rng.uniform(6, 10), rng.uniform(3.5, 7), rng.uniform(11, 20)), rng)
    b.add("Kager oedema", Part.FAT_OEDEMA, *fat, before="soleus")


def _olt(b: Blueprint, foot: Foot, rng: np.random.Generator) -> None:
    """Osteochondral lesion of a shoulder of the talar dome: oedema with a cyst, a loose fragment or a crater."""
    medial = rng.random() < 0.6
    x = -10.5 + rng.uniform(-1.5, 2.0) if medial else 10.5 + rng.uniform(-2.0, 1.5)
    y = rng.uniform(-9.0, 3.0) if medial else rng.uniform(-2.0, 8.0)
    surface = -20.0 + float(np.sqrt(400.0 - y * y))
    width, length, depth = rng.uniform(3.0, 5.5), rng.uniform(4.0, 8.0), rng.uniform(2.5, 5.5)
    inside = near("talus", -0.8).limiting(0.5)
    seat = foot(ellipsoid((x, y, surface - 1.0), (width, length, depth)))
    kind = rng.integers(3)
    before = "talus"
    if kind == 0:
        cysts = [
            foot(ellipsoid((x + 2.0 * u, y + 2.0 * v, surface - depth * 0.8), (2.3 + 0.7 * w,) * 3)).united(1.0)
            for u, v, w in rng.uniform(-1.0, 1.0, (2, 3))
        ]
        b.add("OLT cysts", Part.FLUID, *cysts, near("talus", -0.5).limiting(0.3), before=before)
    elif kind == 1:
        line = seat, near("OLT fragment").removed(0.1), near("talus").limiting(0.3)
        b.add("OLT fragment", Part.FAINT_MARROW_OEDEMA, seat.grown(-rng.uniform(0.9, 1.4)), inside, before=before)
        b.add("OLT line", Part.FLUID, *line, before=before)
    else:
        crater = foot(ellipsoid((x, y, surface + 0.8), (width, length, rng.uniform(2.2, 3.6))))
        b.add("OLT crater", Part.FLUID, crater, near("tibia", 0.9).removed(0.3), before=before)
    spread = rng.uniform(1.2, 1.8)
    halo = [foot(ellipsoid((x, y, surface - 2.0), (width * s, length * s, depth * s))) for s in (spread, 1.5 * spread)]
    b.add("OLT oedema", Part.MARROW_OEDEMA, halo[0], inside, before=before)
    b.add("OLT faint oedema", Part.FAINT_MARROW_OEDEMA, halo[1], inside, before=before)


_FINDINGS: dict[str, Callable[[Blueprint, Foot, np.random.Generator], None]] = {
    "ATFL": _atfl,
    "CFL": _cfl,
    "ATR": _atr,
    "OLT": _olt,
}
