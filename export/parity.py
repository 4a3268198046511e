"""The reference model and every form of a bundle over the same studies: what each form loses, and whether it may.

Each series is read and prepared once, and every contender runs it before the next is read; planes may share out among
processes. Errors are against the reference in PyTorch. So are the gate's ratios: "fp32" in the tables is the
reference's own figure.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import numpy as np
from orthokernels.export.gate import LEAST_STUDIES, auroc_used, dice_used
from orthokernels.export.study_outputs import (
    GATE_SHARES,
    PATIENT_LOGITS,
    PATIENT_SHARES,
    SCORERS,
    mean_shares,
    study_outputs,
)

from orthokernels.bundle.golden import worst
from orthokernels.bundle.manifest import ENGINES_OF, FORMS, WEIGHTS, Form, Graph, GraphEngine, Metric, Refusal
from orthokernels.bundle.verify import Bundle
from orthokernels.data.prepare import prepare
from orthokernels.data.restore import Restorer
from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.study_model import load_torch
from orthokernels.models.orthodiffusion.weights import load_weights
from orthokernels.models.study_model import Array, PlaneModel, StudyModel
from orthokernels.pipeline import probabilities_of, sigmoid
from orthokernels.runtime.model import open_bundle
from orthokernels.tasks import LABELS, PLANES, class_names
from orthokernels.training.metrics import diagnosis_metrics, dice, mean_of
from orthokernels.training.series import IGNORED, Record, load_labels, load_volume

REFERENCE = "reference"
LARGEST_RELATIVE_ERROR = 1e-4  # of fp32
_MAPS = tuple(f"{plane} logits" for plane in PLANES)
_TOLD = (*SCORERS.values(), PATIENT_SHARES, GATE_SHARES)

# fp32 has its figures from OpenVINO; of this one the errors over a few studies are enough.
FEW = "fp32 onnxruntime"
FEW_STUDIES = 10

Tell = Callable[[str, int, int], None]

# What contenders made of each joint and plane.
Runs = dict[tuple[str, str], "dict[str, _Run]"]


@dataclass
class _Errors:
    """The largest difference from the reference in one output, and the relative ones of each slab, series or study."""

    largest: float = 0.0
    each: list[float] = field(default_factory=list)

    def add(self, found: np.ndarray, expected: np.ndarray) -> None:
        difference = found.astype(np.float64) - expected
        self.largest = worst((self.largest, float(np.abs(difference).max())))
        size = float(np.linalg.norm(expected.astype(np.float64)))
        self.each.append(worst([float(np.linalg.norm(difference)) / max(size, 1e-30)]))

    def told(self) -> dict[str, float]:
        """One that is infinite is so for nine tenths, too: what is not finite is no matter of a single study."""
        relative = worst(self.each)
        nine_tenths = float(np.quantile(self.each, 0.9)) if np.isfinite(relative) else relative
        return {"largest": self.largest, "relative": relative, "nine_tenths": nine_tenths}


@dataclass
class _Run:
    """What one contender made of a joint's studies, in a plane or in all."""

    dice: dict[str, list[list[float | None]]] = field(default_factory=dict)  # by plane: series, structures
    vectors: dict[str, dict[str, Array]] = field(default_factory=dict)  # by study and plane
    outputs: dict[str, dict[str, Array]] = field(default_factory=dict)  # by study, what is made of its vectors
    errors: dict[str, _Errors] = field(default_factory=dict)

    def join(self, other: _Run) -> None:
        """Take another plane's in."""
        self.dice |= other.dice
        self.errors |= other.errors
        for study, own in other.vectors.items():
            self.vectors.setdefault(study, {}).update(own)

    def error(self, output: str) -> _Errors:
        return self.errors.setdefault(output, _Errors())


