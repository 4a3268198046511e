"""Which part of the anatomy a point of the knee belongs to, and how far it is to the next.

``part_at`` asks from the outside inwards and from hard to soft: air, skin, bones, cartilage, ligaments, fluid, muscle,
and fat for what is left. What is asked first wins, so neighbours need not agree on a common border. ``prune`` says
beforehand which solids can matter near a point at all; there are some sixty, and near most points two or three.
"""

from __future__ import annotations

import math

import numpy as np

from orthokernels.data.phantom.anatomy import places
from orthokernels.data.phantom.distance import (
    TABLE_ROWS,
    box,
    column,
    compiled,
    cord,
    ellipsoid,
    narrowed_ellipsoid,
    smooth_max,
    smooth_min,
    smooth_step,
    strap,
)
from orthokernels.data.phantom.knee_lesions import ROWS as LESIONS
from orthokernels.data.phantom.knee_lesions import injured, prune_lesions
from orthokernels.data.phantom.parts import Part

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
FASCIA_HALF_THICKNESS = 0.25


# Where each field of a packed knee begins, and its rows: plain numbers, which Numba compiles in.
_PLACES = places()
_SIZE = _PLACES["size"].at
_WARP = _PLACES["warp"].at
_HINGE = _PLACES["hinge"].at
_COLUMNS, _COLUMNS_ROWS = _PLACES["columns"]
_COLUMN_ENDS = _PLACES["column_ends"].at
_COLUMN_BOXES = _PLACES["column_boxes"].at
_FEMUR_BOX = _PLACES["femur_box"].at
_TIBIA_BOX = _PLACES["tibia_box"].at
_CONDYLES = _PLACES["condyles"].at
_EPICONDYLES = _PLACES["epicondyles"].at
_NOTCH, _NOTCH_ROWS = _PLACES["notch"]
_GROOVE, _GROOVE_ROWS = _PLACES["groove"]
_TUBEROSITY = _PLACES["tuberosity"].at
_PCL_FACET, _PCL_FACET_ROWS = _PLACES["pcl_facet"]
_PATELLA = _PLACES["patella"].at
_PATELLA_TURN = _PLACES["patella_turn"].at
_RECESSES, _RECESSES_ROWS = _PLACES["recesses"]
_SYNOVIUM = _PLACES["synovium"].at
_HOFFA = _PLACES["hoffa"].at
_MEDIAL_MENISCUS = _PLACES["medial_meniscus"].at
_LATERAL_MENISCUS = _PLACES["lateral_meniscus"].at
_ACL, _ACL_ROWS = _PLACES["acl"]
_PCL, _PCL_ROWS = _PLACES["pcl"]
_PATELLAR_TENDON, _PATELLAR_TENDON_ROWS = _PLACES["patellar_tendon"]
_QUADRICEPS_TENDON, _QUADRICEPS_TENDON_ROWS = _PLACES["quadriceps_tendon"]
_MCL, _MCL_ROWS = _PLACES["mcl"]
_LCL, _LCL_ROWS = _PLACES["lcl"]
_ILIOTIBIAL_BAND, _ILIOTIBIAL_BAND_ROWS = _PLACES["iliotibial_band"]
_POPLITEUS_TENDON, _POPLITEUS_TENDON_ROWS = _PLACES["popliteus_tendon"]
_SMALL_TENDONS, _SMALL_TENDONS_ROWS = _PLACES["small_tendons"]
_ARTERY, _ARTERY_ROWS = _PLACES["artery"]
_VEIN, _VEIN_ROWS = _PLACES["vein"]
_NERVE, _NERVE_ROWS = _PLACES["nerve"]
_SAPHENOUS_VEIN, _SAPHENOUS_VEIN_ROWS = _PLACES["saphenous_vein"]
_CARTILAGE = _PLACES["cartilage"].at
_PLATEAU = _PLACES["plateau"].at
_FAT = _PLACES["fat"].at
_LESIONS = _PLACES["lesions"].at

_TABLE = 6 * TABLE_ROWS
_FASCIA_COLUMN, _FEMUR_COLUMN, _TIBIA_COLUMN, _FIBULA_COLUMN, _FIRST_MUSCLE = 0, 1, 2, 3, 4
_FEMORAL, _TIBIAL, _PATELLAR = _CARTILAGE, _CARTILAGE + 1, _CARTILAGE + 2

