"""The study that the doctor sends: the bundle's golden one, as a new study of nobody each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

PATIENT_ID = "ORTHOKERNELS-TEST"


def new_study(images: Sequence[Path]) -> list[Dataset]:
    """The images under new identifiers, since a study that was sent before is recognised and not worked on again.

    The headers say how many images there are, so that the appliance need not wait for quiet.
    """
    read: list[Dataset] = [pydicom.dcmread(path) for path in images]
    counts = Counter(image.SeriesInstanceUID for image in read)
    renamed: dict[str, str] = {}
    now = datetime.now()
    for image in read:
        image.ImagesInAcquisition = str(counts[image.SeriesInstanceUID])
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"):
            old = str(image.get(keyword, ""))
            setattr(image, keyword, renamed.setdefault(f"{keyword} {old}", generate_uid(prefix=None)))
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.PatientName, image.PatientID = "ORTHOKERNELS^TEST", PATIENT_ID
        image.StudyDescription = "Test of the appliance; there is no patient"
        image.StudyDate, image.StudyTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
        image.AccessionNumber = ""
    return read