@dataclass(frozen=True)
class Checked:
    """What ``check`` found.

    Attributes:
        result: as the page shows it. "joints": of each contender ("reference", or form and engine) its errors (the
            largest difference, and of the relative ones the largest, and what nine tenths keep), Dice by plane and
            structure, what ``diagnosis_metrics`` gives, the same of each of ``SCORERS`` ("scored_by"), and the mean of
            each plane's share in each label ("gate_shares"). "forms": of each whether it is admitted, and why
            not. "sizes": of each form the bytes of its graphs, and fp32's of the same.
        vectors: the reference's, by joint and plane, one of each study.
    """

    result: dict[str, Any]
    vectors: dict[tuple[str, str], dict[str, Array]]


def check(
    bundle: Bundle,
    records: Mapping[str, Sequence[Record]],
    *,
    forms: Sequence[Form] | None = None,
    slabs: int | None = None,
    workers: int = 1,
    tell: Tell = lambda what, done, total: None,
) -> Checked:
    """Run everything and compare.

    Args:
        bundle: verified, with the weights that it was made from in it.
        records: series by joint, with labels and findings where there are some.
        forms: to run; all that the bundle has by default.
        slabs: of each series, for errors alone; all by default, which Dice and AUROC need.
        workers: processes that share the planes; the figures are the same with any number.
        tell: called with each plane that is done.

    Raises:
        InputError: a study can not be read, or an engine can not run the bundle.
    """
    held = bundle.manifest.forms
    wanted = [(form, engine) for form in held if forms is None or form in forms for engine in ENGINES_OF[form]]
    for joint in records:
        if joint not in bundle.manifest.joints:
            raise InputError(f"{bundle.folder}: has nothing for the {joint}.")
    runs = _run_planes(partial(_run_plane, bundle, wanted, slabs), _work(bundle, records), workers, tell)
    result: dict[str, Any] = {"name": bundle.manifest.name, "bundle": bundle.digest, "trained": bundle.manifest.trained}
    result["joints"] = {
        joint: _joint_figures(bundle, joint, own, wanted, runs, whole=slabs is None) for joint, own in records.items()
    }
    judged = bundle.manifest.trained and slabs is None
    result["forms"] = {form: verdict(form, result["joints"], judged=judged) for form, _ in wanted}
    result["slabs"] = slabs
    result["sizes"] = sizes_of(bundle)
    result["quantised"] = [own.model_dump() for own in bundle.manifest.quantised]
    vectors = {
        (joint, plane): {study: found[plane] for study, found in own[REFERENCE].vectors.items()}
        for (joint, plane), own in runs.items()
    }
    return Checked(result, vectors)


def _work(bundle: Bundle, records: Mapping[str, Sequence[Record]]) -> dict[tuple[str, str], list[Record]]:
    """The series of each joint and plane that the bundle has something for."""
    work = {
        (joint, plane): [record for record in own if record.plane == plane]
        for joint, own in records.items()
        for plane in PLANES
        if plane in bundle.manifest.joints[joint].planes
    }
    return {key: own for key, own in work.items() if own}


def _run_planes(
    run: Callable[[str, str, Sequence[Record]], dict[str, _Run]], work: Mapping[tuple[str, str], Sequence[Record]],
    workers: int, tell: Tell,
) -> Runs:  # fmt: skip
    """Every plane of every joint, each by itself, so that a model holds one plane's networks."""
    runs: Runs = {}
    if workers == 1:
        for key, own in work.items():
            tell(" ".join(key), len(runs), len(work))
            runs[key] = run(*key, own)
        return runs
    others = multiprocessing.active_children()
    # A process that OpenVINO was in can not be forked.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _share_processor, (workers,)) as pool:
        pending = {pool.submit(run, *key, own): key for key, own in work.items()}
        try:
            for done in as_completed(pending):
                tell(" ".join(pending[done]), len(runs), len(work))
                runs[pending[done]] = done.result()
        except BaseException:  # a plane takes minutes, and nobody waits for the others any more
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            raise
    return {key: runs[key] for key in work}


