"""A result on disk: label maps, findings, pictures and report appear together, or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from orthokernels import tasks
from orthokernels.errors import InputError
from orthokernels.folders import place_of, umask
from orthokernels.montage import draw_picture, write_png
from orthokernels.report import findings_json, html
from orthokernels.result import PlaneArrays, PlaneResult, StudyResult
from orthokernels.system import threads

FINDINGS, REPORT = "findings.json", "report.html"
# And what file managers leave beside it.
_OF_A_RESULT = re.compile(
    r"findings\.json|report\.html|montage_\w+\.png|segmentation_\w+\.nii\.gz|\.DS_Store|Thumbs\.db"
)


class OutputFolder:
    """The folder a run will fill. Whether it can be written is found out at once, not after minutes of work.

    Raises:
        InputError: the folder can not be made, or holds something that would be lost.
    """

    def __init__(self, path: Path | str, *, overwrite: bool = False) -> None:
        self._overwrite = overwrite
        try:
            self.path = place_of(path)
            self._check_place()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary_folder().rmdir()
        except OSError as error:
            raise InputError(f"--out {path}: can't be written ({error.strerror}). Name another folder.") from error

    def _check_place(self) -> None:
        """Whether nothing would be lost by putting a result there."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {self.path}: is a file. Name a folder.")
        names = [own.name for own in self.path.iterdir()] if self.path.is_dir() else []
        if names and not self._overwrite:
            raise InputError(f"--out {self.path}: is not empty. Name a new folder, or pass --overwrite.")
        if names and FINDINGS not in names:
            raise InputError(
                f"--out {self.path}: holds no earlier result, so it is not overwritten. Name a new folder."
            )
        if foreign := sorted(name for name in names if not _OF_A_RESULT.fullmatch(name)):
            raise InputError(
                f"--out {self.path}: holds {foreign[0]}, which is no part of a result and would be lost. Name a new "
                "folder, or move it away."
            )

    def write(
        self,
        result: StudyResult,
        arrays: Mapping[str, PlaneArrays],
        label_maps: Mapping[str, tuple[np.ndarray, np.ndarray]],
        seconds: Mapping[str, float],
    ) -> StudyResult:
        """Write everything beside the target, then rename. Returns the result with file names and times filled in."""
        started = time.perf_counter()
        folder = None
        try:
            folder = self._temporary_folder()
            planes = _write_planes(folder, result, arrays, label_maps)
            spent = {**seconds, "report": time.perf_counter() - started}
            result = result.model_copy(
                update={"planes": planes, "seconds": {stage: round(s, 3) for stage, s in spent.items()}}
            )
            montages = {p.plane: folder / p.montage for p in planes if p.montage}
            (folder / REPORT).write_text(html(result, montages), encoding="utf-8")
            (folder / FINDINGS).write_text(findings_json(result), encoding="utf-8")
            folder.chmod(0o777 & ~umask())
            self._move_into_place(folder)
        except OSError as error:
            raise InputError(f"--out {self.path}: writing failed ({error.strerror}); nothing was kept.") from error
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        return result

    def _temporary_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.path.parent, prefix=f".{self.path.name}-"))

    def _move_into_place(self, folder: Path) -> None:
        self._check_place()  # something may have come meanwhile
        if self.path.is_dir() and any(self.path.iterdir()):
            earlier = self._temporary_folder()
            os.replace(self.path, earlier)
            os.replace(folder, self.path)
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            os.replace(folder, self.path)


def _write_planes(
    folder: Path,
    result: StudyResult,
    arrays: Mapping[str, PlaneArrays],
    label_maps: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> tuple[PlaneResult, ...]:
    """Write each plane's montage and label map. Returns the planes with the files' names filled in."""
    untrained = bool(result.untrained)
    planes = []
    # Compressing and resizing need no Python meanwhile. A picture is drawn and encoded in two steps, since three planes
    # of one step each would leave one of two threads idle for a third of the time.
    with ThreadPoolExecutor(threads()) as pool:
        pictures = [
            pool.submit(draw_picture, plane, arrays[plane.plane], untrained=untrained) for plane in result.planes
        ]
        writing: list[Future[None]] = []
        for plane, picture in zip(result.planes, pictures, strict=True):
            names = {"montage": f"montage_{plane.plane}.png"}
            writing.append(pool.submit(_write_picture, picture, folder / names["montage"]))
            if plane.plane in label_maps:
                names["segmentation"] = f"segmentation_{plane.plane}.nii.gz"
                path = folder / names["segmentation"]
                writing.append(pool.submit(write_label_map, *label_maps[plane.plane], path, untrained=untrained))
            planes.append(plane.model_copy(update=names))
        for own in writing:
            own.result()
    return tuple(planes)


def _write_picture(picture: Future[Image.Image], path: Path) -> None:
    write_png(picture.result(), path)  # begun before this was, so that no thread waits for what none would draw


def write_label_map(labels: np.ndarray, affine: np.ndarray, path: Path, *, untrained: bool) -> None:
    """Write a label map as NIfTI: uint8, axes (i, j, k); ``affine`` is (4, 4) float64, indices to RAS mm."""
    image = nibabel.Nifti1Image(labels, affine)
    image.set_sform(affine, code="scanner")
    # A quaternion has no shear: where slices are stepped sideways, only the sform tells the truth.
    image.set_qform(
        affine,
        code="scanner"
        if np.allclose(nibabel.Nifti1Image(labels, affine).get_qform(), affine, atol=1e-3)
        else "unknown",
    )
    image.header.set_xyzt_units("mm")
    image.header.set_intent("label", name="orthokernels")
    notice = tasks.RESEARCH_NOTICE + (" UNTRAINED" if untrained else "")
    image.header["descrip"] = notice.encode()[:79]
    nibabel.save(image, path)
