"""A study in: which files are images, which volumes they make, and which volume stands for which plane.

Everything that is left out is kept with its reason.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from orthokernels.data import dicom, nifti
from orthokernels.data.contrast import contrast_name, fat_suppressed, fluid_sensitive
from orthokernels.data.geometry import plane_of, slice_axis
from orthokernels.data.volume import MIN_SLICES, Volume, hash_of
from orthokernels.errors import InputError
from orthokernels.tasks import PLANES

Stack = dicom.DicomStack | nifti.NiftiStack

# Among equals the echo nearest to a clinical fat-suppressed proton-density knee is taken.
_USUAL_ECHO_MS = 40.0

# From left to right, the middles of two volumes of one joint lie nearer to each other than this, or one lies within the
# other volume; two knees' lie about 200 mm apart. In the other directions a table or a patient may have moved.
_ONE_JOINT_MM = 100.0

# In ImageType, or in an enhanced file's ComplexImageComponent. A real image (R, REAL) may be all there is of an
# inversion recovery.
_NO_MAGNITUDE = {"a phase image": {"P", "PHASE", "PHASE MAP"}, "an imaginary image": {"I", "IMAGINARY"}}

STUDIES = "studies.csv"  # a table of studies and their findings, which training reads

CHOICE_RULE = (
    "fluid-sensitive and fat-suppressed first, then fluid-sensitive, then more slices, then the echo time nearest to "
    f"{_USUAL_ECHO_MS:g} ms"
)


@dataclass(frozen=True)
class LeftOut:
    """A file or volume that was not used, and why."""

    what: str
    reason: str


@dataclass
class Study:
    """The volumes of one examination, by plane, best first; ``elsewhere`` are those of another side or place."""

    stacks: dict[str, list[Stack]]
    left_out: list[LeftOut] = field(default_factory=list)
    study_hash: str = ""
    elsewhere: list[Stack] = field(default_factory=list)

    def load(self, plane: str) -> Volume | None:
        """The best volume of ``plane`` that can be read; the others go to ``left_out`` with their reasons."""
        chosen: Volume | None = None
        for stack in self.stacks.get(plane, []):
            if chosen is not None:
                reason = f"ranks below the chosen {plane} volume, {describe(chosen)}"
                self.left_out.append(LeftOut(_named(stack), reason))
                continue
            try:
                chosen = stack.load()
            except InputError as error:
                self.left_out.append(LeftOut(_named(stack), str(error)))
        return chosen

    def others_elsewhere(self, plane: str) -> bool:
        """Whether volumes of ``plane`` show another side or place."""
        return any(plane_of(stack.affine, stack.source.kind)[0] == plane for stack in self.elsewhere)


def describe(stack: Stack | Volume) -> str:
    """A volume in a few words, for lists of what was left out."""
    name = stack.source.description
    if stack.source.series_number is not None:
        name = f"series {stack.source.series_number}, {name}" if not name.startswith("series ") else name
    return f"{name} ({' x '.join(str(side) for side in stack.shape)})"


def _named(stack: Stack) -> str:
    """What was left out: a NIfTI file has no number that tells it from others, so it is named in full."""
    if isinstance(stack, nifti.NiftiStack):
        volume = "" if stack.time is None else f", volume {stack.time + 1}"
        return _writable(f"{stack.path}{volume} ({' x '.join(str(side) for side in stack.shape)})")
    return describe(stack)


def chosen_because(volume: Volume, competitors: int, *, others_elsewhere: bool = False) -> str:
    """Why this volume stands for its plane; ``others_elsewhere`` whether others show another side or place."""
    if competitors == 0:
        return f"the only usable volume of this plane{' that shows this side and place' if others_elsewhere else ''}"
    return f"best of {competitors + 1} volumes ({contrast_name(volume.source)}); rule: {CHOICE_RULE}"


def read_study(paths: Sequence[Path | str], planes: Iterable[str] = PLANES) -> Study:
    """Find the MR volumes in any mix of files and folders, and rank them per plane. Only headers are read.

    Raises:
        InputError: nothing usable was found, or the volumes belong to more than one study.
    """
    left_out: list[LeftOut] = []
    files = _files([Path(p) for p in paths], left_out)
    stacks = _stacks(files, left_out)
    ranked: dict[str, list[Stack]] = {plane: [] for plane in PLANES if plane in set(planes)}
    usable: list[Stack] = []
    for stack in stacks:
        plane, reason = _placed(stack, ranked)
        if plane is None:
            left_out.append(LeftOut(_named(stack), reason))
        else:
            ranked[plane].append(stack)
            usable.append(stack)
    for competing in ranked.values():
        competing.sort(key=_rank)
    if not usable:
        raise InputError(_nothing_usable(paths, left_out))
    together, elsewhere = _of_one_joint(ranked)
    for stack in elsewhere:
        left_out.append(LeftOut(_named(stack), "it shows another side or place than the volumes that were chosen"))
    study_hash = _one_study(usable, paths)
    _refuse_several_folders(ranked, paths)
    return Study(together, left_out, study_hash, elsewhere)


def _files(paths: Sequence[Path], left_out: list[LeftOut]) -> list[Path]:
    """Every file, once, in a fixed order."""
    found: dict[Path, Path] = {}
    for path in paths:
        try:
            if not path.exists():
                raise InputError(f"{path}: no such file or folder. Check the path.")
            files = [path] if path.is_file() else _files_under(path, left_out)
        except OSError as error:
            raise InputError(f"{path}: can't be read ({error.strerror}). Check the path and permissions.") from error
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found and not left_out:
        raise InputError(f"{', '.join(map(str, paths))}: the folder is empty. Pass a folder with DICOM or NIfTI files.")
    return list(found.values())


def _files_under(folder: Path, left_out: list[LeftOut]) -> list[Path]:
    """The files of a folder and those in it; links to folders are not followed, which could lead anywhere."""

    def unreadable(error: OSError) -> None:
        reason = f"can't be read ({error.strerror}). Check its permissions."
        left_out.append(_file_left_out(Path(error.filename), reason))

    found = []
    for place, subfolders, names in os.walk(folder, onerror=unreadable):
        subfolders.sort()
        for path in (Path(place, name) for name in (*sorted(names), *subfolders) if not name.startswith(".")):
            try:
                if path.is_file():
                    found.append(path)
                elif path.is_symlink():
                    what = "a folder, which is not followed" if path.is_dir() else "a file that is not there"
                    left_out.append(_file_left_out(path, f"is a link to {what}. Pass what it stands for."))
            except OSError as error:
                unreadable(error)
    return found


def _stacks(files: Iterable[Path], left_out: list[LeftOut]) -> list[Stack]:
    stacks: list[Stack] = []
    series: dict[tuple[str, str], dict[tuple[str, int], dicom.Frame]] = {}
    for path in files:
        if _is_beside_images(path):
            continue
        try:
            if path.stat().st_size == 0:
                raise InputError(f"{path}: is empty (0 bytes). Copy the file again.")
            if path.name.lower().endswith(nifti.SUFFIXES):
                stacks += nifti.read_stacks(path)
                continue
            if _is_of_a_pair(path):
                raise InputError(f"{path}: is half of a NIfTI pair, header and voxels apart. Save it as one .nii file.")
            for frame in dicom.read_frames(path):
                known = series.setdefault((frame.source.study_hash, frame.source.series_hash), {})
                if (frame.instance_uid, frame.index) in known:
                    raise InputError(f"{path}: the same image (SOP Instance UID) as another file. Keep one of them.")
                known[frame.instance_uid, frame.index] = frame
        except InputError as error:
            left_out.append(_file_left_out(path, str(error)))
        except OSError as error:
            left_out.append(_file_left_out(path, f"can't be read ({error.strerror}). Check its permissions."))
    for frames in series.values():
        found, reasons = dicom.stacks_of(list(frames.values()))
        stacks += found
        left_out += [LeftOut(name, reason) for name, reason in reasons]
    return stacks


def _is_beside_images(path: Path) -> bool:
    """A table of studies, or a NIfTI file's side file: no image, and nothing that was left out."""
    images = (path.with_suffix(suffix) for suffix in nifti.SUFFIXES)
    return path.name == STUDIES or (path.suffix == ".json" and any(image.is_file() for image in images))