# What ``prune`` decides about, in the order of its flags. The femur's own solids and the muscles have a flag each.
_ENVELOPE, _SAPHENOUS, _FRONT, _FRONT_TENDONS, _FEMUR_FLAG = 0, 1, 2, 3, 4
_CONDYLE_FLAGS, _EPICONDYLE_FLAGS, _NOTCH_FLAG, _GROOVE_FLAG = 5, 9, 11, 12
_TIBIA_FLAG, _FIBULA_FLAG, _JOINT, _MEDIAL_FLAG, _LATERAL_FLAG = 13, 14, 15, 16, 17
_ACL_FLAG, _PCL_FLAG, _MEDIAL_SIDE, _LATERAL_SIDE, _SMALL_TENDONS_FLAG = 18, 19, 20, 21, 22
_FLUID_FLAG, _ARTERY_FLAG, _VEIN_FLAG, _NERVE_FLAG, _SYNOVIUM_FLAG, _HOFFA_FLAG = 23, 24, 25, 26, 27, 28
_MUSCLE_FLAGS = 29
_LESION_FLAGS = _MUSCLE_FLAGS + _COLUMNS_ROWS - _FIRST_MUSCLE  # any lesion at all, then each
FLAGS = _LESION_FLAGS + 1 + LESIONS

# Distances may be overstated where outlines flare and waves bend them: what is farther than this many radii is out.
REACH = 1.45
_TURNS = 0.5 / math.pi
_FAR = 60.0  # mm; stands for the distance of what was left out


@compiled
def wave(x: float, y: float, z: float, s: np.ndarray, at: int) -> float:
    """One wave: amplitude, three wave numbers, phase. Parabolas stand for the sine; they cost a fifth."""
    t = (s[at + 1] * x + s[at + 2] * y + s[at + 3] * z + s[at + 4]) * _TURNS
    t -= math.floor(t + 0.5)
    return s[at] * t * (8.0 - 16.0 * abs(t))


@compiled
def outline_at(x: float, y: float, z: float, knee: np.ndarray, n: int, square: float) -> float:
    """Distance to the n-th column of the knee."""
    return column(x, y, z, knee, _COLUMNS + _TABLE * n, _COLUMN_ENDS + 2 * n, square)


@compiled
def bent(y: float, z: float, knee: np.ndarray, cosine: float, sine: float) -> tuple[float, float]:
    """A point's y and z in the frame of a bone turned about the hinge."""
    dy, dz = y - knee[_HINGE], z - knee[_HINGE + 1]
    return knee[_HINGE] + cosine * dy + sine * dz, knee[_HINGE + 1] - sine * dy + cosine * dz


@compiled
def femur_at(x: float, y: float, z: float, knee: np.ndarray, active: np.ndarray) -> tuple[float, float]:
    """Distances to the femur and to what its cartilage may cover: the same bone without sides, notch and back."""
    far = box(x, y, z, knee, _FEMUR_BOX)
    if far > 10.0:
        return far, far
    shaft = outline_at(x, y, z, knee, _FEMUR_COLUMN, 0.45)
    if z > 66.0:
        return shaft, shaft + 6.0
    beside = max(smooth_step(17.0, 25.0, abs(x - 2.0)), smooth_step(-22.0, -14.0, -y))
    bone, covered = shaft, shaft + beside * (knee[_FEMORAL] + 1.2)
    for n in range(4):
        if active[_CONDYLE_FLAGS + n]:
            e = _CONDYLES + 6 * n
            d = ellipsoid(x, y, z, knee, e)
            bone = smooth_min(bone, d, 5.0)
            if d < 8.0:
                d = narrowed_ellipsoid(x, y, z, knee, e, knee[_FEMORAL] + 0.5)
            covered = smooth_min(covered, d, 4.0)
    for n in range(2):
        if active[_EPICONDYLE_FLAGS + n]:
            bone = smooth_min(bone, ellipsoid(x, y, z, knee, _EPICONDYLES + 6 * n), 6.0)
    if bone > 6.0:
        return bone, covered
    if active[_NOTCH_FLAG]:
        notch = cord(x, y, z, knee, _NOTCH, _NOTCH_ROWS, 4.0)
        bone = smooth_max(bone, -notch, 3.0)
        covered = smooth_max(covered, knee[_FEMORAL] + 0.4 - notch, 2.0)
    if active[_GROOVE_FLAG]:
        groove = cord(x, y, z, knee, _GROOVE, _GROOVE_ROWS, 6.0)
        bone = smooth_max(bone, -groove, 5.0)
        covered = smooth_max(covered, -groove, 5.0)
    return bone, covered


@compiled
def plateau_at(x: float, y: float, knee: np.ndarray) -> float:
    """Height of the tibia's upper surface: dished medially, domed laterally, two spines between, lower behind."""
    medial = ((x + 19.5) / 15.0) ** 2 + ((y - 1.0) / 20.0) ** 2
    lateral = ((x - 20.0) / 14.0) ** 2 + ((y - 1.0) / 18.0) ** 2
    dish = -1.3 * math.exp(-medial) - 0.3 * math.exp(-lateral)
    spines = 8.0 * math.exp(-(((x + 5.0) / 3.6) ** 2) - ((y + 1.0) / 8.0) ** 2)
    spines += 7.0 * math.exp(-(((x - 6.5) / 3.6) ** 2) - ((y + 3.0) / 7.0) ** 2)
    between = -1.5 * math.exp(-((x / 7.0) ** 2)) * smooth_step(6.0, 14.0, abs(y))
    return knee[_PLATEAU] * (y - 2.0) + dish + spines + between


