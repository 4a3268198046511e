"""Every joint, label, structure and code the project knows, in one table.

The published labels are abbreviations without a legend. A full name that is our reading of an abbreviation has
``inferred=True``. The eleven structures are not named in the published code at all; the list here follows the
anatomy that the publication describes, so every structure is marked as inferred too.

Codes come from public derived sources, named beside each code, and not from a SNOMED CT release. Have a holder of a
terminology licence confirm them before clinical use.
"""

from __future__ import annotations

from dataclasses import dataclass

PLANES = ("sagittal", "coronal", "axial")
RESEARCH_NOTICE = "Research use only, not for diagnosis."
UNTRAINED_NOTICE = "UNTRAINED: made with random weights; nothing here says anything about the patient."

_PYDICOM = "DICOM context groups in pydicom"
_EHDSI = "hl7-eu EHDSI terminology package 8.1.0, eHDSIBodySite"
_RADLEX = "openimagingdata findingmodels, Knee MRI Abnormalities 2025-04-22"


@dataclass(frozen=True)
class Code:
    """A coded term: ``scheme`` is "SCT" (SNOMED CT) or "RADLEX", as DICOM designates them; ``source`` says who told."""

    scheme: str
    value: str
    meaning: str
    source: str


@dataclass(frozen=True)
class Structure:
    """A segmented structure. ``index`` is its value in a label map; ``colour`` is sRGB, 0 to 255."""

    index: int
    key: str
    name: str
    kind: str
    colour: tuple[int, int, int]
    code: Code
    region: Code | None = None
    modifier: Code | None = None
    inferred: bool = True


@dataclass(frozen=True)
class Label:
    """A finding that a diagnosis head scores. ``code`` names the finding, ``site`` its place; either may be unknown."""

    key: str
    name: str
    joint: str
    kind: str
    code: Code | None = None
    site: Code | None = None
    inferred: bool = True


def _sct(value: str, meaning: str, source: str) -> Code:
    return Code("SCT", value, meaning, source)


def _radlex(value: str, meaning: str) -> Code:
    return Code("RADLEX", value, meaning, _RADLEX)


FEMUR = _sct("71341001", "Femur", _PYDICOM)
TIBIA = _sct("12611008", "Tibia", _PYDICOM)
PATELLA = _sct("64234005", "Patella", _PYDICOM)
FIBULA = _sct("87342007", "Fibula", _PYDICOM)
ARTICULAR_CARTILAGE = _sct("41052006", "Articular cartilage", _EHDSI)
POSTERIOR_PATELLA_CARTILAGE = _sct("722345002", "Hyaline cartilage of posterior surface of patella", _EHDSI)
MEDIAL_MENISCUS = _sct("49390008", "Medial meniscus of knee", _EHDSI)
LATERAL_MENISCUS = _sct("10013000", "Lateral meniscus of knee", _EHDSI)
ACL = _sct("895007", "Anterior cruciate ligament", _EHDSI)
PCL = _sct("16219000", "Posterior cruciate ligament", _EHDSI)
MCL = _sct("1627004", "Medial collateral ligament of knee", _EHDSI)
MENISCUS_TEAR = _sct("239720000", "Tear of meniscus of knee", "public list derived from Synthea")
TEAR = _radlex("RID4714", "Tear")
KNEE = _sct("72696002", "Knee", _PYDICOM)
ANKLE = _sct("344001", "Ankle", _EHDSI)
SHOULDER = _sct("16982005", "Shoulder region", _EHDSI)

JOINTS = {"knee": KNEE, "ankle": ANKLE, "shoulder": SHOULDER}

STRUCTURES = (
    Structure(1, "femur", "Femur", "bone", (232, 214, 178), FEMUR),
    Structure(2, "tibia", "Tibia", "bone", (190, 160, 120), TIBIA),
    Structure(3, "patella", "Patella", "bone", (247, 196, 108), PATELLA),
    Structure(4, "fibula", "Fibula", "bone", (150, 118, 94), FIBULA),
    Structure(5, "femoral_cartilage", "Femoral cartilage", "cartilage", (86, 180, 233), ARTICULAR_CARTILAGE, FEMUR),
    Structure(6, "tibial_cartilage", "Tibial cartilage", "cartilage", (0, 114, 178), ARTICULAR_CARTILAGE, TIBIA),
    Structure(
        7,
        "patellar_cartilage",
        "Patellar cartilage",
        "cartilage",
        (120, 235, 235),
        POSTERIOR_PATELLA_CARTILAGE,
        PATELLA,
    ),
    Structure(8, "medial_meniscus", "Medial meniscus", "meniscus", (213, 60, 60), MEDIAL_MENISCUS),
    Structure(9, "lateral_meniscus", "Lateral meniscus", "meniscus", (240, 140, 40), LATERAL_MENISCUS),
    Structure(10, "acl", "Anterior cruciate ligament", "ligament", (60, 190, 100), ACL),
    Structure(11, "pcl", "Posterior cruciate ligament", "ligament", (190, 110, 210), PCL),
)

