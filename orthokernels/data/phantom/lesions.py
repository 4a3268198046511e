"""What injury does to a tendon or a ligament: stretches of it swell, brighten, part or are gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from orthokernels.data.phantom import scene
from orthokernels.data.phantom.parts import Part
from orthokernels.data.phantom.solids import Blueprint, Point, Solid, around_points, ellipsoid, near


def length_of(band: Solid) -> float:
    """Length of a cord or a strap along its points, in mm."""
    return float(np.linalg.norm(np.diff(band.numbers[:, :3], axis=0), axis=1).sum())


def at_share(band: Solid, share: float) -> np.ndarray:
    """The numbers of a cord (4,) or a strap (8,) at a share of its length."""
    points = band.numbers
    steps = np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    return np.array([np.interp(share, along, points[:, n]) for n in range(points.shape[1])])


def stretch(band: Solid, start: float, end: float) -> Solid:
    """The part of a cord or a strap between two shares of its length, in about even steps."""
    rows = np.array([at_share(band, s) for s in np.linspace(start, end, max(2, len(band.numbers)))])
    return replace(band, numbers=rows, corners=around_points(rows))


def swollen(band: Solid, times: float | Callable[[np.ndarray], np.ndarray]) -> Solid:
    """A cord or a strap ``times`` as thick; a function gives it by the share of the length, 0 to 1."""
    numbers = band.numbers.copy()
    shares = np.linspace(0.0, 1.0, len(numbers))
    factor = times(shares) if callable(times) else np.full(len(numbers), times)
    if band.shape == scene.STRAP:
        numbers[:, 4] *= factor
        numbers[:, 3] = np.maximum(numbers[:, 3], 1.3 * numbers[:, 4])
    else:
        numbers[:, 3] *= factor
    return replace(band, numbers=numbers, corners=around_points(numbers))


def finer(band: Solid, count: int) -> Solid:
    """The same band by ``count`` points, so that a bulge between two of its own shows."""
    rows = np.array([at_share(band, s) for s in np.linspace(0.0, 1.0, count)])
    return replace(band, numbers=rows)


def narrowed(band: Solid, width: float, thickness: float) -> Solid:
    """The core of a strap: its half-width and half-thickness times these shares."""
    numbers = band.numbers * np.array([1, 1, 1, width, thickness, 1, 1, 1])
    return replace(band, numbers=numbers, corners=around_points(numbers))


def patch(centre: Point, half: Point, rng: np.random.Generator) -> list[Solid]:
    """Four ellipsoids that run together to an uneven patch of about the half-axes ``half``."""
    blobs = []
    for _ in range(4):
        x, y, z = (c + h * float(rng.uniform(-0.7, 0.7)) for c, h in zip(centre, half, strict=True))
        a, b, c = (h * float(rng.uniform(0.45, 0.85)) for h in half)
        blobs.append(ellipsoid((x, y, z), (a, b, c), z=float(rng.uniform(-30.0, 30.0))).united(3.0))
    return blobs


def bulge(middle: float, half: float, most: float) -> Callable[[np.ndarray], np.ndarray]:
    """A thickness that grows smoothly from 1 to ``most`` around a share of the length."""
    return lambda shares: 1.0 + (most - 1.0) * np.exp(-(((shares - middle) / half) ** 2))


def wavy(band: Solid, mm: float, rng: np.random.Generator) -> Solid:
    """A slack band: its inner points moved by up to ``mm``."""
    numbers = band.numbers.copy()
    numbers[1:-1, :3] += rng.uniform(-mm, mm, (len(numbers) - 2, 3))
    return replace(band, numbers=numbers, corners=around_points(numbers))


def part_in_two(
    blueprint: Blueprint, name: str, gap: tuple[float, float], thickness: float, frayed: float, rng: np.random.Generator
) -> None:
    """Tear a band of one row: two swollen stumps, bright over the share ``frayed`` of their length next to the gap."""
    (band,) = blueprint.groups[name].rows
    start, end = gap
    stumps = [wavy(stretch(band, 0.0, start), 0.8, rng), wavy(stretch(band, end, 1.0), 0.8, rng)]
    stumps = [swollen(s, lambda t: 1.0 + (thickness - 1.0) * t) for s in stumps[:1]] + [
        swollen(s, lambda t: 1.0 + (thickness - 1.0) * (1.0 - t)) for s in stumps[1:]
    ]
    torn = [stretch(stumps[0], 1.0 - frayed, 1.0), stretch(stumps[1], 0.0, frayed)]
    blueprint.add(f"{name} torn ends", Part.TORN_FIBRES, *(t.united(0.05) for t in torn), before=name)
    blueprint.change(name, lambda _: stumps)


def oriented(centre: np.ndarray, half: Point, along: np.ndarray, across: np.ndarray) -> Solid:
    """An ellipsoid with its first half-axis along one direction (3,) and its second nearly along another (3,)."""
    first = along / np.linalg.norm(along)
    second = across - (across @ first) * first
    second /= np.linalg.norm(second)
    solid = ellipsoid((float(centre[0]), float(centre[1]), float(centre[2])), half)
    return replace(solid, turn=np.array([first, second, np.cross(first, second)]))


def shell(group: str, low: float, high: float) -> tuple[Solid, Solid]:
    """What lies between ``low`` and ``high`` mm from a group."""
    return near(group, high), near(group, low).removed(0.2)
