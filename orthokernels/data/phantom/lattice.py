"""A joint on one fine lattice, which every series of a study is then read from.

Three series ask about the same joint, and near a border each asks about nearly every voxel, several times. A lattice
of a few points a voxel is asked once for all three, and its blocks are halved in three directions, so that single
points are asked only where a border lies within a point or so. Reading a voxel is then a few loads. The lattice is
turned against every series and every bone: borders that graze a slice don't show as terraces.

What it gave is told in ``sampling``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from orthokernels.data.phantom import field, scene
from orthokernels.data.phantom.distance import WIDTH, compiled, merged
from orthokernels.data.phantom.field import CLEAR, PART, X, Y, Z
from orthokernels.data.phantom.sampling import (
    KNEE,
    LABEL,
    MARGIN,
    ROW,
    SIGNAL,
    STRENGTH,
    Scan,
    code_digest,
    parts_of_scene,
    prune_scene,
    table_of,
    textured,
)

# The step is the smaller of what gives a voxel so many points, and a share of a pixel: eight points where slices are
# five pixels thick. A film thinner than a step, as fluid on cartilage is, still shows a little beaded at 256 x 256;
# fourteen points would cure most of it, at twice the time.
POINTS = 4.0
SHARE = 0.86
FINEST = 0.3  # mm
BRICK = 16  # points along each side of the blocks that are halved
_PRUNED_DOWN_TO = 4
_TILE = 8  # voxels along i and j that are read together, slice by slice, so that their points stay in the cache

# Clearance may be overstated; in a block of 2 x 2 x 2, or around a voxel, a mistake costs a point.
_FINE_MARGIN = 1.15

# Where a voxel is read: evenly through the slice, within the pixel by the two irrational strides that spread points
# best (powers of the plastic number's inverse). Every second is read first, and the rest where those differ.
READINGS = 16
_STRIDES = (0.7548776662466927, 0.5698402909980532)

# Set in a point's number where all that a voxel around it is read at is of the same part.
INNER = 128

_ANGLES = (0.41, 0.73, 0.29)  # radians about x, y and z: of no series and no bone


class Grid(NamedTuple):
    """A series' voxels: (4, 4) indices to the joint's frame in mm, counts, and thickness as a share of spacing."""

    to_joint: np.ndarray
    shape: tuple[int, int, int]
    thickness: float


class Lattice(NamedTuple):
    """A joint's parts at the points of a lattice.

    Attributes:
        to_joint: (4, 4) float64, lattice indices to the joint's frame in mm.
        parts: (i, j, k) uint8, what lies at each point, and INNER besides; not written in bricks that no series meets,
            and in others only where one does.
        bricks: (bricks, 3) int64, the first indices of those that are.
        series: (grids, 3, 5) float64, a row for each axis of each grid: lattice indices to its own, and its voxels.
        extent: steps from the point nearest to a voxel's centre to the farthest that it is read from, of any grid.
    """

    to_joint: np.ndarray
    parts: np.ndarray
    bricks: np.ndarray
    series: np.ndarray
    extent: float


def readings(count: int = READINGS) -> np.ndarray:
    """Where a voxel is read, as shares of its size from its centre, (count, 3): those read first come first."""
    steps = np.array([*range(0, count, 2), *range(1, count, 2)])
    within = (steps[:, None] * _STRIDES) % 1.0 - 0.5
    return np.column_stack([within, (steps + 0.5) / count - 0.5])


def _turn() -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos(_ANGLES), np.sin(_ANGLES)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _corners(grid: Grid) -> np.ndarray:
    """The corners of a grid with half a voxel to spare, in the joint's frame in mm, (3, 8)."""
    indices = np.array(np.meshgrid(*((-1.0, n) for n in grid.shape), indexing="ij")).reshape(3, -1)
    return grid.to_joint[:3, :3] @ indices + grid.to_joint[:3, 3:]


