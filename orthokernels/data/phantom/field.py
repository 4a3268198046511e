"""Which part of the anatomy a point of the knee belongs to, and how far it is to the next.

``part_at`` asks from the outside inwards and from hard to soft: air, skin, bones, cartilage, ligaments, fluid, muscle,
and fat for what is left. What is asked first wins, so neighbours need not agree on a common border.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from orthokernels.data.phantom.anatomy import Knee, Meniscus
from orthokernels.data.phantom.distance import (
    column,
    cord,
    ellipsoid,
    narrowed_ellipsoid,
    smooth_max,
    smooth_min,
    smooth_step,
    strap,
)
from orthokernels.data.phantom.parts import Part

_FASCIA, _FEMUR, _TIBIA, _FIBULA, _FIRST_MUSCLE = 0, 1, 2, 3, 4

AIR = int(Part.AIR)
SKIN = int(Part.SKIN)
SUBCUTANEOUS_FAT = int(Part.SUBCUTANEOUS_FAT)
FASCIA = int(Part.FASCIA)
DEEP_FAT = int(Part.DEEP_FAT)
HOFFA_FAT = int(Part.HOFFA_FAT)
MUSCLE = int(Part.MUSCLE)
TENDON = int(Part.TENDON)
LIGAMENT = int(Part.LIGAMENT)
ARTERY = int(Part.ARTERY)
VEIN = int(Part.VEIN)
NERVE = int(Part.NERVE)
FLUID = int(Part.FLUID)
SYNOVIUM = int(Part.SYNOVIUM)
FEMUR_CORTEX = int(Part.FEMUR_CORTEX)
FEMUR_MARROW = int(Part.FEMUR_MARROW)
FEMUR_SCAR = int(Part.FEMUR_SCAR)
TIBIA_CORTEX = int(Part.TIBIA_CORTEX)
TIBIA_MARROW = int(Part.TIBIA_MARROW)
TIBIA_SCAR = int(Part.TIBIA_SCAR)
PATELLA_CORTEX = int(Part.PATELLA_CORTEX)
PATELLA_MARROW = int(Part.PATELLA_MARROW)
FIBULA_CORTEX = int(Part.FIBULA_CORTEX)
FIBULA_MARROW = int(Part.FIBULA_MARROW)
FEMORAL_CARTILAGE = int(Part.FEMORAL_CARTILAGE)
TIBIAL_CARTILAGE = int(Part.TIBIAL_CARTILAGE)
PATELLAR_CARTILAGE = int(Part.PATELLAR_CARTILAGE)
MEDIAL_MENISCUS = int(Part.MEDIAL_MENISCUS)
LATERAL_MENISCUS = int(Part.LATERAL_MENISCUS)
ACL = int(Part.ACL)
PCL = int(Part.PCL)

SKIN_THICKNESS = 1.4


@njit(cache=True)
def bent(y: float, z: float, knee: Knee, cosine: float, sine: float) -> tuple[float, float]:
    """A point's y and z in the frame of a bone turned about the hinge."""
    dy, dz = y - knee.hinge[0], z - knee.hinge[1]
    return knee.hinge[0] + cosine * dy + sine * dz, knee.hinge[1] - sine * dy + cosine * dz


@njit(cache=True)
def femur_at(x: float, y: float, z: float, knee: Knee) -> tuple[float, float]:
    """Distances to the femur and to what its cartilage may cover: the same bone less a rim at either side."""
    less = knee.femoral_cartilage
    shaft = column(x, y, z, knee.columns[_FEMUR], knee.column_ends[_FEMUR], 0.45)
    if shaft > 40.0:
        return shaft - 20.0, shaft - 20.0
    bone = shaft
    covered = shaft + 0.3
    for n in range(4):
        e = knee.condyles[n]
        d = ellipsoid(x, y, z, e)
        bone = smooth_min(bone, d, 5.0)
        if d < 8.0:
            d = narrowed_ellipsoid(x, y, z, e, less)
        covered = smooth_min(covered, d, 5.0)
    for n in range(2):
        bone = smooth_min(bone, ellipsoid(x, y, z, knee.epicondyles[n]), 6.0)
    notch = cord(x, y, z, knee.notch, 4.0)
    groove = cord(x, y, z, knee.groove, 6.0)
    bone = smooth_max(smooth_max(bone, -notch, 3.0), -groove, 5.0)
    covered = smooth_max(smooth_max(covered, -notch + 0.5 * less, 3.0), -groove, 5.0)
    return bone, covered