@compiled
def tibia_at(x: float, y: float, z: float, knee: np.ndarray) -> tuple[float, float]:
    """Distance to the tibia, and the height above its plateau."""
    far = box(x, y, z, knee, _TIBIA_BOX)
    if far > 8.0:
        return far, far
    shaft = outline_at(x, y, z, knee, _TIBIA_COLUMN, 0.35)
    height = z - plateau_at(x, y, knee) if z > -16.0 else z + 3.0
    bone = smooth_min(shaft, ellipsoid(x, y, z, knee, _TUBEROSITY), 8.0)
    bone = smooth_max(bone, 0.85 * height, 6.0)
    return smooth_max(bone, -cord(x, y, z, knee, _PCL_FACET, _PCL_FACET_ROWS, 2.0), 4.0), height


@compiled
def lens_at(x: float, y: float, z: float, knee: np.ndarray) -> float:
    """Distance to the patella as it would be if the trochlea did not shape its back."""
    cosine, sine = knee[_PATELLA_TURN], knee[_PATELLA_TURN + 1]
    dx, dy = x - knee[_PATELLA], y - knee[_PATELLA + 1]
    dx, dy = cosine * dx - sine * dy, sine * dx + cosine * dy
    lens = ellipsoid(dx + knee[_PATELLA], dy + knee[_PATELLA + 1], z, knee, _PATELLA)
    if lens > 15.0:
        return lens
    # The apex lies in front, and the sides slope forward.
    taper = dx * dx / 75.0 + 0.30 * max(knee[_PATELLA + 2] - z, 0.0) - dy
    return smooth_max(lens, 0.8 * (taper - 11.0), 4.0)


@compiled
def meniscus_at(x: float, y: float, height: float, over: float, knee: np.ndarray, at: int) -> float:
    """Distance to a meniscus between ``height`` above the plateau and ``over``, the way to the femoral cartilage."""
    middle_x, middle_y, half_width, half_length, opening, toward = (
        knee[at], knee[at + 1], knee[at + 2], knee[at + 3], knee[at + 4], knee[at + 5],
    )  # fmt: skip
    u, v = toward * (x - middle_x) / half_width, (y - middle_y) / half_length
    radius = math.sqrt(u * u + v * v)
    mean = math.sqrt(half_width * half_length)
    outer = (radius - 1.0) * min(half_width, half_length)
    if outer > 12.0:
        return outer
    from_opening = abs(math.atan2(v, u)) - opening
    width = knee[at + 6] + (knee[at + 7] - knee[at + 6]) * smooth_step(-0.6, 0.6, -v)
    width *= 0.45 + 0.55 * smooth_step(0.0, 0.7, from_opening)
    inner = (1.0 - radius) * mean - width
    ring = max(outer, inner, -from_opening * radius * mean)
    rise = min(max(1.0 - (1.0 - radius) * mean / width, 0.0), 1.0)
    top = 0.8 + (knee[at + 8] - 0.8) * rise
    floor = knee[_TIBIAL] * (1.0 - 0.6 * rise)
    return max(ring, floor - height, height - floor - top, -over)


@compiled
def tibial_cartilage_at(x: float, y: float, height: float, tibia: float, knee: np.ndarray) -> float:
    """Distance to the cartilage of both plateaus, thickest in the middle of each."""
    medial = ((x + 19.0) / 15.5) ** 2 + ((y - 1.0) / 21.5) ** 2
    lateral = ((x - 19.5) / 14.5) ** 2 + ((y - 0.5) / 19.0) ** 2
    across = min(medial, lateral)
    thickness = knee[_TIBIAL] * (1.15 - 0.85 * across * across)
    return max(0.8 * (height - thickness), tibia - thickness, 6.0 * (across - 1.0))


@compiled
def warped(x: float, y: float, z: float, knee: np.ndarray) -> tuple[float, float, float]:
    """A point moved by the knee's own gentle waves, after its size is taken out."""
    x, y, z = x / knee[_SIZE], y / knee[_SIZE + 1], z / knee[_SIZE + 2]
    dx = wave(x, y, z, knee, _WARP) + wave(x, y, z, knee, _WARP + 5)
    dy = wave(x, y, z, knee, _WARP + 10) + wave(x, y, z, knee, _WARP + 15)
    dz = wave(x, y, z, knee, _WARP + 20) + wave(x, y, z, knee, _WARP + 25)
    return x + dx, y + dy, z + dz


@compiled
def soft_tissue_frame(y: float, z: float, knee: np.ndarray) -> tuple[float, float]:
    """A point's y and z in the straight leg, for what bends with the knee instead of turning with a bone."""
    angle = knee[_HINGE + 2] * smooth_step(-20.0, 60.0, z)
    # Series instead of cosine and sine: flexion stays below a quarter, where they are good to 1e-7 and 1e-8.
    square = angle * angle
    cosine = 1.0 - square * (0.5 - square * (1.0 / 24.0 - square / 720.0))
    return bent(y, z, knee, cosine, angle * (1.0 - square * (1.0 / 6.0 - square / 120.0)))