def plan_lattice(grids: Sequence[Grid], points: float = POINTS) -> Lattice:
    """An unfilled lattice that covers every voxel of ``grids``, with ``points`` or more for one of the smallest."""
    spacing = min((abs(np.linalg.det(g.to_joint[:3, :3])) * g.thickness / points) ** (1.0 / 3.0) for g in grids)
    pixel = min(float(np.linalg.norm(g.to_joint[:3, axis])) for g in grids for axis in (0, 1))
    spacing = max(min(spacing, SHARE * pixel), FINEST)
    turn = _turn()
    corners = np.hstack([turn.T @ _corners(grid) for grid in grids])
    low = corners.min(axis=1)
    counts = np.ceil((corners.max(axis=1) - low) / (BRICK * spacing)).astype(int) + 1
    to_joint = np.eye(4)
    to_joint[:3, :3], to_joint[:3, 3] = turn * spacing, turn @ low
    bricks = BRICK * np.indices(counts).reshape(3, -1).T
    centres = (bricks + 0.5 * (BRICK - 1)) @ to_joint[:3, :3].T + to_joint[:3, 3]
    extent = max(_farthest(np.linalg.inv(to_joint) @ g.to_joint, g.thickness) for g in grids)
    met = np.zeros(len(bricks), bool)
    series = np.empty((len(grids), 3, 5))
    for number, grid in enumerate(grids):
        to_grid = np.linalg.inv(grid.to_joint)
        series[number, :, :4] = (to_grid @ to_joint)[:3]
        series[number, :, 4] = grid.shape
        indices = centres @ to_grid[:3, :3].T + to_grid[:3, 3]
        # A ball around a brick and half a step, as a box in the grid's indices.
        reach = 0.5 + 0.5 * math.sqrt(3.0) * (BRICK + 1) * spacing * np.linalg.norm(to_grid[:3, :3], axis=1)
        met |= ((indices > -reach) & (indices < np.array(grid.shape) - 1.0 + reach)).all(axis=1)
    return Lattice(to_joint, np.empty(counts * BRICK, np.uint8), bricks[met], series, extent)


def _farthest(to_lattice: np.ndarray, thickness: float) -> float:
    """Steps between two points of the lattice that a voxel may be read from, one of them nearest to its centre.

    A place s steps from the centre along an axis is read from a point up to |s| + 1 steps, cut off, from that one.
    """
    steps = np.abs(readings() * (1.0, 1.0, thickness) @ to_lattice[:3, :3].T)
    return float(np.linalg.norm(np.floor(steps + 1.0), axis=1).max())


@compiled
def point_of(i: float, j: float, k: float, m: np.ndarray) -> tuple[float, float, float]:
    """Indices through a (4, 4) or (3, 4) affine."""
    return (
        m[0, 0] * i + m[0, 1] * j + m[0, 2] * k + m[0, 3],
        m[1, 0] * i + m[1, 1] * j + m[1, 2] * k + m[1, 3],
        m[2, 0] * i + m[2, 1] * j + m[2, 2] * k + m[2, 3],
    )


@compiled
def met(i: float, j: float, k: float, side: int, series: np.ndarray) -> bool:
    """Whether a series may be read in a block of ``side`` points along each axis around (i, j, k)."""
    for n in range(len(series)):
        inside = True
        for axis in range(3):
            a, b, c = series[n, axis, 0], series[n, axis, 1], series[n, axis, 2]
            at = a * i + b * j + c * k + series[n, axis, 3]
            # Half a voxel around the grid, and half a step around the block, whose nearest point is what is read.
            reach = 0.5 + 0.5 * (side + 1) * (abs(a) + abs(b) + abs(c))
            inside &= -reach < at < series[n, axis, 4] - 1.0 + reach
        if inside:
            return True
    return False


