"""A data set on disk to a list of records, and its split by patient.

The simple layout is a folder:

    DIR/studies.csv        study, patient, joint, side, a 0/1 column per label key of the joint; optional split
    DIR/<study>/sagittal.nii.gz, coronal.nii.gz, axial.nii.gz       and where there are more, sagittal_2.nii.gz, ...
    DIR/<study>/sagittal_labels.nii.gz, ...                         optional, on their image's grid

A study's folder may hold DICOM instead; its label maps then lie beside it, or under DIR/labels/<study>. A CSV file
instead of a folder is read as one of the published layouts (``published_layouts``).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from orthokernels.data.nifti import SUFFIXES
from orthokernels.data.study import STUDIES, read_study
from orthokernels.errors import InputError
from orthokernels.tasks import LABELS, PLANES
from orthokernels.training.series import Record

__all__ = ["Record", "read_records", "split_by_patient"]

SPLITS = ("train", "validate", "test")
_SPLIT_NAMES = {"train": "train", "validate": "validate", "valid": "validate", "val": "validate", "test": "test"}


def read_records(
    source: Path,
    joint: str = "knee",
    *,
    images: Path | None = None,
    masks: Path | None = None,
    plane: str | None = None,
    poses: Sequence[str] = ("axial", "sagittal", "coronal"),
    masks_mirrored: bool = False,
    split_file: Path | None = None,
    split: str | None = None,
) -> list[Record]:
    """Every series that a data set lists, whether or not its files are good (``check_records`` tells).

    Args:
        source: a folder with studies.csv, or a CSV of a published layout.
        joint: whose labels to read; studies of another joint are left out.
        images: folder that a published CSV's file names start from; by default the CSV's own.
        masks: the same for label pictures; by default ``images``.
        plane: of every series of a published CSV that has no column for it.
        poses: the planes that a published CSV's numbers 0, 1, 2 stand for. The publication does not say; this order
            is that of its gate weights' names.
        masks_mirrored: label pictures have left and right exchanged.
        split_file: a CSV with columns patient (or study) and split.
        split: of every record, for a CSV that is a whole split.

    Raises:
        InputError: the table is missing or has not the columns of any layout.
    """
    if joint not in LABELS:
        raise InputError(f"there is no joint {joint!r}; choose from {', '.join(LABELS)}.")
    source = Path(source)
    if source.is_dir():
        records = _simple(source, joint)
    else:
        from orthokernels.training.published_layouts import read_published

        records = read_published(source, joint, images, masks, plane, poses, masks_mirrored)
    if split is not None:
        records = [replace(record, split=split) for record in records]
    return _split_by_file(records, split_file, split is None) if split_file is not None else records


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by column, cells stripped.

    Raises:
        InputError: there is no such file, or it is not text with a header and rows.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            found = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: can't be read as a CSV table ({reason}). Give a folder with {STUDIES}.") from error
    if not found:
        raise InputError(f"{path}: lists nothing.")
    for line, row in found:
        if any(row.get(None) or ()):  # a comma in a name: every cell behind it would be read as another column's
            raise InputError(f"{path}, line {line}: has more cells than the header. Quote a cell that holds a comma.")
    return [{k.strip(): (v or "").strip() for k, v in row.items() if k is not None} for _, row in found]


def findings_of(row: Mapping[str, str], joint: str) -> tuple[float, ...] | None:
    """0, 1 or NaN for each label; another number, or -99 for what is no number, so that the check can name it."""
    keys = [label.key for label in LABELS[joint]]
    if not any(key in row for key in keys):
        return None
    return tuple(_number(row.get(key, "")) for key in keys)


def _number(cell: str) -> float:
    if cell == "":
        return float("nan")
    try:
        value = float(cell)
    except ValueError:
        return -99.0
    return value if np.isfinite(value) else (float("nan") if np.isnan(value) else -99.0)


def split_name(cell: str, where: str) -> str | None:
    if cell == "":
        return None
    if cell.lower() not in _SPLIT_NAMES:
        raise InputError(f"{where}: there is no split {cell!r}; use {', '.join(SPLITS)}.")
    return _SPLIT_NAMES[cell.lower()]


def _simple(folder: Path, joint: str) -> list[Record]:
    table = folder / STUDIES
    if not table.is_file():
        raise InputError(f"{folder}: has no {STUDIES}. Write one (columns study, patient, joint, then the labels).")
    rows = read_table(table)
    missing = {"study", "patient"} - rows[0].keys()
    if missing:
        raise InputError(f"{table}: has no column {' and no column '.join(sorted(missing))}.")
    _check_rows(rows, table)
    of_joint = [row for row in rows if row.get("joint", joint).lower() in ("", joint)]
    if not of_joint:
        raise InputError(f"{table}: lists no study of the {joint}.")
    records = []
    for row in of_joint:
        split = split_name(row.get("split", ""), f"{table}, study {row['study']}")
        for plane, image, labels in _series(folder, row["study"]):
            records.append(
                Record(row["study"], row["patient"], plane, image, labels, (), findings_of(row, joint), split)
            )
    return records


def _check_rows(rows: Sequence[Mapping[str, str]], table: Path) -> None:
    """Refuse rows that would be left out, or put on a wrong side of a split, without a word."""
    seen: set[tuple[str, str]] = set()
    for number, row in enumerate(rows, start=1):
        study, joint = row["study"], row.get("joint", "").lower()
        if not study or not row["patient"]:  # patients without a name would count as one
            raise InputError(f"{table}, row {number}: has no {'patient' if study else 'study'}.")
        if joint not in ("", *LABELS):
            raise InputError(f"{table}, study {study}: there is no joint {joint!r}; use {', '.join(LABELS)}.")
        if (study, joint) in seen:
            raise InputError(f"{table}: lists study {study} twice. Leave one of its rows out.")
        seen.add((study, joint))


def _series(folder: Path, study: str) -> list[tuple[str, Path, Path | None]]:
    """Plane, image and label map of each series of a study; a study without any gives its folder, for the check."""
    home = folder / study
    found = []
    for plane in PLANES:
        for image in sorted(home.glob(f"{plane}*")):
            stem = _stem(image)
            if stem is not None and not stem.endswith("_labels"):
                found.append((plane, image, _label_map_of(stem, home, folder / "labels" / study)))
    if found or not home.is_dir():
        return found or [(PLANES[0], home, None)]
    return [(p, image, _label_map_of(p, home, folder / "labels" / study)) for p, image in _dicom_series(home).items()]


def _dicom_series(home: Path) -> dict[str, Path]:
    """The folder of each plane: those whose names end in a plane's, else the study's own for every plane it holds."""
    below = sorted(path for path in home.iterdir() if path.is_dir())
    named = {plane: [path for path in below if path.name.lower().endswith(plane)] for plane in PLANES}
    if any(len(paths) == 1 for paths in named.values()) and all(len(paths) < 2 for paths in named.values()):
        return {plane: paths[0] for plane, paths in named.items() if paths}
    try:
        return {plane: home for plane, stacks in read_study([home]).stacks.items() if stacks}
    except InputError:
        return {PLANES[0]: home}


def _label_map_of(stem: str, *folders: Path) -> Path | None:
    for folder in folders:
        for suffix in SUFFIXES:
            path = folder / f"{stem}_labels{suffix}"
            if path.is_file():
                return path
    return None


def _stem(path: Path) -> str | None:
    """File name without a NIfTI suffix; None for other files."""
    return next((path.name[: -len(end)] for end in sorted(SUFFIXES, reverse=True) if path.name.endswith(end)), None)


def _split_by_file(records: list[Record], split_file: Path, whole: bool) -> list[Record]:
    """Records with the splits of a file; those that it does not name keep theirs.

    Args:
        whole: they are all records of the data set, so that a file which names none of them is another's.
    """
    rows = read_table(split_file)
    key = next((column for column in ("patient", "study") if column in rows[0]), None)
    if key is None or "split" not in rows[0]:
        raise InputError(f"{split_file}: needs the columns patient (or study) and split.")
    splits: dict[str, str | None] = {}
    for row in rows:
        name = split_name(row["split"], f"{split_file}, {key} {row[key]}")
        if splits.setdefault(row[key], name) != name:
            told = " and in ".join(str(own or "none") for own in (splits[row[key]], name))
            raise InputError(f"{split_file}: {key} {row[key]} is in {told}. Put each into one split.")
    if whole and not any(getattr(record, key) in splits for record in records):
        raise InputError(
            f"{split_file}: names no {key} of the data set (it has {rows[0][key]!r}, the data set "
            f"{getattr(records[0], key)!r}). Write them as the data set does."
        )
    return [replace(record, split=splits.get(getattr(record, key), record.split)) for record in records]


def split_by_patient(
    records: Sequence[Record], fractions: Mapping[str, float], seed: int = 0
) -> dict[str, list[Record]]:
    """Records by split, all of a patient on the same side.

    Splits that the data set gives are kept: a patient with a split on any record has it on all. The others are put in
    the order of a hash of seed and patient, and cut at the fractions of their number: adding patients moves others
    across the cuts. Give a data set that grows a split column or file.

    Args:
        fractions: share of the patients for each split, such as {"train": 0.8, "validate": 0.2}.

    Raises:
        InputError: a patient is on two sides of the given split, or fractions do not add up to 1.
    """
    if abs(sum(fractions.values()) - 1.0) > 1e-6 or min(fractions.values()) < 0:
        raise InputError(f"the fractions of a split must add up to 1, not {dict(fractions)}.")
    given: dict[str, set[str]] = {}
    for record in records:
        if record.split is not None:
            given.setdefault(record.patient, set()).add(record.split)
    torn = sorted(patient for patient, sides in given.items() if len(sides) > 1)
    if torn:
        raise InputError(f"patient {torn[0]} is in {' and '.join(sorted(given[torn[0]]))}. Put each into one split.")
    patients = sorted({record.patient for record in records})
    drawn = _drawn([patient for patient in patients if patient not in given], fractions, seed)
    side = {patient: next(iter(sides)) for patient, sides in given.items()} | drawn
    found: dict[str, list[Record]] = {name: [] for name in (*fractions, *sorted(set(side.values()) - set(fractions)))}
    for record in records:
        found[side[record.patient]].append(record)
    return found


def _drawn(patients: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """A split for each patient: in the order of their hashes, cut at the fractions of their number."""
    import hashlib

    order = sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}/{patient}".encode()).digest())
    edges = np.round(np.cumsum(list(fractions.values())) * len(order)).astype(int)
    names = list(fractions)
    return {patient: names[int(np.searchsorted(edges, n, side="right"))] for n, patient in enumerate(order)}