@compiled
def fat_thickness_at(x: float, y: float, z: float, knee: np.ndarray) -> float:
    """Subcutaneous fat in mm: thin in front, thick behind and medially, more on the thigh."""
    around = 1.0 - 0.45 * smooth_step(5.0, 45.0, y) + 0.35 * smooth_step(0.0, 45.0, -x)
    return knee[_FAT] * around * (1.0 + 0.25 * smooth_step(20.0, 90.0, z)) * (1.0 - 0.2 * smooth_step(20.0, 90.0, -z))


@compiled
def muscle_at(x: float, y: float, z: float, knee: np.ndarray, active: np.ndarray) -> float:
    """Distance to the nearest muscle, less the fat plane where two muscles meet."""
    first, second = 1e9, 1e9
    for n in range(_FIRST_MUSCLE, _COLUMNS_ROWS):
        if not active[_MUSCLE_FLAGS + n - _FIRST_MUSCLE]:
            continue
        if box(x, y, z, knee, _COLUMN_BOXES + 6 * n) > min(second, first + 2.0):
            continue
        d = outline_at(x, y, z, knee, n, 0.3)
        if d < first:
            first, second = d, first
        elif d < second:
            second = d
    return max(first, 0.4 - 0.5 * (second - first))


@compiled
def bone_part(d: float, cortex: float, scar: float, parts: tuple[int, int, int], near: float) -> tuple[int, float]:
    """Cortex, scar of the growth plate or marrow at depth -``d``; ``scar`` is the distance to the scar's sheet."""
    if d > -cortex:
        return parts[0], min(near, -d, d + cortex)
    near = min(near, -d - cortex, abs(scar))
    return (parts[1] if scar < 0.0 else parts[2]), near


@compiled
def small_tendon_at(x: float, y: float, z: float, knee: np.ndarray) -> float:
    """Distance to the nearest of the hamstrings' tendons, each a cord of four points."""
    best = 1e9
    for n in range(_SMALL_TENDONS_ROWS):
        best = min(best, cord(x, y, z, knee, _SMALL_TENDONS + 16 * n, 4, 0.1))
    return best


@compiled
def recess_at(x: float, y: float, z: float, knee: np.ndarray) -> float:
    """Distance to the recesses where joint fluid gathers."""
    best = max(-20.0 - z, z - 110.0)
    if best > 5.0:
        return best
    best = 1e9
    for n in range(_RECESSES_ROWS):
        best = smooth_min(best, ellipsoid(x, y, z, knee, _RECESSES + 6 * n), 2.0)
    return best


@compiled
def front_at(x: float, y: float, z: float, knee: np.ndarray) -> tuple[float, float]:
    """Distances to the patella, as if the trochlea did not shape its back, and to the tendons above and below it."""
    yp, zp = bent(y, z, knee, knee[_HINGE + 5], knee[_HINGE + 6])
    tendons = strap(x, y, z, knee, _PATELLAR_TENDON, _PATELLAR_TENDON_ROWS)
    tendons = min(tendons, strap(x, y, z, knee, _QUADRICEPS_TENDON, _QUADRICEPS_TENDON_ROWS))
    return lens_at(x, yp, zp, knee), tendons


@compiled
def part_at(x: float, y: float, z: float, knee: np.ndarray, active: np.ndarray) -> tuple[int, float]:
    """The part at a point of the knee's frame, in mm, and about how far every point around it is the same part.

    Args:
        x, y, z: mm; x to lateral, y to anterior, z to superior of a right knee.
        knee: packed, (numbers,) float64.
        active: (FLAGS,) bool, from ``prune`` for a ball that holds the point; the clearance holds within that ball.

    Returns:
        ``(part, clearance)``: a value of ``Part``, and mm. Clearance is a lower bound up to the distances' own
        inexactness; the sampler keeps a margin.
    """
    x, y, z = warped(x, y, z, knee)
    part, near = healthy_part_at(x, y, z, knee, active)
    if active[_LESION_FLAGS]:
        return injured(part, near, x, y, z, knee, _LESIONS, active[_LESION_FLAGS:])
    return part, near


