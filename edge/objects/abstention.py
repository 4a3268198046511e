"""The structured report of a study that gets no result: which outcome, and why."""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.sr import (
    Comprehensive3DSR,
    FindingSite,
    MeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    TrackingIdentifier,
)
from orthokernels.edge.objects import codes as our_codes
from orthokernels.edge.objects.report_document import Completion, report_document
from orthokernels.edge.objects.setting import Setting
from pydicom.dataset import Dataset

from orthokernels import tasks


def abstention_report(setting: Setting, reasons: Sequence[str], *, supersedes: Sequence[Dataset]) -> Comprehensive3DSR:
    """A report that says that nothing is reported, with each reason as a comment.

    Args:
        setting: the study; every image that can be named is evidence.
        reasons: sentences for the reader.
        supersedes: the reports of earlier states of this study, newest first.
    """
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(setting.uid("outcome"), "Outcome of automatic processing"),
        finding_type=our_codes.OUTCOME,
        finding_sites=[
            FindingSite(our_codes.concept(tasks.JOINTS[setting.joint]), laterality=our_codes.SIDES.get(setting.side))
        ],
        algorithm_id=setting.report_algorithm(),
        qualitative_evaluations=[QualitativeEvaluation(our_codes.OUTCOME, our_codes.ABSTAINED)],
    )
    return report_document(
        setting,
        [group],
        evidence=list(setting.sources.values()),
        kind=f"report {' '.join(reasons)}",
        description="No result",
        comments=[f"No result: {reason}" for reason in reasons],
        completion=Completion(False, "no result, see comments"),
        supersedes=supersedes,
    )
