"""A result as DICOM files: SEG per plane, one SR, and pictures; or, where there is no result, an SR that says why."""

from __future__ import annotations

import datetime
import gc
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydicom
from highdicom import SOPClass
from highdicom.seg import Segmentation
from orthokernels.edge.objects.abstention import abstention_report
from orthokernels.edge.objects.findings_report import answer, findings_report, remarks_on
from orthokernels.edge.objects.page import abstention_page, result_page
from orthokernels.edge.objects.picture import page_picture, plane_picture
from orthokernels.edge.objects.segmentation import segmentation
from orthokernels.edge.objects.setting import Setting, make_setting

from orthokernels.data.dicom import Frame, read_frames
from orthokernels.data.dicom.file import quiet_pydicom
from orthokernels.errors import InputError
from orthokernels.pipeline import StudyRun

FINDINGS, ABSTENTION, PAGE = "findings.dcm", "abstention.dcm", "page.dcm"


@contextmanager
def _discreet() -> Iterator[None]:
    """highdicom and pydicom quote odd names of patients in warnings, and logs hold no patient data."""
    logger = logging.getLogger("highdicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with quiet_pydicom():
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _uncollected() -> Iterator[None]:
    """The objects' items are many small things that stay until the end: looking for circles among them again and again
    takes about a sixth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@_discreet()
@_uncollected()
def write_objects(
    run: StudyRun,
    sources: Sequence[Path],
    out: Path,
    *,
    model_digest: str,
    configuration_digest: str,
    labelmap: bool = False,
    remarks: Sequence[str] = (),
    indeterminate_within: float = 0.0,
    created: datetime.datetime | None = None,
    supersedes: Path | None = None,
) -> list[Path]:
    """Write what a run gave as DICOM objects that belong to the study of its source images.

    A file appears whole or not at all. The same arguments give the same bytes, so whoever was interrupted starts again.

    Args:
        run: the result, made from DICOM images.
        sources: every file of the study, the ones that the run left out included: identifiers derive from all of them.
        out: folder to write to; it is made with its parents, and files of the same name are replaced.
        model_digest: hexadecimal digest of the weights or the bundle.
        configuration_digest: hexadecimal digest of all that changes a result beside images, model and version of this
            package: preparation, seed, thresholds, and the options below.
        labelmap: segmentations as Label Map Segmentation instead of binary, for a peer that accepts them.
        remarks: sentences for the reader beside the result's own warnings, such as what a check found doubtful.
        indeterminate_within: findings whose probability lies nearer to its threshold than this are reported as
            indeterminate; 0 for none.
        created: the moment that the objects bear, the same for a repeat; the latest that the sources name where it is
            None.
        supersedes: the structured report that an earlier state of this study got.

    Returns:
        Segmentations by plane, the structured report, pictures by plane, and the page, in this order. A plane on which
        nothing was labelled has no segmentation.

    Raises:
        InputError: the sources are no DICOM images of one study, or not those that the run was made from.
    """
    result = run.result
    used = {path.resolve() for places in run.frames.values() for path, _ in places}
    setting = make_setting(
        sources,
        model_digest=model_digest,
        configuration_digest=configuration_digest,
        joint=result.joint,
        side=result.laterality,
        created=created,
        used=used,
    )
    frames: dict[str, list[Frame]] = {plane.plane: _frames(setting, run, plane.plane) for plane in result.planes}
    segmentations = _segmentations(setting, run, frames, labelmap)
    remarks = [*remarks_on(result), *remarks]
    report = findings_report(
        setting,
        result,
        segmentations,
        [header for path, header in setting.sources.items() if path in used],
        remarks=remarks,
        indeterminate_within=indeterminate_within,
        supersedes=_header(supersedes),
    )
    made: dict[str, SOPClass] = {f"segmentation_{plane}.dcm": own for plane, own in segmentations.items()}
    made[FINDINGS] = report
    for number, plane in enumerate(result.planes, start=1):
        made[f"picture_{plane.plane}.dcm"] = plane_picture(
            setting, plane, run.arrays[plane.plane], number=number, untrained=bool(result.untrained)
        )
    answers = [answer(finding, indeterminate_within).meaning for finding in result.findings]
    page = result_page(result, answers, remarks)
    made[PAGE] = page_picture(setting, page, kind="picture page", number=len(result.planes) + 1)
    return _save(made, out)


@_discreet()
def write_abstention(
    sources: Sequence[Path],
    out: Path,
    reasons: Sequence[str],
    *,
    joint: str,
    model_digest: str,
    configuration_digest: str,
    side: str | None = None,
    created: datetime.datetime | None = None,
    supersedes: Path | None = None,
) -> list[Path]:
    """Write that a study gets no result, and why: a structured report, and the same as a picture.

    Args:
        sources: every file of the study; at least one must be a DICOM object.
        out, model_digest, configuration_digest, created, supersedes: as of ``write_objects``.
        reasons: sentences for the reader, at least one. Paths of the sources in them are not told.
        joint: what the study was to be read as.
        side: "L" or "R" where it is known.

    Returns:
        The structured report and the picture.

    Raises:
        InputError: no source can be named in a DICOM object.
    """
    if not reasons:
        raise ValueError("an abstention needs a reason")
    setting = make_setting(
        sources,
        model_digest=model_digest,
        configuration_digest=configuration_digest,
        joint=joint,
        side=side,
        created=created,
    )
    reasons = [_without_paths(reason, sources) for reason in reasons]
    made: dict[str, SOPClass] = {
        ABSTENTION: abstention_report(setting, reasons, supersedes=_header(supersedes)),
        PAGE: page_picture(
            setting, abstention_page(joint, setting.side, reasons), kind=f"picture {' '.join(reasons)}", number=1
        ),
    }
    return _save(made, out)


def _segmentations(
    setting: Setting, run: StudyRun, frames: Mapping[str, Sequence[Frame]], labelmap: bool
) -> dict[str, Segmentation]:
    made: dict[str, Segmentation] = {}
    for plane in run.result.planes:
        labels, affine = run.label_maps.get(plane.plane, (None, None))
        if labels is None or affine is None or not labels.any():
            continue
        made[plane.plane] = segmentation(setting, plane, labels, affine, frames[plane.plane], labelmap=labelmap)
    return made


def _frames(setting: Setting, run: StudyRun, plane: str) -> list[Frame]:
    """The source image of each slice of a plane, read again."""
    places = run.frames.get(plane, ())
    if not places:
        raise InputError(f"{plane}: the volume was not read from DICOM, so no DICOM object can refer to it.")
    paths = dict.fromkeys(path.resolve() for path, _ in places)
    unknown = [path for path in paths if path not in setting.sources]
    if unknown:
        raise InputError(
            f"{unknown[0]}: the {plane} volume was read from it, but it is not among the sources, or no longer a DICOM "
            "object. Pass every file of the study."
        )
    by_path = {path: read_frames(path) for path in paths}
    return [by_path[path.resolve()][index] for path, index in places]


def _without_paths(reason: str, sources: Sequence[Path]) -> str:
    """Refusals name files; where they lie on this machine is nobody's business in the archive."""
    files = {name for path in sources for name in (str(path), str(path.resolve()))}
    folders = {str(Path(name).parent) for name in files} - {".", "/"}
    for names, instead in ((files, "a file of the study"), (folders, "the study")):
        for name in sorted(names, key=len, reverse=True):
            reason = reason.replace(name, instead)
    return reason


def _header(report: Path | None) -> pydicom.Dataset | None:
    return pydicom.dcmread(report, stop_before_pixels=True) if report is not None else None


def _save(made: Mapping[str, SOPClass], out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    return [_save_whole(dataset, out / name) for name, dataset in made.items()]


def _save_whole(dataset: SOPClass, path: Path) -> Path:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        dataset.save_as(file, enforce_file_format=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    return path
