"""The knee in numbers: sizes and courses of an average adult right knee, and a seeded draw around them.

Everything is in the knee's own frame, in mm: x to lateral, y to anterior, z to superior, the origin between the
plateaus on the tibia's surface, the leg straight. Proportions were measured on label maps of real knees and rounded;
no surface of anyone's knee is stored here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from orthokernels.data.phantom.distance import TABLE_ROWS, TABLE_START, TABLE_STEP
from orthokernels.data.phantom.knee_findings import add_findings
from orthokernels.data.phantom.knee_form import (
    Knee,
    Meniscus,
    Turn,
    boxes,
    chain,
    cord,
    finer,
    strap,
    table,
    tapered,
    texture,
)
from orthokernels.data.phantom.knee_lesions import Lesions

# Outlines by height: z, centre x and y, half-axes x and y, and the outline's turn in degrees where there is one.
_FEMUR_SHAFT = (
    (9, -1, 18, 12, 9), (15, -1, 17, 22, 15), (24, -1, 16, 31, 21), (34, -1, 16, 34, 22), (42, 0, 17.5, 31, 20),
    (50, 1, 19, 26, 17.5), (58, 2, 20, 21.5, 15), (70, 3, 21, 17, 13), (84, 3.5, 21.5, 14.5, 12.5),
    (130, 4, 22, 13.5, 12.5),
)  # fmt: skip
_TIBIA_SHAFT = (
    (-120, -5, 4, 11.5, 13), (-80, -5, 5, 13, 14.5), (-60, -4, 6, 15, 15.5), (-46, -2.5, 7, 19, 17),
    (-32, -0.5, 7.5, 24.5, 18),
    (-20, 0.5, 5.5, 31, 20.5), (-10, 1, 3, 35, 23), (-3, 1, 2, 35.5, 23), (14, 1, 2, 34, 22),
)  # fmt: skip
_FIBULA_SHAFT = (
    (-120, 33, -16, 5, 6), (-60, 33, -17, 5.5, 6), (-44, 35, -16, 6, 6.5), (-32, 37, -14, 7.5, 8),
    (-22, 38.5, -12, 9, 9.5),
    (-12, 38.5, -13, 6, 6.5), (-7, 38, -14, 2.5, 3),
)  # fmt: skip
_FASCIA = (
    (-120, 3, -12, 44, 41), (-90, 4, -13, 46, 42), (-60, 6, -13, 46, 42), (-30, 5, -9.5, 46.5, 43),
    (-10, 2, -4, 45, 45.5),
    (5, 1, -1, 44.5, 46.5), (30, 0, 1, 46.5, 47.5), (60, 0, 2.5, 51, 48.5), (90, 1, 3, 57, 52), (130, 2, 4, 62, 56),
)  # fmt: skip
_MUSCLES: dict[str, tuple[tuple[float, ...], ...]] = {
    "vastus medialis": (
        (20, -33, 27, 4, 6, -30), (38, -32, 25, 9, 15, -28), (56, -29, 24, 14, 23, -25), (75, -27, 25, 20, 26, -20),
        (130, -24, 28, 24, 27, -20),
    ),
    "vastus lateralis": (
        (36, 36, 21, 4, 8, 15), (56, 35, 20, 10, 19, 15), (75, 34, 22, 17, 25, 15), (130, 34, 24, 22, 26, 15),
    ),
    "vastus intermedius": ((64, 3, 38, 14, 3), (78, 3, 39, 20, 6), (95, 3, 42, 22, 8), (130, 3, 44, 22, 9)),
    "biceps femoris": (
        (-8, 44, -15, 2, 3), (8, 45, -16, 4, 7), (28, 43, -18, 8, 14, -10), (55, 38, -20, 13, 18, -15),
        (78, 34, -25, 17, 20, -20), (130, 30, -28, 17, 17),
    ),
    "semimembranosus": (
        (-6, -31, -22, 2, 3), (4, -29, -27, 5, 4), (20, -24, -33, 9, 5), (38, -15, -34, 17, 9), (55, -8, -32, 22, 13),
        (75, -7, -31, 23, 16), (130, -8, -30, 20, 16),
    ),
    "semitendinosus": ((48, -12, -44, 3, 2), (62, -9, -46, 8, 5), (80, -6, -47, 12, 7), (130, 0, -46, 15, 9)),
    "sartorius": (
        (-30, -37, -8, 1.5, 4), (-8, -41, -15, 2.5, 5), (16, -44, -20, 4, 7), (38, -44.5, -19, 6, 12),
        (56, -46, -16, 8, 15), (78, -49, -13, 9, 16), (130, -52, -6, 9, 15),
    ),
    "gastrocnemius medial": (
        (48, -8, -19, 5, 4), (36, -7, -22, 8, 7), (26, -4, -28, 11, 10), (12, -5, -32, 14, 11.5),
        (-2, -8, -36, 19, 12.5),
        (-18, -9, -38, 22, 14), (-34, -10, -40, 23, 14.5), (-70, -11, -41, 24, 14), (-120, -10, -42, 23, 12),
    ),
    "gastrocnemius lateral": (
        (38, 21, -20, 4, 3), (26, 22, -25, 7, 5), (10, 24, -31, 10, 8), (-8, 26, -35, 13, 10), (-30, 27, -41, 17, 10.5),
        (-70, 24, -44, 21, 11), (-120, 22, -44, 21, 10),
    ),
    "popliteus": (
        (-5, 22, -21, 6, 3), (-16, 13, -20, 13, 5), (-30, 3, -15, 19, 7), (-46, -5, -13, 15, 5.5), (-62, -9, -11, 9, 3),
    ),
    "soleus": (
        (-24, 33, -26, 8, 3), (-42, 25, -29, 18, 6), (-60, 18, -29, 24, 8), (-80, 12, -29, 28, 10),
        (-120, 8, -30, 30, 12),
    ),
    "tibialis anterior": (
        (-14, 38, 8, 2, 5), (-26, 37, 8, 6, 10), (-44, 34, 8, 10, 14), (-70, 29, 8, 13, 16), (-120, 26, 9, 15, 17),
    ),
    "peroneus": ((-26, 47, -6, 2.5, 6), (-44, 45, -8, 5.5, 10), (-70, 43, -9, 8, 12), (-120, 41, -9, 10, 13)),
    "tibialis posterior": ((-44, 14, -10, 4, 4), (-62, 13, -9, 10, 8), (-120, 12, -8, 13, 10)),
}  # fmt: skip

# Ellipsoids that the condyles are made of: centre, half-axes. Posterior roundness first, then the longer curve
# that runs forward into the trochlea.
_CONDYLES = (
    (-21.0, 0.0, 25.5, 14.0, 21.0, 20.5),
    (-19.5, 15.0, 27.0, 15.5, 25.0, 21.5),
    (19.5, 2.0, 25.0, 13.0, 19.5, 20.0),
    (17.5, 21.0, 29.0, 15.0, 25.5, 23.2),
)
_EPICONDYLES = ((-31.0, 5.0, 31.0, 9.0, 12.0, 13.0), (29.0, 5.0, 29.0, 8.0, 11.0, 12.0))
_NOTCH = ((-0.5, -34, 34, 11.5), (-0.5, -8, 24, 9.5), (-0.5, 4, 14, 8.0), (-0.5, 11, 0, 7.5))
_TROCHLEAR_GROOVE = ((-3, 52, 62, 13), (-3, 55, 40, 16.5), (-3, 49, 14, 15), (-2, 36, -6, 13))
_HINGE = (0.0, 25.0)  # y and z of the transverse axis through both posterior condyles
_TUBEROSITY = (7.0, 21.0, -30.0, 9.5, 11.0, 14.0)
_FACET_OF_PCL = ((0, -30, 10, 9), (0, -29, -6, 8))
_PATELLA = (0.0, 50.5, 40.0, 22.0, 12.0, 18.5)
_RECESSES = (  # where joint fluid gathers: behind the quadriceps tendon, beside the condyles, behind, in the notch
    (1.0, 41.5, 63.0, 18.0, 1.4, 14.0),
    (2.0, 40.5, 77.0, 11.0, 0.7, 8.0),
    (-19.0, 39.0, 57.0, 7.0, 0.9, 8.0),
    (22.0, 39.0, 57.0, 7.0, 0.9, 8.0),
    (-32.0, 27.0, 29.0, 0.9, 6.0, 9.0),
    (32.0, 28.0, 28.0, 0.9, 6.0, 9.0),
    (-20.0, -23.0, 15.0, 6.0, 0.9, 5.0),
    (20.0, -19.5, 13.0, 5.0, 0.8, 4.0),
    (3.0, -4.0, 10.0, 3.0, 3.5, 1.2),
)


_SYNOVIUM = (-0.5, -4.0, 15.0, 11.0, 17.0, 18.0)  # fills the notch around the cruciate ligaments
_HOFFA = (2.0, 36.0, 8.0, 36.0, 24.0, 30.0)
_FEMUR_BOX = (-46.0, -28.0, 2.0, 44.0, 54.0, 1e3)
_TIBIA_BOX = (-41.0, -28.0, -1e3, 41.0, 36.0, 10.0)


class Place(NamedTuple):
    """Where a field of ``Knee`` begins in its packed form, and its rows."""

    at: np.int64
    rows: np.int64


def places() -> dict[str, Place]:
    """The place of every field of a packed knee. All knees have the same.

    NumPy's numbers, since Numba compiles a function anew for each Python integer that it knows beforehand.
    """
    found: dict[str, Place] = {}
    at = 0
    knee = draw_knee(np.random.default_rng(0))
    for name, values in zip(Knee._fields[:-1], knee[:-1], strict=True):
        found[name] = Place(np.int64(at), np.int64(len(values)))
        at += values.size
    return found


def draw_knee(rng: np.random.Generator, findings: Mapping[str, bool] | None = None) -> Knee:
    """A knee of its own size, shape and flexion, with findings. Flexion is 0 to 14 degrees, as in a knee coil.

    Args:
        rng: draws the knee. Findings have generators of their own, so that the knee is the same without them.
        findings: of the keys of ``tasks.LABELS["knee"]``; those left out are absent.

    Raises:
        KeyError: for a finding that a knee cannot have.
    """
    for_confounders, for_findings = rng.spawn(2)
    return add_findings(_healthy_knee(rng), findings or {}, for_confounders, for_findings)


def _healthy_knee(rng: np.random.Generator) -> Knee:
    flexion = math.radians(rng.uniform(0.0, 14.0))
    hinge = _hinge(flexion)
    femur_to_knee = Turn(hinge[0], hinge[1], flexion)
    patella_to_knee = Turn(hinge[0], hinge[1], 0.4 * flexion)
    columns, ends = _columns(rng)
    patella = np.array(_PATELLA) * rng.uniform(0.96, 1.04, 6)
    patella[0] += rng.uniform(-1.5, 1.5)
    patella[2] += rng.uniform(-4.0, 5.0)
    tilt = math.radians(rng.uniform(-2.0, 8.0))
    apex = patella_to_knee(patella[0], patella[1] + 5.0, patella[2] - 0.85 * patella[5])
    base = patella_to_knee(patella[0], patella[1] + 3.0, patella[2] + 0.85 * patella[5])
    thigh = femur_to_knee(3.0, 46.0, 92.0)
    notch = _vary(rng, _NOTCH, 0.5)
    notch[:, 3] *= rng.uniform(0.9, 1.15)
    lesions, lesion_count = Lesions().table()
    return Knee(
        size=rng.uniform(0.95, 1.06) * rng.uniform(0.97, 1.03, 3),
        warp=_warp(rng),
        hinge=hinge,
        columns=columns,
        column_ends=ends,
        column_boxes=boxes(columns, ends),
        femur_box=np.array(_FEMUR_BOX),
        tibia_box=np.array(_TIBIA_BOX),
        condyles=_vary(rng, _CONDYLES, 0.5),
        epicondyles=_vary(rng, _EPICONDYLES, 1.0),
        notch=notch,
        groove=_vary(rng, _TROCHLEAR_GROOVE, 0.5),
        tuberosity=_vary(rng, (_TUBEROSITY,), 0.7)[0],
        pcl_facet=np.array(_FACET_OF_PCL, float),
        patella=patella,
        patella_turn=np.array([math.cos(tilt), math.sin(tilt)]),
        recesses=_fluid_recesses(rng),
        synovium=np.array(_SYNOVIUM),
        hoffa=np.array(_HOFFA),
        medial_meniscus=_meniscus(rng, -19.5, 2.0, 16.0, 21.5, 62.0, 1.0, 9.0, 14.0),
        lateral_meniscus=_meniscus(rng, 20.0, 1.5, 15.5, 17.0, 38.0, -1.0, 10.0, 11.0),
        acl=finer(cord(femur_to_knee(7.5, -7.0, 31.0), 4.2, (4.5, 1.0, 19.5), 3.7, (0.5, 10.0, 6.5), 4.8), 7),
        pcl=_pcl(femur_to_knee),
        patellar_tendon=strap((apex, 14.0, 2.2), ((4.0, 44.0, 0.0), 13.5, 2.1), ((7.5, 31.5, -30.0), 11.0, 2.4)),
        quadriceps_tendon=strap((base, 15.0, 3.2), (femur_to_knee(1.5, 50.0, 76.0), 14.0, 3.0), (thigh, 13.0, 2.0)),
        mcl=finer(strap(
            (femur_to_knee(-40.0, 4.0, 32.0), 5.0, 1.4), ((-38.5, 4.5, 6.0), 6.0, 1.4), ((-36.5, 6.0, -12.0), 5.5, 1.2),
            ((-23.0, 10.0, -48.0), 4.5, 1.0), across=(0.0, 1.0, 0.0),
        ), 9),
        lcl=finer(cord(femur_to_knee(37.5, 2.0, 30.0), 2.0, (42.0, -6.0, 6.0), 2.1, (43.0, -12.0, -14.0), 2.2), 7),
        iliotibial_band=strap(
            (femur_to_knee(46.0, 12.0, 90.0), 10.0, 1.0), (femur_to_knee(42.0, 14.0, 36.0), 8.0, 1.2),
            ((39.0, 19.0, 2.0), 7.0, 1.3),
            ((32.0, 21.0, -13.0), 5.0, 1.3), across=(0.0, 1.0, 0.0),
        ),
        popliteus_tendon=cord((37.0, -2.0, 14.0), 2.0, (33.0, -15.0, 4.0), 2.0, (22.0, -21.0, -7.0), 2.6),
        small_tendons=_small_tendons(),
        artery=chain(
            (5, -28, 110, 3.6), (9, -27, 60, 3.4), (12, -27, 20, 3.3), (13, -29, -5, 3.1), (16, -25, -40, 2.6),
            (14, -22, -110, 2),
        ),
        vein=chain(
            (10, -31, 110, 4.4), (14, -31, 60, 4.3), (16.5, -31, 20, 4.0), (17, -33, -5, 3.7), (20, -28, -40, 2.8),
            (18, -24, -110, 2),
        ),
        nerve=chain((9, -38, 110, 3), (13, -38, 50, 2.7), (12, -40, 10, 2.4), (10, -40, -14, 2), (12, -31, -50, 1.8)),
        saphenous_vein=chain((-52, -14, 110, 1.8), (-50, -20, 20, 1.7), (-45, -18, -30, 1.6), (-40, -8, -110, 1.5)),
        cartilage=np.array([2.3, 2.6, 3.2]) * rng.uniform(0.87, 1.12, 3),
        plateau=np.array([math.tan(math.radians(rng.uniform(3.0, 8.0)))]),
        fat=rng.uniform(4.5, 11.0, 1),
        lesions=lesions,
        lesion_count=lesion_count,
        texture=texture(rng),
    )  # fmt: skip


def _hinge(flexion: float) -> np.ndarray:
    patella = 0.4 * flexion
    y, z = _HINGE
    return np.array([y, z, flexion, math.cos(flexion), math.sin(flexion), math.cos(patella), math.sin(patella)])


def _vary(rng: np.random.Generator, rows: tuple[tuple[float, ...], ...], mm: float) -> np.ndarray:
    """Each number moved by up to ``mm``, all rows of a solid by nearly the same, so that it keeps its form."""
    values = np.array(rows, float)
    together = rng.uniform(-mm, mm, values.shape[1])
    return values + together + rng.uniform(-0.3 * mm, 0.3 * mm, values.shape)


def _fluid_recesses(rng: np.random.Generator) -> np.ndarray:
    """The recesses with a healthy knee's fluid, each as much thicker across its thinnest axis as there is more."""
    recesses = np.array(_RECESSES)
    thin = 3 + np.argmin(recesses[:, 3:], axis=1)
    recesses[np.arange(len(recesses)), thin] *= rng.uniform(0.6, 1.6) * rng.uniform(0.75, 1.25, len(recesses))
    recesses[0, [3, 5]] *= rng.uniform(0.8, 1.1, 2)
    return recesses


