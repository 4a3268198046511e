"""The structured report of a result: Comprehensive 3D SR by TID 1500, unverified and preliminary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from highdicom.seg import Segmentation
from highdicom.sr import (
    CodedConcept,
    Comprehensive3DSR,
    FindingSite,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from orthokernels.edge.forms import Form
from orthokernels.edge.objects import codes as our_codes
from orthokernels.edge.objects.report_document import Completion, report_document
from orthokernels.edge.objects.segmentation import tracking_id
from orthokernels.edge.objects.setting import Setting
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from orthokernels import tasks
from orthokernels.result import Finding, PlaneResult, StudyResult

Group = MeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations


def findings_report(
    setting: Setting,
    result: StudyResult,
    segmentations: Mapping[str, Segmentation],
    images: Sequence[Dataset],
    *,
    remarks: Sequence[str],
    supersedes: Sequence[Dataset],
    form: Form | None,
) -> Comprehensive3DSR:
    """Findings with their probabilities, and the volume of each structure with the segment it was measured on.

    Args:
        setting: the study.
        result: what is reported.
        segmentations: SEG by plane.
        images: headers of the images that were used.
        remarks: sentences for the reader.
        supersedes: the reports of earlier states of this study, newest first.
        form: of the segmentations; None where there is none.
    """
    groups: list[Group] = [_finding_group(setting, finding) for finding in result.findings]
    for plane in result.planes:
        groups += _volume_groups(setting, plane, segmentations.get(plane.plane))
    return report_document(
        setting,
        groups,
        evidence=[*images, *segmentations.values()],
        kind="report",
        description="Findings",
        comments=remarks,
        completion=_completion(result),
        supersedes=supersedes,
        form=form,
    )


def _finding_group(setting: Setting, finding: Finding) -> Group:
    """One label: is it there, and with which probability. The code of a finding is the question's name."""
    name = our_codes.finding(setting.joint, finding.label, finding.name)
    measurements = []
    if finding.probability is not None:
        measurements.append(Measurement(codes.DCM.Probability, round(finding.probability, 4), codes.UCUM.NoUnits))
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(setting.uid("finding", finding.label), finding.name),
        finding_type=name,
        finding_sites=[_site(setting, our_codes.finding_site(setting.joint, finding.label))],
        algorithm_id=setting.report_algorithm(),
        measurements=measurements,
        qualitative_evaluations=[QualitativeEvaluation(name, answer(finding))],
    )


def answer(finding: Finding) -> CodedConcept:
    """A finding's status as DICOM codes it."""
    return {
        "present": our_codes.PRESENT,
        "absent": our_codes.ABSENT,
        "indeterminate": our_codes.INDETERMINATE,
        "not evaluated": our_codes.UNKNOWN,
    }[finding.status]


def _site(setting: Setting, where: CodedConcept) -> FindingSite:
    return FindingSite(where, laterality=our_codes.SIDES.get(setting.side))


def _volume_groups(setting: Setting, plane: PlaneResult, made: Segmentation | None) -> Iterator[Group]:
    for structure in plane.structures:
        kind = our_codes.structure(structure.key, structure.name)
        sites = [_site(setting, region) for region in our_codes.structure_regions(structure.key)]
        shared = {
            "tracking_identifier": TrackingIdentifier(
                setting.uid("structure", plane.plane, structure.key), tracking_id(plane.plane, structure)
            ),
            "finding_type": kind,
            "finding_category": codes.SCT.AnatomicalStructure,
            "algorithm_id": setting.report_algorithm(),
            "finding_sites": sites or [_site(setting, kind)],
            "measurements": [Measurement(codes.SCT.Volume, structure.ml, our_codes.MILLILITRE)],
        }
        if made is None or structure.voxels == 0:  # nothing to point at
            yield MeasurementsAndQualitativeEvaluations(**shared)
        else:
            yield VolumetricROIMeasurementsAndQualitativeEvaluations(
                referenced_segment=_segment(made, structure.index), **shared
            )


def _segment(made: Segmentation, number: int) -> ReferencedSegment:
    return ReferencedSegment(
        made.SOPClassUID,
        made.SOPInstanceUID,
        number,
        source_series=SourceSeriesForSegmentation(made.ReferencedSeriesSequence[0].SeriesInstanceUID),
    )


def _completion(result: StudyResult) -> Completion:
    """Complete is a report on all planes, each of them segmented without reserve, with every finding scored."""
    missing = [plane for plane in tasks.PLANES if plane not in {p.plane for p in result.planes}]
    if missing:
        return Completion(False, f"no {' and no '.join(missing)} volume")
    if any(plane.segmentation_reason for plane in result.planes):
        return Completion(False, "not every plane was segmented")
    if any(finding.status == "not evaluated" for finding in result.findings):
        return Completion(False, "not every finding was scored")
    if any(plane.warnings for plane in result.planes):
        return Completion(False, "not every image was used, see comments")
    return Completion(True, "all planes segmented, all findings scored")


def remarks_on(result: StudyResult) -> Iterator[str]:
    """What a reader must know of a result. Names of files on this machine stay on it."""
    yield tasks.RESEARCH_NOTICE
    if result.untrained:
        yield result.untrained
    if result.model.notice:
        yield result.model.notice
    yield from result.warnings
    for plane in result.planes:
        damaged = sum(warning.startswith("left out: ") for warning in plane.warnings)
        if damaged:
            yield f"{plane.plane}: {damaged} images could not be decoded and were left out"
        yield from (f"{plane.plane}: {told}" for told in plane.warnings if not told.startswith("left out: "))
        if plane.segmentation_reason:
            yield f"{plane.plane}: not segmented; {plane.segmentation_reason}"
        if cut_off := [own.name for own in plane.structures if own.cut_off]:
            told = "reach the edge of what was labelled, so their volumes are the least that there is"
            yield f"{plane.plane}: {told}: {', '.join(cut_off)}"
    for finding in result.findings:
        if finding.reason:
            yield f"{finding.name}: {finding.reason}"
