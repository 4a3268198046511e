"""How unlike the known a study is: distance to its nearest neighbours among known feature vectors, after PCA.

A vector holds numbers of very different sizes (maxima of maps, percentiles, logarithms of volumes): each is first
brought to a mean of 0 and a deviation of 1 over the known vectors.

Half of the known vectors are neighbours and make the principal components; the distances of the other half to them say
what is usual. A score is the share of these that are smaller, so of new studies like the known ones q percent score
below q. What the components do not explain of a vector counts as distance too, or the strangest would look common.
Nearest neighbours after PCA were the better of the methods compared for networks that segment in MELBA 2024:020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 5
VARIANCE_KEPT = 0.95
NAMES = ("mean", "scale", "components", "known", "distances")
LEAST_VECTORS = 40  # half of them calibrate, and a percentile from fewer than 20 says nothing


@dataclass(frozen=True)
class Novelty:
    """What is known, in the coordinates of its principal components.

    Attributes:
        mean, scale: (width,) float64, of the neighbours; a number that never changed has a scale of 1.
        components: (kept, width) float64, orthonormal rows.
        known: (neighbours, kept) float64, coordinates of the vectors that are neighbours.
        distances: (others,) float64, ascending: how far the other known vectors lie from these.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    components: NDArray[np.float64]
    known: NDArray[np.float64]
    distances: NDArray[np.float64]

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """To be stored, by name."""
        return {name: getattr(self, name) for name in NAMES}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.float64]]) -> Novelty:
        """From what ``arrays`` gave.

        Raises:
            ValueError: arrays are missing, not finite, or do not fit together.
        """
        missing = [name for name in NAMES if name not in arrays]
        if missing:
            raise ValueError(f"no array {missing[0]!r} among those of the known vectors")
        made = cls(*(np.asarray(arrays[name], np.float64) for name in NAMES))
        if made.components.ndim != 2:
            raise ValueError("the arrays of the known vectors do not fit together, or are not finite")
        kept, width = made.components.shape
        fits = made.mean.shape == made.scale.shape == (width,) and bool((made.scale > 0).all())
        fits = fits and made.known.shape[1:] == (kept,) and len(made.known) >= NEIGHBOURS
        fits = fits and made.distances.ndim == 1 and len(made.distances) > 0
        if not fits or not all(np.isfinite(array).all() for array in made.arrays().values()):
            raise ValueError("the arrays of the known vectors do not fit together, or are not finite")
        return made

    def score(self, vector: NDArray[np.floating]) -> float:
        """The share, 0 to 100, of known vectors that lie nearer to their neighbours than this one does.

        Args:
            vector: (width,), made as the known ones were.
        """
        distance = self.distance(vector)
        return 100.0 * float(np.searchsorted(self.distances, distance, side="left")) / len(self.distances)

    def times_farthest(self, vector: NDArray[np.floating]) -> float:
        """How many times as far it lies as the farthest known vector."""
        return self.distance(vector) / max(float(self.distances[-1]), 1e-12)

    def distance(self, vector: NDArray[np.floating]) -> float:
        """Mean distance to the nearest neighbours, each in the space of the components."""
        centred = (np.asarray(vector, np.float64) - self.mean) / self.scale
        coordinates = self.components @ centred
        unexplained = centred - self.components.T @ coordinates
        squared = ((self.known - coordinates) ** 2).sum(axis=1) + unexplained @ unexplained
        return float(np.sqrt(np.partition(squared, NEIGHBOURS - 1)[:NEIGHBOURS]).mean())


def fit(vectors: NDArray[np.floating]) -> Novelty:
    """Know vectors: every second one becomes a neighbour, the others calibrate.

    Args:
        vectors: (vectors, width), one per known study of a plane, in no order that matters.

    Raises:
        ValueError: there are fewer than 40, they are not finite, or all alike.
    """
    known = np.asarray(vectors, np.float64)
    if known.ndim != 2 or len(known) < LEAST_VECTORS:
        raise ValueError(f"at least {LEAST_VECTORS} vectors are needed, not {len(known)}")
    if not np.isfinite(known).all():
        raise ValueError("a known vector is not finite")
    neighbours, others = known[::2], known[1::2]
    mean, deviation = neighbours.mean(axis=0), neighbours.std(axis=0)
    still = deviation <= 1e-9 * np.abs(mean)  # but for rounding
    if still.all():
        raise ValueError("all known vectors are alike")
    scale = np.where(still, 1.0, deviation)
    standard = (neighbours - mean) / scale
    _, scales, directions = np.linalg.svd(standard, full_matrices=False)
    explained = np.cumsum(scales**2) / (scales**2).sum()
    components = directions[: int(np.searchsorted(explained, VARIANCE_KEPT)) + 1]
    uncalibrated = Novelty(mean, scale, components, standard @ components.T, np.empty(0))
    return replace(uncalibrated, distances=np.sort([uncalibrated.distance(vector) for vector in others]))