@merged
def fill_brick(
    i0: int, j0: int, k0: int, lattice: Lattice, joint: np.ndarray, whole: bool, flags: np.ndarray, waiting: np.ndarray,
    asked: np.ndarray, p: np.ndarray, q: np.ndarray, parts_at: Callable[..., None], prune: Callable[..., None],
) -> None:  # fmt: skip
    """The parts of one brick, in blocks that are halved as long as a border may cross them; all points if ``whole``.

    ``parts_at`` and ``prune`` are those of ``field``, or what ``sampling`` has in their place for scenes.

    Blocks that no series meets are left as they are.

    A block's eighths are asked about together, and so are all points of those of 2 x 2 x 2 that a border crosses.
    Blocks to divide wait on a stack, so that all that is within one is done before its neighbour: ``flags[level]``
    belongs to the block that is being divided at that level.
    """
    m = lattice.to_joint
    step = math.sqrt(m[0, 0] * m[0, 0] + m[1, 0] * m[1, 0] + m[2, 0] * m[2, 0])
    diagonal = math.sqrt(3.0) * step  # of a cell
    flags[0, :] = True
    asked[0, 0], asked[0, 1], asked[0, 2] = i0, j0, k0
    count, side, level, left = 1, BRICK, 0, 0
    while count > 0:
        half = 0.5 * (side - 1)
        for n in range(count):
            a, b, c = asked[n, 0], asked[n, 1], asked[n, 2]
            p[X + n], p[Y + n], p[Z + n] = point_of(a + half, b + half, c + half, m)
        parts_at(p, q, count, joint, flags[level])
        reach = (MARGIN if side > 2 else _FINE_MARGIN) * diagonal * half
        crossed = 0
        for n in range(count):
            a, b, c = asked[n, 0], asked[n, 1], asked[n, 2]
            if side == 1 or (not whole and p[CLEAR + n] > reach):
                inner = p[CLEAR + n] / (_FINE_MARGIN * step) - lattice.extent
                fill_block(lattice.parts, a, b, c, side, int(p[PART + n]), inner)
            elif side >= _PRUNED_DOWN_TO:
                waiting[left, 0], waiting[left, 1], waiting[left, 2], waiting[left, 3] = a, b, c, side
                waiting[left, 4] = level + 1
                left += 1
            else:
                asked[crossed, 0], asked[crossed, 1], asked[crossed, 2] = a, b, c
                crossed += 1
        count = 8 * crossed
        if crossed > 0:
            side = 1
            for n in range(count - 1, -1, -1):  # from behind: the blocks stand where their first points go
                asked[n, 0] = asked[n >> 3, 0] + (n >> 2 & 1)
                asked[n, 1], asked[n, 2] = asked[n >> 3, 1] + (n >> 1 & 1), asked[n >> 3, 2] + (n & 1)
        while count == 0 and left > 0:
            left -= 1
            i, j, k, side, level = (
                waiting[left, 0], waiting[left, 1], waiting[left, 2], waiting[left, 3], waiting[left, 4],
            )  # fmt: skip
            for n in range(flags.shape[1]):
                flags[level, n] = flags[level - 1, n]
            if not whole:
                half = 0.5 * (side - 1)
                x, y, z = point_of(i + half, j + half, k + half, m)
                prune(x, y, z, diagonal * half, joint, flags[level], p)
            side //= 2
            half = 0.5 * (side - 1)
            for n in range(8):
                a, b, c = i + side * (n >> 2), j + side * (n >> 1 & 1), k + side * (n & 1)
                if side < _PRUNED_DOWN_TO or met(a + half, b + half, c + half, side, lattice.series):
                    asked[count, 0], asked[count, 1], asked[count, 2] = a, b, c
                    count += 1


@compiled
def fill_block(parts: np.ndarray, i: int, j: int, k: int, side: int, part: int, inner: float) -> None:
    """Give all points of a block one part; those up to ``inner`` steps from its centre are INNER ones."""
    half = 0.5 * (side - 1)
    most = inner * inner if inner >= 0.0 else -1.0
    for a in range(side):
        for b in range(side):
            across = (a - half) * (a - half) + (b - half) * (b - half)
            for c in range(side):
                within = across + (c - half) * (c - half) <= most
                parts[i + a, j + b, k + c] = part + (INNER if within else 0)


@compiled
def label_of(part: int, table: np.ndarray) -> int:
    """The label of a part in ``table_of`` a scan."""
    return int(table[np.uint64(ROW * part + LABEL)])


