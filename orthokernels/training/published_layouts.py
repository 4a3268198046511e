"""The CSV layouts that the published scripts read.

    pre-training     filename, ID                     ID is the plane's number ("pose id")
    classification   filename, acc_id, 0/1 per label  one row per series, the study's labels
    segmentation     replath, study_uid, nii_file, slice_direction, mask_file, pose_id      one row per labelled slice

Images lie at images/filename, or images/replath/nii_file; label pictures at masks/study_uid/mask_file, named by their
slice from 1 on ("12-....png"). Three columns are optional everywhere: patient, plane and split. Without ``patient`` a
study counts as a patient of its own (a file, in the pre-training layout, which names no study).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orthokernels.errors import InputError
from orthokernels.tasks import PLANES
from orthokernels.training.records import findings_of, read_table, split_name
from orthokernels.training.series import Record

_SEGMENTATION = ("replath", "study_uid", "nii_file", "slice_direction", "mask_file", "pose_id")


def read_published(
    source: Path,
    joint: str,
    images: Path | None,
    masks: Path | None,
    plane: str | None,
    poses: Sequence[str],
    masks_mirrored: bool,
) -> list[Record]:
    """Records of one of the three layouts; the arguments are ``read_records``'.

    Raises:
        InputError: the columns are of none of them, or nothing says which plane a series has.
    """
    if plane is not None and plane not in PLANES:
        raise InputError(f"there is no plane {plane!r}; choose from {', '.join(PLANES)}.")
    rows = read_table(source)
    columns = rows[0].keys()
    home = images or source.parent
    if set(_SEGMENTATION) <= columns:
        return _segmentation(source, rows, home, masks or home, plane, poses, masks_mirrored)
    if {"filename", "acc_id"} <= columns:
        return _by_file(source, rows, home, plane, poses, joint, study_column="acc_id")
    if {"filename", "ID"} <= columns:
        return _by_file(source, rows, home, plane, poses, joint, study_column="filename")
    raise InputError(
        f"{source}: has the columns {', '.join(columns)}. Pre-training needs filename, ID; classification filename, "
        f"acc_id and labels; segmentation {', '.join(_SEGMENTATION)}."
    )


def _by_file(
    source: Path,
    rows: list[dict[str, str]],
    images: Path,
    plane: str | None,
    poses: Sequence[str],
    joint: str,
    *,
    study_column: str,
) -> list[Record]:
    return [
        Record(
            study=row[study_column],
            patient=row.get("patient") or row[study_column],
            plane=_plane(source, row, plane, poses),
            image=images / row["filename"],
            findings=findings_of(row, joint),
            split=split_name(row.get("split", ""), f"{source}, {row['filename']}"),
        )
        for row in rows
    ]


def _segmentation(
    source: Path,
    rows: list[dict[str, str]],
    images: Path,
    masks: Path,
    plane: str | None,
    poses: Sequence[str],
    mirrored: bool,
) -> list[Record]:
    """One record per series: the rows of its labelled slices together."""
    series: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        key = (row["replath"], row["study_uid"], row["nii_file"], row["slice_direction"], row["pose_id"])
        series.setdefault(key, []).append(row)
    return [
        Record(
            study=study,
            patient=own[0].get("patient") or study,
            plane=_plane(source, own[0], plane, poses),
            image=images / folder / file,
            masks=tuple((_slice_number(source, row["mask_file"]), masks / study / row["mask_file"]) for row in own),
            split=split_name(own[0].get("split", ""), f"{source}, {file}"),
            masks_decreasing=direction.lower() == "decreasing",
            masks_mirrored=mirrored,
        )
        for (folder, study, file, direction, _), own in series.items()
    ]


def _slice_number(source: Path, name: str) -> int:
    number = Path(name).stem.split("-")[0]
    if not number.isdecimal() or int(number) < 1:
        raise InputError(f"{source}: {name!r} does not begin with its slice's number, counted from 1, as in 12-a.png.")
    return int(number)


def _plane(source: Path, row: dict[str, str], plane: str | None, poses: Sequence[str]) -> str:
    """By the row's ``plane``, else the option, else the pose id ("pose_id", or "ID" of the pre-training layout)."""
    named = row.get("plane") or plane
    pose = row.get("pose_id") or row.get("ID", "")
    if named is None and pose in PLANES:
        named = pose
    elif named is None and pose.isdecimal() and int(pose) < len(poses):
        named = poses[int(pose)]
    if named not in PLANES:
        what = f"the plane {named!r}" if named else f"the pose id {pose!r}" if pose else "no plane"
        raise InputError(
            f"{source}: a row names {what}. Add a column plane ({', '.join(PLANES)}), or set data.plane for all rows."
        )
    return named
