"""A joint as a table of solids: which part a point belongs to, for the anatomies simpler than the knee.

A scene is an ordered list of groups, and the first that contains a point wins, so neighbours need not agree on a
common border. A group folds a few solids of ``distance``, and other groups too, into one distance: unions,
subtractions and intersections with rounded creases. ``solids`` packs it all into one flat float64 array:

    head    flags, groups, size along x, y and z, six waves (amplitude, wave numbers along x, y, z and phase in turns)
    groups  kind, part, inner part, depth where the inner part begins, first row, rows, box around it (6),
            the last row that adds
    rows    operation, shape, address of its numbers, count, blend, offset, the shape's own roundness,
            box around it (6)
    numbers of each shape

The skin comes first and the muscles last, with the fascia between: what is in none is fat.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from orthokernels.data.phantom.distance import box, column, compiled, cord, ellipsoid, smooth_max, smooth_min, strap
from orthokernels.data.phantom.parts import Part

AIR = int(Part.AIR)
SKIN = int(Part.SKIN)
SUBCUTANEOUS_FAT = int(Part.SUBCUTANEOUS_FAT)
FASCIA = int(Part.FASCIA)
DEEP_FAT = int(Part.DEEP_FAT)
MUSCLE = int(Part.MUSCLE)

SOLID, LAYERED, MUSCLES, BODY, ENVELOPE = 0, 1, 2, 3, 4  # kinds of groups
UNION, MINUS, WITHIN = 0, 1, 2  # operations
ELLIPSOID, CORD, STRAP, COLUMN, BOX, GROUP = 0, 1, 2, 3, 4, 5  # shapes

FLAGS, GROUPS, SIZE, WAVES, HEAD = 0, 1, 2, 5, 35
RUN = 8  # groups in a row that one more flag stands for, so that most are passed over eight at a time
GROUP_NUMBERS, ROW_NUMBERS = 13, 13
FRAME = 12  # numbers of a shape's own frame: its origin, then the rows of the turn into it

# Distances to up to four groups at a point, each after its address: the body, and the last bones found near.
Known = tuple[int, float, int, float, int, float, int, float]
Distance = Callable[[float, float, float, np.ndarray, int, float, Known], float]

DEPTH = 5  # groups among the rows of groups among the rows ..., counting the first

SKIN_THICKNESS = 1.3
FASCIA_HALF_THICKNESS = 0.25
SEAM = 0.4  # half the fat plane between two muscles, in mm

# Distances may be overstated where waves and flares bend them: a group farther than this many radii cannot matter.
REACH = 1.35
_NOTED = 10.0  # mm from a bone within which its cartilage and what wraps it may ask for the distance
_FAR = 6.0  # mm from a group's box beyond which its distance is not worked out


@compiled
def wave(x: float, y: float, z: float, s: np.ndarray, at: int) -> float:
    """One wave of parabolas in place of a sine, which costs a fifth: amplitude, wave numbers and phase in turns."""
    t = s[at + 1] * x + s[at + 2] * y + s[at + 3] * z + s[at + 4]
    t -= math.floor(t + 0.5)
    return s[at] * t * (8.0 - 16.0 * abs(t))


@compiled
def shape_at(x: float, y: float, z: float, s: np.ndarray, row: int) -> float:
    """Distance to the shape of one row."""
    shape, at, count = int(s[row + 1]), int(s[row + 2]), int(s[row + 3])
    if shape == CORD:
        return cord(x, y, z, s, at, count, s[row + 6])
    if shape == STRAP:
        return strap(x, y, z, s, at, count)
    dx, dy, dz = x - s[at], y - s[at + 1], z - s[at + 2]
    u = s[at + 3] * dx + s[at + 4] * dy + s[at + 5] * dz
    v = s[at + 6] * dx + s[at + 7] * dy + s[at + 8] * dz
    w = s[at + 9] * dx + s[at + 10] * dy + s[at + 11] * dz
    at += FRAME
    if shape == ELLIPSOID:
        return ellipsoid(u, v, w, s, at)
    if shape == COLUMN:
        return column(u, v, w, s, at + 2, at, s[row + 6])
    return box(u, v, w, s, at)


@compiled
def _no_group(x: float, y: float, z: float, s: np.ndarray, group: int, limit: float, known: Known) -> float:
    return 1e9


def _folding(deeper: Distance) -> Distance:
    """A function that folds a group's rows, and asks ``deeper`` for the groups among them.

    One for each depth: Numba's cache on disk does not survive functions that call themselves by way of each other.
    """

    @compiled
    def fold(x: float, y: float, z: float, s: np.ndarray, group: int, limit: float, known: Known) -> float:
        first, rows, last_union = int(s[group + 4]), int(s[group + 5]), int(s[group + 12])
        total = 1e9
        for n in range(rows):
            row = first + ROW_NUMBERS * n
            operation, blend, offset = int(s[row]), s[row + 4], s[row + 5]
            if n > last_union and total > limit:
                return total
            if operation == MINUS:
                matters = blend - total  # a distance from which what is taken away leaves the total as it is
            else:
                matters = min(total, limit) + blend if operation == UNION else limit + blend
            if operation != WITHIN and n > 0 and box(x, y, z, s, row + 7) > matters:
                continue
            if int(s[row + 1]) == GROUP:
                other = int(s[row + 2])
                if other == known[0]:
                    d = known[1]
                elif other == known[2]:
                    d = known[3]
                elif other == known[4]:
                    d = known[5]
                elif other == known[6]:
                    d = known[7]
                else:
                    d = deeper(x, y, z, s, other, matters - offset, known)
            else:
                d = shape_at(x, y, z, s, row)
            if operation == UNION:
                total = smooth_min(total, d + offset, blend)
            elif operation == MINUS:
                total = smooth_max(total, -d - offset, blend)
            else:
                total = smooth_max(total, d + offset, blend)
        return total

    return fold


_FOLDS = [_folding(_no_group)]
for _ in range(DEPTH - 1):
    _FOLDS.append(_folding(_FOLDS[-1]))
_deepest = _FOLDS[-1]


@compiled
def group_at(x: float, y: float, z: float, s: np.ndarray, group: int, limit: float, known: Known) -> float:
    """Distance to a group, its rows folded in order; where it is above ``limit``, anything from there up to it.

    A row is passed over where its box shows that it changes nothing, and once no union follows, rows can only take
    away, so a total above the limit stays there. ``known`` are distances to other groups at the same point.
    """
    return _deepest(x, y, z, s, group, limit, known)


@compiled
def noted(known: Known, group: int, d: float) -> Known:
    """``known`` with one more distance: the body's in its own place, another group's in place of the oldest."""
    if group == HEAD:
        return group, d, known[2], known[3], known[4], known[5], known[6], known[7]
    return known[0], known[1], group, d, known[2], known[3], known[4], known[5]


@compiled
def warped(x: float, y: float, z: float, s: np.ndarray) -> tuple[float, float, float]:
    """A point moved by the scene's gentle waves, after its size is taken out."""
    x, y, z = x / s[SIZE], y / s[SIZE + 1], z / s[SIZE + 2]
    dx = wave(x, y, z, s, WAVES) + wave(x, y, z, s, WAVES + 5)
    dy = wave(x, y, z, s, WAVES + 10) + wave(x, y, z, s, WAVES + 15)
    dz = wave(x, y, z, s, WAVES + 20) + wave(x, y, z, s, WAVES + 25)
    return x + dx, y + dy, z + dz


