"""Solids in numbers, and how groups of them are packed into the table that ``scene`` reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from orthokernels.data.phantom import scene
from orthokernels.data.phantom.distance import TABLE_ROWS, TABLE_START, TABLE_STEP
from orthokernels.data.phantom.parts import Part

Point = tuple[float, float, float]
Place = Callable[[np.ndarray], np.ndarray]

_TABLE_END = TABLE_START + (TABLE_ROWS - 2) * TABLE_STEP
_EVERYWHERE = np.array([[-1e3] * 3, [1e3] * 3])


class Scene(NamedTuple):
    """One joint in numbers.

    Attributes:
        packed: (numbers,) float64, what ``scene.part_at`` reads.
        components: the length of ``active``: a flag for each group and for each run of groups.
        texture: (32, 32, 32) float32 periodic noise of mean 0 and standard deviation 1.
        names: the groups' names in their order.
    """

    packed: np.ndarray
    components: int
    texture: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Solid:
    """One row of a group: a shape, and how it joins the rows before it.

    Attributes:
        shape: one of ``scene``'s shapes.
        numbers: what ``distance`` reads for a cord, (n, 4), or a strap, (n, 8); the sizes of the others.
        origin, turn: (3,) and (3, 3), the frame of an ellipsoid, a column or a box: local = turn @ (point - origin).
        corners: (2, 3) the box around the shape in its own frame, or around a cord's points.
        roundness: a cord's blend, or a column's squareness.
        group: the name of the group that stands here as a shape.
    """

    shape: int
    numbers: np.ndarray
    corners: np.ndarray
    origin: np.ndarray | None = None
    turn: np.ndarray | None = None
    roundness: float = 0.5
    group: str = ""
    operation: int = scene.UNION
    blend: float = 1.0
    offset: float = 0.0

    def united(self, blend: float) -> Solid:
        """The row joined with its crease filled over ``blend`` mm."""
        return replace(self, blend=blend)

    def removed(self, blend: float = 1.0) -> Solid:
        """The row taken away from what stands before it."""
        return replace(self, operation=scene.MINUS, blend=blend)

    def limiting(self, blend: float = 1.0) -> Solid:
        """The row outside which nothing of what stands before it remains."""
        return replace(self, operation=scene.WITHIN, blend=blend)

    def grown(self, mm: float) -> Solid:
        """The solid within ``mm`` of this one; less of it where negative."""
        return replace(self, offset=self.offset - mm)

    def moved(self, turn: np.ndarray, pivot: np.ndarray) -> Solid:
        """The solid turned by ``turn`` (3, 3) about ``pivot`` (3,)."""
        if self.shape == scene.GROUP:
            return self
        if self.origin is not None and self.turn is not None:
            return replace(self, origin=pivot + turn @ (self.origin - pivot), turn=self.turn @ turn.T)
        numbers = self.numbers.copy()
        numbers[:, :3] = (numbers[:, :3] - pivot) @ turn.T + pivot
        if self.shape == scene.STRAP:
            numbers[:, 5:] = numbers[:, 5:] @ turn.T
        return replace(self, numbers=numbers, corners=around_points(numbers))

    def placed(self, place: Place) -> Solid:
        """A cord or a strap whose points (n, 3) go where ``place`` says."""
        numbers = self.numbers.copy()
        numbers[:, :3] = place(numbers[:, :3])
        return replace(self, numbers=numbers, corners=around_points(numbers))

    def box(self) -> np.ndarray:
        """The box around the solid in the scene's frame, (2, 3): lowest x, y and z, and highest."""
        if self.origin is None or self.turn is None:
            return self.corners + np.array([[self.offset], [-self.offset]])
        middle, half = self.corners.mean(axis=0), np.ptp(self.corners, axis=0) / 2.0
        centre = self.origin + self.turn.T @ middle
        reach = np.abs(self.turn.T) @ half
        if self.shape == scene.ELLIPSOID:
            reach = np.sqrt((self.turn.T**2) @ (half**2))
        return np.array([centre - reach + self.offset, centre + reach - self.offset])


def around_points(numbers: np.ndarray) -> np.ndarray:
    """The box (2, 3) around a cord's (n, 4) or a strap's (n, 8) points with their radii or half-widths."""
    reach = numbers[:, 3:4]
    return np.array([(numbers[:, :3] - reach).min(axis=0), (numbers[:, :3] + reach).max(axis=0)])


