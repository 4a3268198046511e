"""A real knee's label map painted by the phantom's signal model and receiver, on the grids of a phantom study.

The atlas says what is bone, cartilage, meniscus, ligament, muscle or vessel. What it leaves open is filled in: the
outer millimetre of a bone is cortex, a film of fluid one voxel thick lies on cartilage, fat fills the rest to a skin
some millimetres outside of everything that has a name.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from orthokernels.data.phantom.nrrd import read_nrrd
from orthokernels.data.phantom.parts import Part, label_of_part
from orthokernels.data.phantom.protocol import KNEE, TIMINGS
from orthokernels.data.phantom.sampling import texture_of_parts
from orthokernels.data.phantom.signal import signal_of_parts
from orthokernels.data.phantom.study import PhantomStudy, PlannedSeries, Side, acquire, plan_series
from orthokernels.errors import InputError

_NAMES_LIMIT = 1 << 20

# Where a voxel is sampled, as shares of its size from its centre: evenly through the slice, scattered in the pixel.
_POINTS = np.array(
    [[(0.755 * n) % 1.0 - 0.5, (0.570 * n) % 1.0 - 0.5, (n + 0.5) / 7 - 0.5] for n in range(7)], np.float32
)

# Names of the SPL/NAC Knee Atlas that do not end in what they are.
_NAMED = {
    "infrapatellar_fat_body": Part.HOFFA_FAT,
    "anterior_cruciate_ligament": Part.ACL,
    "posterior_cruciate_ligament": Part.PCL,
    "patellar_ligament": Part.TENDON,
    "iliotibial_tract": Part.TENDON,
    "lateral_meniscus": Part.LATERAL_MENISCUS,
    "medial_meniscus": Part.MEDIAL_MENISCUS,
    "femoral_cartilage": Part.FEMORAL_CARTILAGE,
    "lateral_tibial_cartilage": Part.TIBIAL_CARTILAGE,
    "medial_tibial_cartilage": Part.TIBIAL_CARTILAGE,
    "patellar_cartilage": Part.PATELLAR_CARTILAGE,
    "femur": Part.FEMUR_MARROW,
    "tibia": Part.TIBIA_MARROW,
    "fibula": Part.FIBULA_MARROW,
    "patella": Part.PATELLA_MARROW,
}
_ENDINGS = {
    "muscle": Part.MUSCLE, "tendon": Part.TENDON, "ligament": Part.LIGAMENT, "nerve": Part.NERVE,
    "artery": Part.ARTERY, "vein": Part.VEIN,
}  # fmt: skip
_CORTEX_OF = {
    Part.FEMUR_MARROW: Part.FEMUR_CORTEX,
    Part.TIBIA_MARROW: Part.TIBIA_CORTEX,
    Part.FIBULA_MARROW: Part.FIBULA_CORTEX,
    Part.PATELLA_MARROW: Part.PATELLA_CORTEX,
}
_CORTEX_MM, _FAT_MM, _SKIN_MM = 1.1, 8.0, 1.4


class Atlas(NamedTuple):
    """A real knee as parts.

    Attributes:
        parts: (i, j, k) uint8, values of ``Part``.
        from_knee: (4, 4) float64, the knee's frame (x lateral, y anterior, z superior, origin on the tibial plateau)
            to indices.
        side: which knee it is.
    """

    parts: np.ndarray
    from_knee: np.ndarray
    side: Side


def read_atlas(labels: str | Path, names: str | Path) -> Atlas:
    """The SPL/NAC Knee Atlas, or a label map with the same names.

    Args:
        labels: the label map in NRRD.
        names: its colour table: lines of value, name and colour.

    Raises:
        InputError: a file can't be read, or the bones and cartilages that place the knee are not among the labels.
    """
    values, affine = read_nrrd(labels)
    table = _table(names)
    step = np.maximum(np.rint(0.5 / np.linalg.norm(affine[:3, :3], axis=0)), 1).astype(int)  # half a mm is fine enough
    values = values[:: step[0], :: step[1], :: step[2]]
    affine = affine @ np.diag([*step, 1.0])
    known = np.zeros(int(max(values.max(), max(table, default=0))) + 1, np.uint8)
    for value, part in table.items():
        known[value] = part
    parts = np.where(values >= 0, known[np.maximum(values, 0)], 0).astype(np.uint8)
    for needed in (Part.TIBIA_MARROW, Part.FIBULA_MARROW, Part.TIBIAL_CARTILAGE):
        if not (parts == needed).any():
            raise InputError(f"{labels}: has no {needed.name.lower()}, which places the knee. Give a knee's label map.")
    plateau, tibia, fibula = (
        affine[:3, :3] @ np.argwhere(parts == part).mean(axis=0) + affine[:3, 3]
        for part in (Part.TIBIAL_CARTILAGE, Part.TIBIA_MARROW, Part.FIBULA_MARROW)
    )
    side: Side = "right" if fibula[0] > tibia[0] else "left"
    to_ras = np.diag([1.0 if side == "right" else -1.0, 1.0, 1.0, 1.0])
    to_ras[:3, 3] = plateau
    return Atlas(_filled(parts, np.linalg.norm(affine[:3, :3], axis=0)), np.linalg.inv(affine) @ to_ras, side)


def paint_study(atlas: Atlas, seed: int = 0, *, matrix: int = 256, contrast: str = "pd_fs") -> PhantomStudy:
    """The atlas's knee examined as ``make_study`` examines a drawn one: findings are unknown, and so left out.

    Args:
        atlas: what ``read_atlas`` gave.
        seed: draws pose, planning, protocol, grain and noise.
        matrix: pixels along each side of a slice.
        contrast: as ``make_study``.

    Raises:
        InputError: there is no such contrast.
    """
    if contrast not in TIMINGS:
        raise InputError(f"there is no contrast {contrast!r}; choose from {', '.join(TIMINGS)}.")
    grain = _grain(atlas.parts, np.random.default_rng((seed, 1)))
    planned = plan_series(seed, KNEE, atlas.side, contrast, matrix)
    series = tuple(acquire(*_sampled(atlas, grain, each), each) for each in planned)
    return PhantomStudy(seed, "knee", atlas.side, contrast, {}, series, anatomy="atlas")


def _table(path: str | Path) -> dict[int, Part]:
    """The part that each value of a colour table stands for; names that say nothing are left out."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(_NAMES_LIMIT).decode("utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}). Check the path.") from error
    table = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or not words[0].isdigit() or int(words[0]) > 0x7FFF:
            continue
        part = _NAMED.get(words[1], _ENDINGS.get(words[1].rsplit("_", 1)[-1]))
        if part is not None:
            table[int(words[0])] = part
    return table