@compiled
def prune(x: float, y: float, z: float, radius: float, s: np.ndarray, active: np.ndarray) -> None:
    """Unmark the groups that cannot matter to ``part_at`` within ``radius`` mm of a point.

    ``s`` is a packed scene; ``active`` (flags,) bool comes with those of a larger ball, or all. Groups that lie farther
    away go, and all that come after one that holds the whole ball.
    """
    reach = REACH * radius / min(s[SIZE], s[SIZE + 1], s[SIZE + 2])
    x, y, z = warped(x, y, z, s)
    groups = int(s[GROUPS])
    covered, known = False, (-1, 0.0, -1, 0.0, -1, 0.0, -1, 0.0)
    for n in range(groups):
        if covered:
            active[n] = False
        if not active[n]:
            continue
        group = HEAD + GROUP_NUMBERS * n
        kind = int(s[group])
        limit = 2.0 * (reach + SEAM) if kind == MUSCLES else reach
        if kind <= MUSCLES and box(x, y, z, s, group + 6) > limit:
            active[n] = False
            continue
        exact = limit + _NOTED if kind == LAYERED else (limit if kind <= MUSCLES else 1e9)
        d = group_at(x, y, z, s, group, exact, known)
        if kind == BODY or (kind == LAYERED and d < exact):
            known = noted(known, group, d)
        if kind == BODY:
            active[n] = d > -reach - SKIN_THICKNESS
            covered = d > reach
        elif kind == ENVELOPE:
            active[n] = d > -reach - FASCIA_HALF_THICKNESS
        else:
            active[n] = d < limit
            covered = d < -reach and kind != MUSCLES
    for run in range(groups, int(s[FLAGS])):
        first = RUN * (run - groups)
        active[run] = False
        for n in range(first, min(first + RUN, groups)):
            active[run] |= active[n]


