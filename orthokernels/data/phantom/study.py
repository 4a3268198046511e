"""A study of one joint: three series planned as in a clinic, each on its own slightly oblique grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from orthokernels.data.phantom import ankle, sampling, shoulder
from orthokernels.data.phantom.anatomy import draw_knee
from orthokernels.data.phantom.ankle import draw_ankle
from orthokernels.data.phantom.lattice import Grid, Lattice, fill_lattice, plan_lattice, read_grid
from orthokernels.data.phantom.parts import label_of_part
from orthokernels.data.phantom.protocol import (
    KNEE,
    NOISE_PIXEL_MM,
    TIMINGS,
    Examination,
    Protocol,
    draw_protocols,
    plans_of,
)
from orthokernels.data.phantom.receiver import draw_motion, receive, sensitivity
from orthokernels.data.phantom.sampling import Scan, texture_of_parts
from orthokernels.data.phantom.shoulder import draw_shoulder
from orthokernels.data.phantom.signal import signal_of_parts
from orthokernels.errors import InputError
from orthokernels.tasks import LABELS

# Of what a seed gives: images, label maps and findings. It rises with every change of any of these, so that what was
# made before is told from what is made now.
REVISION = 1

Side = Literal["right", "left"]

_LEAST_MATRIX, _MOST_MATRIX = 32, 1024
_LEAST_OBLIQUITY, _MOST_OBLIQUITY = 5.0, 15.0


class Anatomy(NamedTuple):
    """One joint in numbers: what the sampler reads, and the periodic noise (32, 32, 32) that gives tissues grain.

    ``kind`` says which compiled functions read ``packed``, as ``Scan.anatomy``.
    """

    kind: int
    packed: np.ndarray
    texture: np.ndarray


class Joint(NamedTuple):
    """How a joint is drawn, from a random generator and {label key: bool}, and how it is examined."""

    draw: Callable[[np.random.Generator, Mapping[str, bool]], Anatomy]
    examination: Examination


def _draw_knee(rng: np.random.Generator, findings: Mapping[str, bool]) -> Anatomy:
    knee = draw_knee(rng, findings)
    return Anatomy(sampling.KNEE, knee.packed(), knee.texture)


def _draw_ankle(rng: np.random.Generator, findings: Mapping[str, bool]) -> Anatomy:
    scene = draw_ankle(rng, findings)
    return Anatomy(sampling.SCENE, scene.packed, scene.texture)


def _draw_shoulder(rng: np.random.Generator, findings: Mapping[str, bool]) -> Anatomy:
    scene = draw_shoulder(rng, findings)
    return Anatomy(sampling.SCENE, scene.packed, scene.texture)


def _depths(slices: Mapping[str, tuple[int, float, float]]) -> dict[str, float]:
    return {plane: count * spacing for plane, (count, spacing, _) in slices.items()}


JOINTS = {
    "knee": Joint(_draw_knee, KNEE),
    "ankle": Joint(
        _draw_ankle,
        Examination(
            plans_of(ankle.AIMS, _depths(ankle.SLICES)),
            field_of_view=(ankle.FIELD_OF_VIEW - 5.0, ankle.FIELD_OF_VIEW + 7.0),
            slice_thickness=(2.8, 3.3),
            offset=((60.0, 110.0), (-20.0, 20.0), (-30.0, 30.0)),
        ),
    ),
    "shoulder": Joint(
        _draw_shoulder,
        Examination(
            plans_of(shoulder.AIMS, _depths(shoulder.SLICES)),
            field_of_view=(shoulder.FIELD_OF_VIEW - 5.0, shoulder.FIELD_OF_VIEW + 7.0),
            slice_thickness=(3.0, 3.5),
            offset=((130.0, 170.0), (-20.0, 20.0), (-30.0, 30.0)),
            forward=(10.0, 22.0),
        ),
    ),
}


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
    """The three series of one joint, in the order of ``tasks.PLANES``, and its findings by ``tasks.LABELS``' keys.

    ``anatomy`` is "drawn" where the seed drew it, or names the label map it comes from.
    """

    seed: int
    joint: str
    side: Side
    contrast: str
    findings: dict[str, bool]
    series: tuple[PhantomSeries, ...]
    anatomy: str = "drawn"

    @property
    def labelled(self) -> bool:
        """Whether any structure is labelled; ankles and shoulders have none."""
        return any(series.labels.any() for series in self.series)

    def plane(self, plane: str) -> PhantomSeries:
        """The series of one plane."""
        return next(s for s in self.series if s.plane == plane)


class PlannedSeries(NamedTuple):
    """A series before it is acquired.

    Attributes:
        protocol: contrast, slices, noise.
        shape: voxels along i, j and k.
        affine: (4, 4) float64, indices to RAS mm.
        to_joint: (4, 4) float64, indices to the joint's frame in mm.
        rng: draws coil, motion and noise; each series has its own, so that threads can't change the order.
    """

    protocol: Protocol
    shape: tuple[int, int, int]
    affine: np.ndarray
    to_joint: np.ndarray
    rng: np.random.Generator


class Pose(NamedTuple):
    """Where the joint lies in the scanner: RAS = ``turn`` (3, 3) @ joint's frame + ``shift`` (3,).

    ``forward`` (3, 3) is the part of ``turn`` that series follow to the full.
    """

    turn: np.ndarray
    shift: np.ndarray
    forward: np.ndarray


def make_study(
    seed: int = 0,
    *,
    joint: str = "knee",
    side: Side | None = "right",
    matrix: int = 256,
    findings: Mapping[str, bool] | None = None,
    prevalence: float = 0.3,
    contrast: str = "pd_fs",
) -> PhantomStudy:
    """A joint's MRI study that no patient was needed for.

    Args:
        seed: draws the anatomy, the findings, the pose, the planning, the protocol and the noise, each from a stream
            of its own: what is asked for by argument leaves all the rest as it was. The same arguments give the same
            bytes, whatever the number of threads.
        joint: "knee", "ankle" or "shoulder". Only the knee's structures are labelled; other joints' labels are all 0.
        side: "right", "left", or None to draw it too.
        matrix: pixels along each side of a slice; the field of view does not depend on it.
        findings: label keys of the joint to be present, or absent, by force; keys left out are absent. None draws
            each with ``prevalence``.
        prevalence: share of studies that have each finding, 0 to 1.
        contrast: "pd_fs", "t1", "t2" (fat-suppressed), or "pd" without suppression.

    Raises:
        InputError: for anything else, in one sentence.
    """
    check_arguments(seed, joint, side, matrix, findings, prevalence, contrast)
    present = draw_findings(seed, joint, findings, prevalence)
    side = side or draw_side(seed)
    anatomy = JOINTS[joint].draw(_streams(seed)[0], present)
    planned = plan_series(seed, JOINTS[joint].examination, side, contrast, matrix)

    with ThreadPoolExecutor(max_workers=len(planned)) as pool:
        lattice = lattice_of(anatomy, planned, pool.map)

        def make(series: PlannedSeries) -> PhantomSeries:
            return acquire(*sample(anatomy, series, lattice=lattice), series)

        made = tuple(pool.map(make, planned))
    return PhantomStudy(seed, joint, side, contrast, present, made)


def draw_findings(
    seed: int, joint: str, findings: Mapping[str, bool] | None = None, prevalence: float = 0.3
) -> dict[str, bool]:
    """The findings that ``make_study`` gives a joint, without making it: every key of ``tasks.LABELS``."""
    keys = _keys(joint)
    if findings is None:
        drawn = _streams(seed)[1].random(len(keys)) < prevalence
        return {key: bool(present) for key, present in zip(keys, drawn, strict=True)}
    return {key: bool(findings.get(key, False)) for key in keys}


def draw_side(seed: int) -> Side:
    """The side that ``make_study`` gives a joint where none is asked for."""
    return "right" if _streams(seed)[2].random() < 0.5 else "left"


def _streams(seed: int) -> list[np.random.Generator]:
    """One for the anatomy, findings, side, pose and protocol each, and one for each series."""
    return [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(8)]


def _keys(joint: str) -> list[str]:
    return [label.key for label in LABELS[joint]]


def check_arguments(
    seed: int, joint: str, side: str | None, matrix: int, findings: Mapping[str, bool] | None, prevalence: float,
    contrast: str,
) -> None:  # fmt: skip
    """Raise ``InputError`` where ``make_study`` can't take these."""
    if seed < 0:
        raise InputError(f"a seed is 0 or more, not {seed}.")
    if joint not in JOINTS:
        raise InputError(f"there is no phantom of the {joint}; choose from {', '.join(JOINTS)}.")
    if side not in ("right", "left", None):
        raise InputError(f'side is "right", "left" or None, not {side!r}.')
    if not _LEAST_MATRIX <= matrix <= _MOST_MATRIX:
        raise InputError(f"a matrix of {matrix} can't show a joint; choose {_LEAST_MATRIX} to {_MOST_MATRIX}.")
    if not 0.0 <= prevalence <= 1.0:
        raise InputError(f"a prevalence is from 0 to 1, not {prevalence}.")
    if contrast not in TIMINGS:
        raise InputError(f"there is no contrast {contrast!r}; choose from {', '.join(TIMINGS)}.")
    unknown = [key for key in findings or () if key not in _keys(joint)]
    if unknown:
        raise InputError(f"the {joint} has no finding {unknown[0]!r}; choose from {', '.join(_keys(joint))}.")