def _share_processor(workers: int) -> None:
    import torch

    own = max(1, (os.cpu_count() or 1) // workers)
    os.environ["OMP_NUM_THREADS"] = str(own)
    torch.set_num_threads(own)


def _models(
    bundle: Bundle, joint: str, planes: Sequence[str], wanted: Sequence[tuple[Form, GraphEngine]]
) -> dict[str, StudyModel]:
    weights = load_weights(str(bundle.folder / WEIGHTS), joint, tuple(planes))
    made: dict[str, StudyModel] = {REFERENCE: load_torch(weights, "cpu")}
    return made | {f"{form} {engine}": open_bundle(bundle, joint, planes, engine, form) for form, engine in wanted}


def _run_plane(
    bundle: Bundle, wanted: Sequence[tuple[Form, GraphEngine]], slabs: int | None, joint: str, plane: str,
    records: Sequence[Record],
) -> dict[str, _Run]:  # fmt: skip
    models = _models(bundle, joint, (plane,), wanted)
    runs = {name: _Run() for name in models}
    for number, record in enumerate(records):
        own = {name: model for name, model in models.items() if name != FEW or number < FEW_STUDIES}
        _run_series(own, runs, record, slabs)
    return runs


def _joint_figures(
    bundle: Bundle, joint: str, records: Sequence[Record], wanted: Sequence[tuple[Form, GraphEngine]], runs: Runs, *,
    whole: bool,
) -> dict[str, Any]:  # fmt: skip
    """Figures of each contender over a joint's planes, their fusion among them; errors alone of series in part."""
    planes = tuple(plane for plane in PLANES if (joint, plane) in runs)
    models = _models(bundle, joint, planes, wanted)
    joined = {name: _Run() for name in models}
    for plane in planes:
        for name, own in runs[joint, plane].items():
            joined[name].join(own)
    for name, run in joined.items():  # the reference is the first
        for study, vectors in run.vectors.items():
            run.outputs[study] = study_outputs(models[name], study, vectors)
            for output, values in run.outputs[study].items() if name != REFERENCE else ():
                run.error(output).add(values, joined[REFERENCE].outputs[study][output])
    return {name: _figures(models[name], run, records, few=name == FEW, whole=whole) for name, run in joined.items()}


def sizes_of(bundle: Bundle) -> dict[str, dict[str, int]]:
    """Of each form how many graphs have it, their bytes, and how many fp32 takes for the same graphs."""

    def size(graphs: Sequence[Graph], form: Form) -> int:
        return sum(bundle.manifest.files[file].bytes for graph in graphs for file in graph.forms[form])

    found: dict[str, dict[str, int]] = {}
    for form in FORMS:
        graphs = [graph for graph in bundle.manifest.graphs.values() if form in graph.forms]
        if graphs:
            found[form] = {"graphs": len(graphs), "bytes": size(graphs, form), "fp32": size(graphs, "fp32")}
    return found


def _run_series(models: Mapping[str, StudyModel], runs: Mapping[str, _Run], record: Record, most: int | None) -> None:
    """One series through every contender, the reference first."""
    volume = load_volume(record)
    reference = models[REFERENCE]
    prepared = prepare(volume, reference.preparation or "full", reference.size)
    truth = load_labels(record, volume) if record.labelled else None
    planes: dict[str, PlaneModel] = {name: model.planes[record.plane] for name, model in models.items()}
    if truth is not None:
        truth[~prepared.way_back.covered()] = IGNORED  # what was not looked at counts neither way
    segments = truth is not None and planes[REFERENCE].classes is not None and most is None
    restorers = {name: Restorer(prepared.way_back) for name in planes} if segments else {}
    slabs: dict[str, list[Array]] = {name: [] for name in planes}
    for number, start in enumerate(prepared.way_back.starts[:most]):
        x0, expected = prepared.slab(number)[0], None
        for name, model in planes.items():
            output = model.heads(model.features(x0, seed=0, draws=1, sample=start), x0)
            expected = expected or output
            for kind in ("logits", "vector"):
                own, of = getattr(output, kind), getattr(expected, kind)
                if name != REFERENCE and own is not None:
                    runs[name].error(f"{record.plane} {kind}").add(own, of)
            if output.vector is not None:
                slabs[name].append(output.vector)
            if name in restorers and output.logits is not None:
                restorers[name].add(output.logits)
    for name, model in planes.items():
        if slabs[name]:
            runs[name].vectors.setdefault(record.study, {})[record.plane] = model.series_vector(slabs[name])
        if name in restorers and truth is not None and model.classes is not None:
            found = restorers[name].labels()
            runs[name].dice.setdefault(record.plane, []).append(dice(found, truth, model.classes))


def _figures(
    model: StudyModel, run: _Run, records: Sequence[Record], *, few: bool = False, whole: bool = True
) -> dict[str, Any]:
    studies = len({record.study for record in records})
    found: dict[str, Any] = {
        "errors": {output: own.told() for output, own in run.errors.items()},
        "studies": min(studies, FEW_STUDIES) if few else studies,
    }
    if few or not whole:  # what a slab or two find of a study says nothing of what the study's would
        return found
    if run.dice and model.trained:
        names = {plane: class_names(model.planes[plane].classes or 0)[1:] for plane in run.dice}
        found["dice"] = {
            plane: {name: mean_of(s[n] for s in series) for n, name in enumerate(names[plane])}
            for plane, series in run.dice.items()
        }
        found["mean_dice"] = mean_of(mean_of(own.values()) for own in found["dice"].values())
    truths = {record.study: record.findings for record in records if record.findings is not None}
    found["asks_labels"] = any(plane.classes is not None for plane in model.planes.values())
    found["asks_findings"] = bool(truths) and any(plane.scores for plane in model.planes.values())
    scored = {study: of[0] for study, own in run.vectors.items() if (of := probabilities_of(model, own)) is not None}
    found |= _diagnosis(model, scored, truths, model.thresholds)
    found |= {"scored_by": by} if (by := dict(_scored_by(model, run, truths))) else {}
    found |= {"gate_shares": shares} if (shares := mean_shares(model.joint, list(run.outputs.values()))) else {}
    return found


def _diagnosis(
    model: StudyModel, scored: Mapping[str, np.ndarray], truths: Mapping[str, Sequence[float]],
    thresholds: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Figures of probabilities, [labels] by study, where all findings are known; none of untrained weights."""
    known = [study for study in scored if study in truths and np.isfinite(truths[study]).all()]
    if not known or not model.trained:
        return {}
    keys = [label.key for label in LABELS[model.joint]]
    probability = np.stack([scored[study] for study in known])
    if not np.isfinite(probability).all():
        nothing = dict.fromkeys(keys)
        return {"auroc": nothing, "macro_auroc": None, "calibration_error": nothing, "ece": None}
    truth = np.array([truths[study] for study in known]).astype(int)
    own = diagnosis_metrics(truth, probability, keys, [thresholds.get(key, 0.5) for key in keys])
    return {name: own[name] for name in ("auroc", "macro_auroc", "calibration_error", "ece")}


def _scored_by(
    model: StudyModel, run: _Run, truths: Mapping[str, Sequence[float]]
) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    """Figures of each single-plane head, and of the fusion with patient data."""
    for scorer, output in SCORERS.items():
        scored = {study: sigmoid(own[output]) for study, own in run.outputs.items() if output in own}
        late = model.late_fusion if output == PATIENT_LOGITS else None
        thresholds = model.thresholds if late is None else late.thresholds
        if own := _diagnosis(model, scored, truths, thresholds):
            yield scorer, own


def verdict(form: Form, joints: Mapping[str, Any], *, judged: bool = True) -> dict[str, Any]:
    """Whether a form is admitted: the shares of the allowance that it uses up, and every reason against it.

    What is not ``judged`` has no accuracy to lose, or was not run whole: only errors tell against it.
    """
    used: dict[str, float] = {}
    reasons: list[str] = []
    for joint, contenders in joints.items():
        fp32 = contenders[REFERENCE]
        for name, own in contenders.items():
            if name.split()[0] != form:
                continue
            error = worst(_judged_error(*of) for of in own["errors"].items())
            if form == "fp32" or not np.isfinite(error):
                used[f"{joint}, {name}: relative error"] = error / LARGEST_RELATIVE_ERROR
            if "dice" in fp32 and name != FEW:
                used[f"{joint}, {name}: Dice"] = dice_used(*(_flat(made["dice"]) for made in (own, fp32)))
            if "auroc" in fp32 and name != FEW:
                used[f"{joint}, {name}: AUROC"] = auroc_used(own["auroc"], fp32["auroc"])
            for scorer, of in fp32.get("scored_by", {}).items() if name != FEW else ():
                used[f"{joint}, {name}: AUROC by {scorer}"] = auroc_used(own["scored_by"][scorer]["auroc"], of["auroc"])
        scored = any(own is not None for own in fp32.get("auroc", {}).values())
        if judged and form != "fp32" and fp32.get("asks_findings") and not scored:
            reasons.append(f"{joint}: the studies have findings, and no AUROC could be computed of them")
        if judged and form != "fp32" and fp32.get("asks_labels") and "dice" not in fp32 and not scored:
            reasons.append(f"{joint}: the model segments, and the studies tell neither Dice nor AUROC")
        if judged and fp32["studies"] < LEAST_STUDIES:
            reasons.append(f"{joint}: {fp32['studies']} studies, and {LEAST_STUDIES} are asked for")
    reasons += [f"{what} uses up {share:.2f} of what may be lost" for what, share in used.items() if share > 1]
    return {"judged": judged, "admitted": not reasons, "used": used, "reasons": reasons}


def _judged_error(output: str, error: Mapping[str, float]) -> float:
    """Of maps the largest; of numbers what nine tenths of the series or studies keep.

    A series' vector counts and sorts voxels inside structures: one that lies on the border of two classes moves it at
    once, whoever is right; and a head makes a study's logits as differences of larger numbers. What single studies
    lose by that is judged by their AUROC. So is what single heads and patient data give, where it is finite: their
    errors are told, and those of the vectors that they read are held.
    """
    if output in _TOLD and np.isfinite(error["relative"]):
        return 0.0
    return error["relative" if output in _MAPS else "nine_tenths"]


def _flat(dice_by_plane: Mapping[str, Mapping[str, float | None]]) -> list[float | None]:
    return [value for own in dice_by_plane.values() for value in own.values()]


def metrics_of(result: Mapping[str, Any]) -> tuple[Metric, ...]:
    """What a manifest keeps of a check: mean Dice, macro AUROC and calibration error of each form beside fp32's.

    Of each of ``SCORERS`` that there is, too: "axial_head_macro_auroc".
    """
    found = []
    for joint, contenders in result["joints"].items():
        fp32 = contenders[REFERENCE]
        for name, own in contenders.items():
            form = name.split()[0]
            if form not in get_args(Form):
                continue
            for metric, value, of in _metrics(own, fp32):
                metrics: dict[str, Any] = {"metric": metric, "value": value, "fp32": of}
                found.append(Metric(task=joint, form=form, studies=own["studies"], **metrics))
    return tuple(found)


def _metrics(own: Mapping[str, Any], fp32: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    for metric in ("mean_dice", "macro_auroc", "ece"):
        if own.get(metric) is not None:
            yield metric, own[metric], fp32[metric]
    for scorer, figures in own.get("scored_by", {}).items():
        for metric in ("macro_auroc", "ece"):
            if figures[metric] is not None:
                yield f"{scorer.replace(' ', '_')}_{metric}", figures[metric], fp32["scored_by"][scorer][metric]


def refusals_of(result: Mapping[str, Any]) -> tuple[Refusal, ...]:
    """The forms that were not admitted, and why."""
    return tuple(
        Refusal(form=form, reason="; ".join(own["reasons"]))
        for form, own in result["forms"].items()
        if not own["admitted"]
    )
