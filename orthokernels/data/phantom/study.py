"""A study of one knee: three series planned as in a clinic, each on its own slightly oblique grid."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from orthokernels.data.phantom.anatomy import Knee, draw_knee
from orthokernels.data.phantom.parts import label_of_part
from orthokernels.data.phantom.receiver import receive, sensitivity
from orthokernels.data.phantom.sampling import BLOCK, Scan, sample_grid, texture_of_parts
from orthokernels.data.phantom.signal import Contrast, signal_of_parts

Side = Literal["right", "left"]

NOISE = 0.010
_LEAST_OBLIQUITY, _MOST_OBLIQUITY = 5.0, 15.0


class Protocol(NamedTuple):
    """How a series is acquired. Lengths in mm, times in ms; ``view`` is where i, j and k point in RAS."""

    plane: str
    description: str
    echo_time: float
    repetition_time: float
    echo_train: int
    slices: int
    spacing: float
    thickness: float
    view: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


FIELD_OF_VIEW = 156.0

PROTOCOLS = (
    Protocol("sagittal", "SAG PD FS", 35.0, 3000.0, 8, 28, 3.6, 3.2, ((0, -1, 0), (0, 0, 1), (1, 0, 0))),
    Protocol("coronal", "COR PD FS", 36.0, 3100.0, 8, 26, 3.6, 3.2, ((-1, 0, 0), (0, 0, 1), (0, -1, 0))),
    Protocol("axial", "AX PD FS", 32.0, 3300.0, 8, 28, 3.8, 3.4, ((-1, 0, 0), (0, 1, 0), (0, 0, 1))),
)


@dataclass(frozen=True)
class PhantomSeries:
    """One series of a phantom study.

    Attributes:
        voxels: (i, j, k) uint16. i runs along an image row, j up the image, k along DICOM's slice normal.
        labels: (i, j, k) uint8, indices of ``tasks.STRUCTURES``, 0 elsewhere.
        affine: (4, 4) float64, indices to RAS mm.
        slice_thickness_mm: what a slice averages over; the distance between slices is the affine's.
    """

    plane: str
    description: str
    voxels: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    slice_thickness_mm: float
    echo_time_ms: float
    repetition_time_ms: float
    echo_train_length: int
    fat_suppressed: bool


@dataclass(frozen=True)
class PhantomStudy:
    """The three series of one knee, in the order of ``tasks.PLANES``."""

    seed: int
    side: Side
    series: tuple[PhantomSeries, ...]

    def plane(self, plane: str) -> PhantomSeries:
        """The series of one plane."""
        return next(s for s in self.series if s.plane == plane)


class Pose(NamedTuple):
    """Where the knee lies in the scanner: RAS = ``turn`` (3, 3) @ knee frame + ``shift`` (3,)."""

    turn: np.ndarray
    shift: np.ndarray


def make_study(seed: int = 0, *, side: Side | None = "right", matrix: int = 256) -> PhantomStudy:
    """A knee MRI study that no patient was needed for.

    Args:
        seed: draws the anatomy, the pose, the planning and the noise. The same seed gives the same bytes.
        side: "right", "left", or None to draw it too.
        matrix: pixels along each side of a slice; the field of view stays 156 mm.

    Raises:
        ValueError: for another side, or a matrix below 32.
    """
    if side not in ("right", "left", None):
        raise ValueError(f'side is "right", "left" or None, not {side!r}')
    if matrix < 32:
        raise ValueError(f"a matrix of {matrix} is too coarse for a knee: 32 or more")
    for_anatomy, for_pose, *for_series = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5))
    drawn: Side = "right" if for_pose.random() < 0.5 else "left"
    side = side or drawn
    knee = draw_knee(for_anatomy)
    angles = for_pose.uniform(6.0, 12.0, 3) * for_pose.choice((-1.0, 1.0), 3)
    pose = _pose(side, angles, for_pose)
    with ThreadPoolExecutor(max_workers=len(PROTOCOLS)) as pool:
        series = pool.map(lambda p, rng: _acquire(knee, pose, angles, p, matrix, rng), PROTOCOLS, for_series)
        return PhantomStudy(seed, side, tuple(series))


def _turn(degrees: np.ndarray) -> np.ndarray:
    """The rotation by angles about x, then y, then z of RAS, (3, 3)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _pose(side: Side, angles: np.ndarray, rng: np.random.Generator) -> Pose:
    """A turned knee beside the scanner's middle: lateral is right in a right knee, left in a left one."""
    lateral = 1.0 if side == "right" else -1.0
    shift = np.array([lateral * rng.uniform(60.0, 100.0), rng.uniform(-20.0, 20.0), rng.uniform(-30.0, 30.0)])
    return Pose(_turn(angles) @ np.diag([lateral, 1.0, 1.0]), shift)


def _plan(pose: Pose, angles: np.ndarray, protocol: Protocol, matrix: int, rng: np.random.Generator) -> np.ndarray:
    """The affine (4, 4) of a series laid along the knee, to within 2 degrees and 3 mm."""
    aimed = angles + rng.uniform(-2.0, 2.0, 3)
    aimed = np.sign(aimed) * np.clip(np.abs(aimed), _LEAST_OBLIQUITY, _MOST_OBLIQUITY)
    directions = _turn(aimed) @ np.array(protocol.view, float).T
    steps = np.array([FIELD_OF_VIEW / matrix, FIELD_OF_VIEW / matrix, protocol.spacing])
    centre_index = (np.array([matrix, matrix, protocol.slices]) - 1) / 2.0
    aim = {"sagittal": (1.0, -2.0, 8.0), "coronal": (1.0, 7.0, 8.0), "axial": (0.0, -2.0, 14.0)}[protocol.plane]
    centre = pose.turn @ (np.array(aim) + rng.uniform(-3.0, 3.0, 3)) + pose.shift
    affine = np.eye(4)
    affine[:3, :3] = directions * steps
    affine[:3, 3] = centre - affine[:3, :3] @ centre_index
    return affine


def _acquire(
    knee: Knee, pose: Pose, angles: np.ndarray, protocol: Protocol, matrix: int, rng: np.random.Generator
) -> PhantomSeries:
    affine = _plan(pose, angles, protocol, matrix, rng)
    to_knee = np.eye(4)
    to_knee[:3, :3] = np.linalg.inv(pose.turn) @ affine[:3, :3]
    to_knee[:3, 3] = np.linalg.inv(pose.turn) @ (affine[:3, 3] - pose.shift)
    contrast = Contrast(protocol.echo_time, protocol.repetition_time, fat_left=0.13)
    scan = Scan(
        to_knee,
        protocol.thickness / protocol.spacing,
        signal_of_parts(contrast),
        label_of_part(),
        texture_of_parts(),
        knee.texture,
    )
    shape = (matrix, matrix, protocol.slices)
    signal = np.empty(shape, np.float32)
    labels = np.empty(shape, np.uint8)
    sample_grid(knee.packed(), scan, BLOCK, signal, labels)
    voxels = receive(signal * sensitivity(to_knee, shape, rng), NOISE, rng)
    return PhantomSeries(
        protocol.plane, protocol.description, voxels, labels, affine, protocol.thickness, protocol.echo_time,
        protocol.repetition_time, protocol.echo_train, fat_suppressed=True,
    )  # fmt: skip