def turn_of(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    """The rotation by degrees about x, then y, then z, (3, 3)."""
    (cx, cy, cz), (sx, sy, sz) = (f(np.radians([x, y, z])) for f in (np.cos, np.sin))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def ellipsoid(centre: Point, half: Point, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Solid:
    """An ellipsoid with half-axes ``half``, turned by degrees about x, y and z."""
    axes = np.array(half, float)
    numbers = np.concatenate([np.zeros(3), axes])
    return Solid(scene.ELLIPSOID, numbers, np.array([-axes, axes]), np.array(centre, float), turn_of(x, y, z).T)


def block(centre: Point, half: Point, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Solid:
    """A box with half-sides ``half``, turned by degrees about x, y and z."""
    sides = np.array(half, float)
    corners = np.array([-sides, sides])
    return Solid(scene.BOX, corners.ravel(), corners, np.array(centre, float), turn_of(x, y, z).T)


def cord(*points: tuple[float, ...], blend: float = 0.5) -> Solid:
    """A chain of round cones through points x, y, z with a radius."""
    numbers = np.array(points, float)
    return Solid(scene.CORD, numbers, around_points(numbers), roundness=blend)


def strap(*points: tuple[float, ...], across: Point) -> Solid:
    """A band through points x, y, z with half its width and half its thickness; ``across`` is along its width."""
    direction = np.array(across, float) / math.sqrt(sum(a * a for a in across))
    numbers = np.column_stack([np.array(points, float), np.tile(direction, (len(points), 1))])
    return Solid(scene.STRAP, numbers, around_points(numbers))


def column(
    *levels: tuple[float, ...], square: float = 0.2, turn: np.ndarray | None = None, origin: Point = (0.0, 0.0, 0.0)
) -> Solid:
    """A solid by its outlines: height, centre and half-axes across, both across; heights run along ``turn``'s z."""
    table = np.array(sorted(levels), float)
    heights = TABLE_START + TABLE_STEP * np.arange(TABLE_ROWS)
    rows = np.stack([np.interp(heights, table[:, 0], table[:, n]) for n in range(1, 5)], axis=1)
    window = np.hanning(7)[1:-1] / np.hanning(7).sum()
    padded = np.pad(rows, ((2, 2), (0, 0)), mode="edge")
    rows = np.stack([np.convolve(padded[:, n], window, "valid") for n in range(4)], axis=1)
    low, high = max(table[0, 0], TABLE_START), min(table[-1, 0], _TABLE_END)
    inside = rows[(heights >= low - TABLE_STEP) & (heights <= high + TABLE_STEP)]
    corners = np.array([
        [*(inside[:, :2] - inside[:, 2:]).min(axis=0), low], [*(inside[:, :2] + inside[:, 2:]).max(axis=0), high]
    ])  # fmt: skip
    rows = np.column_stack([rows, np.ones(TABLE_ROWS), np.zeros(TABLE_ROWS)])
    numbers = np.concatenate([[low, high], rows.ravel()])
    frame = np.eye(3) if turn is None else turn
    return Solid(scene.COLUMN, numbers, corners, np.array(origin, float), frame, roundness=square)


def near(group: str, mm: float = 0.0) -> Solid:
    """Everything within ``mm`` of another group."""
    return Solid(scene.GROUP, np.zeros(0), _EVERYWHERE, group=group, offset=-mm)


def jitter(rng: np.random.Generator, mm: float) -> tuple[float, float, float]:
    """A move of up to ``mm`` along each axis."""
    x, y, z = rng.uniform(-mm, mm, 3)
    return float(x), float(y), float(z)


def shifted(rng: np.random.Generator, mm: float, *points: tuple[float, ...]) -> list[tuple[float, ...]]:
    """Points (x, y, z, sizes ...) moved together by up to ``mm``, and their sizes by up to 8 %."""
    move = jitter(rng, mm)
    times = rng.uniform(0.92, 1.08)
    return [(p[0] + move[0], p[1] + move[1], p[2] + move[2], *(times * v for v in p[3:])) for p in points]


@dataclass(frozen=True)
class Group:
    """Solids that make one part; ``inner`` is the part from ``depth`` mm below their surface inwards."""

    kind: int
    part: Part
    rows: tuple[Solid, ...]
    inner: Part = Part.AIR
    depth: float = 0.0


def _cheapest_first(rows: tuple[Solid, ...]) -> tuple[Solid, ...]:
    """The same intersection with other groups last, so that most points are told apart before those are asked."""
    first, *others = rows
    if first.shape != scene.GROUP or any(row.operation == scene.UNION for row in others):
        return rows
    cheap = [row for row in others if row.shape != scene.GROUP and row.operation == scene.WITHIN]
    if not cheap:
        return rows
    rest = [row for row in others if row is not cheap[0]]
    return replace(cheap[0], operation=scene.UNION), first.limiting(cheap[0].blend), *rest


@dataclass
class Blueprint:
    """A scene in the making: named groups, those that win first. Dictionaries keep the order."""

    groups: dict[str, Group] = field(default_factory=dict)

    def add(self, name: str, part: Part, *rows: Solid, before: str | None = None) -> None:
        """A group of one part, last or before another."""
        self._put(name, Group(scene.SOLID, part, rows, inner=part), before)

    def bone(self, name: str, *rows: Solid, cortex: float, before: str | None = None) -> None:
        """A group of cortex around marrow."""
        self._put(name, Group(scene.LAYERED, Part.BONE_CORTEX, rows, Part.BONE_MARROW, cortex), before)

    def muscle(self, name: str, *rows: Solid) -> None:
        """A muscle: only within the fascia, with a thin plane of fat towards the next."""
        self._put(name, Group(scene.MUSCLES, Part.MUSCLE, rows), None)

    def body(self, *rows: Solid) -> None:
        """The skin's surface."""
        self._put("body", Group(scene.BODY, Part.SKIN, rows), None)

    def envelope(self, *rows: Solid) -> None:
        """The fascia's surface, with subcutaneous fat between it and the skin."""
        self._put("fascia", Group(scene.ENVELOPE, Part.FASCIA, rows), None)

    def change(self, name: str, change: Callable[[tuple[Solid, ...]], Iterable[Solid]]) -> None:
        """Give a group other rows, made from its own."""
        group = self.groups[name]
        self.groups[name] = replace(group, rows=tuple(change(group.rows)))

    def _put(self, name: str, group: Group, before: str | None) -> None:
        if name in self.groups or (before is not None and before not in self.groups):
            raise KeyError(f"{name!r} is there already, or {before!r} is not")
        items = list(self.groups.items())
        at = len(items) if before is None else list(self.groups).index(before)
        items.insert(at, (name, group))
        self.groups = dict(items)

    def box(self, name: str) -> np.ndarray:
        """The box that holds a group, (2, 3): blends let a union swell by a quarter of their radius."""
        low, high = np.full(3, 1e3), np.full(3, -1e3)
        swell = 0.0
        for row in self.groups[name].rows:
            around = self._box_of(row)
            if row.operation == scene.UNION:
                low, high = np.minimum(low, around[0]), np.maximum(high, around[1])
                swell += 0.25 * (row.blend + (2.0 * row.roundness if row.shape == scene.CORD else 0.0))
            elif row.operation == scene.WITHIN:
                low, high = np.maximum(low, around[0]), np.minimum(high, around[1])
        return np.array([low - swell, high + swell])

    def depth(self, name: str) -> int:
        """How deep a group's rows go: 1 without other groups among them."""
        return 1 + max((self.depth(row.group) for row in self.groups[name].rows if row.group), default=0)

    def _box_of(self, row: Solid) -> np.ndarray:
        """The box around one row, (2, 3)."""
        if row.shape == scene.GROUP:
            return self.box(row.group) + np.array([[row.offset], [-row.offset]])
        return row.box()

    def packed(self, size: np.ndarray, waves: np.ndarray) -> np.ndarray:
        """The table that ``scene.part_at`` reads: ``size`` (3,), and ``waves`` (6, 5) with numbers in turns."""
        if too_deep := [name for name in self.groups if self.depth(name) > scene.DEPTH]:
            raise ValueError(f"{too_deep[0]} is made of groups made of groups, more than {scene.DEPTH} deep")
        places = {name: scene.HEAD + scene.GROUP_NUMBERS * n for n, name in enumerate(self.groups)}
        rows_at = scene.HEAD + scene.GROUP_NUMBERS * len(self.groups)
        at = rows_at + scene.ROW_NUMBERS * sum(len(g.rows) for g in self.groups.values())
        runs = -(-len(self.groups) // scene.RUN)
        table: list[float] = [len(self.groups) + runs, len(self.groups), *size, *waves.ravel()]
        rows: list[float] = []
        numbers: list[np.ndarray] = []
        for name, group in self.groups.items():
            corners = self.box(name).ravel()
            ordered = _cheapest_first(group.rows)
            last_union = max(n for n, row in enumerate(ordered) if n == 0 or row.operation == scene.UNION)
            table += [group.kind, group.part, group.inner, group.depth, rows_at + len(rows), len(group.rows), *corners]
            table.append(last_union)
            for row in ordered:
                values = row.numbers.ravel()
                if row.origin is not None and row.turn is not None:
                    values = np.concatenate([row.origin, row.turn.ravel(), values])
                start = places[row.group] if row.shape == scene.GROUP else at
                blend = max(row.blend, 0.05)
                rows += [row.operation, row.shape, start, len(row.numbers), blend, row.offset, row.roundness]
                rows += [*self._box_of(row).ravel()]
                numbers.append(values)
                at += len(values)
        return np.concatenate([np.array(table, float), np.array(rows, float), *numbers])

    def scene(self, rng: np.random.Generator) -> Scene:
        """The scene with its own size, gentle waves and grain, so that no surface is an ellipsoid to the eye."""
        size = rng.uniform(0.94, 1.06) * rng.uniform(0.97, 1.03, 3)
        waves = np.empty((6, 5))
        for row in waves:
            direction = rng.normal(size=3)
            row[0] = rng.uniform(0.3, 0.65)
            row[1:4] = direction / np.linalg.norm(direction) / rng.uniform(35.0, 70.0)
            row[4] = rng.uniform(0.0, 1.0)
        noise = rng.normal(size=(32, 32, 32))
        texture = (noise / noise.std()).astype(np.float32)
        packed = self.packed(size, waves)
        return Scene(packed, int(packed[scene.FLAGS]), texture, tuple(self.groups))
