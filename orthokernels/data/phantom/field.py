"""Which parts of the anatomy points of the knee belong to, and how far it is to the next.

``parts_at`` asks from the outside inwards and from hard to soft: air, skin, bones, cartilage, ligaments, fluid, muscle,
and fat for what is left. What is asked first wins, so neighbours need not agree on a common border. ``prune`` says
beforehand which solids can matter near a point at all; there are some sixty, and near most points two or three.

Up to WIDTH points are asked about together, all near each other: ``distance`` says why. Their numbers are rows of two
arrays, which ``scratch`` makes: ``p`` for all of them, ``q`` for those that lie below the fascia.
"""

from __future__ import annotations

import math

import numpy as np

from orthokernels.data.phantom.anatomy import places
from orthokernels.data.phantom.distance import (
    ROUNDING,
    TABLE_ROWS,
    WIDTH,
    assign,
    boxes,
    columns,
    compiled,
    cords,
    ellipsoids,
    least,
    merged,
    most,
    smooth_max,
    smooth_min,
    smooth_step,
    straps,
)
from orthokernels.data.phantom.knee_lesions import ROWS as LESIONS
from orthokernels.data.phantom.knee_lesions import injured, prune_lesions
from orthokernels.data.phantom.parts import Part

# Parts, as numbers of the kind that rows hold.
AIR = float(Part.AIR)
SKIN = float(Part.SKIN)
SUBCUTANEOUS_FAT = float(Part.SUBCUTANEOUS_FAT)
FASCIA = float(Part.FASCIA)
DEEP_FAT = float(Part.DEEP_FAT)
HOFFA_FAT = float(Part.HOFFA_FAT)
MUSCLE = float(Part.MUSCLE)
TENDON = float(Part.TENDON)
LIGAMENT = float(Part.LIGAMENT)
ARTERY = float(Part.ARTERY)
VEIN = float(Part.VEIN)
NERVE = float(Part.NERVE)
FLUID = float(Part.FLUID)
SYNOVIUM = float(Part.SYNOVIUM)
FEMUR_CORTEX = float(Part.FEMUR_CORTEX)
FEMUR_MARROW = float(Part.FEMUR_MARROW)
FEMUR_SCAR = float(Part.FEMUR_SCAR)
TIBIA_CORTEX = float(Part.TIBIA_CORTEX)
TIBIA_MARROW = float(Part.TIBIA_MARROW)
TIBIA_SCAR = float(Part.TIBIA_SCAR)
PATELLA_CORTEX = float(Part.PATELLA_CORTEX)
PATELLA_MARROW = float(Part.PATELLA_MARROW)
FIBULA_CORTEX = float(Part.FIBULA_CORTEX)
FIBULA_MARROW = float(Part.FIBULA_MARROW)
FEMORAL_CARTILAGE = float(Part.FEMORAL_CARTILAGE)
TIBIAL_CARTILAGE = float(Part.TIBIAL_CARTILAGE)
PATELLAR_CARTILAGE = float(Part.PATELLAR_CARTILAGE)
MEDIAL_MENISCUS = float(Part.MEDIAL_MENISCUS)
LATERAL_MENISCUS = float(Part.LATERAL_MENISCUS)
ACL = float(Part.ACL)
PCL = float(Part.PCL)

SKIN_THICKNESS = 1.4
FASCIA_HALF_THICKNESS = 0.25


# Where each field of a packed knee begins, and its rows.
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
_FASCIA_COLUMN, _FEMUR_COLUMN, _TIBIA_COLUMN, _FIBULA_COLUMN, _FIRST_MUSCLE = (np.int64(n) for n in range(5))
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

# Rows of a batch, integers that Numba knows beforehand, or it would have to test whether they overlap. First what is
# asked and answered: the points, their parts (-1 while that is open), their clearances.
X, Y, Z, PART, CLEAR = (WIDTH * row for row in range(5))
# Then what is found on the way: how near the nearest other part is so far, y and z in the straight leg, in the frame of
# the femur and of the patella, and distances.
_NEAR, _YS, _ZS, _YF, _ZF, _YP, _ZP = (WIDTH * row for row in range(5, 12))
_LENS, _FRONT_CORDS, _FASCIA_ROW, _FEMUR, _COVERED, _TIBIA, _HEIGHT = (WIDTH * row for row in range(12, 19))
_PATELLA_ROW, _OVER, _FIRST, _SECOND, _ASIDE, _SIDE_PART, _FROM = (WIDTH * row for row in range(19, 26))
_A, _B, _C, _D, _SPARE = (WIDTH * row for row in range(26, 31))  # of one function; ``columns`` takes four from the last
_ROWS = 34
_ONE, _FOUR = np.int64(1), np.int64(4)

# Distances may be overstated where outlines flare and waves bend them: what is farther than this many radii is out.
REACH = 1.45
_TURNS = 0.5 / math.pi
_FAR = 60.0  # mm; stands for the distance of what was left out


def scratch() -> tuple[np.ndarray, np.ndarray]:
    """Room for two batches, ``p`` and ``q``."""
    return np.zeros(_ROWS * WIDTH), np.zeros(_ROWS * WIDTH)


@compiled
def wave(x: float, y: float, z: float, s: np.ndarray, at: int) -> float:
    """One wave: amplitude, three wave numbers, phase. Parabolas stand for the sine; they cost a fifth."""
    t = (s[at + 1] * x + s[at + 2] * y + s[at + 3] * z + s[at + 4]) * _TURNS
    t -= (t + ROUNDING) - ROUNDING
    return s[at] * t * (8.0 - 16.0 * abs(t))