@njit(cache=True)
def plateau_at(x: float, y: float, knee: Knee) -> float:
    """Height of the tibia's upper surface: dished medially, domed laterally, two spines between, lower behind."""
    medial = ((x + 19.5) / 15.0) ** 2 + ((y - 1.0) / 20.0) ** 2
    lateral = ((x - 20.0) / 14.0) ** 2 + ((y - 1.0) / 18.0) ** 2
    dish = -1.3 * math.exp(-medial) - 0.3 * math.exp(-lateral)
    spines = 8.0 * math.exp(-(((x + 5.0) / 3.6) ** 2) - ((y + 1.0) / 8.0) ** 2)
    spines += 7.0 * math.exp(-(((x - 6.5) / 3.6) ** 2) - ((y + 3.0) / 7.0) ** 2)
    between = -1.5 * math.exp(-((x / 7.0) ** 2)) * smooth_step(6.0, 14.0, abs(y))
    return knee.plateau_slope * (y - 2.0) + dish + spines + between


@njit(cache=True)
def tibia_at(x: float, y: float, z: float, knee: Knee) -> tuple[float, float]:
    """Distance to the tibia, and the height above its plateau."""
    shaft = column(x, y, z, knee.columns[_TIBIA], knee.column_ends[_TIBIA], 0.35)
    height = z - plateau_at(x, y, knee)
    if shaft > 30.0:
        return shaft - 10.0, height
    bone = smooth_min(shaft, ellipsoid(x, y, z, knee.tuberosity), 8.0)
    bone = smooth_max(bone, 0.85 * height, 4.0)
    return smooth_max(bone, -cord(x, y, z, knee.pcl_facet, 2.0), 4.0), height


@njit(cache=True)
def patella_at(x: float, y: float, z: float, femur: float, knee: Knee) -> tuple[float, float]:
    """Distance to the patella, and to its lens before the trochlea shapes its back."""
    e = knee.patella
    lens = ellipsoid(x, y, z, e)
    if lens > 15.0:
        return lens, lens
    taper = x * x / 70.0 + 0.30 * max(e[2] - z, 0.0) + (y - e[1])  # the apex lies in front, the sides slope forward
    lens = smooth_max(lens, 0.8 * (taper - 10.0), 4.0)
    gap = knee.femoral_cartilage + knee.patellar_cartilage + 0.5
    return smooth_max(lens, gap - femur, 3.0), lens


@njit(cache=True)
def meniscus_at(x: float, y: float, height: float, over: float, tibial: float, m: Meniscus) -> float:
    """Distance to a meniscus between ``height`` above the plateau and ``over``, the way to the femoral cartilage."""
    dx, dy = m.toward * (x - m.x), y - m.y
    u, v = dx / m.half_width, dy / m.half_length
    radius = math.sqrt(u * u + v * v)
    mean = math.sqrt(m.half_width * m.half_length)
    outer = (radius - 1.0) * min(m.half_width, m.half_length)
    if outer > 12.0:
        return outer
    from_opening = abs(math.atan2(v, u)) - m.opening
    back = smooth_step(-0.6, 0.6, -v)
    width = m.anterior_width + (m.posterior_width - m.anterior_width) * back
    width *= 0.45 + 0.55 * smooth_step(0.0, 0.7, from_opening)
    inner = (1.0 - radius) * mean - width
    ring = max(outer, inner, -from_opening * radius * mean)
    rise = min(max(1.0 - (1.0 - radius) * mean / width, 0.0), 1.0)
    top = 0.8 + (m.height - 0.8) * rise
    floor = tibial * (1.0 - 0.6 * rise)
    return max(ring, floor - height, height - floor - top, -over)


@njit(cache=True)
def tibial_cartilage_at(x: float, y: float, height: float, knee: Knee) -> float:
    """Distance to the cartilage of both plateaus, thickest in the middle of each."""
    medial = ((x + 19.0) / 15.5) ** 2 + ((y - 1.0) / 21.5) ** 2
    lateral = ((x - 19.5) / 14.5) ** 2 + ((y - 0.5) / 19.0) ** 2
    across = min(medial, lateral)
    thickness = knee.tibial_cartilage * (1.15 - 0.55 * across)
    return max(0.8 * (height - thickness), 6.0 * (across - 1.0))