def _turn(degrees: np.ndarray) -> np.ndarray:
    """The rotation by angles about x, then y, then z of RAS, (3, 3)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _pose(examination: Examination, side: Side, angles: np.ndarray, forward: float, rng: np.random.Generator) -> Pose:
    """A turned joint beside the scanner's middle: lateral is right in a right joint, left in a left one."""
    lateral = 1.0 if side == "right" else -1.0
    shift = np.array([rng.uniform(*span) for span in examination.offset]) * (lateral, 1.0, 1.0)
    turned = _turn(np.array([0.0, 0.0, forward]))
    return Pose(turned @ _turn(angles) @ np.diag([lateral, 1.0, 1.0]), shift, turned)


def plan_series(
    seed: int, examination: Examination, side: Side, contrast: str, matrix: int
) -> tuple[PlannedSeries, ...]:
    """The three series of a study before anything is sampled: how and where each is acquired."""
    _, _, _, for_pose, for_protocol, *for_series = _streams(seed)
    angles = for_pose.uniform(6.0, 12.0, 3) * for_pose.choice((-1.0, 1.0), 3)
    forward = for_pose.uniform(*examination.forward) * (1.0 if side == "right" else -1.0)
    pose = _pose(examination, side, angles, forward, for_pose)
    protocols = draw_protocols(examination, contrast, for_protocol)
    return tuple(_plan(pose, angles, p, matrix, rng) for p, rng in zip(protocols, for_series, strict=True))