@merged
def outlines(
    p: np.ndarray, count: int, x: int, y: int, z: int, knee: np.ndarray, n: int, square: float, out: int
) -> None:
    """Distances to the n-th column of the knee."""
    columns(p, count, x, y, z, knee, _COLUMNS + _TABLE * n, _COLUMN_ENDS + 2 * n, square, out, _SPARE)


@compiled
def bend(p: np.ndarray, count: int, knee: np.ndarray, cosine: float, sine: float, y: int, z: int) -> None:
    """Y and Z in the frame of a bone turned about the hinge, to the rows ``y`` and ``z``."""
    for n in range(count):
        dy, dz = p[Y + n] - knee[_HINGE], p[Z + n] - knee[_HINGE + 1]
        p[y + n] = knee[_HINGE] + cosine * dy + sine * dz
        p[z + n] = knee[_HINGE + 1] - sine * dy + cosine * dz


@compiled
def ask_femur(p: np.ndarray, count: int, knee: np.ndarray, active: np.ndarray) -> None:
    """Distances to the femur and to what its cartilage may cover: the same bone without sides, notch and back."""
    boxes(p, count, X, _YF, _ZF, knee, _FEMUR_BOX, _A)
    for n in range(count):
        p[_FEMUR + n] = p[_COVERED + n] = p[_A + n]
    if least(p, count, _A) > 10.0:
        return
    outlines(p, count, X, _YF, _ZF, knee, _FEMUR_COLUMN, 0.45, _B)
    for n in range(count):
        x, y = p[X + n], p[_YF + n]
        beside = max(smooth_step(17.0, 25.0, abs(x - 2.0)), smooth_step(-22.0, -14.0, -y))
        p[_FEMUR + n], p[_COVERED + n] = p[_B + n], p[_B + n] + beside * (knee[_FEMORAL] + 1.2)
    for i in range(4):
        if active[_CONDYLE_FLAGS + i]:
            add_condyle(p, count, knee, _CONDYLES + 6 * i)
    for i in range(2):
        if active[_EPICONDYLE_FLAGS + i]:
            ellipsoids(p, count, X, _YF, _ZF, knee, _EPICONDYLES + 6 * i, 0.0, _C)
            for n in range(count):
                p[_FEMUR + n] = smooth_min(p[_FEMUR + n], p[_C + n], 6.0)
    if least(p, count, _FEMUR) <= 6.0:
        take_hollows(p, count, knee, active)
    for n in range(count):
        shaft, far = p[_B + n], p[_A + n]
        high = p[_ZF + n] > 66.0
        bone, covered = (shaft if high else p[_FEMUR + n]), (shaft + 6.0 if high else p[_COVERED + n])
        p[_FEMUR + n], p[_COVERED + n] = (far if far > 10.0 else bone), (far if far > 10.0 else covered)


@compiled
def add_condyle(p: np.ndarray, count: int, knee: np.ndarray, at: int) -> None:
    """Unite the femur with a condyle, which the cartilage covers more narrowly."""
    ellipsoids(p, count, X, _YF, _ZF, knee, at, 0.0, _C)
    ellipsoids(p, count, X, _YF, _ZF, knee, at, knee[_FEMORAL] + 0.5, _D)
    for n in range(count):
        d = p[_C + n]
        p[_FEMUR + n] = smooth_min(p[_FEMUR + n], d, 5.0)
        p[_COVERED + n] = smooth_min(p[_COVERED + n], p[_D + n] if d < 8.0 else d, 4.0)


@compiled
def take_hollows(p: np.ndarray, count: int, knee: np.ndarray, active: np.ndarray) -> None:
    """Take notch and groove from the femur, where it is near."""
    for n in range(count):
        p[_D + n] = p[_FEMUR + n]
    if active[_NOTCH_FLAG]:
        cords(p, count, X, _YF, _ZF, knee, _NOTCH, _NOTCH_ROWS, 4.0, _C)
        for n in range(count):
            near, notch, bone, covered = p[_D + n] <= 6.0, p[_C + n], p[_FEMUR + n], p[_COVERED + n]
            p[_FEMUR + n] = smooth_max(bone, -notch, 3.0) if near else bone
            p[_COVERED + n] = smooth_max(covered, knee[_FEMORAL] + 0.4 - notch, 2.0) if near else covered
    if active[_GROOVE_FLAG]:
        cords(p, count, X, _YF, _ZF, knee, _GROOVE, _GROOVE_ROWS, 6.0, _C)
        for n in range(count):
            near, groove, bone, covered = p[_D + n] <= 6.0, p[_C + n], p[_FEMUR + n], p[_COVERED + n]
            p[_FEMUR + n] = smooth_max(bone, -groove, 5.0) if near else bone
            p[_COVERED + n] = smooth_max(covered, -groove, 5.0) if near else covered


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
def ask_tibia(p: np.ndarray, count: int, knee: np.ndarray) -> None:
    """Distances to the tibia, and heights above its plateau."""
    boxes(p, count, X, Y, Z, knee, _TIBIA_BOX, _A)
    for n in range(count):
        p[_TIBIA + n] = p[_HEIGHT + n] = p[_A + n]
    if least(p, count, _A) > 8.0:
        return
    outlines(p, count, X, Y, Z, knee, _TIBIA_COLUMN, 0.35, _B)
    ellipsoids(p, count, X, Y, Z, knee, _TUBEROSITY, 0.0, _D)
    cords(p, count, X, Y, Z, knee, _PCL_FACET, _PCL_FACET_ROWS, 2.0, _C)
    for n in range(count):  # exponentials, so one by one
        if p[_A + n] <= 8.0:
            z = p[Z + n]
            p[_HEIGHT + n] = z - plateau_at(p[X + n], p[Y + n], knee) if z > -16.0 else z + 3.0
    for n in range(count):
        bone = smooth_max(smooth_min(p[_B + n], p[_D + n], 8.0), 0.85 * p[_HEIGHT + n], 6.0)
        p[_TIBIA + n] = p[_A + n] if p[_A + n] > 8.0 else smooth_max(bone, -p[_C + n], 4.0)