def _is_of_a_pair(path: Path) -> bool:
    """Whether a file is the header (.hdr) or the voxels (.img) of a NIfTI volume in two files."""
    header = path.with_suffix(".hdr")
    if path.suffix not in (".hdr", ".img") or not header.is_file():
        return False
    with header.open("rb") as file:
        return file.read(348)[344:347] in (b"ni1", b"n+1")


def _file_left_out(path: Path, message: str) -> LeftOut:
    return LeftOut(_writable(str(path)), _writable(message.removeprefix(f"{path}: ")))


def _writable(text: str) -> str:
    """Text with a file's name in it, of whose bytes those that are no UTF-8 are shown as such."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _placed(stack: Stack, wanted: Iterable[str]) -> tuple[str | None, str]:
    """The plane a stack can stand for, or None and the reason why it can for none."""
    slices = _slices(stack)
    if slices < MIN_SLICES:
        return None, f"{slices} slice{'s' if slices != 1 else ''}; at least {MIN_SLICES} are needed"
    if isinstance(stack, dicom.DicomStack):
        for what, words in _NO_MAGNITUDE.items():
            if words & set(stack.frames[0].image_type[2:]):
                return None, f"{what}, not a magnitude image"
    plane, obliquity = plane_of(stack.affine, stack.source.kind)
    if plane is None:
        return None, f"{obliquity:.1f} degrees off the nearest plane; at most 45 are accepted"
    if plane not in set(wanted):
        return None, f"{plane}, which was not asked for"
    return plane, ""


def _slices(stack: Stack) -> int:
    """How many slices a stack has; a NIfTI file's may lie along any of its axes."""
    return stack.shape[slice_axis(stack.affine, stack.source.kind)]


