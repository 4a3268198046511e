"""What the MRD header, an XML text from the scanner, says of the scan: contrast and body part, and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree

# DICOM's terms of ScanningSequence, by what vendors write into sequence_type.
_SEQUENCES = (("SE", ("spinecho", "tse", "fse", "spin")), ("GR", ("gradient", "flash", "gre", "dess", "trufi")))


@dataclass(frozen=True)
class Scan:
    """Times in ms; ``echo_times`` and ``inversion_times`` by contrast."""

    description: str = "MRD"
    body_part: str | None = None
    sequence: str = ""
    repetition_time: float | None = None
    echo_times: tuple[float, ...] = ()
    inversion_times: tuple[float, ...] = ()


def read_scan(xml: bytes) -> Scan:
    """Read the header.

    Raises:
        ValueError: it is no XML, or XML that refers to anything outside itself or grows when read.
    """
    try:
        root = defusedxml.ElementTree.fromstring(xml, forbid_dtd=True)
    except (ParseError, ValueError, LookupError, RecursionError) as error:
        # ValueErrors are defusedxml's own too; a LookupError is raised for an encoding that there is not.
        raise ValueError("the MRD header is not readable XML") from error
    found = _texts(root)
    told = "".join(c for c in next(iter(found.get("sequence_type", ())), "").lower() if c.isalpha())
    repetition = _numbers(found.get("TR", ()))
    return Scan(
        description=next(iter(found.get("protocolName", ())), "MRD")[:64],
        body_part=next(iter(found.get("bodyPartExamined", ())), "")[:64] or None,
        sequence=next((term for term, words in _SEQUENCES if any(word in told for word in words)), ""),
        repetition_time=repetition[0] if repetition else None,
        echo_times=_numbers(found.get("TE", ())),
        inversion_times=_numbers(found.get("TI", ())),
    )


def _texts(root: Element) -> dict[str, list[str]]:
    """Texts by their elements' names, without namespaces."""
    found: dict[str, list[str]] = {}
    for element in root.iter():
        found.setdefault(str(element.tag).rpartition("}")[2], []).append((element.text or "").strip())
    return found


def _numbers(texts: list[str] | tuple[str, ...]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(text) for text in texts)
    except ValueError:
        return ()
    return numbers if all(math.isfinite(number) for number in numbers) else ()