@compiled
def ask_front(p: np.ndarray, count: int, knee: np.ndarray) -> None:
    """Distances to the patella, as if the trochlea did not shape its back, and to the tendons above and below it."""
    bend(p, count, knee, knee[_HINGE + 5], knee[_HINGE + 6], _YP, _ZP)
    straps(p, count, X, Y, Z, knee, _PATELLAR_TENDON, _PATELLAR_TENDON_ROWS, _A)
    straps(p, count, X, Y, Z, knee, _QUADRICEPS_TENDON, _QUADRICEPS_TENDON_ROWS, _B)
    cosine, sine = knee[_PATELLA_TURN], knee[_PATELLA_TURN + 1]
    for n in range(count):
        p[_FRONT_CORDS + n] = min(p[_A + n], p[_B + n])
        dx, dy = p[X + n] - knee[_PATELLA], p[_YP + n] - knee[_PATELLA + 1]
        p[_B + n], p[_C + n] = cosine * dx - sine * dy, sine * dx + cosine * dy
    for n in range(count):
        p[_A + n], p[_YP + n] = p[_B + n] + knee[_PATELLA], p[_C + n] + knee[_PATELLA + 1]
    ellipsoids(p, count, _A, _YP, _ZP, knee, _PATELLA, 0.0, _LENS)
    for n in range(count):
        # The apex lies in front, and the sides slope forward.
        dx, dy, lens = p[_B + n], p[_C + n], p[_LENS + n]
        taper = dx * dx / 75.0 + 0.30 * max(knee[_PATELLA + 2] - p[_ZP + n], 0.0) - dy
        p[_LENS + n] = lens if lens > 15.0 else smooth_max(lens, 0.8 * (taper - 11.0), 4.0)


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
def warp(p: np.ndarray, count: int, knee: np.ndarray) -> None:
    """Move points by the knee's own gentle waves, after its size is taken out."""
    for n in range(count):
        p[X + n], p[Y + n], p[Z + n] = p[X + n] / knee[_SIZE], p[Y + n] / knee[_SIZE + 1], p[Z + n] / knee[_SIZE + 2]
    for n in range(count):
        x, y, z = p[X + n], p[Y + n], p[Z + n]
        p[X + n] = x + (wave(x, y, z, knee, _WARP) + wave(x, y, z, knee, _WARP + 5))
        p[Y + n] = y + (wave(x, y, z, knee, _WARP + 10) + wave(x, y, z, knee, _WARP + 15))
        p[Z + n] = z + (wave(x, y, z, knee, _WARP + 20) + wave(x, y, z, knee, _WARP + 25))


@compiled
def straighten(p: np.ndarray, count: int, knee: np.ndarray) -> None:
    """Y and Z in the straight leg, for what bends with the knee instead of turning with a bone."""
    for n in range(count):
        angle = knee[_HINGE + 2] * smooth_step(-20.0, 60.0, p[Z + n])
        # Series instead of cosine and sine: flexion stays below a quarter, where they are good to 1e-7 and 1e-8.
        square = angle * angle
        cosine = 1.0 - square * (0.5 - square * (1.0 / 24.0 - square / 720.0))
        sine = angle * (1.0 - square * (1.0 / 6.0 - square / 120.0))
        dy, dz = p[Y + n] - knee[_HINGE], p[Z + n] - knee[_HINGE + 1]
        p[_YS + n] = knee[_HINGE] + cosine * dy + sine * dz
        p[_ZS + n] = knee[_HINGE + 1] - sine * dy + cosine * dz


@compiled
def fat_thickness_at(x: float, y: float, z: float, knee: np.ndarray) -> float:
    """Subcutaneous fat in mm: thin in front, thick behind and medially, more on the thigh."""
    around = 1.0 - 0.45 * smooth_step(5.0, 45.0, y) + 0.35 * smooth_step(0.0, 45.0, -x)
    return knee[_FAT] * around * (1.0 + 0.25 * smooth_step(20.0, 90.0, z)) * (1.0 - 0.2 * smooth_step(20.0, 90.0, -z))


@compiled
def ask_muscles(p: np.ndarray, count: int, knee: np.ndarray, active: np.ndarray) -> None:
    """Distances to the nearest muscle, less the fat plane where two muscles meet, to _A."""
    assign(p, count, _FIRST, 1e9)
    assign(p, count, _SECOND, 1e9)
    for i in range(_FIRST_MUSCLE, _COLUMNS_ROWS):
        if not active[_MUSCLE_FLAGS + i - _FIRST_MUSCLE]:
            continue
        boxes(p, count, X, _YS, _ZS, knee, _COLUMN_BOXES + 6 * i, _A)
        for n in range(count):
            p[_B + n] = p[_A + n] - min(p[_SECOND + n], p[_FIRST + n] + 2.0)
        if least(p, count, _B) > 0.0:
            continue
        outlines(p, count, X, _YS, _ZS, knee, i, 0.3, _C)
        for n in range(count):
            d, first, second = (1e9 if p[_B + n] > 0.0 else p[_C + n]), p[_FIRST + n], p[_SECOND + n]
            p[_FIRST + n], p[_SECOND + n] = min(first, d), min(second, max(first, d))
    for n in range(count):
        p[_A + n] = max(p[_FIRST + n], 0.4 - 0.5 * (p[_SECOND + n] - p[_FIRST + n]))


