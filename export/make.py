"""``orthokernels export bundle``: graphs in every form, judged on phantoms, and what passes in one signed folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from orthokernels.export.admission import admit
from orthokernels.export.bundle import GRAPHS, BundleFolder, Draft, draft, finish
from orthokernels.export.examples import (
    CALIBRATION_SEED,
    VALIDATION_SEED,
    SeriesExample,
    examples_of_records,
    examples_of_studies,
    phantom_records,
)
from orthokernels.export.gate import LEAST_STUDIES
from orthokernels.export.judge import Judge
from orthokernels.export.known import Vectors, know, known_vectors
from orthokernels.export.parity import metrics_of, sizes_of
from orthokernels.export.write_forms import Calibrator, calibration_inputs, fp32_sessions, write_dataless_forms

from orthokernels.bundle.manifest import FORMS, Form
from orthokernels.bundle.signature import private_key
from orthokernels.bundle.verify import Bundle, verify
from orthokernels.errors import InputError
from orthokernels.folders import cache_folder
from orthokernels.progress import Progress
from orthokernels.training.records import Record

Prepared = dict[str, list[SeriesExample]]  # by joint, and so are
Streams = dict[str, Iterator[SeriesExample]]
Judged = Callable[[dict[str, Any]], None]

JUDGED_SEED = 6_000_000  # of the phantoms that decide which forms are admitted
CALIBRATION_STUDIES, VALIDATION_STUDIES = 4, 4  # phantoms of each joint
MORE_STUDIES = 20  # phantoms of each joint beside the calibration's whose vectors alone are looked at
_CALIBRATED = {"int8", "int8_qdq"}  # the forms that studies are needed for


@dataclass(frozen=True)
class Options:
    """What ``make_bundle`` is asked for.

    Attributes:
        forms: besides "fp32", which every bundle has.
        studies: phantoms of each joint that judge the forms; below 100 none but fp32 is admitted.
        calibration: folders with studies of one's own to calibrate INT8 with; phantoms where there are none.
        key: private key (PEM) to sign with.
        phantoms: where phantoms are kept, to be made once.
        workers: processes that make them.
    """

    forms: tuple[Form, ...] = FORMS
    studies: int = LEAST_STUDIES
    calibration: tuple[Path, ...] = ()
    key: Path | None = None
    phantoms: Path = field(default_factory=lambda: cache_folder() / "phantoms")
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)


@dataclass(frozen=True)
class Made:
    """A bundle, and the parity check that decided on its forms (None for untrained weights)."""

    bundle: Bundle
    parity: dict[str, Any] | None


def make_bundle(
    weights: str, out: Path, options: Options, tell: Progress = lambda what, done, total: None,
    judged: Judged = lambda parity: None,
) -> Made:  # fmt: skip
    """Make a bundle of weights.

    Untrained weights have no accuracy to lose: their forms are kept unjudged, and the card says that they mean nothing.

    Args:
        weights: "demo", "published", "random:SEED", or a weights folder.
        out: new folder.
        judged: called with the parity check as soon as it is made, which takes long: also where fp32 then turns out not
            to agree.

    Raises:
        InputError: the key, weights or ``out`` can not be used, fp32 itself does not agree with the reference, or a
            study to calibrate with can not be read. Nothing is left.
    """
    if options.key is not None:
        private_key(options.key)  # all that follows takes long
    for study in options.calibration:
        if not study.exists():
            raise InputError(f"--calibrate {study}: no such file or folder. Check the path.")
    if options.calibration and not _CALIBRATED & set(options.forms):
        raise InputError(
            f"--calibrate: of the forms {', '.join(options.forms) or 'fp32'} none is calibrated; add "
            f"{' or '.join(sorted(_CALIBRATED))} to --forms, or leave --calibrate out."
        )
    with BundleFolder(out) as folder:
        made = draft(weights, folder.draft, tell)
        graphs = folder.draft / GRAPHS
        write_dataless_forms(made.plan, graphs, options.forms, made.add)
        known: Vectors = {}
        if _CALIBRATED & set(options.forms):
            known = _quantise(made, options, tell)
        finish(made)
        parity = None
        if made.trained:
            parity = _judge(made, known, options, tell, judged)
        bundle = folder.publish(options.key)
    if parity is not None:
        parity["bundle"] = bundle.digest
    return Made(bundle, parity)


def _quantise(made: Draft, options: Options, tell: Progress) -> Vectors:
    """Write the INT8 forms; the vectors that calibrated them."""
    trained, graphs = made.trained, made.folder / GRAPHS
    calibration, more = _calibration(made, options, tell, trained)
    sessions = fp32_sessions(made.plan, graphs)
    known = known_vectors(
        made.plan, sessions, {joint: chain(own, more[joint]) for joint, own in calibration.items()}, tell
    )  # fmt: skip
    tell("Calibrating", 0, len(made.plan.graphs))
    inputs = calibration_inputs(made.plan, sessions, calibration, known)
    judge = Judge(made.plan, sessions, _validation(made, options), known) if trained else None
    del sessions  # untrained weights are not judged: at the published size NNCF needs what the open graphs hold
    made.quantised[:] = [
        own.record() for own in Calibrator(made.plan, graphs, inputs, judge).write(options.forms, made.add, tell)
    ]
    return known


def _calibration(made: Draft, options: Options, tell: Progress, trained: bool) -> tuple[Prepared, Streams]:
    """Prepared series by joint to calibrate with, and more that vectors are made of."""
    size, mode = made.size, made.preparation
    own = examples_of_studies(options.calibration, size, mode) if options.calibration else []
    calibration, more = {}, {}
    for number, joint in enumerate(made.weights):
        tell("Preparing studies", number, len(made.weights))
        if own:
            calibration[joint], more[joint] = own, iter(())
            continue
        first = CALIBRATION_SEED + CALIBRATION_STUDIES
        seeds = range(CALIBRATION_SEED, first)
        calibration[joint] = list(examples_of_records(_phantoms(joint, size, seeds, options), size, mode))
        # What untrained weights make of many studies tells no more than of a few.
        seeds = range(first, first + MORE_STUDIES * trained)
        more[joint] = examples_of_records(_phantoms(joint, size, seeds, options), size, mode)
    return calibration, more


def _validation(made: Draft, options: Options) -> Prepared:
    """Prepared series by joint to judge each graph by."""
    size, mode = made.size, made.preparation
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + VALIDATION_STUDIES)
    return {
        joint: list(examples_of_records(_phantoms(joint, size, seeds, options), size, mode)) for joint in made.weights
    }  # fmt: skip


def _phantoms(joint: str, size: int, seeds: Sequence[int], options: Options) -> list[Record]:
    return phantom_records(options.phantoms / str(size), joint, size, list(seeds), workers=options.workers)


def judged_records(joints: Collection[str], size: int, options: Options, tell: Progress) -> dict[str, list[Record]]:
    """Series by joint of the phantoms that forms are judged on."""
    found = {}
    for number, joint in enumerate(joints):
        tell("Making phantoms", number, len(joints))
        found[joint] = _phantoms(joint, size, range(JUDGED_SEED, JUDGED_SEED + options.studies), options)
    return found


def _judge(made: Draft, known: Vectors, options: Options, tell: Progress, judged: Judged) -> dict[str, Any]:
    """Judge every form, know the studies, and write what was found into the manifest."""
    size = next(iter(made.weights.values())).size
    records = judged_records(made.weights, size, options, tell)
    checked, refused = admit(made, records, workers=options.workers, tell=tell, judged=judged)
    if options.calibration and len(made.weights) == 1:  # else nothing says which joint a study shows
        know(made, known, "own studies")
    elif made.packaged:  # weights from elsewhere were not trained on phantoms: their patients would all look strange
        know(made, checked.vectors, "phantoms")
    left_out = {own.form for own in refused}
    metrics = [own for own in metrics_of(checked.result) if own.form not in left_out]
    finish(made, metrics=metrics, refused=refused)
    whole = verify(made.folder)
    quantised = [own.model_dump() for own in whole.manifest.quantised]
    return {**checked.result, "sizes": sizes_of(whole), "quantised": quantised}