def _rank(stack: Stack) -> tuple[float | str, ...]:
    """Sort key of CHOICE_RULE, best first; the hashes only make the order of equals the same every time."""
    source = stack.source
    fluid, fat = fluid_sensitive(source), fat_suppressed(source)
    echo = abs(source.echo_time - _USUAL_ECHO_MS) if source.echo_time is not None else float("inf")
    return (-(fluid and fat), -fluid, -_slices(stack), echo, source.series_hash, source.description)


def _of_one_joint(ranked: dict[str, list[Stack]]) -> tuple[dict[str, list[Stack]], list[Stack]]:
    """The volumes that show one side and place, of as many planes as possible, and the rest: two knees in a study must
    not become one result."""
    together: dict[str, list[Stack]] = {}
    for first in (stack for competing in ranked.values() for stack in competing):
        chosen, found = [first], {}
        for plane, competing in ranked.items():
            found[plane] = [stack for stack in competing if all(_same_joint(stack, other) for other in chosen)]
            chosen += found[plane][:1]
        if sum(map(bool, found.values())) > sum(map(bool, together.values())):
            together = found
    kept = {id(stack) for competing in together.values() for stack in competing}
    return together, [stack for competing in ranked.values() for stack in competing if id(stack) not in kept]


def _same_joint(a: Stack, b: Stack) -> bool:
    """Whether nothing says that two volumes show different joints: neither their sides nor their places."""
    if a.source.laterality and b.source.laterality and a.source.laterality != b.source.laterality:
        return False
    aside = abs(_middle(a)[0] - _middle(b)[0])
    return bool(aside <= _ONE_JOINT_MM) or _holds(a, _middle(b)) or _holds(b, _middle(a))


def _middle(stack: Stack) -> np.ndarray:
    """In RAS mm."""
    return (stack.affine @ [*((side - 1) / 2 for side in stack.shape), 1.0])[:3]


def _holds(stack: Stack, point: np.ndarray) -> bool:
    index = (np.linalg.inv(stack.affine) @ [*point, 1.0])[:3]
    return bool(((index > -0.5) & (index < np.array(stack.shape) - 0.5)).all())


def _one_study(stacks: Sequence[Stack], paths: Sequence[Path | str]) -> str:
    studies = Counter(stack.source.study_hash for stack in stacks if stack.source.study_hash)
    if len(studies) > 1:
        examples = [
            str(next(s.source.paths[0] for s in stacks if s.source.study_hash == study)) for study in list(studies)[:2]
        ]
        raise InputError(
            f"{', '.join(map(str, paths))}: holds {len(studies)} studies (one with {examples[0]}, another with "
            f"{examples[1]}). Pass one study at a time."
        )
    return next(iter(studies), None) or hash_of(" ".join(sorted(str(s.source.paths[0].name) for s in stacks)))


def _refuse_several_folders(ranked: dict[str, list[Stack]], paths: Sequence[Path | str]) -> None:
    """NIfTI does not say whose a volume is: where folders each have one of the same plane, they may be patients."""
    for plane, competing in ranked.items():
        files = [stack.path for stack in competing if isinstance(stack, nifti.NiftiStack)]
        folders = sorted({str(file.parent) for file in files})
        if len(folders) > 1:
            raise InputError(
                f"{', '.join(map(str, paths))}: {len(folders)} folders hold {plane} NIfTI volumes ({folders[0]}, "
                f"{folders[1]}{', ...' if len(folders) > 2 else ''}), and NIfTI does not say whose they are. Pass one "
                "study's folder, or its files."
            )


def _nothing_usable(paths: Sequence[Path | str], left_out: Sequence[LeftOut]) -> str:
    where = ", ".join(map(str, paths))
    if len(left_out) == 1:
        what, reason = left_out[0].what, left_out[0].reason
        # What is said of a file tells what to do, what is said of a stack ends without a full stop.
        told = reason if reason.endswith(".") else f"{reason}. Pass the whole series."
        return f"{what}: {reason}" if what == where else f"{where}: {what}: {told}"
    reasons = Counter(item.reason for item in left_out).most_common(2)
    told = "; ".join(
        f"{count} x {reason.rstrip('.')}" if count > 1 else f"{_example(left_out, reason)}: {reason.rstrip('.')}"
        for reason, count in reasons
    )
    more = len(left_out) - sum(count for _, count in reasons)
    told += f"; and {more} more" if more else ""
    return f"{where}: no usable MR volume ({told}). Pass a folder with an MR series of at least {MIN_SLICES} slices."


def _example(left_out: Sequence[LeftOut], reason: str) -> str:
    return next(item.what for item in left_out if item.reason == reason)