@compiled
def bone_part(
    d: float, cortex: float, scar: float, parts: tuple[float, float, float], near: float
) -> tuple[float, float]:
    """Cortex, scar of the growth plate or marrow at depth -``d``; ``scar`` is the distance to the scar's sheet."""
    if d > -cortex:
        return parts[0], min(near, -d, d + cortex)
    near = min(near, -d - cortex, abs(scar))
    return (parts[1] if scar < 0.0 else parts[2]), near


@compiled
def ask_small_tendons(p: np.ndarray, count: int, knee: np.ndarray) -> None:
    """Distances to the nearest of the hamstrings' tendons, each a cord of four points, to _A."""
    assign(p, count, _A, 1e9)
    for i in range(_SMALL_TENDONS_ROWS):
        cords(p, count, X, _YS, _ZS, knee, _SMALL_TENDONS + 16 * i, _FOUR, 0.1, _B)
        for n in range(count):
            p[_A + n] = min(p[_A + n], p[_B + n])


@compiled
def ask_recesses(p: np.ndarray, count: int, knee: np.ndarray) -> None:
    """Distances to the recesses where joint fluid gathers, to _A."""
    assign(p, count, _A, 1e9)
    for i in range(_RECESSES_ROWS):
        ellipsoids(p, count, X, _YS, _ZS, knee, _RECESSES + 6 * i, 0.0, _B)
        for n in range(count):
            p[_A + n] = smooth_min(p[_A + n], p[_B + n], 2.0)
    for n in range(count):
        beyond = max(-20.0 - p[_ZS + n], p[_ZS + n] - 110.0)
        p[_A + n] = beyond if beyond > 5.0 else p[_A + n]


@merged
def parts_at(p: np.ndarray, q: np.ndarray, count: int, knee: np.ndarray, active: np.ndarray) -> None:
    """The parts at points of the knee's frame, in mm, and about how far every point around each is the same part.

    Args:
        p: the points in the rows X, Y and Z; x to lateral, y to anterior, z to superior of a right knee. Afterwards
            their parts, values of ``Part``, are in the row PART, and clearances in mm in the row CLEAR. A clearance is
            a lower bound up to the distances' own inexactness; the sampler keeps a margin. X, Y and Z are changed.
        q: scratch, as ``p`` from ``scratch``.
        count: how many points, 1 to WIDTH.
        knee: packed, (numbers,) float64.
        active: (FLAGS,) bool, from ``prune`` for a ball that holds the points; clearances hold within that ball.
    """
    warp(p, count, knee)
    straighten(p, count, knee)
    settle_envelope(p, count, knee, active)
    left = 0
    for n in range(count):
        if p[PART + n] < 0.0:
            for row in (X, Y, Z, _YS, _ZS, _LENS, _FRONT_CORDS, _FASCIA_ROW, _NEAR):
                q[row + left] = p[row + n]
            q[PART + left], q[_FROM + left] = -1.0, n
            left += 1
    if left > 0:
        settle_bones(q, left, knee, active)
        if least(q, left, PART) < 0.0:
            settle_soft_parts(q, left, knee, active)
        for n in range(left):
            i = int(q[_FROM + n])
            p[PART + i], p[CLEAR + i] = q[PART + n], q[CLEAR + n]
    if active[_LESION_FLAGS]:
        for n in range(count):
            p[PART + n], p[CLEAR + n] = injured(
                int(p[PART + n]), p[CLEAR + n], p[X + n], p[Y + n], p[Z + n], knee, _LESIONS, active[_LESION_FLAGS:]
            )


@compiled
def settle(p: np.ndarray, count: int, distances: int, part: float) -> None:
    """Give the open points within a solid its part; for the others it is a neighbour."""
    for n in range(count):
        d, near, known = p[distances + n], p[_NEAR + n], p[PART + n]
        here = known < 0.0 and d < 0.0
        p[PART + n] = part if here else known
        p[CLEAR + n] = min(near, -d) if here else p[CLEAR + n]
        p[_NEAR + n] = min(near, d)


@compiled
def settle_envelope(p: np.ndarray, count: int, knee: np.ndarray, active: np.ndarray) -> None:
    """Air, skin, and the fat beneath it with its vein; the other points stay open, with how near these are."""
    assign(p, count, PART, -1.0)
    assign(p, count, _NEAR, _FAR)
    assign(p, count, _LENS, _FAR)
    assign(p, count, _FRONT_CORDS, _FAR)
    if (active[_FRONT] or active[_FRONT_TENDONS]) and most(p, count, Y) > 10.0:
        ask_front(p, count, knee)
        for n in range(count):
            behind = p[Y + n] <= 10.0
            p[_LENS + n] = _FAR if behind else p[_LENS + n]
            p[_FRONT_CORDS + n] = _FAR if behind else p[_FRONT_CORDS + n]
    if not active[_ENVELOPE]:
        assign(p, count, _FASCIA_ROW, -_FAR)
        return
    outlines(p, count, X, _YS, _ZS, knee, _FASCIA_COLUMN, 0.15, _A)
    for n in range(count):
        # The limb bulges over the patella and its tendons.
        fascia = smooth_min(smooth_min(p[_A + n], p[_LENS + n] - 1.5, 26.0), p[_FRONT_CORDS + n] - 1.5, 26.0)
        skin = fascia - fat_thickness_at(p[X + n], p[_YS + n], p[_ZS + n], knee)
        fat = fascia > FASCIA_HALF_THICKNESS
        far = p[_A + n] > 45.0
        outside, within = far or skin > 0.0, skin <= -SKIN_THICKNESS
        below = fascia - FASCIA_HALF_THICKNESS
        inner = (SUBCUTANEOUS_FAT if fat else -1.0) if within else SKIN
        p[PART + n] = AIR if outside else inner
        p[_NEAR + n] = min(-skin - SKIN_THICKNESS, below) if fat else -below
        clear = p[_NEAR + n] if within else min(-skin, skin + SKIN_THICKNESS)
        p[CLEAR + n] = (p[_A + n] - 40.0 if far else skin) if outside else clear
        p[_FASCIA_ROW + n] = fascia
    if active[_SAPHENOUS]:
        cords(p, count, X, _YS, _ZS, knee, _SAPHENOUS_VEIN, _SAPHENOUS_VEIN_ROWS, 0.1, _B)
        for n in range(count):
            if p[PART + n] == SUBCUTANEOUS_FAT:
                p[PART + n] = VEIN if p[_B + n] < 0.0 else SUBCUTANEOUS_FAT
                p[CLEAR + n] = min(p[_NEAR + n], abs(p[_B + n]))


