"""Studies as the networks see them: to calibrate with, and to judge by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orthokernels.data.phantom.dataset import Recipe, write_studies
from orthokernels.data.phantom.study import REVISION
from orthokernels.data.prepare import SLAB, Mode, Prepared, prepare, prepare_labels
from orthokernels.data.study import read_study
from orthokernels.models.study_model import Array
from orthokernels.training.records import read_records
from orthokernels.training.series import Record, load_labels, load_volume

# Seeds of phantoms that no training, test or demonstration has seen.
CALIBRATION_SEED, VALIDATION_SEED = 4_000_000, 5_000_000


@dataclass(frozen=True)
class SeriesExample:
    """A prepared series.

    Attributes:
        slabs: [slabs, 16, size, size], in [-1, 1].
        starts: the slice at which each slab begins, which chooses its noise.
        labels: of the slabs' voxels, int8, -1 where nobody labelled; None where there are none.
    """

    study: str
    plane: str
    slabs: Array
    starts: tuple[int, ...]
    labels: np.ndarray | None = None


def phantom_records(folder: Path, joint: str, size: int, seeds: Sequence[int], *, workers: int = 1) -> list[Record]:
    """Series of phantom studies, made where they are missing; those of each revision in a folder of their own."""
    own = folder / f"{joint}.{REVISION}"
    write_studies(own, seeds, Recipe(joint=joint, matrix=size, nifti=True), workers=workers)
    wanted = {f"study_{seed:05d}" for seed in seeds}
    return [record for record in read_records(own, joint) if record.study in wanted]


def examples_of_records(records: Iterable[Record], size: int, mode: Mode) -> Iterator[SeriesExample]:
    """Prepared series of a data set one by one, with their labels where they have some.

    Raises:
        InputError: a series can not be read or prepared.
    """
    for record in records:
        volume = load_volume(record)
        labels = load_labels(record, volume) if record.labelled else None
        yield _example(record.study, record.plane, prepare(volume, mode, size), labels)


def examples_of_studies(folders: Iterable[Path], size: int, mode: Mode) -> list[SeriesExample]:
    """The volumes that ``run`` would choose from someone's own studies, DICOM or NIfTI, one folder each.

    Raises:
        InputError: a folder holds no usable study.
    """
    found = []
    for folder in folders:
        study = read_study([folder])
        for plane in study.stacks:
            if (volume := study.load(plane)) is not None:
                found.append(_example(str(folder), plane, prepare(volume, mode, size), None))
    return found


def _example(study: str, plane: str, prepared: Prepared, labels: np.ndarray | None) -> SeriesExample:
    starts = prepared.way_back.starts
    slabs = np.stack([prepared.slab(number)[0] for number in range(len(starts))])
    if labels is not None:
        whole = prepare_labels(labels, prepared.way_back)
        labels = np.stack([whole[start : start + SLAB] for start in starts])
    return SeriesExample(study, plane, slabs, starts, labels)
