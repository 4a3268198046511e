"""A small model for the appliance's tests: thresholds each volume and writes it as secondary captures.

Run as a script it is a worker process, with the same protocol, limits and identifiers that repeat as the real one's.
Series descriptions make it misbehave, so that the guard is tried by what a study can do.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from orthokernels.edge.completeness import examine
from orthokernels.edge.config import Config
from orthokernels.edge.runner import Rejected, Request, serve
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from orthokernels.data.study import read_study
from orthokernels.errors import InputError


class Threshold:
    verified = "a threshold has nothing to try"

    def __init__(self, config: Config) -> None:
        self._planes = config.results.planes
        self._configuration = config.results.digest()

    def examine(self, sources):
        return examine(sources, self._planes)

    def evaluate(self, request: Request, tell, writing) -> None:
        study = read_study(list(request.sources), self._planes)
        for number, plane in enumerate(stack for stack in self._planes if study.stacks[stack]):
            tell(plane, number, len(self._planes))
            volume = study.load(plane)
            if volume is None:
                raise Rejected(f"no volume can be read: {study.left_out[-1].reason}")
            misbehave(volume.source.description)
            mask = volume.voxels > np.median(volume.voxels)
            self._write(request, plane, (255 * mask[..., mask.shape[2] // 2]).astype(np.uint8))
            if number == 0:
                writing()

    def label(self, request: Request) -> dict[str, Any]:
        study = read_study(list(request.sources), self._planes)
        planes = {}
        for plane in (plane for plane in self._planes if study.stacks[plane]):
            volume = study.load(plane)
            if volume is None:
                raise InputError(study.left_out[-1].reason)
            misbehave(volume.source.description)
            np.save(request.out / f"{plane}.npy", labels_of(volume.voxels))
            planes[plane] = volume.source.paths[0].name
        return {"planes": planes, "findings": ["Tear: absent"], "remarks": ["no body part was named"]}

    def abstain(self, request: Request) -> None:
        self._write(request, "abstention", np.zeros((8, 8), np.uint8))

    def _write(self, request: Request, kind: str, pixels: np.ndarray) -> None:
        source = pydicom.dcmread(request.sources[0], stop_before_pixels=True)
        names = sorted(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in request.sources)
        made = Dataset()
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = uid(*names, self._configuration, kind)
        made.StudyInstanceUID = source.StudyInstanceUID
        made.SeriesInstanceUID = uid(*names, "series")
        made.PatientID, made.PatientName = source.get("PatientID", ""), source.get("PatientName", "")
        made.Modality, made.SeriesDescription = "OT", kind
        made.PatientBirthDate, made.PatientSex, made.StudyID, made.AccessionNumber = "", "", "", ""
        made.StudyDate, made.StudyTime, made.ReferringPhysicianName = "", "", ""
        made.SeriesNumber, made.InstanceNumber, made.ConversionType = 99, 1, "WSD"
        made.Rows, made.Columns = pixels.shape
        made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
        made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
        made.PixelData = pixels.tobytes()
        made.save_as(request.out / f"{kind}.dcm", enforce_file_format=True)


def labels_of(voxels: np.ndarray) -> np.ndarray:
    """3 above the median, 0 elsewhere."""
    return (3 * (voxels > np.median(voxels))).astype(np.uint8)


def misbehave(description: str) -> None:
    if "crash" in description:
        os.abort()
    if "hang" in description:
        time.sleep(3600)
    if "greedy" in description:
        np.ones(2**36, np.uint8)
    if "reject" in description:
        raise Rejected("metal near the joint.")
    if "full" in description and Path(os.environ["FULL"]).exists():
        Path("/dev/full").write_bytes(b"result")
    if "once" in description and not (marker := Path(os.environ["ONCE"])).exists():
        marker.touch()
        os.abort()


def uid(*names: str) -> UID:
    return UID(f"2.25.{int.from_bytes(hashlib.sha256(' '.join(names).encode()).digest()[:15])}")


if __name__ == "__main__":
    serve(Threshold)
