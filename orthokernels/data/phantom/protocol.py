"""How each joint is examined: the planes of a study, its contrasts, and what one clinic does unlike the next."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from orthokernels.data.phantom.signal import Contrast

View = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


class Plan(NamedTuple):
    """How one plane of a joint is laid. Lengths in mm in the joint's frame; ``view`` is where i, j and k point.

    ``aim`` is the middle of the stack, ``depth`` what it covers from the first slice to the last.
    """

    plane: str
    view: View
    aim: tuple[float, float, float]
    depth: float


class Examination(NamedTuple):
    """How a joint is examined.

    Attributes:
        plans: sagittal, coronal, axial.
        field_of_view: least and greatest side of a slice in mm.
        slice_thickness: thinnest and thickest in mm.
        offset: where the joint's centre lies in the scanner, in mm: least and greatest to the patient's side, to the
            front and to the head.
        forward: by how many degrees the joint's lateral side is turned to the front, least and greatest; series are
            turned with it, as along a scapula.
    """

    plans: tuple[Plan, Plan, Plan]
    field_of_view: tuple[float, float]
    slice_thickness: tuple[float, float]
    offset: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    forward: tuple[float, float] = (0.0, 0.0)


class Timing(NamedTuple):
    """The range of a contrast's echo and repetition times in ms, and of fat's signal that suppression leaves."""

    name: str
    echo_time: tuple[float, float]
    repetition_time: tuple[float, float]
    echo_train: tuple[int, ...]
    fat_left: tuple[float, float]


class Protocol(NamedTuple):
    """How one series is acquired. Lengths in mm, times in ms."""

    plan: Plan
    description: str
    echo_time: float
    repetition_time: float
    echo_train: int
    fat_left: float
    field_of_view: float
    slices: int
    spacing: float
    thickness: float
    noise: float

    @property
    def fat_suppressed(self) -> bool:
        return self.fat_left < 1.0

    @property
    def contrast(self) -> Contrast:
        return Contrast(self.echo_time, self.repetition_time, self.fat_left)


SAGITTAL: View = ((0, -1, 0), (0, 0, 1), (1, 0, 0))
CORONAL: View = ((-1, 0, 0), (0, 0, 1), (0, -1, 0))
AXIAL: View = ((-1, 0, 0), (0, 1, 0), (0, 0, 1))

_VIEWS = {"sagittal": SAGITTAL, "coronal": CORONAL, "axial": AXIAL}


def plans_of(aims: dict[str, tuple[float, float, float]], depths: dict[str, float]) -> tuple[Plan, Plan, Plan]:
    """A joint's three planes from where each is aimed and how deep its stack is, in mm."""
    sagittal, coronal, axial = (Plan(plane, view, aims[plane], depths[plane]) for plane, view in _VIEWS.items())
    return sagittal, coronal, axial


KNEE = Examination(
    plans_of(
        {"sagittal": (1.0, -2.0, 8.0), "coronal": (1.0, 7.0, 8.0), "axial": (0.0, -2.0, 14.0)},
        {"sagittal": 100.0, "coronal": 93.0, "axial": 106.0},
    ),
    field_of_view=(150.0, 162.0),
    slice_thickness=(3.0, 3.5),
    offset=((60.0, 100.0), (-20.0, 20.0), (-30.0, 30.0)),
)

TIMINGS: dict[str, Timing] = {
    "pd_fs": Timing("PD FS", (30.0, 40.0), (2600.0, 3800.0), (7, 8, 9, 10), (0.08, 0.18)),
    "pd": Timing("PD", (26.0, 36.0), (2200.0, 3400.0), (6, 7, 8), (1.0, 1.0)),
    "t1": Timing("T1", (9.0, 15.0), (500.0, 700.0), (2, 3), (1.0, 1.0)),
    "t2": Timing("T2 FS", (58.0, 78.0), (3400.0, 4800.0), (12, 14, 16), (0.08, 0.18)),
}

# Standard deviation of the noise at a pixel of NOISE_PIXEL_MM, in units of water's signal, before the window of
# k-space. What comes of it in muscle and marrow is at most the signal-to-noise of a real series; bench/phantom.py
# compares.
NOISE = (0.012, 0.018)
NOISE_PIXEL_MM = 0.61

_SHORT = {"sagittal": "SAG", "coronal": "COR", "axial": "AX"}


def draw_protocols(examination: Examination, contrast: str, rng: np.random.Generator) -> tuple[Protocol, ...]:
    """The three series of one clinic: times vary a little from plane to plane, the rest belongs to the study."""
    timing = TIMINGS[contrast]
    field = round(rng.uniform(*examination.field_of_view))
    thickness = round(rng.uniform(*examination.slice_thickness), 1)
    gap = rng.uniform(0.10, 0.18)
    noise = rng.uniform(*NOISE)
    echo, repetition, fat = (rng.uniform(*span) for span in timing[1:3] + timing[4:])
    train = timing.echo_train[rng.integers(len(timing.echo_train))]
    protocols = []
    for plan in examination.plans:
        thick = round(thickness + float(rng.choice((0.0, 0.0, 0.2))), 1)
        spacing = round(thick * (1.0 + gap), 1)
        protocols.append(
            Protocol(
                plan,
                f"{_SHORT[plan.plane]} {timing.name}",
                echo_time=round(echo * rng.uniform(0.96, 1.04), 1),
                repetition_time=10.0 * round(repetition * rng.uniform(0.95, 1.05) / 10.0),
                echo_train=int(train),
                fat_left=min(1.0, fat * rng.uniform(0.9, 1.1)) if fat < 1.0 else 1.0,
                field_of_view=float(field),
                slices=round(plan.depth / spacing),
                spacing=spacing,
                thickness=thick,
                noise=noise * rng.uniform(0.9, 1.1),
            )
        )
    return tuple(protocols)