@compiled
def settle_bones(p: np.ndarray, count: int, knee: np.ndarray, active: np.ndarray) -> None:
    """Femur, tibia, patella and fibula, the distances to which stay in their rows."""
    assign(p, count, _FEMUR, _FAR)
    assign(p, count, _COVERED, _FAR)
    for n in range(count):
        p[_ZF + n] = p[Z + n]
    if active[_FEMUR_FLAG]:
        bend(p, count, knee, knee[_HINGE + 3], knee[_HINGE + 4], _YF, _ZF)
        ask_femur(p, count, knee, active)
        for n in range(count):
            d = p[_FEMUR + n]
            if d < 0.0:
                x, y, zf = p[X + n], p[Y + n], p[_ZF + n]
                cortex = 0.9 + 2.6 * smooth_step(52.0, 92.0, zf)
                scar = abs(zf - 31.0 - 2.0 * math.sin(0.13 * x) - 1.5 * math.sin(0.17 * y)) - 0.35
                p[PART + n], p[CLEAR + n] = bone_part(
                    d, cortex, scar, (FEMUR_CORTEX, FEMUR_SCAR, FEMUR_MARROW), p[_NEAR + n]
                )
            p[_NEAR + n] = min(p[_NEAR + n], d)
    assign(p, count, _TIBIA, _FAR)
    assign(p, count, _HEIGHT, _FAR)
    if active[_TIBIA_FLAG]:
        ask_tibia(p, count, knee)
        for n in range(count):
            d = p[_TIBIA + n]
            if d < 0.0 and p[PART + n] < 0.0:
                x, y, z = p[X + n], p[Y + n], p[Z + n]
                cortex = 0.9 + 2.2 * smooth_step(38.0, 80.0, -z)
                scar = abs(z + 14.0 - 2.0 * math.sin(0.11 * x) - 1.2 * math.sin(0.19 * y)) - 0.35
                p[PART + n], p[CLEAR + n] = bone_part(
                    d, cortex, scar, (TIBIA_CORTEX, TIBIA_SCAR, TIBIA_MARROW), p[_NEAR + n]
                )
            p[_NEAR + n] = min(p[_NEAR + n], d)
    for n in range(count):
        lens = p[_LENS + n]
        shaped = smooth_max(lens, knee[_FEMORAL] + knee[_PATELLAR] + 0.4 - p[_FEMUR + n], 3.0)
        p[_PATELLA_ROW + n] = shaped if lens < 12.0 else lens
    settle_small_bone(p, count, _PATELLA_ROW, PATELLA_CORTEX, PATELLA_MARROW, 0.0)
    if active[_FIBULA_FLAG]:
        boxes(p, count, X, Y, Z, knee, _COLUMN_BOXES + 6 * _FIBULA_COLUMN, _A)
        if least(p, count, _A) < 5.0:
            outlines(p, count, X, Y, Z, knee, _FIBULA_COLUMN, 0.1, _B)
            for n in range(count):
                p[_A + n] = smooth_max(p[_B + n], 1.6 - p[_TIBIA + n], 2.0) if p[_A + n] < 5.0 else p[_A + n]
        settle_small_bone(p, count, _A, FIBULA_CORTEX, FIBULA_MARROW, 1.2)


@compiled
def settle_small_bone(p: np.ndarray, count: int, distances: int, cortex: float, marrow: float, thicker: float) -> None:
    """A bone without a growth plate, its cortex up to ``thicker`` mm thicker far down the leg."""
    for n in range(count):
        d = p[distances + n]
        if d < 0.0 and p[PART + n] < 0.0:
            shell = (0.9 if thicker == 0.0 else 0.8) + thicker * smooth_step(30.0, 60.0, -p[Z + n])
            p[PART + n], p[CLEAR + n] = bone_part(d, shell, 1e9, (cortex, cortex, marrow), p[_NEAR + n])
        p[_NEAR + n] = min(p[_NEAR + n], d)


@merged
def settle_soft_parts(p: np.ndarray, count: int, knee: np.ndarray, active: np.ndarray) -> None:
    """What lies below the fascia and outside bone."""
    for n in range(count):
        p[_OVER + n] = p[_COVERED + n] - knee[_FEMORAL] * articular_reach(p[X + n], p[Y + n], p[_ZF + n])
    settle(p, count, _OVER, FEMORAL_CARTILAGE)
    if active[_JOINT]:
        for n in range(count):
            if p[PART + n] < 0.0:
                settle_between(p, n, knee, active)
    if active[_FRONT]:
        for n in range(count):
            share = (p[X + n] - knee[_PATELLA]) / 19.0
            thickness = knee[_PATELLAR] * max(1.0 - share * share * (share * share), 0.0)
            back = max(p[_PATELLA_ROW + n] - thickness, p[_FEMUR + n] - knee[_FEMORAL] - knee[_PATELLAR] - 2.5)
            p[_A + n] = back if p[Y + n] > 15.0 else _FAR
        settle(p, count, _A, PATELLAR_CARTILAGE)
    if active[_ACL_FLAG]:
        cords(p, count, X, Y, Z, knee, _ACL, _ACL_ROWS, 1.0, _A)
        settle(p, count, _A, ACL)
    if active[_PCL_FLAG]:
        cords(p, count, X, Y, Z, knee, _PCL, _PCL_ROWS, 3.0, _A)
        settle(p, count, _A, PCL)
    settle(p, count, _FRONT_CORDS, TENDON)
    settle_sides(p, count, knee, active)
    for n in range(count):
        p[_A + n] = -FASCIA_HALF_THICKNESS - p[_FASCIA_ROW + n]  # points outside of it are settled
    settle(p, count, _A, FASCIA)
    settle_filling(p, count, knee, active)


