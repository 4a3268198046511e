"""Whether the images of one study name one patient. Where they do not, nobody can say whose study it is."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.dataset import Dataset

# An ID counts together with who issued it (PS3.3 section C.7.1.1). An image without them contradicts no other.
_BY_ID = {"PatientID": "Patient ID", "IssuerOfPatientID": "Issuer of Patient ID"}

# Where no image has an ID, these are all that says whose study it is.
_WITHOUT_ID = {"PatientName": "Patient's Name", "PatientBirthDate": "Patient's Birth Date"}

NAMED_BY = (*_BY_ID, *_WITHOUT_ID)

SEVERAL = "its images name more than one patient (by {}), so nothing of it can be filed under one."


def several_patients(headers: Iterable[Dataset]) -> str | None:
    """By which attribute the images of a study name more than one patient; None where they name one at most."""
    headers = list(headers)
    known = any(_told(header, "PatientID") for header in headers)
    for keyword, name in (_BY_ID if known else _BY_ID | _WITHOUT_ID).items():
        if len({_told(header, keyword) for header in headers} - {""}) > 1:
            return name
    return None


def _told(header: Dataset, keyword: str) -> str:
    """What a header says; of a name its first form alone, as some writers leave out the others, and capitals."""
    told = str(header.get(keyword) or "").strip()
    return told.partition("=")[0].rstrip("^ ").casefold() if keyword == "PatientName" else told