@compiled
def mixture(
    found: np.ndarray, x: float, y: float, z: float, table: np.ndarray, noise: np.ndarray, times: np.ndarray,
    votes: np.ndarray,
) -> tuple[float, int]:  # fmt: skip
    """Signal and commonest label of a voxel at (x, y, z) with samples of the parts ``found``, which is changed.

    Grain is taken at the voxel's centre, once for each part. ``table`` and ``noise`` are as of ``textured``; ``times``
    and ``votes`` are (256,) int64, zeros before and after.
    """
    samples, distinct = len(found), 0
    for n in range(samples):
        part = found[n]
        if times[part] == 0:
            found[distinct] = part
            distinct += 1
        times[part] += 1
    total, most, label = 0.0, 0, 0
    for n in range(distinct):
        part = found[n]
        total += times[part] * textured(part, x, y, z, table, noise)
        votes[label_of(part, table)] += times[part]
        times[part] = 0
    for n in range(distinct):
        of = label_of(found[n], table)
        if votes[of] > most or (votes[of] == most and of < label):
            most, label = votes[of], of
    for n in range(distinct):
        votes[label_of(found[n], table)] = 0
    return total / samples, label


@merged
def read_voxel(
    i: int, j: int, k: int, parts: np.ndarray, plane: int, row: int, to_lattice: np.ndarray, to_joint: np.ndarray,
    table: np.ndarray, noise: np.ndarray, spread: np.ndarray, found: np.ndarray, times: np.ndarray, votes: np.ndarray,
    voxels: np.ndarray, labels: np.ndarray,
) -> None:  # fmt: skip
    """One voxel from its readings of ``parts``, flat, whose planes and rows lie ``plane`` and ``row`` apart.

    What is short stays here: two voxels of five are air, and a call takes longer than they do.
    """
    u, v, w = point_of(i, j, k, to_lattice)
    # All indices are positive: the lattice begins outside of every series.
    part = int(parts[np.uint64(int(u) * plane + int(v) * row + int(w))]) - INNER
    alike = True
    if part < 0:
        for n in range(len(spread)):
            if 2 * n >= len(spread) and alike:
                break
            at = int(u + spread[n, 0]) * plane + int(v + spread[n, 1]) * row + int(w + spread[n, 2])
            found[n] = parts[np.uint64(at)] & (INNER - 1)
            alike &= found[n] == found[0]
        part = found[0]
    if alike and table[np.uint64(ROW * part + STRENGTH)] == 0.0:
        voxels[i, j, k], labels[i, j, k] = table[np.uint64(ROW * part + SIGNAL)], label_of(part, table)
        return
    x, y, z = point_of(i, j, k, to_joint)
    if alike:
        voxels[i, j, k], labels[i, j, k] = textured(part, x, y, z, table, noise), label_of(part, table)
    else:
        voxels[i, j, k], labels[i, j, k] = mixture(found, x, y, z, table, noise, times, votes)


def _compile(sources: str) -> tuple[Callable[..., int], Callable[..., int], Callable[..., int]]:
    """Filling from a knee, from a scene, and reading, compiled; kept on disk under a key that holds ``sources``.

    Two ways of filling, since a knee's and a scene's code each take a minute or so to compile, and few want both.
    """

    @njit(_nrt=False, cache=True, nogil=True)  # type: ignore[call-overload]
    def fill_from_knee(
        lattice: Lattice, joint: np.ndarray, whole: bool, flags: np.ndarray, waiting: np.ndarray, asked: np.ndarray,
        p: np.ndarray, q: np.ndarray,
    ) -> int:  # fmt: skip
        for n in range(len(lattice.bricks)):
            i, j, k = lattice.bricks[n, 0], lattice.bricks[n, 1], lattice.bricks[n, 2]
            fill_brick(i, j, k, lattice, joint, whole, flags, waiting, asked, p, q, field.parts_at, field.prune)
        return len(sources)

    @njit(_nrt=False, cache=True, nogil=True)  # type: ignore[call-overload]
    def fill_from_scene(
        lattice: Lattice, joint: np.ndarray, whole: bool, flags: np.ndarray, waiting: np.ndarray, asked: np.ndarray,
        p: np.ndarray, q: np.ndarray,
    ) -> int:  # fmt: skip
        for n in range(len(lattice.bricks)):
            i, j, k = lattice.bricks[n, 0], lattice.bricks[n, 1], lattice.bricks[n, 2]
            fill_brick(i, j, k, lattice, joint, whole, flags, waiting, asked, p, q, parts_of_scene, prune_scene)
        return len(sources)

    @njit(_nrt=False, cache=True, nogil=True)  # type: ignore[call-overload]
    def read(
        parts: np.ndarray, plane: int, row: int, to_lattice: np.ndarray, to_joint: np.ndarray, table: np.ndarray,
        noise: np.ndarray, spread: np.ndarray, found: np.ndarray, times: np.ndarray, votes: np.ndarray,
        voxels: np.ndarray, labels: np.ndarray,
    ) -> int:  # fmt: skip
        ni, nj, nk = voxels.shape
        for i0 in range(0, ni, _TILE):
            for j0 in range(0, nj, _TILE):
                for k in range(nk):
                    for i in range(i0, min(i0 + _TILE, ni)):
                        for j in range(j0, min(j0 + _TILE, nj)):
                            read_voxel(
                                i, j, k, parts, plane, row, to_lattice, to_joint, table, noise, spread, found, times,
                                votes, voxels, labels,
                            )  # fmt: skip
        return len(sources)

    return fill_from_knee, fill_from_scene, read