@merged
def settle_between(p: np.ndarray, n: int, knee: np.ndarray, active: np.ndarray) -> None:
    """The n-th point, if it lies between femur and tibia: the tibia's cartilage and the menisci."""
    x, y, height, near = p[X + n], p[Y + n], p[_HEIGHT + n], p[_NEAR + n]
    joint = max(abs(x) - 40.0, abs(y) - 26.0, height - 13.0, -4.0 - height)
    if joint >= 0.0:
        p[_NEAR + n] = min(near, joint + 1.0)
        return
    across = tibial_cartilage_at(x, y, height, p[_TIBIA + n], knee)
    if across < 0.0 and height > 0.0:
        p[PART + n], p[CLEAR + n] = TIBIAL_CARTILAGE, min(near, -across)
        return
    near = min(near, max(across, -height))
    for medial in (True, False):
        if active[_MEDIAL_FLAG if medial else _LATERAL_FLAG]:
            at = _MEDIAL_MENISCUS if medial else _LATERAL_MENISCUS
            d = meniscus_at(x, y, height, p[_OVER + n] - 0.15, knee, at)
            if d < 0.0:
                p[PART + n] = MEDIAL_MENISCUS if medial else LATERAL_MENISCUS
                p[CLEAR + n] = min(near, -d)
                return
            near = min(near, d)
    p[_NEAR + n] = near


@compiled
def settle_sides(p: np.ndarray, count: int, knee: np.ndarray, active: np.ndarray) -> None:
    """The ligaments and tendons of either side of the knee, and the hamstrings' tendons behind."""
    assign(p, count, _ASIDE, _FAR)
    assign(p, count, _SIDE_PART, TENDON)
    if active[_MEDIAL_SIDE] and least(p, count, X) < -10.0:
        straps(p, count, X, Y, Z, knee, _MCL, _MCL_ROWS, _A)
        for n in range(count):
            here = p[X + n] < -10.0
            p[_ASIDE + n] = p[_A + n] if here else _FAR
            p[_SIDE_PART + n] = LIGAMENT if here else TENDON
    if active[_LATERAL_SIDE] and most(p, count, X) > 10.0:
        ask_lateral_side(p, count, knee)
        for n in range(count):
            p[_ASIDE + n] = p[_A + n] if p[X + n] > 10.0 else p[_ASIDE + n]
    if active[_SMALL_TENDONS_FLAG] and least(p, count, _YS) < 8.0:
        ask_small_tendons(p, count, knee)
        for n in range(count):
            d = p[_ASIDE + n]
            nearer = p[_YS + n] < 8.0 and d > 0.0 and p[_A + n] < d
            p[_ASIDE + n] = p[_A + n] if nearer else d
            p[_SIDE_PART + n] = TENDON if nearer else p[_SIDE_PART + n]
    for n in range(count):
        d, near, known = p[_ASIDE + n], p[_NEAR + n], p[PART + n]
        here = known < 0.0 and d < 0.0
        p[PART + n] = p[_SIDE_PART + n] if here else known
        p[CLEAR + n] = min(near, -d) if here else p[CLEAR + n]
        p[_NEAR + n] = min(near, d)


@compiled
def ask_lateral_side(p: np.ndarray, count: int, knee: np.ndarray) -> None:
    """Distances to lateral ligament, iliotibial band and popliteus tendon, to _A."""
    cords(p, count, X, Y, Z, knee, _LCL, _LCL_ROWS, 1.0, _A)
    straps(p, count, X, Y, Z, knee, _ILIOTIBIAL_BAND, _ILIOTIBIAL_BAND_ROWS, _B)
    cords(p, count, X, Y, Z, knee, _POPLITEUS_TENDON, _POPLITEUS_TENDON_ROWS, 1.0, _C)
    for n in range(count):
        p[_A + n] = min(p[_A + n], p[_B + n], p[_C + n])


@compiled
def articular_reach(x: float, y: float, zf: float) -> float:
    """Which share of its thickness the femoral cartilage has, from how far up the femur a point lies."""
    top = 41.0 if y < 15.0 else 54.0 - 30.0 * smooth_step(12.0, 26.0, abs(x - 3.0))
    return 1.0 - smooth_step(top - 5.0, top + 2.0, zf)


