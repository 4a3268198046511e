"""What all our structured reports are: observer, procedure, notice and comments around the groups they are made for."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from highdicom.sr import (
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    RelationshipTypeValues,
    TextContentItem,
)
from orthokernels.edge.forms import FORMS, Form, form_of
from orthokernels.edge.objects.setting import MANUFACTURER, NOTICE, Setting
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes


class Completion(NamedTuple):
    """Whether a report says all that such a report says, and why or why not in at most 64 characters."""

    complete: bool
    because: str


def report_document(
    setting: Setting,
    groups: Sequence[MeasurementsAndQualitativeEvaluations],
    *,
    evidence: Sequence[Dataset],
    kind: str,
    description: str,
    comments: Sequence[str],
    completion: Completion,
    supersedes: Sequence[Dataset],
    form: Form | None = None,
) -> Comprehensive3DSR:
    """A Comprehensive 3D SR by TID 1500.

    Args:
        setting: the study.
        groups: measurement groups, at least one.
        evidence: the images and segmentations that the report rests on.
        kind: names the instance; see ``Setting.object``.
        description: what the report is, for the series description.
        comments: sentences after the notice that this is no diagnosis.
        completion: whether the report is complete.
        supersedes: the reports of earlier states of this study, newest first.
        form: of the segmentations that it names.
    """
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_observer(setting)),
        procedure_reported=codes.cid100.MRIUnspecifiedBodyRegion,
        imaging_measurements=groups,
        title=codes.cid7021.ImagingMeasurementReport,
    )
    for comment in (NOTICE, *comments):
        content[0].ContentSequence.append(
            TextContentItem(
                CodedConcept.from_code(codes.DCM.Comment),
                _printable(comment),
                relationship_type=RelationshipTypeValues.CONTAINS,
            )
        )
    made = Comprehensive3DSR(
        evidence=evidence,
        content=content,
        is_complete=completion.complete,
        is_final=False,
        is_verified=False,
        previous_versions=_replaced(supersedes) or None,
        **setting.object(kind, "report", description=description, form=form),
    )
    _repeat_predecessor(made, supersedes)
    made.CompletionFlagDescription = completion.because[:64]
    setting.settle_moment(made)
    return made


def _replaced(supersedes: Sequence[Dataset]) -> list[Dataset]:
    """The newest; where there is one for each form of segmentation, both: an archive has one of them."""
    both = {form_of(one) for one in supersedes[:2]} == set(FORMS)
    return list(supersedes[: 2 if both else 1])


def _repeat_predecessor(made: Dataset, supersedes: Sequence[Dataset]) -> None:
    """A report that was made before, of the same images and for the same reason, replaces what it replaced then: a
    repeat has the same bytes, and none names itself."""
    for earlier in supersedes:
        if earlier.SOPInstanceUID == made.SOPInstanceUID:
            made.pop("PredecessorDocumentsSequence", None)
            if "PredecessorDocumentsSequence" in earlier:
                made.PredecessorDocumentsSequence = earlier.PredecessorDocumentsSequence
            return


def _printable(text: str) -> str:
    """Sentences quote headers, and headers may hold anything."""
    return "".join(" " if unicodedata.category(c).startswith("C") else c for c in text)


def _observer(setting: Setting) -> ObserverContext:
    """The device: one model on one version of this package."""
    return ObserverContext(
        CodedConcept.from_code(codes.DCM.Device),
        DeviceObserverIdentifyingAttributes(
            uid=setting.device_uid(),
            name=MANUFACTURER,
            manufacturer_name=MANUFACTURER,
            model_name=MANUFACTURER,
            serial_number=setting.model_digest[:16],
        ),
    )
