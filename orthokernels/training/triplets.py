"""Every combination of a study's series, one per plane: what fusion is trained and tested on.

A study with two sagittal series, one coronal and three axial ones gives six triplets, each with weight 1/6, so that
every study counts the same. At test time a study's probability is the mean over its triplets.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from orthokernels.tasks import PLANES


class Series(Protocol):
    """What a triplet needs to know of a series; a ``Record`` knows it."""

    @property
    def study(self) -> str: ...
    @property
    def patient(self) -> str: ...
    @property
    def findings(self) -> tuple[float, ...] | None: ...


@dataclass(frozen=True)
class Triplets:
    """One combination per row; studies in the order of their names.

    Attributes:
        rows: [triplets, planes], which series of each plane's list.
        study: [triplets], index into ``studies``.
        weight: [triplets], float32, 1 over the number of the study's triplets.
        truth: [studies, labels], float32, NaN where unknown.
        studies, patients: per study.
    """

    rows: np.ndarray
    study: np.ndarray
    weight: np.ndarray
    truth: np.ndarray
    studies: tuple[str, ...]
    patients: tuple[str, ...]

    def mean_per_study(self, values: np.ndarray) -> np.ndarray:
        """Mean over each study's triplets: [triplets, ...] -> [studies, ...]."""
        total = np.zeros((len(self.studies), *values.shape[1:]), np.float64)
        np.add.at(total, self.study, values * self.weight.reshape(-1, *([1] * (values.ndim - 1))))
        return total

    def told(self) -> tuple[np.ndarray, np.ndarray]:
        """Which studies and which labels can be scored, bool [studies] and [labels].

        Labels that some study knows (a data set need not have every one), and studies that know all of those.
        """
        known = np.isfinite(self.truth)
        labels = known.any(axis=0)
        return known[:, labels].all(axis=1) & labels.any(), labels


def triplets(series: Mapping[str, Sequence[Series]], planes: Sequence[str] = PLANES) -> Triplets:
    """The triplets of all studies that have a series with findings in every one of ``planes``.

    A study whose series disagree about the findings is left out, as in the published code. With a single plane the
    "triplets" are the study's series.
    """
    by_study: dict[str, dict[str, list[int]]] = {}
    for plane in planes:
        for row, own in enumerate(series.get(plane, ())):
            if own.findings is not None:
                by_study.setdefault(own.study, {}).setdefault(plane, []).append(row)
    rows: list[tuple[int, ...]] = []
    study: list[int] = []
    weight: list[float] = []
    kept: list[Series] = []
    for name in sorted(by_study):
        found = by_study[name]
        members = [series[plane][row] for plane in found for row in found[plane]]
        if len(found) < len(planes) or not all(_agree(own, members[0]) for own in members):
            continue
        combinations = list(itertools.product(*(found[plane] for plane in planes)))
        rows += combinations
        study += [len(kept)] * len(combinations)
        weight += [1 / len(combinations)] * len(combinations)
        kept.append(members[0])
    return Triplets(
        rows=np.array(rows, np.intp).reshape(-1, len(planes)),
        study=np.array(study, np.intp),
        weight=np.array(weight, np.float32),
        truth=np.array([own.findings for own in kept], np.float32).reshape(len(kept), -1 if kept else 0),
        studies=tuple(own.study for own in kept),
        patients=tuple(own.patient for own in kept),
    )


def _agree(a: Series, b: Series) -> bool:
    return np.array_equal(np.asarray(a.findings, float), np.asarray(b.findings, float), equal_nan=True)