def _filled(parts: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Parts with cortex, fluid, fat, skin and air where the atlas is silent; ``size`` is a voxel's, in mm."""
    filled = parts.copy()
    for marrow, cortex in _CORTEX_OF.items():
        for box in ndimage.find_objects((parts == marrow).astype(np.uint8)):
            bone = np.pad(parts[box] == marrow, ((1, 1), (1, 1), (0, 0)))  # it goes on above and below the atlas
            depth = ndimage.distance_transform_edt(np.pad(bone, ((0, 0), (0, 0), (4, 4)), mode="edge"), size)
            depth = depth[1:-1, 1:-1, 4:-4]
            filled[box][(depth > 0.0) & (depth < _CORTEX_MM)] = cortex
    silent = parts == Part.AIR
    depth = _depth((parts != Part.AIR) & (parts != Part.VEIN), size)
    filled[silent & (depth > 0.0)] = Part.SKIN
    filled[silent & (depth > _SKIN_MM)] = Part.SUBCUTANEOUS_FAT
    filled[silent & (depth > _FAT_MM + _SKIN_MM)] = Part.DEEP_FAT
    cartilage = np.isin(parts, [Part.FEMORAL_CARTILAGE, Part.TIBIAL_CARTILAGE, Part.PATELLAR_CARTILAGE])
    filled[silent & ndimage.binary_dilation(cartilage)] = Part.FLUID
    return filled


def _depth(named: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Depth below the skin in mm, (i, j, k) float32, negative in air.

    In each slice the leg is the convex hull of what has a name, and _FAT_MM more: a line for each of 48 directions,
    moved smoothly from slice to slice.
    """
    x, y = (np.arange(n, dtype=np.float32) * np.float32(s) for n, s in zip(named.shape[:2], size[:2], strict=True))
    depth = np.full(named.shape, np.inf, np.float32)
    for angle in np.arange(48) * (2.0 * np.pi / 48):
        along = np.float32(np.cos(angle)) * x[:, None] + np.float32(np.sin(angle)) * y
        reach = np.where(named, along[:, :, None], -np.inf).max(axis=(0, 1))
        reach[np.isinf(reach)] = reach[np.isfinite(reach)].mean()
        reach = ndimage.gaussian_filter1d(reach, 4.0 / size[2]) + np.float32(_FAT_MM + _SKIN_MM)
        np.minimum(depth, reach - along[:, :, None], out=depth)
    return depth


def _grain(parts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What each voxel's signal is multiplied by, (i, j, k) float32: noise of about 2 mm, as strong as its part has."""
    noise = ndimage.gaussian_filter(rng.standard_normal(parts.shape, dtype=np.float32), (2.0, 2.0, 1.0))
    noise /= noise.std()
    strength = np.minimum(texture_of_parts()[:, 0], 0.12).astype(np.float32)  # fat's is meant for its septa
    return np.maximum(1.0 + strength[parts] * noise, np.float32(0.2))


def _sampled(atlas: Atlas, grain: np.ndarray, planned: PlannedSeries) -> tuple[np.ndarray, np.ndarray]:
    """The atlas on a series' grid, as ``study.sample``: the mean signal and the commonest label of a voxel's points."""
    signal_of, label_of = signal_of_parts(planned.protocol.contrast), label_of_part()
    to_atlas = (atlas.from_knee @ planned.to_joint).astype(np.float32)
    thickness = planned.protocol.thickness / planned.protocol.spacing
    i, j, k = (np.arange(n, dtype=np.float32) for n in planned.shape)
    signal = np.zeros(planned.shape, np.float32)
    votes = np.zeros((int(label_of.max()) + 1, *planned.shape), np.uint8)
    for di, dj, dk in _POINTS:
        places = []
        inside = np.ones(planned.shape, bool)
        for axis, n in enumerate(atlas.parts.shape):
            a, b, c, d = to_atlas[axis]
            at = (a * (i + di))[:, None, None] + (b * (j + dj))[:, None] + (c * (k + thickness * dk) + d)
            place = np.rint(at).astype(np.int32)
            inside &= (place >= 0) & (place < n)
            places.append(np.clip(place, 0, n - 1))
        found = tuple(places)
        parts = np.where(inside, atlas.parts[found], np.uint8(Part.AIR))
        signal += signal_of[parts] * np.where(inside, grain[found], np.float32(1.0)) / np.float32(len(_POINTS))
        labels = label_of[parts]
        for label in range(len(votes)):
            votes[label] += labels == label
    return signal, votes.argmax(axis=0).astype(np.uint8)
