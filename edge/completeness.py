"""Whether a study is all there, by what its headers say; DICOM itself has no end-of-study message."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from orthokernels.edge.patients import NAMED_BY, SEVERAL, several_patients
from orthokernels.edge.runner import without_paths
from orthokernels.edge.store import Verdict
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from orthokernels.data.dicom.file import DAMAGE, quiet_pydicom, read
from orthokernels.data.study import Study, read_study
from orthokernels.errors import InputError

_TAGS = ["SeriesInstanceUID", "AcquisitionNumber", "ImagesInAcquisition", "NumberOfFrames", *NAMED_BY]


def examine(paths: Sequence[Path], planes: Sequence[str]) -> tuple[Verdict, str]:
    """What the headers of a study's images say, and why.

    "whole" takes a volume of every plane in ``planes``, with no gap, of images whose acquisitions say how many they
    are; scanners often send a series per association, so a study that lacks a plane ("partial") may only be on its way.
    """
    headers = list(_headers(paths))
    if named_by := several_patients(headers):
        return "unfit", SEVERAL.format(named_by)
    try:
        study = read_study(list(paths), planes)
    except InputError as error:
        return "unfit", without_paths(str(error), paths)
    counted = _acquisitions(headers)
    if missing := list(_missing(counted)):
        return "missing", "; ".join(missing)
    absent = [plane for plane in planes if not study.stacks[plane]]
    if absent:
        return "partial", f"no {' and no '.join(absent)} volume yet"
    if gaps := list(_gaps(study)):
        return "unknown", "; ".join(gaps)
    if any(expected == 0 for _, expected in counted.values()):
        return "unknown", "the headers do not say how many images there are"
    return "whole", "every plane is there, and every acquisition has the images that it counts"


def _headers(paths: Sequence[Path]) -> Iterator[Dataset]:
    """The headers of those files that have one; who the patient is, where that is damaged, is left out."""
    for path in paths:
        try:
            with quiet_pydicom():
                header = read(path, only=_TAGS)
                for keyword in NAMED_BY:
                    try:
                        header.get(keyword)  # decodes it
                    except DAMAGE:
                        del header[keyword]
        except (InvalidDicomError, InputError, *DAMAGE):
            continue  # the study's reader says what is wrong with it
        yield header


def _acquisitions(headers: Sequence[Dataset]) -> dict[tuple[str, str], tuple[int, int]]:
    """Images that are there and images that the headers count, 0 where they do not, by series and acquisition."""
    there: Counter[tuple[str, str]] = Counter()
    expected: dict[tuple[str, str], int] = defaultdict(int)
    for header in headers:
        with quiet_pydicom():
            try:
                key = (str(header.get("SeriesInstanceUID")), str(header.get("AcquisitionNumber")))
                several = int(header.get("NumberOfFrames") or 1) > 1
                says = 1 if several else int(header.get("ImagesInAcquisition") or 0)
            except (InvalidDicomError, InputError, *DAMAGE):
                continue
        there[key] += 1
        expected[key] = max(expected[key], says)
    return {key: (there[key], expected[key]) for key in there}


def _missing(counted: dict[tuple[str, str], tuple[int, int]]) -> Iterator[str]:
    for (_, acquisition), (there, expected) in sorted(counted.items()):
        if there < expected:
            yield f"{there} of {expected} images of acquisition {acquisition} came"


def _gaps(study: Study) -> Iterator[str]:
    for competing in study.stacks.values():
        for stack in competing:
            yield from getattr(stack, "warnings", ())
