"""``orthokernels export bundle``: graphs in every form, judged on phantoms, and what passes in one signed folder."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from orthokernels.export.parity import check, metrics_of, refusals_of
from orthokernels.export.quantise import LARGEST_SHARE, Quantised
from orthokernels.export.write_forms import Calibrator, write_dataless_forms

from orthokernels.bundle.manifest import FORMS, Form
from orthokernels.bundle.verify import Bundle, verify
from orthokernels.errors import InputError
from orthokernels.folders import cache_folder
from orthokernels.progress import Progress
from orthokernels.training.records import Record

JUDGED_SEED = 6_000_000  # of the phantoms that decide which forms are admitted
CALIBRATION_STUDIES, VALIDATION_STUDIES = 4, 4  # phantoms of each joint


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
    """A bundle, what became of each graph in INT8, and the parity check that decided (None for untrained weights)."""

    bundle: Bundle
    quantised: list[Quantised]
    parity: dict[str, Any] | None


def make_bundle(weights: str, out: Path, options: Options, tell: Progress = lambda what, done, total: None) -> Made:
    """Make a bundle of weights.

    Untrained weights have no accuracy to lose: their forms are kept unjudged, and the card says that they mean nothing.

    Args:
        weights: "demo", "published", "random:SEED", or a weights folder.
        out: new folder.

    Raises:
        InputError: weights or ``out`` can not be used, fp32 itself does not agree with the reference, or a study to
            calibrate with can not be read. Nothing is left.
    """
    with BundleFolder(out) as folder:
        made = draft(weights, folder.draft, tell)
        graphs = folder.draft / GRAPHS
        write_dataless_forms(made.plan, graphs, options.forms, made.add)
        quantised = []
        if {"int8", "int8_qdq"} & set(options.forms):
            trained = next(iter(made.weights.values())).trained
            largest = LARGEST_SHARE if trained else math.inf
            calibrator = Calibrator(made.plan, graphs, *_examples(made, options, tell), largest=largest)
            quantised = calibrator.write(options.forms, made.add, tell)
        finish(made)
        parity = None
        if next(iter(made.weights.values())).trained:
            parity = _judge(made, options, tell)
        bundle = folder.publish(options.key)
    if parity is not None:
        parity["bundle"] = bundle.digest
    return Made(bundle, quantised, parity)


def _examples(
    made: Draft, options: Options, tell: Progress
) -> tuple[dict[str, list[SeriesExample]], dict[str, list[SeriesExample]]]:
    """Prepared series by joint: to calibrate with, and to judge each graph by."""
    size = next(iter(made.weights.values())).size
    own = examples_of_studies(options.calibration, size) if options.calibration else []
    calibration, validation = {}, {}
    for number, joint in enumerate(made.weights):
        tell("Preparing studies", number, len(made.weights))
        seeds = range(VALIDATION_SEED, VALIDATION_SEED + VALIDATION_STUDIES)
        validation[joint] = examples_of_records(_phantoms(joint, size, seeds, options), size)
        seeds = range(CALIBRATION_SEED, CALIBRATION_SEED + CALIBRATION_STUDIES)
        calibration[joint] = own or examples_of_records(_phantoms(joint, size, seeds, options), size)
    return calibration, validation


def _phantoms(joint: str, size: int, seeds: Sequence[int], options: Options) -> list[Record]:
    return phantom_records(options.phantoms / str(size), joint, size, list(seeds), workers=options.workers)


def judged_records(weights: Mapping[str, Any], size: int, options: Options, tell: Progress) -> dict[str, list[Record]]:
    """Series by joint of the phantoms that forms are judged on."""
    found = {}
    for number, joint in enumerate(weights):
        tell("Making phantoms", number, len(weights))
        found[joint] = _phantoms(joint, size, range(JUDGED_SEED, JUDGED_SEED + options.studies), options)
    return found


def _judge(made: Draft, options: Options, tell: Progress) -> dict[str, Any]:
    """Check every form, drop those that lose too much, and write what was found into the manifest."""
    first = next(iter(made.weights.values()))
    found = check(verify(made.folder), made.weights, judged_records(made.weights, first.size, options, tell), tell=tell)
    refused = refusals_of(found)
    for own in refused:
        if own.form != "fp32":
            made.drop(own.form)
        elif options.studies >= LEAST_STUDIES:
            raise InputError(f"the exported graphs do not agree with the reference: {own.reason}. Nothing was kept.")
    kept = tuple(own for own in refused if own.form != "fp32")
    metrics = tuple(own for own in metrics_of(found) if own.form not in {refusal.form for refusal in kept})
    finish(made, metrics=metrics, refused=kept)
    return found
