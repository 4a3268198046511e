"""Codes of structures, findings and answers, as DICOM writes them; a private scheme where no public code is known."""

from __future__ import annotations

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

from orthokernels import tasks

PRIVATE_SCHEME = "99ORTHOK"

# Answers to "is this finding there?", as IHE's AI Results profile lists them.
PRESENT = CodedConcept("52101004", "SCT", "Present")
ABSENT = CodedConcept("2667000", "SCT", "Absent")
INDETERMINATE = CodedConcept("82334004", "SCT", "Indeterminate")
UNKNOWN = CodedConcept("261665006", "SCT", "Unknown")

OUTCOME = CodedConcept("OUTCOME", PRIVATE_SCHEME, "Outcome of automatic processing")
ABSTAINED = CodedConcept("ABSTAINED", PRIVATE_SCHEME, "Abstained: no result is given")

MILLILITRE = CodedConcept("ml", "UCUM", "ml")

SIDES = {"L": codes.SCT.Left, "R": codes.SCT.Right}

_LABELS = {(label.joint, label.key): label for labels in tasks.LABELS.values() for label in labels}
_STRUCTURES = {structure.key: structure for structure in tasks.STRUCTURES}


def private_scheme() -> CodingSchemeIdentificationItem:
    """What an object that uses a private code says of its scheme."""
    return CodingSchemeIdentificationItem(
        PRIVATE_SCHEME, name="orthokernels private codes", responsible_organization="orthokernels"
    )


def concept(code: tasks.Code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, code.meaning)


def finding(joint: str, key: str, name: str) -> CodedConcept:
    """The code of a label, else a private one."""
    known = _LABELS.get((joint, key))
    return concept(known.code) if known is not None and known.code is not None else private(key, name)


def finding_site(joint: str, key: str) -> CodedConcept:
    """Where a label's finding lies: its own site, else the joint."""
    known = _LABELS.get((joint, key))
    return concept(known.site if known is not None and known.site is not None else tasks.JOINTS[joint])


def structure(key: str, name: str) -> CodedConcept:
    """The code of a segmented structure, else a private one."""
    known = _STRUCTURES.get(key)
    return concept(known.code) if known is not None else private(key, name)


def structure_regions(key: str) -> list[CodedConcept]:
    """The bone that a structure belongs to, where its own code leaves that open."""
    known = _STRUCTURES.get(key)
    return [concept(known.region)] if known is not None and known.region is not None else []


def private(key: str, name: str) -> CodedConcept:
    """A code of our own for a term of ours; a code value holds 16 characters, a meaning 64."""
    return CodedConcept(key.upper().replace(" ", "_")[:16], PRIVATE_SCHEME, name[:64])
