"""Whether the images of one study name one patient. Where they do not, nobody can say whose study it is."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.dataset import Dataset

# An ID counts together with who issued it (PS3.3 section C.7.1.1). An image without them contradicts no other.
NAMED_BY = {"PatientID": "Patient ID", "IssuerOfPatientID": "Issuer of Patient ID"}

SEVERAL = "its images name more than one patient (by {}), so nothing of it can be filed under one."


def several_patients(headers: Iterable[Dataset]) -> str | None:
    """By which attribute the images of a study name more than one patient; None where they name one at most."""
    headers = list(headers)
    for keyword, name in NAMED_BY.items():
        if len({str(header.get(keyword) or "").strip() for header in headers} - {""}) > 1:
            return name
    return None