_fill_from_knee, _fill_from_scene, _read = _compile(code_digest())


def fill_lattice(lattice: Lattice, joint: np.ndarray, anatomy: int, whole: bool = False) -> None:
    """Ask a packed joint, (numbers,) float64, about the points of a lattice; about each alone where ``whole``.

    ``anatomy`` says which compiled functions read the joint, as ``Scan.anatomy``. Bricks may be shared among threads:
    what stands in one depends on nothing else.
    """
    count = field.FLAGS if anatomy == KNEE else int(joint[scene.FLAGS])
    flags, waiting, asked = np.ones((8, count), np.bool_), np.empty((64, 5), np.int64), np.empty((WIDTH, 3), np.int64)
    fill = _fill_from_knee if anatomy == KNEE else _fill_from_scene
    fill(lattice, joint, whole, flags, waiting, asked, *field.scratch())


def read_grid(
    lattice: Lattice, scan: Scan, voxels: np.ndarray, labels: np.ndarray, spread: np.ndarray | None = None
) -> None:
    """Fill ``voxels`` (i, j, k) float32 and ``labels`` (i, j, k) uint8 with a joint as ``scan`` sees it.

    The grid must be among those that the lattice was planned for.
    """
    to_lattice = np.linalg.inv(lattice.to_joint) @ scan.to_joint
    spread = (readings() if spread is None else spread) * (1.0, 1.0, scan.thickness) @ to_lattice[:3, :3].T
    to_lattice[:3, 3] += 0.5  # so that cutting off decimals finds the nearest
    plane, row = lattice.parts.shape[1] * lattice.parts.shape[2], lattice.parts.shape[2]
    found, times, votes = np.zeros(len(spread), np.int64), np.zeros(256, np.int64), np.zeros(256, np.int64)
    _read(
        lattice.parts.reshape(-1), plane, row, to_lattice, scan.to_joint, table_of(scan), scan.lattice.reshape(-1),
        spread, found, times, votes, voxels, labels,
    )  # fmt: skip


def ask_grid(to_joint: np.ndarray, shape: tuple[int, int, int], joint: np.ndarray, anatomy: int) -> np.ndarray:
    """What lies at each point of a grid, (i, j, k) uint8, by asking every solid there: the plain way.

    Args:
        to_joint: (4, 4) indices to the joint's frame in mm.
        shape: points along i, j and k.
        joint, anatomy: as of ``fill_lattice``.
    """
    counts = -(-np.array(shape) // BRICK)
    bricks = BRICK * np.indices(tuple(counts)).reshape(3, -1).T
    itself = np.hstack([np.eye(3, 4), BRICK * counts[:, None]])[None]
    lattice = Lattice(np.asarray(to_joint, float), np.empty(counts * BRICK, np.uint8), bricks, itself, 0.0)
    fill_lattice(lattice, joint, anatomy, whole=True)
    return lattice.parts[: shape[0], : shape[1], : shape[2]] & np.uint8(INNER - 1)
