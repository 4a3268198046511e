"""Every kind of object that we write, held against dicom-validator; and objects spoiled, to see each fault told."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pydicom
import pytest
from orthokernels.edge.objects import write_abstention, write_objects
from pydicom.dataset import Dataset

from orthokernels.data.phantom import make_study, write_dicom
from tests.edge.results import DIGESTS, phantom_labels, true_run
from tests.edge.standard import faults


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Objects by name: of a phantom's result, which replaces an abstention, with binary and with label map SEG."""
    folder = tmp_path_factory.mktemp("written")
    study = make_study(3, matrix=64)
    write_dicom(study, folder / "study")
    run, sources = true_run(folder / "study", phantom_labels(study)), sorted((folder / "study").rglob("*.dcm"))
    abstained = write_abstention(
        sources, folder / "abstained", ["the study shows an ankle"], joint="knee", side="R", **DIGESTS
    )
    return {
        f"{path.parent.name} {path.stem}": path
        for path in (
            *abstained,
            *write_objects(run, sources, folder / "result", supersedes=[abstained[0]], remarks=["doubtful"], **DIGESTS),
            *write_objects(run, sources, folder / "labelmap", forms=["label map"], **DIGESTS),
        )
    }


def test_dicom_validator_finds_no_fault_in_any_kind_of_object(written):
    objects = {name: pydicom.dcmread(path) for name, path in written.items()}
    assert {name: found for name, made in objects.items() if (found := faults(made))} == {}
    assert len({made.SOPClassUID for made in objects.values()}) == 4


def content(report: Dataset, value_type: str) -> Dataset:
    """The first content item of this value type, in the order of the document."""
    return next(item for item in items(report) if item.ValueType == value_type)


def items(parent: Dataset) -> Iterator[Dataset]:
    for item in parent.get("ContentSequence", ()):
        yield item
        yield from items(item)


def frame(image: Dataset) -> Dataset:
    return image.PerFrameFunctionalGroupsSequence[3]


def share_frame_content(image: Dataset) -> None:
    image.SharedFunctionalGroupsSequence[0].FrameContentSequence = frame(image).FrameContentSequence


SEG, SC = "result segmentation_axial", "result picture_axial"
SR, ABSTENTION = "result findings", "abstained abstention"
SPOILED: list[tuple[str, Callable[[Dataset], object], str]] = [
    # An attribute of type 1 or 2 is taken out: from the object, from an item of a sequence, from one frame of many.
    (SEG, lambda made: made.pop("ContentLabel"), "ContentLabel TagMissing"),
    (SC, lambda made: made.pop("ConversionType"), "ConversionType TagMissing"),
    (ABSTENTION, lambda made: made.pop("PatientName"), "PatientName TagMissing"),
    (SEG, lambda made: made.SegmentSequence[1].pop("SegmentLabel"), "SegmentSequence/SegmentLabel TagMissing"),
    (SEG, lambda made: frame(made).pop("FrameContentSequence"), "FrameContentSequence TagMissing"),
    (SEG, lambda made: frame(made).pop("SegmentIdentificationSequence"), "SegmentIdentificationSequence TagMissing"),
    (
        SEG,
        lambda made: frame(made).SegmentIdentificationSequence[0].pop("ReferencedSegmentNumber"),
        "SegmentIdentificationSequence/ReferencedSegmentNumber TagMissing",
    ),
    # One of type 1 is left empty, or a sequence of type 1 loses its only item.
    (SEG, lambda made: setattr(made, "ContentLabel", ""), "ContentLabel TagEmpty"),
    (
        SEG,
        lambda made: made.SegmentSequence[1].SegmentedPropertyTypeCodeSequence.pop(),
        "SegmentSequence/SegmentedPropertyTypeCodeSequence TagEmpty",
    ),
    (SEG, lambda made: frame(made).PlanePositionSequence.pop(), "PlanePositionSequence TagEmpty"),
    (ABSTENTION, lambda made: made.CurrentRequestedProcedureEvidenceSequence.clear(), "EvidenceSequence TagEmpty"),
    # Another object's attributes, and a functional group in the wrong place.
    (SEG, lambda made: setattr(made, "EchoTime", 3), "General: EchoTime TagUnexpected"),
    (ABSTENTION, lambda made: setattr(made, "Rows", 3), "General: Rows TagUnexpected"),
    (SC, lambda made: setattr(made, "SegmentsOverlap", "NO"), "General: SegmentsOverlap TagUnexpected"),
    (SEG, lambda made: setattr(frame(made), "MREchoSequence", [Dataset()]), "MREchoSequence TagUnexpected"),
    (SEG, share_frame_content, "SharedFunctionalGroupsSequence/FrameContentSequence TagNotAllowed"),
    # Content items, at the depth where they lie, without what their value type demands or with another's.
    (
        SR,
        lambda made: content(made, "NUM").MeasuredValueSequence[0].pop("NumericValue"),
        "ContentSequence/ContentSequence/ContentSequence/MeasuredValueSequence/NumericValue TagMissing",
    ),
    (SR, lambda made: content(made, "IMAGE").pop("ReferencedSOPSequence"), "ReferencedSOPSequence TagMissing"),
    (ABSTENTION, lambda made: content(made, "CODE").pop("ConceptCodeSequence"), "ConceptCodeSequence TagMissing"),
    (SR, lambda made: content(made, "NUM").pop("RelationshipType"), "RelationshipType TagMissing"),
    (SR, lambda made: setattr(content(made, "NUM"), "TextValue", "3"), "TextValue TagNotAllowed"),
    # A value that breaks the rules of its VR; only the label map may leave frames without a segment's number.
    (SC, lambda made: setattr(made, "StudyTime", "noon"), "StudyTime InvalidValue"),
    (
        "labelmap segmentation_axial_label_map",
        lambda made: setattr(made, "SegmentationType", "BINARY"),
        "SegmentIdentificationSequence TagMissing",
    ),
]


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(("name", "spoil", "told"), SPOILED, ids=[told for _, _, told in SPOILED])
def test_dicom_validator_tells_the_fault_of_a_spoiled_object(written, name, spoil, told):
    made = pydicom.dcmread(written[name])
    spoil(made)
    (found,) = faults(made)
    assert found.endswith(told)