def _warp(rng: np.random.Generator) -> np.ndarray:
    """Waves of 35 to 70 mm that bend every surface a little, so that none is an ellipsoid to the eye."""
    waves = np.empty((6, 5))
    for row in waves:
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        row[0] = rng.uniform(0.35, 0.75)
        row[1:4] = direction * 2.0 * math.pi / rng.uniform(35.0, 70.0)
        row[4] = rng.uniform(0.0, 2.0 * math.pi)
    return waves


def _columns(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    outlines = (_FASCIA, _FEMUR_SHAFT, _TIBIA_SHAFT, _FIBULA_SHAFT, *_MUSCLES.values())
    tables = np.empty((len(outlines), TABLE_ROWS, 6))
    ends = np.empty((len(outlines), 2))
    for n, outline in enumerate(outlines):
        levels = np.array([(*row, 0.0)[:6] for row in sorted(outline)], float)
        levels[:, 1:3] += rng.uniform(-0.8, 0.8, 2)
        levels[:, 3:5] *= rng.uniform(0.96, 1.04, 2)
        tables[n] = table(levels)
        ends[n] = levels[0, 0], min(levels[-1, 0], TABLE_START + (TABLE_ROWS - 2) * TABLE_STEP)
        if n >= len(outlines) - len(_MUSCLES):
            tables[n, :, 2:4] *= tapered(ends[n])[:, None]
    return tables, ends


def _meniscus(
    rng: np.random.Generator, x: float, y: float, half_width: float, half_length: float, opening: float,
    toward: float, anterior_width: float, posterior_width: float,
) -> np.ndarray:  # fmt: skip
    size = rng.uniform(0.93, 1.07, 4)
    meniscus = Meniscus(
        x, y, half_width * size[0] ** 0.3, half_length * size[1] ** 0.5, math.radians(opening), toward,
        anterior_width * size[2], posterior_width * size[3], rng.uniform(5.5, 7.0),
    )  # fmt: skip
    return np.array(meniscus)


def _pcl(femur_to_knee: Turn) -> np.ndarray:
    """From the medial wall of the notch over an arch behind the joint to below the plateau's posterior rim."""
    return chain(
        (*femur_to_knee(-7.5, 8.0, 16.0), 4.2), (*femur_to_knee(-6.0, 2.0, 21.0), 4.2),
        (-4.0, -7.0, 19.0, 3.9), (-2.0, -15.0, 11.0, 3.7), (0.0, -20.5, 1.0, 3.6), (0.5, -21.0, -10.0, 3.2),
    )  # fmt: skip


def _small_tendons() -> np.ndarray:
    """Semitendinosus, gracilis, semimembranosus and biceps tendons, (4, 4, 4): round cords on their way to the leg."""
    return np.array([
        ((-12, -44, 62, 1.8), (-25, -38, 25, 2.0), (-33, -26, -8, 1.8), (-29, -2, -44, 1.2)),
        ((-40, -32, 90, 1.8), (-40, -30, 30, 1.8), (-38, -20, -8, 1.6), (-30, 2, -42, 1.2)),
        ((-20, -38, 50, 1.6), (-26, -34, 22, 2.4), (-29, -27, 4, 2.6), (-29, -20, -8, 2.8)),
        ((46, -28, 70, 1.4), (47, -25, 30, 2.0), (46, -18, 0, 2.4), (42, -14, -14, 2.6)),
    ], float)  # fmt: skip
