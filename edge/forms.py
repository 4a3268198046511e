"""The two forms in which DICOM holds a segmentation: binary, and the label map of Supplement 243.

A report names the segmentations that its volumes were measured on, so each form comes with a report of its own. A
destination gets one form of a study, and keeps it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Form = Literal["binary", "label map"]
FORMS: tuple[Form, ...] = get_args(Form)
STORAGE: dict[Form, str] = {
    "binary": "1.2.840.10008.5.1.4.1.1.66.4",
    "label map": "1.2.840.10008.5.1.4.1.1.66.7",  # newer than pydicom's dictionary
}

# What a configuration says: label maps, none, or where the destination accepts them.
LabelMap = Literal[True, False, "auto"]

_EVIDENCE = ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
NEEDED = ("SOPClassUID", *_EVIDENCE)


def form_of(header: Dataset) -> Form | None:
    """The form of a segmentation, or of those that a report rests on; None for what is the same beside either.

    Args:
        header: with the attributes ``NEEDED``, as far as the object has them.
    """
    classes = {header.SOPClassUID} | {
        instance.ReferencedSOPClassUID
        for keyword in _EVIDENCE
        for study in header.get(keyword, ())
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    return next((form for form in FORMS if STORAGE[form] in classes), None)


def wished(label_map: LabelMap) -> tuple[Form, ...]:
    """The forms that a setting may come to."""
    return FORMS if label_map == "auto" else (FORMS[bool(label_map)],)


def choose(label_map: LabelMap, made: Collection[Form], accepted: Collection[str], before: Form | None) -> Form:
    """The form that a destination gets.

    Args:
        label_map: its setting.
        made: the forms that there are, at least one.
        accepted: the SOP classes that it accepts, which count for "auto".
        before: what it got of an earlier version of the study: then its reports name each other.
    """
    takes = {form for form in FORMS if STORAGE[form] in accepted}
    if label_map != "auto":
        (wanted,) = wished(label_map)
    elif before is not None and before in takes:
        wanted = before
    else:
        wanted = "label map" if "label map" in takes else "binary"
    return wanted if wanted in made else next(iter(made))