@compiled
def healthy_part_at(x: float, y: float, z: float, knee: np.ndarray, active: np.ndarray) -> tuple[int, float]:
    """``part_at`` without lesions, in the frame that ``warped`` gives."""
    ys, zs = soft_tissue_frame(y, z, knee)
    lens, tendons, fascia, near = _FAR, _FAR, -_FAR, _FAR
    if y > 10.0 and (active[_FRONT] or active[_FRONT_TENDONS]):
        lens, tendons = front_at(x, y, z, knee)
    if active[_ENVELOPE]:
        fascia = outline_at(x, ys, zs, knee, _FASCIA_COLUMN, 0.15)
        if fascia > 45.0:
            return AIR, fascia - 40.0
        # The limb bulges over the patella and its tendons.
        fascia = smooth_min(smooth_min(fascia, lens - 1.5, 26.0), tendons - 1.5, 26.0)
        skin = fascia - fat_thickness_at(x, ys, zs, knee)
        if skin > 0.0:
            return AIR, skin
        if skin > -SKIN_THICKNESS:
            return SKIN, min(-skin, skin + SKIN_THICKNESS)
        near = -skin - SKIN_THICKNESS
        if fascia > FASCIA_HALF_THICKNESS:
            near = min(near, fascia - FASCIA_HALF_THICKNESS)
            if active[_SAPHENOUS]:
                saphenous = cord(x, ys, zs, knee, _SAPHENOUS_VEIN, _SAPHENOUS_VEIN_ROWS, 0.1)
                if saphenous < 0.0:
                    return VEIN, min(near, -saphenous)
                near = min(near, saphenous)
            return SUBCUTANEOUS_FAT, near
        near = FASCIA_HALF_THICKNESS - fascia
    return deep_part_at(x, y, z, ys, zs, lens, tendons, fascia, near, knee, active)


@compiled
def deep_part_at(
    x: float, y: float, z: float, ys: float, zs: float, lens: float, tendons: float, fascia: float, near: float,
    knee: np.ndarray, active: np.ndarray,
) -> tuple[int, float]:  # fmt: skip
    """``part_at`` below the fascia."""
    femur, covered, zf = _FAR, _FAR, z
    if active[_FEMUR_FLAG]:
        yf, zf = bent(y, z, knee, knee[_HINGE + 3], knee[_HINGE + 4])
        femur, covered = femur_at(x, yf, zf, knee, active)
        if femur < 0.0:
            cortex = 0.9 + 2.6 * smooth_step(52.0, 92.0, zf)
            scar = abs(zf - 31.0 - 2.0 * math.sin(0.13 * x) - 1.5 * math.sin(0.17 * y)) - 0.35
            return bone_part(femur, cortex, scar, (FEMUR_CORTEX, FEMUR_SCAR, FEMUR_MARROW), near)
        near = min(near, femur)

    tibia, height = _FAR, _FAR
    if active[_TIBIA_FLAG]:
        tibia, height = tibia_at(x, y, z, knee)
        if tibia < 0.0:
            cortex = 0.9 + 2.2 * smooth_step(38.0, 80.0, -z)
            scar = abs(z + 14.0 - 2.0 * math.sin(0.11 * x) - 1.2 * math.sin(0.19 * y)) - 0.35
            return bone_part(tibia, cortex, scar, (TIBIA_CORTEX, TIBIA_SCAR, TIBIA_MARROW), near)
        near = min(near, tibia)

    patella = lens
    if lens < 12.0:
        patella = smooth_max(lens, knee[_FEMORAL] + knee[_PATELLAR] + 0.4 - femur, 3.0)
    if patella < 0.0:
        return bone_part(patella, 0.9, 1e9, (PATELLA_CORTEX, PATELLA_CORTEX, PATELLA_MARROW), near)
    near = min(near, patella)

    if active[_FIBULA_FLAG]:
        fibula = box(x, y, z, knee, _COLUMN_BOXES + 6 * _FIBULA_COLUMN)
        if fibula < 5.0:
            fibula = outline_at(x, y, z, knee, _FIBULA_COLUMN, 0.1)
            fibula = smooth_max(fibula, 1.6 - tibia, 2.0)
        if fibula < 0.0:
            cortex = 0.8 + 1.2 * smooth_step(30.0, 60.0, -z)
            return bone_part(fibula, cortex, 1e9, (FIBULA_CORTEX, FIBULA_CORTEX, FIBULA_MARROW), near)
        near = min(near, fibula)
    return soft_part_at(
        x, y, z, ys, zs, femur, covered, patella, tendons, fascia, zf, tibia, height, near, knee, active
    )