@njit(cache=True)
def warped(x: float, y: float, z: float, knee: Knee) -> tuple[float, float, float]:
    """A point moved by the knee's own gentle waves, after its size is taken out."""
    x, y, z = x / knee.size[0], y / knee.size[1], z / knee.size[2]
    w = knee.warp
    dx = w[0, 0] * math.sin(w[0, 1] * x + w[0, 2] * y + w[0, 3] * z + w[0, 4])
    dx += w[1, 0] * math.sin(w[1, 1] * x + w[1, 2] * y + w[1, 3] * z + w[1, 4])
    dy = w[2, 0] * math.sin(w[2, 1] * x + w[2, 2] * y + w[2, 3] * z + w[2, 4])
    dy += w[3, 0] * math.sin(w[3, 1] * x + w[3, 2] * y + w[3, 3] * z + w[3, 4])
    dz = w[4, 0] * math.sin(w[4, 1] * x + w[4, 2] * y + w[4, 3] * z + w[4, 4])
    dz += w[5, 0] * math.sin(w[5, 1] * x + w[5, 2] * y + w[5, 3] * z + w[5, 4])
    return x + dx, y + dy, z + dz


@njit(cache=True)
def soft_tissue_frame(y: float, z: float, knee: Knee) -> tuple[float, float]:
    """A point's y and z in the straight leg, for what bends with the knee instead of turning with a bone."""
    angle = knee.hinge[2] * smooth_step(-20.0, 60.0, z)
    return bent(y, z, knee, math.cos(angle), math.sin(angle))


@njit(cache=True)
def fascia_at(x: float, y: float, z: float, ys: float, zs: float, lens: float, tendons: float, knee: Knee) -> float:
    """Distance to the deep fascia: the limb's outline, bulging over the patella and its tendons."""
    limb = column(x, ys, zs, knee.columns[_FASCIA], knee.column_ends[_FASCIA], 0.15)
    if y < 15.0:
        return limb
    return smooth_min(smooth_min(limb, lens - 1.5, 14.0), tendons - 1.2, 12.0)


@njit(cache=True)
def fat_thickness_at(x: float, y: float, z: float, knee: Knee) -> float:
    """Subcutaneous fat in mm: thin in front, thick behind and medially, more on the thigh."""
    around = 1.0 - 0.45 * smooth_step(5.0, 45.0, y) + 0.35 * smooth_step(0.0, 45.0, -x)
    return knee.fat_thickness * around * (1.0 + 0.25 * smooth_step(20.0, 90.0, z)) * (1.0 - 0.2 * smooth_step(20.0, 90.0, -z))


@njit(cache=True)
def muscle_at(x: float, y: float, z: float, knee: Knee) -> float:
    """Distance to the nearest muscle, less the fat plane where two muscles meet."""
    first, second = 1e9, 1e9
    for n in range(_FIRST_MUSCLE, len(knee.columns)):
        ends = knee.column_ends[n]
        if z < ends[0] - 12.0 or z > ends[1] + 12.0:
            continue
        d = column(x, y, z, knee.columns[n], ends, 0.3)
        if d < first:
            first, second = d, first
        elif d < second:
            second = d
    return max(first, 0.5 - 0.5 * (second - first))


@njit(cache=True)
def bone_part(d: float, cortex: float, scar: float, parts: tuple[int, int, int], near: float) -> tuple[int, float]:
    """Cortex, scar of the growth plate or marrow at depth -``d``; ``scar`` is the distance to the scar's sheet."""
    if d > -cortex:
        return parts[0], min(near, -d, d + cortex)
    near = min(near, -d - cortex, abs(scar))
    return (parts[1] if scar < 0.0 else parts[2]), near


@njit(cache=True)
def nearest_cord(x: float, y: float, z: float, cords: np.ndarray) -> float:
    best = 1e9
    for n in range(len(cords)):
        best = min(best, cord(x, y, z, cords[n], 0.1))
    return best


@njit(cache=True)
def recess_at(x: float, y: float, z: float, knee: Knee) -> float:
    """Distance to the recesses where joint fluid gathers."""
    best = 1e9
    for n in range(len(knee.recesses)):
        best = smooth_min(best, ellipsoid(x, y, z, knee.recesses[n]), 2.0)
    return best


