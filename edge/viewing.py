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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from orthokernels import tasks
from orthokernels.result import PlaneArrays, StudyResult

if TYPE_CHECKING:
    from orthokernels.edge.checks.check import Check
    from orthokernels.edge.objects.pictures import Pictures

FOLDER = "view"
FINDINGS, CHECKS, IDENTITY = "findings.json", "checks.json", "identity.json"

_IDENTITY = {
    "name": "PatientName",
    "id": "PatientID",
    "accession": "AccessionNumber",
    "date": "StudyDate",
    "description": "StudyDescription",
}


def keep_result(result: StudyResult, checks: Sequence[Check], objects: Sequence[Path], out: Path) -> None:
    """Write the texts that the page shows of a result into ``out``'s own folder.

    Args:
        result: the findings and volumes.
        checks: what was checked before and after it.
        objects: the DICOM files that were made of it; the first one's header names the patient.
        out: the folder of these files.
    """
    from orthokernels.report import findings_json

    folder = _made_folder(out)
    _write_identity(objects[0], folder)
    (folder / FINDINGS).write_text(findings_json(result), encoding="utf-8")
    told = [{"name": check.name, "verdict": check.verdict, "reason": check.reason} for check in checks]
    (folder / CHECKS).write_text(json.dumps(told), encoding="utf-8")


def keep_images(arrays: Mapping[str, PlaneArrays], objects: Sequence[Path], out: Path, *, untrained: bool) -> None:
    """Write the volumes, label maps and pictures that the page shows into ``out``'s own folder.

    Args:
        arrays: by plane.
        objects: the DICOM files, or some of them; those that are pictures are used.
        out: the folder of these files.
        untrained: the label maps come from random weights, and say so.
    """
    folder = _made_folder(out)
    for plane, own in arrays.items():
        _write_plane(plane, own, folder, untrained=untrained)
    for path in objects:
        _write_picture(path, folder)


def draw_and_keep(pictures: Pictures) -> list[Path]:
    """Write a result's pictures, and for the page these and the volumes: all that a second process may do of it."""
    written = pictures.write()
    keep_images(pictures.arrays, written, pictures.out, untrained=bool(pictures.result.untrained))
    return written


def keep_abstention(objects: Sequence[Path], out: Path) -> None:
    """Write what the page shows where there is no result."""
    keep_images({}, objects, out, untrained=False)
    if objects:
        _write_identity(objects[0], out / FOLDER)


def _made_folder(out: Path) -> Path:
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    return folder


def _write_identity(path: Path, folder: Path) -> None:
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_IDENTITY.values()))
    told = {name: str(header.get(keyword, "")).replace("^", " ").strip() for name, keyword in _IDENTITY.items()}
    (folder / IDENTITY).write_text(json.dumps(told), encoding="utf-8")


def _write_picture(path: Path, folder: Path) -> None:
    import pydicom
    from PIL import Image
    from pydicom.uid import SecondaryCaptureImageStorage

    header = pydicom.dcmread(path, defer_size=4096)
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
    """The result; None where there is none, or no longer, or it is one of a version that tells other things of it."""
    try:
        return StudyResult.model_validate_json((folder / FINDINGS).read_bytes())
    except (OSError, ValidationError):
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
