"""Many phantom studies in one folder, with their findings in one table.

    DIR/studies.csv            study, patient, joint, side, then 0 or 1 for each finding of the joint
    DIR/phantom.json           the arguments that the studies were made with, and the phantom's revision
    DIR/study_00000/...        one study, DICOM or NIfTI
    DIR/labels/study_00000/... the label maps of a study in DICOM; NIfTI images have theirs beside them

A study's folder appears when it is complete. A run that was stopped is taken up where it stood: folders that are there
are kept, and the table lists what is there.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from orthokernels.data.phantom.study import (
    REVISION,
    PhantomStudy,
    Side,
    check_arguments,
    draw_findings,
    draw_side,
    make_study,
)
from orthokernels.data.phantom.write import write_dicom, write_labels, write_nifti
from orthokernels.data.study import STUDIES
from orthokernels.errors import InputError
from orthokernels.folders import umask
from orthokernels.tasks import LABELS

ARGUMENTS = "phantom.json"


@dataclass(frozen=True)
class Recipe:
    """What all studies of a folder have in common: ``make_study``'s arguments, and the files' format."""

    joint: str = "knee"
    side: Side | None = None
    matrix: int = 256
    findings: dict[str, bool] | None = None
    prevalence: float = 0.3
    contrast: str = "pd_fs"
    nifti: bool = False


def name_of(seed: int) -> str:
    """The folder of a seed's study."""
    return f"study_{seed:05d}"


def write_studies(
    folder: str | Path,
    seeds: Sequence[int],
    recipe: Recipe,
    *,
    workers: int = 1,
    done: Callable[[str], None] = lambda name: None,
) -> None:
    """Write one study for each seed, and the table of all that the folder holds.

    Args:
        folder: new, empty, or holding studies of the same recipe and revision of the phantom, which are kept.
        seeds: of the studies.
        recipe: how they are made.
        workers: processes to share the work; the files are the same with any number.
        done: called with each study's folder name when it is there.

    Raises:
        InputError: the folder holds something else, or studies of another recipe or revision; or as ``make_study``.
    """
    target = Path(folder)
    for seed in seeds[:1]:
        _check(seed, recipe)
    with _written(target):
        missing = _open(target, seeds, recipe)
        try:
            for name in (name_of(seed) for seed in seeds if seed not in set(missing)):
                done(name)
            for seed in _made(target, missing, recipe, workers):
                done(name_of(seed))
        finally:  # also when interrupted: the table lists what is complete
            _write_table(target, seeds, recipe)


def write_single(folder: str | Path, seed: int, recipe: Recipe) -> None:
    """Write one study straight into ``folder``, its row of findings beside its files.

    Raises:
        InputError: ``folder`` is not empty, or is a file; or as ``make_study``.
    """
    study = _made_study(seed, recipe)
    rows = [_row(".", seed, recipe)]
    with _written(Path(folder)):
        (write_nifti if recipe.nifti else write_dicom)(study, folder, beside={STUDIES: _table(rows, recipe)})


@contextmanager
def _written(target: Path) -> Iterator[None]:
    """A disk that is full, or a folder that can't be written, told in a sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{target}: can't be written ({error.strerror or error}). Make room, or choose another place; the same "
            "command keeps the studies that are complete."
        ) from error


def _open(target: Path, seeds: Sequence[int], recipe: Recipe) -> list[int]:
    """The seeds whose studies are not there yet, in a folder that is fit to take them."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target}: is not a folder. Give a new or an empty one.")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target}: can't be written ({error.strerror}). Choose another place.") from error
    arguments = target / ARGUMENTS
    if arguments.is_file():
        found = _read_arguments(arguments)
        revision = found.pop("revision", 1)  # which was not written down at first
        if found != asdict(recipe):
            raise InputError(f"{target}: holds studies made with other options ({ARGUMENTS}). Give another folder.")
        if revision != REVISION:  # whose images would stand beside the findings of this one
            raise InputError(
                f"{target}: holds studies of revision {revision} of the phantom, and this version makes {REVISION}. "
                "Give another folder."
            )
    elif any(target.iterdir()):
        raise InputError(f"{target}: the folder is not empty, and nothing is overwritten. Give a new or an empty one.")
    else:
        _replace(arguments, json.dumps({**asdict(recipe), "revision": REVISION}, indent=2) + "\n")
    return [seed for seed in seeds if not (target / name_of(seed)).is_dir()]


def _read_arguments(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}  # nobody's: it will not equal any recipe


def _made(target: Path, seeds: Sequence[int], recipe: Recipe, workers: int) -> Iterator[int]:
    """Seeds as their studies are written."""
    alone = len(seeds) if workers <= 1 else 1  # the first compiles what others then find in Numba's cache
    for seed in seeds[:alone]:
        yield _write_one(target, seed, recipe)
    if len(seeds) <= alone:
        return
    context = multiprocessing.get_context("spawn")  # forking a process that runs threads may hang
    with ProcessPoolExecutor(min(workers, len(seeds) - alone), mp_context=context) as pool:
        waiting = [pool.submit(_write_one, target, seed, recipe) for seed in seeds[alone:]]
        try:
            for finished in as_completed(waiting):
                yield finished.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _write_one(target: Path, seed: int, recipe: Recipe) -> int:
    study = _made_study(seed, recipe)
    if recipe.nifti:
        write_nifti(study, target / name_of(seed))
        return seed
    labels = target / "labels" / name_of(seed)
    if study.labelled and not labels.is_dir():
        write_labels(study, labels)
    write_dicom(study, target / name_of(seed))  # last, since this folder says that the study is complete
    return seed


def _check(seed: int, recipe: Recipe) -> None:
    check_arguments(seed, recipe.joint, recipe.side, recipe.matrix, recipe.findings, recipe.prevalence, recipe.contrast)


def _made_study(seed: int, recipe: Recipe) -> PhantomStudy:
    return make_study(
        seed, joint=recipe.joint, side=recipe.side, matrix=recipe.matrix, findings=recipe.findings,
        prevalence=recipe.prevalence, contrast=recipe.contrast,
    )  # fmt: skip


def _row(name: str, seed: int, recipe: Recipe) -> dict[str, str]:
    found = draw_findings(seed, recipe.joint, recipe.findings, recipe.prevalence)
    return {
        "study": name,
        "patient": f"PHANTOM{seed}",
        "joint": recipe.joint,
        "side": recipe.side or draw_side(seed),
        **{key: str(int(present)) for key, present in found.items()},
    }


def _write_table(target: Path, seeds: Sequence[int], recipe: Recipe) -> None:
    """Rows of the studies that are there, earlier runs' among them, by name."""
    table = target / STUDIES
    rows: dict[str, dict[str, str]] = {}
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            rows = {row["study"]: row for row in csv.DictReader(file)}
    rows |= {name_of(seed): _row(name_of(seed), seed, recipe) for seed in seeds}
    there = [row for name, row in sorted(rows.items()) if (target / name).is_dir()]
    _replace(table, _table(there, recipe))


def _table(rows: Sequence[dict[str, str]], recipe: Recipe) -> str:
    columns = ["study", "patient", "joint", "side", *(label.key for label in LABELS[recipe.joint])]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _replace(path: Path, text: str) -> None:
    """Write a file that is whole or not there."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