@compiled
def soft_part_at(
    x: float, y: float, z: float, ys: float, zs: float, femur: float, covered: float, patella: float, tendons: float,
    fascia: float, zf: float, tibia: float, height: float, near: float, knee: np.ndarray, active: np.ndarray,
) -> tuple[int, float]:  # fmt: skip
    """``part_at`` below the fascia and outside bone."""
    over = covered - knee[_FEMORAL] * articular_reach(x, y, zf)
    if over < 0.0:
        return FEMORAL_CARTILAGE, min(near, -over)
    near = min(near, over)

    if active[_JOINT]:
        joint = max(abs(x) - 40.0, abs(y) - 26.0, height - 13.0, -4.0 - height)
        if joint >= 0.0:
            near = min(near, joint + 1.0)
        else:
            across = tibial_cartilage_at(x, y, height, tibia, knee)
            if across < 0.0 and height > 0.0:
                return TIBIAL_CARTILAGE, min(near, -across)
            near = min(near, max(across, -height))
            for medial in (True, False):
                if active[_MEDIAL_FLAG if medial else _LATERAL_FLAG]:
                    at = _MEDIAL_MENISCUS if medial else _LATERAL_MENISCUS
                    d = meniscus_at(x, y, height, over - 0.15, knee, at)
                    if d < 0.0:
                        return (MEDIAL_MENISCUS if medial else LATERAL_MENISCUS), min(near, -d)
                    near = min(near, d)

    if y > 15.0 and active[_FRONT]:
        thickness = knee[_PATELLAR] * max(1.0 - ((x - knee[_PATELLA]) / 19.0) ** 4, 0.0)
        back = max(patella - thickness, femur - knee[_FEMORAL] - knee[_PATELLAR] - 2.5)
        if back < 0.0:
            return PATELLAR_CARTILAGE, min(near, -back)
        near = min(near, back)
    return cord_part_at(x, y, z, ys, zs, tendons, fascia, over, near, knee, active)


@compiled
def articular_reach(x: float, y: float, zf: float) -> float:
    """Which share of its thickness the femoral cartilage has, from how far up the femur a point lies."""
    top = 41.0 if y < 15.0 else 54.0 - 30.0 * smooth_step(12.0, 26.0, abs(x - 3.0))
    return 1.0 - smooth_step(top - 5.0, top + 2.0, zf)


@compiled
def side_at(x: float, y: float, z: float, knee: np.ndarray, active: np.ndarray) -> tuple[int, float]:
    """The ligaments and tendons of a point's side of the knee: the part they are, and the distance."""
    if x < -10.0 and active[_MEDIAL_SIDE]:
        return LIGAMENT, strap(x, y, z, knee, _MCL, _MCL_ROWS)
    if x > 10.0 and active[_LATERAL_SIDE]:
        d = cord(x, y, z, knee, _LCL, _LCL_ROWS, 1.0)
        d = min(d, strap(x, y, z, knee, _ILIOTIBIAL_BAND, _ILIOTIBIAL_BAND_ROWS))
        return TENDON, min(d, cord(x, y, z, knee, _POPLITEUS_TENDON, _POPLITEUS_TENDON_ROWS, 1.0))
    return TENDON, _FAR


@compiled
def cord_part_at(
    x: float, y: float, z: float, ys: float, zs: float, tendons: float, fascia: float, over: float, near: float,
    knee: np.ndarray, active: np.ndarray,
) -> tuple[int, float]:  # fmt: skip
    """``part_at`` among ligaments and tendons, and around them."""
    if active[_ACL_FLAG]:
        d = cord(x, y, z, knee, _ACL, _ACL_ROWS, 1.0)
        if d < 0.0:
            return ACL, min(near, -d)
        near = min(near, d)
    if active[_PCL_FLAG]:
        d = cord(x, y, z, knee, _PCL, _PCL_ROWS, 3.0)
        if d < 0.0:
            return PCL, min(near, -d)
        near = min(near, d)

    if tendons < 0.0:
        return TENDON, min(near, -tendons)
    near = min(near, tendons)
    part, d = side_at(x, y, z, knee, active)
    if ys < 8.0 and d > 0.0 and active[_SMALL_TENDONS_FLAG]:
        small = small_tendon_at(x, ys, zs, knee)
        if small < d:
            part, d = TENDON, small
    if d < 0.0:
        return part, min(near, -d)
    near = min(near, d)
    if fascia > -FASCIA_HALF_THICKNESS:
        return FASCIA, min(near, fascia + FASCIA_HALF_THICKNESS)
    near = min(near, -FASCIA_HALF_THICKNESS - fascia)
    return filling_at(x, ys, zs, over, near, knee, active)


@compiled
def filling_at(
    x: float, y: float, z: float, over: float, near: float, knee: np.ndarray, active: np.ndarray
) -> tuple[int, float]:
    """What fills the room between bones, cartilage and ligaments. y and z are of the straight leg."""
    fluid = max(over - 0.3, z - 52.0, abs(x) - 33.0)  # a film over the cartilage
    if active[_FLUID_FLAG]:
        fluid = min(fluid, recess_at(x, y, z, knee))
    if fluid < 0.0:
        return FLUID, min(near, -fluid)
    near = min(near, fluid)
    if active[_ARTERY_FLAG]:
        d = cord(x, y, z, knee, _ARTERY, _ARTERY_ROWS, 0.5)
        if d < 0.0:
            return ARTERY, min(near, -d)
        near = min(near, d)
    if active[_VEIN_FLAG]:
        d = cord(x, y, z, knee, _VEIN, _VEIN_ROWS, 0.5)
        if d < 0.0:
            return VEIN, min(near, -d)
        near = min(near, d)
    if active[_NERVE_FLAG]:
        d = cord(x, y, z, knee, _NERVE, _NERVE_ROWS, 0.5)
        if d < 0.0:
            return NERVE, min(near, -d)
        near = min(near, d)
    d = muscle_at(x, y, z, knee, active)
    if d < 0.0:
        return MUSCLE, min(near, -d)
    near = min(near, d)
    if active[_SYNOVIUM_FLAG]:
        d = ellipsoid(x, y, z, knee, _SYNOVIUM)
        if d < 0.0:
            return SYNOVIUM, min(near, -d)
        near = min(near, d)
    if active[_HOFFA_FLAG]:
        d = ellipsoid(x, y, z, knee, _HOFFA)
        if d < 0.0:
            return HOFFA_FAT, min(near, -d)
        near = min(near, d)
    return DEEP_FAT, near