@compiled
def settle_filling(p: np.ndarray, count: int, knee: np.ndarray, active: np.ndarray) -> None:
    """What fills the room between bones, cartilage and ligaments; fat is what is left."""
    assign(p, count, _A, 1e9)
    if active[_FLUID_FLAG]:
        ask_recesses(p, count, knee)
    for n in range(count):
        film = max(p[_OVER + n] - 0.3, p[_ZS + n] - 52.0, abs(p[X + n]) - 33.0)  # over the cartilage
        p[_A + n] = min(film, p[_A + n])
    settle(p, count, _A, FLUID)
    if active[_ARTERY_FLAG]:
        cords(p, count, X, _YS, _ZS, knee, _ARTERY, _ARTERY_ROWS, 0.5, _A)
        settle(p, count, _A, ARTERY)
    if active[_VEIN_FLAG]:
        cords(p, count, X, _YS, _ZS, knee, _VEIN, _VEIN_ROWS, 0.5, _A)
        settle(p, count, _A, VEIN)
    if active[_NERVE_FLAG]:
        cords(p, count, X, _YS, _ZS, knee, _NERVE, _NERVE_ROWS, 0.5, _A)
        settle(p, count, _A, NERVE)
    ask_muscles(p, count, knee, active)
    settle(p, count, _A, MUSCLE)
    if active[_SYNOVIUM_FLAG]:
        ellipsoids(p, count, X, _YS, _ZS, knee, _SYNOVIUM, 0.0, _A)
        settle(p, count, _A, SYNOVIUM)
    if active[_HOFFA_FLAG]:
        ellipsoids(p, count, X, _YS, _ZS, knee, _HOFFA, 0.0, _A)
        settle(p, count, _A, HOFFA_FAT)
    for n in range(count):
        known = p[PART + n]
        p[CLEAR + n] = p[_NEAR + n] if known < 0.0 else p[CLEAR + n]
        p[PART + n] = DEEP_FAT if known < 0.0 else known


@compiled
def bulges(front: float, fascia: float, reach: float) -> bool:
    """Whether something in front may lift the fascia within the ball: their distances blend over 26 mm."""
    return front - 1.5 < fascia + 26.0 + 2.0 * reach


@compiled
def prune(x: float, y: float, z: float, radius: float, knee: np.ndarray, active: np.ndarray, p: np.ndarray) -> None:
    """Mark in ``active`` (FLAGS,) bool what can matter to ``parts_at`` within ``radius`` mm of a point.

    Left out are solids that lie farther away, and whatever comes after one that holds the whole ball. Flags that are
    false on entry stay false: a larger ball was asked about before, or all are true. ``p`` is scratch.
    """
    reach = REACH * radius / min(knee[_SIZE], knee[_SIZE + 1], knee[_SIZE + 2])
    p[X], p[Y], p[Z] = x, y, z
    warp(p, _ONE, knee)
    straighten(p, _ONE, knee)
    prune_healthy(p, reach, knee, active[:_LESION_FLAGS])
    prune_lesions(p[X], p[Y], p[Z], reach, knee, _LESIONS, active[_LESION_FLAGS:])


@merged
def prune_healthy(p: np.ndarray, reach: float, knee: np.ndarray, active: np.ndarray) -> None:
    """``prune`` without lesions, of a batch of one point."""
    lens, tendons = _FAR, _FAR
    if p[Y] > 10.0 - reach and (active[_FRONT] or active[_FRONT_TENDONS]):
        ask_front(p, _ONE, knee)
        lens, tendons = p[_LENS], p[_FRONT_CORDS]
    fascia = -_FAR
    if active[_ENVELOPE]:
        outlines(p, _ONE, X, _YS, _ZS, knee, _FASCIA_COLUMN, 0.15, _A)
        fascia = p[_A]
        bulged = smooth_min(smooth_min(fascia, lens - 1.5, 26.0), tendons - 1.5, 26.0)
        skin = bulged - fat_thickness_at(p[X], p[_YS], p[_ZS], knee)
        if skin > reach:
            active[1:] = False
            active[_FRONT] = bulges(lens, fascia, reach)
            active[_FRONT_TENDONS] = bulges(tendons, fascia, reach)
            return
        active[_ENVELOPE] = bulged > -reach - FASCIA_HALF_THICKNESS
        if not active[_ENVELOPE]:
            fascia = -_FAR
        if active[_SAPHENOUS]:
            cords(p, _ONE, X, _YS, _ZS, knee, _SAPHENOUS_VEIN, _SAPHENOUS_VEIN_ROWS, 0.1, _A)
            active[_SAPHENOUS] = active[_ENVELOPE] and p[_A] < reach
        if bulged > reach + FASCIA_HALF_THICKNESS:
            active[_SAPHENOUS + 1 :] = False
            active[_FRONT] = bulges(lens, fascia, reach)
            active[_FRONT_TENDONS] = bulges(tendons, fascia, reach)
            return
    front = lens < reach + 6.0
    active[_FRONT] &= front or bulges(lens, fascia, reach)
    active[_FRONT_TENDONS] &= tendons < reach or bulges(tendons, fascia, reach)
    if prune_bones(p, front, reach, knee, active):
        active[_ACL_FLAG:] = False
        return
    prune_cords(p, reach, knee, active)
    prune_filling(p, reach, knee, active)