@njit(cache=True)
def part_at(x: float, y: float, z: float, knee: Knee) -> tuple[int, float]:
    """The part at a point of the knee's frame, in mm, and about how far every point around it is the same part.

    Returns:
        ``(part, clearance)``: a value of ``Part``, and mm. Clearance is a lower bound up to the distances' own
        inexactness; the sampler keeps a margin.
    """
    x, y, z = warped(x, y, z, knee)
    ys, zs = soft_tissue_frame(y, z, knee)

    limb = column(x, ys, zs, knee.columns[_FASCIA], knee.column_ends[_FASCIA], 0.15)
    if limb > 45.0:
        return AIR, limb - 40.0
    yf, zf = bent(y, z - knee.hinge[7], knee, knee.hinge[3], knee.hinge[4])
    yp, zp = bent(y, z, knee, knee.hinge[5], knee.hinge[6])
    femur, covered = femur_at(x, yf, zf, knee)
    patella, lens = patella_at(x, yp, zp, femur, knee)
    tendons = 1e9
    if y > 10.0:
        tendons = min(strap(x, y, z, knee.patellar_tendon), strap(x, y, z, knee.quadriceps_tendon))
    fascia = fascia_at(x, y, z, ys, zs, lens, tendons, knee)
    skin = fascia - fat_thickness_at(x, ys, zs, knee)
    if skin > 0.0:
        return AIR, skin
    near = -skin
    if skin > -SKIN_THICKNESS:
        return SKIN, min(near, skin + SKIN_THICKNESS)
    near = min(near, abs(skin + SKIN_THICKNESS))
    if fascia > 0.35:
        saphenous = cord(x, ys, zs, knee.saphenous_vein, 0.1)
        if saphenous < 0.0:
            return VEIN, min(near, -saphenous)
        return SUBCUTANEOUS_FAT, min(near, fascia - 0.35, saphenous)
    near = min(near, abs(fascia - 0.35))
    return deep_part_at(x, y, z, ys, zs, femur, covered, patella, tendons, fascia, zf, near, knee)


@njit(cache=True)
def deep_part_at(
    x: float, y: float, z: float, ys: float, zs: float, femur: float, covered: float, patella: float, tendons: float,
    fascia: float, zf: float, near: float, knee: Knee,
) -> tuple[int, float]:  # fmt: skip
    """``part_at`` below the fascia."""
    if femur < 0.0:
        cortex = 0.9 + 2.8 * smooth_step(46.0, 84.0, zf)
        scar = abs(zf - 31.0 - 2.0 * math.sin(0.13 * x) - 1.5 * math.sin(0.17 * y)) - 0.35
        return bone_part(femur, cortex, scar, (FEMUR_CORTEX, FEMUR_SCAR, FEMUR_MARROW), near)
    near = min(near, femur)

    tibia, height = tibia_at(x, y, z, knee)
    if tibia < 0.0:
        cortex = 0.9 + 2.6 * smooth_step(-24.0, -70.0, z) if z < -24.0 else 0.9
        scar = abs(z + 14.0 - 2.0 * math.sin(0.11 * x) - 1.2 * math.sin(0.19 * y)) - 0.35
        return bone_part(tibia, cortex, scar, (TIBIA_CORTEX, TIBIA_SCAR, TIBIA_MARROW), near)
    near = min(near, tibia)

    if patella < 0.0:
        return bone_part(patella, 0.9, 1e9, (PATELLA_CORTEX, PATELLA_CORTEX, PATELLA_MARROW), near)
    near = min(near, patella)

    fibula = column(x, y, z, knee.columns[_FIBULA], knee.column_ends[_FIBULA], 0.1)
    fibula = smooth_max(fibula, 1.6 - tibia, 2.0)
    if fibula < 0.0:
        cortex = 0.8 + 1.4 * smooth_step(30.0, 60.0, -z)
        return bone_part(fibula, cortex, 1e9, (FIBULA_CORTEX, FIBULA_CORTEX, FIBULA_MARROW), near)
    near = min(near, fibula)
    return soft_part_at(x, y, z, ys, zs, femur, covered, patella, tendons, fascia, zf, tibia, height, near, knee)


