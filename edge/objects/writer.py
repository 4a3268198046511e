"""A result as DICOM files: SEG per plane, one SR, and pictures; or, where there is no result, an SR that says why."""

from __future__ import annotations

import datetime
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
from highdicom import SOPClass
from orthokernels.edge.forms import Form, form_of
from orthokernels.edge.objects.abstention import abstention_report
from orthokernels.edge.objects.findings_report import answer, findings_report, remarks_on
from orthokernels.edge.objects.page import abstention_page
from orthokernels.edge.objects.picture import page_picture
from orthokernels.edge.objects.pictures import PAGE, Pictures
from orthokernels.edge.objects.saving import discreet, save
from orthokernels.edge.objects.segmentation import check_grid, segmentation
from orthokernels.edge.objects.setting import Setting, make_setting
from orthokernels.edge.objects.sources import OF_PATIENT
from orthokernels.edge.patients import SEVERAL, several_patients

from orthokernels.data.dicom import Frame, read_frames
from orthokernels.errors import InputError
from orthokernels.pipeline import StudyRun

FINDINGS, ABSTENTION = "findings.dcm", "abstention.dcm"


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


def _at_once(pictures: Pictures) -> Future[list[Path]]:
    """The pictures, written by the process that asks."""
    written: Future[list[Path]] = Future()
    written.set_result(pictures.write())
    return written


@discreet()
@_uncollected()
def write_objects(
    run: StudyRun,
    sources: Sequence[Path],
    out: Path,
    *,
    model_digest: str,
    configuration_digest: str,
    forms: Sequence[Form] = ("binary",),
    remarks: Sequence[str] = (),
    created: datetime.datetime | None = None,
    received: datetime.datetime | None = None,
    supersedes: Sequence[Path] = (),
    draw: Callable[[Pictures], Future[list[Path]]] = _at_once,
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
        forms: of the segmentations; a destination gets one of them, with the report that names it.
        remarks: sentences for the reader beside the result's own warnings, such as what a check found doubtful.
        created: the moment that the objects bear, the same for a repeat; the latest that the sources name where it is
            None.
        received: when the sources came, which counts where nothing else is known.
        supersedes: the structured reports that earlier states of this study got, newest first.
        draw: gets the pictures once no source can be refused any more, and has them written while the rest is made.

    Returns:
        Segmentations by plane and the structured report, for each form; pictures by plane; and the page, in this order.
        A plane on which nothing was labelled has no segmentation; where none has, one report stands for all forms.

    Raises:
        InputError: the sources are no DICOM images of one study and one patient, or not those that the run was made
            from.
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
        received=received,
        used=used,
    )
    if named_by := several_patients(setting.sources.values()):
        raise InputError(SEVERAL.format(named_by))
    frames: dict[str, list[Frame]] = {plane.plane: _frames(setting, run, plane.plane) for plane in result.planes}
    labelled = _labelled(run, frames)
    answers = tuple(answer(finding).meaning for finding in result.findings)
    remarks = (*remarks_on(result), *remarks)
    pictures = draw(Pictures(setting, result, run.arrays, answers, remarks, out))
    images = [header for path, header in setting.sources.items() if path in used]
    earlier = _headers(supersedes)
    made: dict[str, SOPClass] = {}
    for form in forms if labelled else (None,):
        segmentations = {
            plane.plane: segmentation(setting, plane, labelled[plane.plane], frames[plane.plane], form=form)
            for plane in result.planes
            if form is not None and plane.plane in labelled
        }
        report = findings_report(
            setting,
            result,
            segmentations,
            images,
            remarks=remarks,
            # of the other form it would be one that this destination does not have
            supersedes=[one for one in earlier if form is None or form_of(one) in (None, form)],
            form=form,
        )
        suffix = "_label_map" * (form == "label map")
        made |= {f"segmentation_{plane}{suffix}.dcm": own for plane, own in segmentations.items()}
        made[FINDINGS.replace(".", f"{suffix}.")] = report
    return [*save(made, out), *pictures.result()]


@discreet()
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
    received: datetime.datetime | None = None,
    supersedes: Sequence[Path] = (),
) -> list[Path]:
    """Write that a study gets no result, and why: a structured report, and the same as a picture.

    Where the images name more than one patient, these objects name none.

    Args:
        sources: every file of the study; at least one must be a DICOM object.
        out, model_digest, configuration_digest, created, received, supersedes: as of ``write_objects``.
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
        received=received,
    )
    if several_patients(setting.sources.values()):
        _name_no_patient(setting)
    reasons = [_without_paths(reason, sources) for reason in reasons]
    made: dict[str, SOPClass] = {
        ABSTENTION: abstention_report(setting, reasons, supersedes=_headers(supersedes)),
        PAGE: page_picture(
            setting, abstention_page(joint, setting.side, reasons), kind=f"picture {' '.join(reasons)}", number=1
        ),
    }
    return save(made, out)


def _name_no_patient(setting: Setting) -> None:
    """Filed under one of several patients, a report would be under the wrong one; the study's identifiers still tell
    where it belongs."""
    for header in setting.sources.values():
        for keyword in OF_PATIENT:
            if keyword in header:
                setattr(header, keyword, "")


def _labelled(run: StudyRun, frames: Mapping[str, Sequence[Frame]]) -> dict[str, np.ndarray]:
    """Label maps of the planes on which something was labelled, held against the places of their images."""
    found = {}
    for plane, images in frames.items():
        labels, affine = run.label_maps.get(plane, (None, None))
        if labels is not None and affine is not None and labels.any():
            check_grid(plane, labels.shape, affine, images)
            found[plane] = labels
    return found


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


def _headers(reports: Sequence[Path]) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(report, stop_before_pixels=True) for report in reports]