@merged
def prune_bones(p: np.ndarray, front: bool, reach: float, knee: np.ndarray, active: np.ndarray) -> bool:
    """``prune`` for bones, cartilage and menisci: whether one bone holds the whole ball.

    ``front`` tells that the patella is near.
    """
    x, y = p[X], p[Y]
    tibia, height = _FAR, _FAR
    if active[_TIBIA_FLAG]:
        ask_tibia(p, _ONE, knee)
        tibia, height = p[_TIBIA], p[_HEIGHT]
    joint = max(abs(x) - 40.0, abs(y) - 26.0, height - 13.0, -4.0 - height)
    active[_JOINT] &= joint < 1.5 * reach
    femur = _FAR
    if active[_FEMUR_FLAG]:
        bend(p, _ONE, knee, knee[_HINGE + 3], knee[_HINGE + 4], _YF, _ZF)
        ask_femur(p, _ONE, knee, active)
        femur, covered = p[_FEMUR], p[_COVERED]
        active[_FEMUR_FLAG] = min(femur, covered - knee[_FEMORAL]) < reach + 0.5 or front or active[_JOINT]
        for n in range(4):
            ellipsoids(p, _ONE, X, _YF, _ZF, knee, _CONDYLES + 6 * n, 0.0, _A)
            active[_CONDYLE_FLAGS + n] &= p[_A] < max(femur, 0.0) + 2.0 * reach + 5.0
        for n in range(2):
            ellipsoids(p, _ONE, X, _YF, _ZF, knee, _EPICONDYLES + 6 * n, 0.0, _A)
            active[_EPICONDYLE_FLAGS + n] &= p[_A] < max(femur, 0.0) + 2.0 * reach + 6.0
        if active[_NOTCH_FLAG]:
            cords(p, _ONE, X, _YF, _ZF, knee, _NOTCH, _NOTCH_ROWS, 4.0, _A)
            active[_NOTCH_FLAG] = p[_A] < knee[_FEMORAL] + 3.5 + reach
        if active[_GROOVE_FLAG]:
            cords(p, _ONE, X, _YF, _ZF, knee, _GROOVE, _GROOVE_ROWS, 6.0, _A)
            active[_GROOVE_FLAG] = p[_A] < 5.0 + reach
    if active[_JOINT]:
        for flag, at in ((_MEDIAL_FLAG, _MEDIAL_MENISCUS), (_LATERAL_FLAG, _LATERAL_MENISCUS)):
            u, v = (x - knee[at]) / knee[at + 2], (y - knee[at + 1]) / knee[at + 3]
            outer = (math.sqrt(u * u + v * v) - 1.0) * min(knee[at + 2], knee[at + 3])
            active[flag] &= outer < reach and height < knee[at + 8] + knee[_TIBIAL] + 1.2 * reach
    boxes(p, _ONE, X, Y, Z, knee, _COLUMN_BOXES + 6 * _FIBULA_COLUMN, _A)
    active[_FIBULA_FLAG] &= p[_A] < reach
    active[_TIBIA_FLAG] = tibia < reach or active[_FIBULA_FLAG] or active[_JOINT]
    active[_MEDIAL_FLAG] &= active[_JOINT]
    active[_LATERAL_FLAG] &= active[_JOINT]
    return femur < -reach or (tibia < -reach and femur > reach)


@merged
def prune_cords(p: np.ndarray, reach: float, knee: np.ndarray, active: np.ndarray) -> None:
    """``prune`` for ligaments and the tendons beside the joint."""
    if active[_ACL_FLAG]:
        cords(p, _ONE, X, Y, Z, knee, _ACL, _ACL_ROWS, 1.0, _A)
        active[_ACL_FLAG] = p[_A] < reach
    if active[_PCL_FLAG]:
        cords(p, _ONE, X, Y, Z, knee, _PCL, _PCL_ROWS, 3.0, _A)
        active[_PCL_FLAG] = p[_A] < reach
    active[_MEDIAL_SIDE] &= p[X] < reach - 10.0
    if active[_MEDIAL_SIDE]:
        straps(p, _ONE, X, Y, Z, knee, _MCL, _MCL_ROWS, _A)
        active[_MEDIAL_SIDE] = p[_A] < reach
    active[_LATERAL_SIDE] &= p[X] > 10.0 - reach
    if active[_LATERAL_SIDE]:
        ask_lateral_side(p, _ONE, knee)
        active[_LATERAL_SIDE] = p[_A] < reach


@merged
def prune_filling(p: np.ndarray, reach: float, knee: np.ndarray, active: np.ndarray) -> None:
    """``prune`` for what fills the room between."""
    active[_SMALL_TENDONS_FLAG] &= p[_YS] < 8.0 + reach
    if active[_SMALL_TENDONS_FLAG]:
        ask_small_tendons(p, _ONE, knee)
        active[_SMALL_TENDONS_FLAG] = p[_A] < reach
    if active[_FLUID_FLAG]:
        ask_recesses(p, _ONE, knee)
        active[_FLUID_FLAG] = p[_A] < reach
    if active[_ARTERY_FLAG]:
        cords(p, _ONE, X, _YS, _ZS, knee, _ARTERY, _ARTERY_ROWS, 0.5, _A)
        active[_ARTERY_FLAG] = p[_A] < reach
    if active[_VEIN_FLAG]:
        cords(p, _ONE, X, _YS, _ZS, knee, _VEIN, _VEIN_ROWS, 0.5, _A)
        active[_VEIN_FLAG] = p[_A] < reach
    if active[_NERVE_FLAG]:
        cords(p, _ONE, X, _YS, _ZS, knee, _NERVE, _NERVE_ROWS, 0.5, _A)
        active[_NERVE_FLAG] = p[_A] < reach
    for i in range(_FIRST_MUSCLE, _COLUMNS_ROWS):
        flag = _MUSCLE_FLAGS + i - _FIRST_MUSCLE
        if active[flag]:
            boxes(p, _ONE, X, _YS, _ZS, knee, _COLUMN_BOXES + 6 * i, _A)
            active[flag] = p[_A] < 2.0 * reach + 2.0
        if active[flag]:
            outlines(p, _ONE, X, _YS, _ZS, knee, i, 0.3, _A)
            active[flag] = p[_A] < 2.0 * reach + 2.0
    if active[_SYNOVIUM_FLAG]:
        ellipsoids(p, _ONE, X, _YS, _ZS, knee, _SYNOVIUM, 0.0, _A)
        active[_SYNOVIUM_FLAG] = p[_A] < reach
    if active[_HOFFA_FLAG]:
        ellipsoids(p, _ONE, X, _YS, _ZS, knee, _HOFFA, 0.0, _A)
        active[_HOFFA_FLAG] = p[_A] < reach