@compiled
def bulges(front: float, fascia: float, reach: float) -> bool:
    """Whether something in front may lift the fascia within the ball: their distances blend over 26 mm."""
    return front - 1.5 < fascia + 26.0 + 2.0 * reach


@compiled
def prune(x: float, y: float, z: float, radius: float, knee: np.ndarray, active: np.ndarray) -> None:
    """Mark in ``active`` (FLAGS,) bool what can matter to ``part_at`` within ``radius`` mm of a point.

    Left out are solids that lie farther away, and whatever comes after one that holds the whole ball. Flags that are
    false on entry stay false: a larger ball was asked about before, or all are true.
    """
    reach = REACH * radius / min(knee[_SIZE], knee[_SIZE + 1], knee[_SIZE + 2])
    x, y, z = warped(x, y, z, knee)
    prune_healthy(x, y, z, reach, knee, active[:_LESION_FLAGS])
    prune_lesions(x, y, z, reach, knee, _LESIONS, active[_LESION_FLAGS:])


@compiled
def prune_healthy(x: float, y: float, z: float, reach: float, knee: np.ndarray, active: np.ndarray) -> None:
    """``prune`` without lesions, in the frame that ``warped`` gives."""
    ys, zs = soft_tissue_frame(y, z, knee)
    lens, tendons = _FAR, _FAR
    if y > 10.0 - reach and (active[_FRONT] or active[_FRONT_TENDONS]):
        lens, tendons = front_at(x, y, z, knee)
    fascia = -_FAR
    if active[_ENVELOPE]:
        fascia = outline_at(x, ys, zs, knee, _FASCIA_COLUMN, 0.15)
        bulged = smooth_min(smooth_min(fascia, lens - 1.5, 26.0), tendons - 1.5, 26.0)
        skin = bulged - fat_thickness_at(x, ys, zs, knee)
        if skin > reach:
            active[1:] = False
            active[_FRONT] = bulges(lens, fascia, reach)
            active[_FRONT_TENDONS] = bulges(tendons, fascia, reach)
            return
        active[_ENVELOPE] = bulged > -reach - FASCIA_HALF_THICKNESS
        if not active[_ENVELOPE]:
            fascia = -_FAR
        outside = bulged > reach + FASCIA_HALF_THICKNESS
        saphenous = cord(x, ys, zs, knee, _SAPHENOUS_VEIN, _SAPHENOUS_VEIN_ROWS, 0.1) < reach
        active[_SAPHENOUS] &= active[_ENVELOPE] and saphenous
        if outside:
            active[_SAPHENOUS + 1 :] = False
            active[_FRONT] = bulges(lens, fascia, reach)
            active[_FRONT_TENDONS] = bulges(tendons, fascia, reach)
            return
    front = lens < reach + 6.0
    active[_FRONT] &= front or bulges(lens, fascia, reach)
    active[_FRONT_TENDONS] &= tendons < reach or bulges(tendons, fascia, reach)
    if prune_bones(x, y, z, front, reach, knee, active):
        active[_ACL_FLAG:] = False
        return
    prune_cords(x, y, z, reach, knee, active)
    prune_filling(x, ys, zs, reach, knee, active)