def _plan(pose: Pose, angles: np.ndarray, protocol: Protocol, matrix: int, rng: np.random.Generator) -> PlannedSeries:
    """A series laid along the joint, to within 2 degrees and 3 mm."""
    aimed = angles + rng.uniform(-2.0, 2.0, 3)
    aimed = np.sign(aimed) * np.clip(np.abs(aimed), _LEAST_OBLIQUITY, _MOST_OBLIQUITY)
    directions = pose.forward @ _turn(aimed) @ np.array(protocol.plan.view, float).T
    pixel = protocol.field_of_view / matrix
    shape = (matrix, matrix, protocol.slices)
    centre = pose.turn @ (np.array(protocol.plan.aim) + rng.uniform(-3.0, 3.0, 3)) + pose.shift
    affine, to_joint = np.eye(4), np.eye(4)
    affine[:3, :3] = directions * (pixel, pixel, protocol.spacing)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2.0)
    to_joint[:3, :3] = np.linalg.inv(pose.turn) @ affine[:3, :3]
    to_joint[:3, 3] = np.linalg.inv(pose.turn) @ (affine[:3, 3] - pose.shift)
    return PlannedSeries(protocol, shape, affine, to_joint, rng)


def lattice_of(anatomy: Anatomy, planned: Sequence[PlannedSeries], run: Callable[..., Iterable[None]] = map) -> Lattice:
    """A joint on one lattice that all the series can be read from; ``run`` is a ``map`` that may use threads."""
    grids = [Grid(s.to_joint, s.shape, s.protocol.thickness / s.protocol.spacing) for s in planned]
    lattice = plan_lattice(grids)

    def fill(bricks: np.ndarray) -> None:
        fill_lattice(lattice._replace(bricks=bricks), anatomy.packed, anatomy.kind)

    list(run(fill, np.array_split(lattice.bricks, len(planned))))
    return lattice


def sample(
    anatomy: Anatomy, planned: PlannedSeries, labels_of_parts: np.ndarray | None = None, lattice: Lattice | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A joint on a series' grid, without noise: signal (i, j, k) float32 and labels (i, j, k) uint8.

    Args:
        anatomy: what a joint's ``draw`` gave.
        planned: the series.
        labels_of_parts: (parts,) uint8, the label of each part; the segmented structures where not given.
        lattice: what ``lattice_of`` gave for this and other series; one for this series alone where not given.
    """
    lattice = lattice or lattice_of(anatomy, [planned])
    scan = Scan(
        planned.to_joint,
        planned.protocol.thickness / planned.protocol.spacing,
        signal_of_parts(planned.protocol.contrast),
        label_of_part() if labels_of_parts is None else labels_of_parts,
        texture_of_parts(),
        anatomy.texture,
        anatomy.kind,
    )
    signal = np.empty(planned.shape, np.float32)
    labels = np.empty(planned.shape, np.uint8)
    read_grid(lattice, scan, signal, labels)
    return signal, labels


def acquire(signal: np.ndarray, labels: np.ndarray, planned: PlannedSeries) -> PhantomSeries:
    """A series from its noiseless signal: (i, j, k) float32 in units of water's signal, left as it was."""
    protocol, rng = planned.protocol, planned.rng
    pixel = protocol.field_of_view / planned.shape[0]
    received = signal * sensitivity(planned.to_joint, planned.shape, rng)
    motion = draw_motion(planned.shape[0], pixel, protocol.echo_train, rng)
    # A larger pixel collects more signal: noise falls as if the fine picture had been reduced.
    voxels = receive(received, protocol.noise * NOISE_PIXEL_MM / pixel, rng, motion)
    return PhantomSeries(
        protocol.plan.plane, protocol.description, voxels, labels, planned.affine, protocol.thickness,
        protocol.echo_time, protocol.repetition_time, protocol.echo_train, protocol.fat_suppressed,
    )  # fmt: skip