LABELS = {
    "knee": (
        Label(
            "ACL",
            "Anterior cruciate ligament injury",
            "knee",
            "ligament injury",
            _sct("444470001", "Injury of anterior cruciate ligament", "public list derived from Synthea"),
            ACL,
        ),
        Label("PCL", "Posterior cruciate ligament injury", "knee", "ligament injury", TEAR, PCL),
        Label("MM", "Medial meniscus injury", "knee", "meniscus injury", MENISCUS_TEAR, MEDIAL_MENISCUS),
        Label("LM", "Lateral meniscus injury", "knee", "meniscus injury", MENISCUS_TEAR, LATERAL_MENISCUS),
        Label(
            "MCL",
            "Medial collateral ligament injury",
            "knee",
            "ligament injury",
            _sct("444448004", "Injury of medial collateral ligament of knee", "public list derived from Synthea"),
            MCL,
        ),
        Label(
            "LCL",
            "Lateral collateral ligament injury",
            "knee",
            "ligament injury",
            TEAR,
            _radlex("RID2797", "Lateral collateral ligament of knee"),
        ),
        Label("PD", "Patellar dislocation", "knee", "alignment", None, PATELLA),
        Label(
            "EFFU",
            "Joint effusion",
            "knee",
            "effusion",
            _sct("202381003", "Knee joint effusion", "public FHIR code list"),
            _sct("49076000", "Knee joint", _PYDICOM),
        ),
    ),
    "ankle": (
        Label(
            "ATFL",
            "Anterior talofibular ligament injury",
            "ankle",
            "ligament injury",
            None,
            _sct("67211007", "Ligament of ankle", _EHDSI),
        ),
        Label(
            "CFL",
            "Calcaneofibular ligament injury",
            "ankle",
            "ligament injury",
            None,
            _sct("67211007", "Ligament of ankle", _EHDSI),
        ),
        Label(
            "ATR",
            "Achilles tendon rupture",
            "ankle",
            "tendon injury",
            None,
            _sct("61352006", "Achilles tendon", _PYDICOM),
        ),
        Label(
            "OLT",
            "Osteochondral lesion of the talus",
            "ankle",
            "osteochondral lesion",
            None,
            _sct("67453005", "Talus", _PYDICOM),
        ),
    ),
    "shoulder": (
        Label(
            "SSP",
            "Supraspinatus tendon injury",
            "shoulder",
            "tendon injury",
            None,
            _sct("5580002", "Supraspinatus tendon", _EHDSI),
        ),
        Label(
            "ISP",
            "Infraspinatus tendon injury",
            "shoulder",
            "tendon injury",
            None,
            _sct("7885001", "Rotator cuff", _EHDSI),
        ),
        Label(
            "SSC",
            "Subscapularis tendon injury",
            "shoulder",
            "tendon injury",
            None,
            _sct("7885001", "Rotator cuff", _EHDSI),
        ),
        Label(
            "LHBT injury",
            "Long head of biceps tendon injury",
            "shoulder",
            "tendon injury",
            None,
            _sct("1197044005", "Biceps tendon", _EHDSI),
        ),
        Label("AC", "Acromioclavicular joint abnormality", "shoulder", "joint abnormality", None, SHOULDER),
        Label(
            "GHJ",
            "Glenohumeral joint abnormality",
            "shoulder",
            "joint abnormality",
            None,
            _sct("85537004", "Glenohumeral joint", _EHDSI),
        ),
        Label(
            "LHBT effusion",
            "Long head of biceps tendon sheath effusion",
            "shoulder",
            "effusion",
            None,
            _sct("1197044005", "Biceps tendon", _EHDSI),
        ),
        Label(
            "SASD",
            "Subacromial-subdeltoid bursa abnormality",
            "shoulder",
            "bursa abnormality",
            None,
            _sct("63424005", "Subacromial bursa", _EHDSI),
        ),
    ),
}


def class_names(classes: int) -> tuple[str, ...]:
    """Names of a segmentation head's classes, background first.

    A head of 12 classes scores the eleven structures over background. A published head has 11 classes whose names
    were never published, so they are called by number.
    """
    if classes == len(STRUCTURES) + 1:
        return ("background", *(s.key for s in STRUCTURES))
    return ("background", *(f"class_{i}" for i in range(1, classes)))