@compiled
def part_at(x: float, y: float, z: float, s: np.ndarray, active: np.ndarray) -> tuple[int, float]:
    """The part at a point of the scene's frame, in mm, and about how far every point around it is the same part.

    Args:
        x, y, z: mm; x to lateral, y to anterior, z to superior of a right joint.
        s: a packed scene.
        active: (flags,) bool, from ``prune`` for a ball that holds the point; the clearance holds within that ball.

    Returns:
        ``(part, clearance)``: a value of ``Part``, and mm. Clearance is a lower bound up to the distances' own
        inexactness; the sampler keeps a margin.
    """
    x, y, z = warped(x, y, z, s)
    scale = min(s[SIZE], s[SIZE + 1], s[SIZE + 2])
    near, fascia, first, second = 1e6, -1e6, 1e6, 1e6
    known = (-1, 0.0, -1, 0.0, -1, 0.0, -1, 0.0)
    groups = int(s[GROUPS])
    for run in range(groups, int(s[FLAGS])):
        if not active[run]:
            continue
        for n in range(RUN * (run - groups), min(RUN * (run - groups + 1), groups)):
            if not active[n]:
                continue
            group = HEAD + GROUP_NUMBERS * n
            kind = int(s[group])
            if kind <= MUSCLES:
                far = box(x, y, z, s, group + 6)
                if far > near and (kind != MUSCLES or far > 2.0 * (near + SEAM)):
                    continue
                if far > _FAR and kind != MUSCLES:
                    near = far
                    continue
            exact = near + _NOTED if kind == LAYERED else (near if kind == SOLID else 1e9)
            if kind == MUSCLES:
                exact = 2.0 * (near + SEAM)
            d = group_at(x, y, z, s, group, exact, known)
            if kind == BODY or (kind == LAYERED and d < exact):
                known = noted(known, group, d)
            if kind <= LAYERED:
                depth = s[group + 3]
                if d < -depth:
                    return int(s[group + 2]), scale * min(near, -d - depth)
                if d < 0.0:
                    return int(s[group + 1]), scale * min(near, -d, d + depth)
                near = min(near, d)
            elif kind == MUSCLES:
                second = min(second, max(first, d))
                first = min(first, d)
            elif kind == ENVELOPE:
                fascia = d
            elif d > 0.0:
                return AIR, scale * d
            elif d > -SKIN_THICKNESS:
                return SKIN, scale * min(-d, d + SKIN_THICKNESS)
            else:
                near = -d - SKIN_THICKNESS
    part, near = filling(first, second, fascia, near)
    return part, scale * near


@compiled
def filling(first: float, second: float, fascia: float, near: float) -> tuple[int, float]:
    """What fills the room between solids: fat outside the fascia, within it the nearest muscle or fat."""
    if fascia > FASCIA_HALF_THICKNESS:
        return SUBCUTANEOUS_FAT, min(near, fascia - FASCIA_HALF_THICKNESS)
    if fascia > -FASCIA_HALF_THICKNESS:
        return FASCIA, min(near, FASCIA_HALF_THICKNESS - abs(fascia))
    near = min(near, -fascia - FASCIA_HALF_THICKNESS)
    muscle = max(first, SEAM - 0.5 * (second - first))
    if muscle < 0.0:
        return MUSCLE, min(near, -muscle)
    return DEEP_FAT, min(near, muscle)
