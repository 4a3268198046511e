"""Secondary captures: what a reading station shows of a result even where it knows neither SEG nor SR."""

from __future__ import annotations

import numpy as np
from highdicom.sc import ConversionTypeValues, SCImage
from orthokernels.edge.objects.canvas import with_notice
from orthokernels.edge.objects.setting import Setting
from orthokernels.edge.objects.sources import tell_loss
from PIL import Image

from orthokernels.data.volume import hash_of
from orthokernels.montage import draw_montage
from orthokernels.result import PlaneArrays, PlaneResult

# Parts in the middle of the body (PS3.16 annex L), which must not bear a Laterality. An abstention may be about one.
_WITHOUT_SIDES = frozenset((
    "ABDOMEN", "ABDOMENPELVIS", "BLADDER", "BRAIN", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS", "COCCYX", "CSPINE",
    "CTSPINE", "FACE", "HEAD", "HEADNECK", "HEART", "LIVER", "LSPINE", "LSSPINE", "NECK", "PELVIS", "PROSTATE",
    "SACRUM", "SKULL", "SPINE", "SSPINE", "STERNUM", "TLSPINE", "TSPINE", "UTERUS", "WHOLEBODY",
))  # fmt: skip


def plane_picture(
    setting: Setting, plane: PlaneResult, arrays: PlaneArrays, *, number: int, untrained: bool
) -> SCImage:
    """The plane's montage as a secondary capture.

    Args:
        setting: the study.
        plane, arrays, untrained: see ``orthokernels.montage.draw_montage``.
        number: of the picture within its series.
    """
    drawn = Image.fromarray(draw_montage(plane, arrays, untrained=untrained))
    made = _capture(setting, with_notice(drawn), f"picture {plane.plane}", number, _directions(arrays.affine))
    tell_loss(made, (one for one in setting.sources.values() if hash_of(one.SeriesInstanceUID) == plane.series_hash))
    return made


def page_picture(setting: Setting, page: Image.Image, *, kind: str, number: int) -> SCImage:
    """A page of text as a secondary capture; ``kind`` names the instance."""
    return _capture(setting, with_notice(page), kind, number, None)


def _capture(
    setting: Setting, pixels: np.ndarray, kind: str, number: int, directions: tuple[str, str] | None
) -> SCImage:
    patient = setting.first
    made = SCImage(
        pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=patient.StudyInstanceUID,
        patient_id=patient.PatientID,
        patient_name=patient.PatientName,
        patient_birth_date=patient.PatientBirthDate,
        patient_sex=patient.PatientSex,
        accession_number=patient.AccessionNumber,
        study_id=patient.StudyID,
        study_date=patient.StudyDate or None,
        study_time=patient.StudyTime or None,
        referring_physician_name=patient.ReferringPhysicianName,
        patient_orientation=directions or ("L", "F"),
        specific_character_set=patient.SpecificCharacterSet,
        **setting.object(kind, "pictures", number=number, description="Pictures"),
    )
    made.copy_patient_and_study_information(patient)
    if directions is None:
        made.PatientOrientation = []  # a page shows no patient, but the constructor insists
    made.ConversionType = ConversionTypeValues.WSD.value
    made.BurnedInAnnotation = "NO"  # nothing that identifies the patient: of headers, only the series' own description
    made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = setting.day_and_time
    made.BodyPartExamined = setting.body_part
    if setting.body_part not in _WITHOUT_SIDES:
        made.Laterality = setting.side
    setting.settle_moment(made)
    return made


def _directions(affine: np.ndarray) -> tuple[str, str]:
    """Where rows and columns of a montage's pictures point in the patient, each by its dominant letter."""
    along_row, down = affine[:3, 0], -affine[:3, 1]
    return _letter(along_row), _letter(down)


def _letter(direction: np.ndarray) -> str:
    axis = int(np.argmax(np.abs(direction)))
    return ("LR", "PA", "FH")[axis][int(direction[axis] > 0)]
