"""What the page shows of a result, written by the worker beside the result's DICOM objects and delivered nowhere.

    view/findings.json                   the result, as 'orthokernels run' writes it
    view/checks.json                     every check, before and after the model
    view/identity.json                   what tells an operator whose study it is
    view/PLANE.nii.gz                    the volume, in the plane's usual view
    view/PLANE.labels.nii.gz             the label map on the same grid
    view/NAME.png                        each secondary capture

The page's own process thus never decodes what came from outside.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orthokernels import tasks
from orthokernels.result import PlaneArrays, StudyResult

if TYPE_CHECKING:
    from orthokernels.edge.checks.check import Check

    from orthokernels.pipeline import StudyRun

FOLDER = "view"
FINDINGS, CHECKS, IDENTITY = "findings.json", "checks.json", "identity.json"

_IDENTITY = {
    "name": "PatientName",
    "id": "PatientID",
    "accession": "AccessionNumber",
    "date": "StudyDate",
    "description": "StudyDescription",
}


def keep_result(run: StudyRun, checks: Sequence[Check], objects: Sequence[Path], out: Path) -> None:
    """Write what the page shows of a run into ``out``'s own folder.

    Args:
        run: the result.
        checks: what was checked before and after it.
        objects: the DICOM files that were made of it; their pictures and headers are used.
        out: the folder of these files.
    """
    from orthokernels.report import findings_json

    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    untrained = bool(run.result.untrained)
    with ThreadPoolExecutor(1) as beside:  # volumes and pictures are mostly compressed, without the interpreter
        volumes = [
            beside.submit(_write_plane, plane, arrays, folder, untrained=untrained)
            for plane, arrays in run.arrays.items()
        ]
        keep_objects(objects, out)
        (folder / FINDINGS).write_text(findings_json(run.result), encoding="utf-8")
        told = [{"name": check.name, "verdict": check.verdict, "reason": check.reason} for check in checks]
        (folder / CHECKS).write_text(json.dumps(told), encoding="utf-8")
        for volume in volumes:
            volume.result()


def keep_objects(objects: Sequence[Path], out: Path) -> None:
    """Write pictures and identity, which an abstention has too."""
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    for number, path in enumerate(objects):
        _write_object(path, folder, first=number == 0)


def _write_object(path: Path, folder: Path, *, first: bool) -> None:
    import pydicom
    from PIL import Image
    from pydicom.uid import SecondaryCaptureImageStorage

    header = pydicom.dcmread(path, defer_size=4096)
    if first:
        told = {name: str(header.get(keyword, "")).replace("^", " ").strip() for name, keyword in _IDENTITY.items()}
        (folder / IDENTITY).write_text(json.dumps(told), encoding="utf-8")
    if header.SOPClassUID == SecondaryCaptureImageStorage:
        picture = Image.fromarray(header.pixel_array)
        picture.save(folder / f"{path.stem}.png", compress_level=1)  # for one machine's own browser


def _write_plane(plane: str, arrays: PlaneArrays, folder: Path, *, untrained: bool) -> None:
    import nibabel

    from orthokernels.writing import write_label_map

    voxels = arrays.voxels if arrays.voxels.dtype.itemsize <= 4 else arrays.voxels.astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, arrays.affine), volume_file(folder, plane))
    if arrays.labels is not None:
        write_label_map(arrays.labels, arrays.affine, labels_file(folder, plane), untrained=untrained)


def volume_file(folder: Path, plane: str) -> Path:
    """Where a plane's volume lies, below a result's view."""
    return folder / f"{plane}.nii.gz"


def labels_file(folder: Path, plane: str) -> Path:
    """Where a plane's label map lies."""
    return folder / f"{plane}.labels.nii.gz"


def pictures(folder: Path) -> list[str]:
    """Names of the secondary captures: the page of text, then the planes in their usual order."""
    order = ["page", *(f"picture_{plane}" for plane in tasks.PLANES)]
    names = sorted(path.stem for path in folder.glob("*.png"))
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def read_result(folder: Path) -> StudyResult | None:
    """The result; None where there is none, or no longer."""
    try:
        return StudyResult.model_validate_json((folder / FINDINGS).read_bytes())
    except OSError:
        return None


def read_json(path: Path) -> Any:
    """What a file of ours says; None where it is gone."""
    try:
        return json.loads(path.read_bytes())
    except OSError:
        return None


def remove_orphans(results: Path) -> None:
    """Remove folders below ``results`` without a DICOM object: their job was never recorded, or its time is over."""
    for folder in results.iterdir():
        if folder.is_dir() and next(folder.glob("*.dcm"), None) is None:
            shutil.rmtree(folder)