@njit(cache=True)
def soft_part_at(
    x: float, y: float, z: float, ys: float, zs: float, femur: float, covered: float, patella: float, tendons: float,
    fascia: float, zf: float, tibia: float, height: float, near: float, knee: Knee,
) -> tuple[int, float]:  # fmt: skip
    """``part_at`` below the fascia and outside bone."""
    reach = 1.0 - smooth_step(41.0 if y < 15.0 else 50.0, 47.0 if y < 15.0 else 58.0, zf)
    over = covered - knee.femoral_cartilage * reach
    if reach > 0.0:
        if over < 0.0:
            return FEMORAL_CARTILAGE, min(near, -over)
        near = min(near, over)

    across = tibial_cartilage_at(x, y, height, knee)
    joint = max(abs(x) - 40.0, abs(y) - 26.0, height - 12.0)
    if joint >= 0.0:
        near = min(near, joint + 1.0)
    else:
        if across < 0.0 and height > 0.0:
            return TIBIAL_CARTILAGE, min(near, -across)
        near = min(near, max(across, -height))
        for medial in (True, False):
            m = knee.medial_meniscus if medial else knee.lateral_meniscus
            d = meniscus_at(x, y, height, over - 0.15, knee.tibial_cartilage, m)
            if d < 0.0:
                return (MEDIAL_MENISCUS if medial else LATERAL_MENISCUS), min(near, -d)
            near = min(near, d)

    back = max(patella - knee.patellar_cartilage, femur - knee.femoral_cartilage - knee.patellar_cartilage - 2.0)
    if back < 0.0 and y > 15.0:
        return PATELLAR_CARTILAGE, min(near, -back)
    near = min(near, abs(back))

    if abs(x) >= 25.0:
        near = min(near, abs(x) - 15.0)
    else:
        d = cord(x, y, z, knee.acl, 3.0)
        if d < 0.0:
            return ACL, min(near, -d)
        near = min(near, d)
        d = cord(x, y, z, knee.pcl, 3.0)
        if d < 0.0:
            return PCL, min(near, -d)
        near = min(near, d)

    if tendons < 0.0:
        return TENDON, min(near, -tendons)
    near = min(near, tendons)
    d = min(strap(x, y, z, knee.mcl), cord(x, y, z, knee.lcl, 1.0))
    if d < 0.0:
        return LIGAMENT, min(near, -d)
    near = min(near, d)
    d = min(strap(x, y, z, knee.iliotibial_band), cord(x, y, z, knee.popliteus_tendon, 1.0))
    d = min(d, nearest_cord(x, ys, zs, knee.small_tendons))
    if d < 0.0:
        return TENDON, min(near, -d)
    near = min(near, d)
    if fascia > -0.35:
        return FASCIA, min(near, 0.35 - fascia, fascia + 0.35)
    near = min(near, -0.35 - fascia)
    return filling_at(x, y, z, ys, zs, covered, over, tibia, near, knee)


@njit(cache=True)
def filling_at(
    x: float, y: float, z: float, ys: float, zs: float, covered: float, over: float, tibia: float, near: float, knee: Knee
) -> tuple[int, float]:
    """What fills the room between bones, cartilage and ligaments."""
    fluid = recess_at(x, ys, zs, knee)
    film = max(over - 0.7, zs - 56.0, 6.0 - ys if zs > 40.0 else -1e9)
    if abs(x) > 34.0:
        film = max(film, abs(x) - 34.0)
    fluid = min(fluid, film)
    if fluid < 0.0:
        return FLUID, min(near, -fluid)
    near = min(near, fluid)
    if ys < -8.0:
        d = cord(x, ys, zs, knee.artery, 0.5)
        if d < 0.0:
            return ARTERY, min(near, -d)
        near = min(near, d)
        d = cord(x, ys, zs, knee.vein, 0.5)
        if d < 0.0:
            return VEIN, min(near, -d)
        near = min(near, d)
        d = cord(x, ys, zs, knee.nerve, 0.5)
        if d < 0.0:
            return NERVE, min(near, -d)
        near = min(near, d)
    d = muscle_at(x, ys, zs, knee)
    if d < 0.0:
        return MUSCLE, min(near, -d)
    near = min(near, d)
    notch = max(abs(x) - 11.0, abs(ys + 4.0) - 16.0, abs(zs - 16.0) - 18.0)
    if notch < 0.0:
        return SYNOVIUM, min(near, -notch)
    near = min(near, notch)
    hoffa = max(abs(x - 2.0) - 32.0, 14.0 - ys, abs(zs - 6.0) - 32.0)
    if hoffa < 0.0:
        return HOFFA_FAT, min(near, -hoffa)
    return DEEP_FAT, min(near, hoffa)