@compiled
def prune_bones(x: float, y: float, z: float, front: bool, reach: float, knee: np.ndarray, active: np.ndarray) -> bool:
    """``prune`` for bones, cartilage and menisci: whether one bone holds the whole ball.

    ``front`` tells that the patella is near.
    """
    tibia, height = _FAR, _FAR
    if active[_TIBIA_FLAG]:
        tibia, height = tibia_at(x, y, z, knee)
    joint = max(abs(x) - 40.0, abs(y) - 26.0, height - 13.0, -4.0 - height)
    active[_JOINT] &= joint < 1.5 * reach
    femur = _FAR
    if active[_FEMUR_FLAG]:
        yf, zf = bent(y, z, knee, knee[_HINGE + 3], knee[_HINGE + 4])
        femur, covered = femur_at(x, yf, zf, knee, active)
        active[_FEMUR_FLAG] = min(femur, covered - knee[_FEMORAL]) < reach + 0.5 or front or active[_JOINT]
        for n in range(4):
            d = ellipsoid(x, yf, zf, knee, _CONDYLES + 6 * n)
            active[_CONDYLE_FLAGS + n] &= d < max(femur, 0.0) + 2.0 * reach + 5.0
        for n in range(2):
            d = ellipsoid(x, yf, zf, knee, _EPICONDYLES + 6 * n)
            active[_EPICONDYLE_FLAGS + n] &= d < max(femur, 0.0) + 2.0 * reach + 6.0
        notch = cord(x, yf, zf, knee, _NOTCH, _NOTCH_ROWS, 4.0)
        active[_NOTCH_FLAG] &= notch < knee[_FEMORAL] + 3.5 + reach
        groove = cord(x, yf, zf, knee, _GROOVE, _GROOVE_ROWS, 6.0)
        active[_GROOVE_FLAG] &= groove < 5.0 + reach
    if active[_JOINT]:
        for flag, at in ((_MEDIAL_FLAG, _MEDIAL_MENISCUS), (_LATERAL_FLAG, _LATERAL_MENISCUS)):
            u, v = (x - knee[at]) / knee[at + 2], (y - knee[at + 1]) / knee[at + 3]
            outer = (math.sqrt(u * u + v * v) - 1.0) * min(knee[at + 2], knee[at + 3])
            active[flag] &= outer < reach and height < knee[at + 8] + knee[_TIBIAL] + 1.2 * reach
    fibula = box(x, y, z, knee, _COLUMN_BOXES + 6 * _FIBULA_COLUMN)
    active[_FIBULA_FLAG] &= fibula < reach
    active[_TIBIA_FLAG] = tibia < reach or active[_FIBULA_FLAG] or active[_JOINT]
    active[_MEDIAL_FLAG] &= active[_JOINT]
    active[_LATERAL_FLAG] &= active[_JOINT]
    return femur < -reach or (tibia < -reach and femur > reach)


@compiled
def prune_cords(x: float, y: float, z: float, reach: float, knee: np.ndarray, active: np.ndarray) -> None:
    """``prune`` for ligaments and the tendons beside the joint."""
    if active[_ACL_FLAG]:
        active[_ACL_FLAG] = cord(x, y, z, knee, _ACL, _ACL_ROWS, 1.0) < reach
    if active[_PCL_FLAG]:
        active[_PCL_FLAG] = cord(x, y, z, knee, _PCL, _PCL_ROWS, 3.0) < reach
    if active[_MEDIAL_SIDE]:
        active[_MEDIAL_SIDE] = x < reach - 10.0 and strap(x, y, z, knee, _MCL, _MCL_ROWS) < reach
    if active[_LATERAL_SIDE]:
        d = cord(x, y, z, knee, _LCL, _LCL_ROWS, 1.0)
        d = min(d, strap(x, y, z, knee, _ILIOTIBIAL_BAND, _ILIOTIBIAL_BAND_ROWS))
        d = min(d, cord(x, y, z, knee, _POPLITEUS_TENDON, _POPLITEUS_TENDON_ROWS, 1.0))
        active[_LATERAL_SIDE] = x > 10.0 - reach and d < reach


@compiled
def prune_filling(x: float, y: float, z: float, reach: float, knee: np.ndarray, active: np.ndarray) -> None:
    """``prune`` for what fills the room between; y and z are of the straight leg."""
    if active[_SMALL_TENDONS_FLAG]:
        active[_SMALL_TENDONS_FLAG] = y < 8.0 + reach and small_tendon_at(x, y, z, knee) < reach
    if active[_FLUID_FLAG]:
        active[_FLUID_FLAG] = recess_at(x, y, z, knee) < reach
    if active[_ARTERY_FLAG]:
        active[_ARTERY_FLAG] = cord(x, y, z, knee, _ARTERY, _ARTERY_ROWS, 0.5) < reach
    if active[_VEIN_FLAG]:
        active[_VEIN_FLAG] = cord(x, y, z, knee, _VEIN, _VEIN_ROWS, 0.5) < reach
    if active[_NERVE_FLAG]:
        active[_NERVE_FLAG] = cord(x, y, z, knee, _NERVE, _NERVE_ROWS, 0.5) < reach
    for n in range(_FIRST_MUSCLE, _COLUMNS_ROWS):
        flag = _MUSCLE_FLAGS + n - _FIRST_MUSCLE
        if active[flag]:
            near = box(x, y, z, knee, _COLUMN_BOXES + 6 * n) < 2.0 * reach + 2.0
            active[flag] = near and outline_at(x, y, z, knee, n, 0.3) < 2.0 * reach + 2.0
    if active[_SYNOVIUM_FLAG]:
        active[_SYNOVIUM_FLAG] = ellipsoid(x, y, z, knee, _SYNOVIUM) < reach
    if active[_HOFFA_FLAG]:
        active[_HOFFA_FLAG] = ellipsoid(x, y, z, knee, _HOFFA) < reach
