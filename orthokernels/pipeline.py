"""A study in, segmentations and findings out: the way of a study, stage by stage.

Each plane's volume is prepared into slabs; every slab takes one noisy pass through its plane's denoiser; the features
feed the segmentation head (labels go back to the scanner's grid slab by slab) and the pooling. A volume's pooled vector
is made of the mean over its slabs. Planes are fused into findings.

What computes the networks is a ``StudyModel``; nothing here needs PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from orthokernels import tasks
from orthokernels.bundle.manifest import FORMS, Form
from orthokernels.data.contrast import contrast_name
from orthokernels.data.geometry import plane_of, spacing
from orthokernels.data.prepare import Mode, WayBack, prepare
from orthokernels.data.restore import Restorer
from orthokernels.data.study import Study, chosen_because, describe, read_study
from orthokernels.data.volume import Volume
from orthokernels.errors import InputError
from orthokernels.models.patient_data import Patient, read_patient
from orthokernels.models.study_model import Array, PlaneModel, StudyModel
from orthokernels.models.weights_folder import folder_of
from orthokernels.progress import Progress
from orthokernels.result import (
    Finding,
    Model,
    PatientData,
    PlaneArrays,
    PlaneResult,
    StructureVolume,
    StudyResult,
    label_counts,
)
from orthokernels.system import peak_memory_mb, threads, versions

if TYPE_CHECKING:
    from orthokernels.bundle.verify import Verification
    from orthokernels.models.orthodiffusion.weights import Weights

DEFAULT_THRESHOLD = 0.5  # the published evaluation's

# What computes the networks. "auto" is PyTorch for weights, and what "bundle tune" chose for a bundle.
Engine = Literal["auto", "torch", "native", "openvino", "onnxruntime"]


@dataclass(frozen=True)
class StudyRun:
    """A run's result, the arrays behind its pictures, and the native label maps by plane (with their affines).

    ``frames`` are the DICOM file and frame number that each native slice of a plane was read from; ``vectors`` what the
    pooling made of a plane's features, [width].
    """

    result: StudyResult
    arrays: dict[str, PlaneArrays]
    label_maps: dict[str, tuple[np.ndarray, np.ndarray]]
    frames: dict[str, tuple[tuple[Path, int], ...]] = field(default_factory=dict)
    vectors: dict[str, Array] = field(default_factory=dict)


@dataclass
class _PlaneRun:
    """One plane on its way through the pipeline."""

    volume: Volume
    because: str
    labels: np.ndarray | None = None
    vector: Array | None = None
    warnings: list[str] = field(default_factory=list)
    labelled_slices: tuple[int, int] = (0, 0)
    at_the_edge: frozenset[int] = frozenset()  # labels at an edge of what was labelled


def run(
    paths: Sequence[Path | str] | Path | str,
    out: Path | str | None = None,
    *,
    weights: str | Weights = "demo",
    bundle: Path | str | Verification | None = None,
    model: StudyModel | None = None,
    planes: Sequence[str] = tasks.PLANES,
    preparation: Mode | None = None,
    joint: str = "knee",
    seed: int = 0,
    draws: int = 1,
    device: str = "auto",
    engine: Engine = "auto",
    form: Form | None = None,
    patient: Path | str | Patient | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    study: Study | None = None,
) -> StudyRun:
    """Run the model over one study.

    Args:
        paths: files and folders with the study, DICOM or NIfTI.
        out: folder for label maps, findings, pictures and report; nothing is written where it is None.
        weights: "demo" (in the package, trained on digital joints alone), "published" (fetched before), a weights
            folder, "random:SEED" (untrained), or loaded weights.
        bundle: folder of a bundle, instead of weights, which is verified while the study is read; or a verification
            that has begun. Needs no PyTorch.
        model: that ``load_model`` gave before, for the same joint, instead of weights and bundle: for many studies.
        planes: which planes to run; those that the study lacks are skipped.
        preparation: "full" covers every slice, "published" the centre 16 as the publication does; None is what the
            model's heads were trained on, or "full" where that is not known.
        joint: "knee", "ankle" or "shoulder": which labels are scored.
        seed: of the noise that features are computed with.
        draws: noise draws that features are averaged over.
        device: "auto", "cpu" or "cuda[:N]"; all engines but "torch" run on the CPU.
        engine: what computes the networks. Weights run on "torch", or on "native", the package's own C++ on the CPU; a
            bundle on "openvino", "onnxruntime" or "native". "auto" is "torch" for weights, and for a bundle what
            ``bundle tune`` chose on this machine.
        form: of a bundle's graphs, as "int8"; by default what was tuned, else "fp32".
        patient: what is known of the patient, or a JSON file with it. Findings then come from the weights' fusion with
            patient data; where there is none, or a plane is missing, from the images alone, which the result says.
        overwrite: replace an earlier result in ``out``.
        progress: called with each step.
        study: that ``read_study`` gave before for the same paths and planes; nothing was loaded from it yet.

    Raises:
        InputError: the input, the weights or ``out`` can not be used. Nothing is left half-written.
    """
    from orthokernels.writing import OutputFolder

    _check_options(planes, joint, draws, bundle, device, engine, form)
    if patient is not None and not isinstance(patient, Patient):
        patient = read_patient(Path(patient))
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    tell = progress or (lambda what, done, total: None)
    seconds: dict[str, float] = {}
    folder = OutputFolder(out, overwrite=overwrite) if out is not None else None
    if bundle is not None:
        bundle = _verified(bundle)

    with _timed(seconds, "read"):
        tell("Reading the study", 0, 1)
        study = study or read_study(paths, planes)
        runs = _load_volumes(study, paths)
    if model is None:
        with _timed(seconds, "weights"):
            tell("Loading the model", 0, 1)
            wanted = tuple(p for p in tasks.PLANES if p in planes)
            model = load_model(
                weights, bundle=bundle, joint=joint, planes=wanted, device=device, engine=engine, form=form
            )
    elif model.joint != joint:
        raise InputError(f"the model is for the {model.joint}, not the {joint}.")
    preparation = preparation or model.preparation or "full"
    try:
        for plane, own in runs.items():
            if plane in model.planes:
                _run_plane(plane, own, model.planes[plane], preparation, model.size, seed, draws, seconds, tell)
            else:
                own.warnings.append(f"the weights have no {plane} denoiser")
    finally:
        model.release()
    with _timed(seconds, "findings"):
        patient_data = _patient_data(model, runs, patient)
        if patient is not None and patient_data is not None and patient_data.used:
            findings = _findings_with(patient, model, runs)
        else:
            findings = _findings(model, runs)
    result = _result(study, model, runs, findings, patient, patient_data, preparation, seed, seconds)
    frames = {plane: own.volume.frames for plane, own in runs.items()}
    vectors = {plane: own.vector for plane, own in runs.items() if own.vector is not None}
    if bundle is not None:
        from orthokernels.bundle.novelty_tables import unlike_the_known

        more = tuple(unlike_the_known(bundle.result(), joint, vectors))
        result = result.model_copy(update={"warnings": (*result.warnings, *more)})
    made = StudyRun(result, *_arrays(runs, model), frames, vectors)
    if folder is not None:
        tell("Writing the report", 0, 1)
        with _timed(seconds, "report"):
            result = folder.write(made.result, made.arrays, made.label_maps, seconds)
        made = replace(made, result=result)
    tell("Done", 1, 1)
    return made


def _check_options(
    planes: Sequence[str],
    joint: str,
    draws: int,
    bundle: Path | str | Verification | None,
    device: str,
    engine: Engine,
    form: Form | None,
) -> None:
    if not planes:
        raise InputError(f"no plane was named; choose from {', '.join(tasks.PLANES)}.")
    for plane in planes:
        if plane not in tasks.PLANES:
            raise InputError(f"there is no plane {plane!r}; choose from {', '.join(tasks.PLANES)}.")
    if joint not in tasks.LABELS:
        raise InputError(f"there is no joint {joint!r}; choose from {', '.join(tasks.LABELS)}.")
    threads()  # a wrong number of them is told before there is any work
    if draws < 1:
        raise InputError(f"at least 1 noise draw is needed, not {draws}.")
    known = ("torch", "native") if bundle is None else ("openvino", "onnxruntime", "native")
    if engine not in ("auto", *known):
        what = "weights" if bundle is None else "a bundle"
        raise InputError(f"there is no engine {engine!r} for {what}; choose {', '.join(known)} or auto.")
    if form is not None and bundle is None:
        raise InputError("a form is one of a bundle's; plain weights are run in fp32. Leave --form out.")
    if form is not None and form not in FORMS:
        raise InputError(f"there is no form {form!r}; choose from {', '.join(FORMS)}.")
    if engine not in ("auto", "torch") and device not in ("auto", "cpu"):
        raise InputError(f"the {engine} engine runs on the CPU, not on {device!r}. Leave --device out.")


def load_model(
    weights: str | Weights = "demo",
    *,
    bundle: Path | str | Verification | None = None,
    joint: str = "knee",
    planes: Sequence[str] = tasks.PLANES,
    device: str = "auto",
    engine: Engine = "auto",
    form: Form | None = None,
) -> StudyModel:
    """The model that ``run`` runs; arguments as there.

    Raises:
        InputError: there is no such model, or the engine or the device can not run it.
    """
    if bundle is not None:
        from orthokernels.runtime.model import open_bundle

        return open_bundle(_verified(bundle).result(), joint, tuple(planes), engine, form)
    if engine == "native" and isinstance(weights, str) and not weights.startswith("random:"):
        from orthokernels.models.native.load import load_native

        return load_native(folder_of(weights), joint, tuple(planes), threads=threads())
    from orthokernels.models.orthodiffusion.study_model import load_torch
    from orthokernels.models.orthodiffusion.weights import load_weights

    if isinstance(weights, str):
        weights = load_weights(weights, joint, tuple(planes))
    elif weights.joint != joint:
        raise InputError(f"the weights are for the {weights.joint}, not the {joint}.")
    return load_torch(weights, device, native=engine == "native")


def _verified(bundle: Path | str | Verification) -> Verification:
    """The verification of a bundle, which begins here where it has not yet."""
    from orthokernels.bundle.verify import Verification

    return bundle if isinstance(bundle, Verification) else Verification(bundle)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started


def _load_volumes(study: Study, paths: Sequence[Path | str]) -> dict[str, _PlaneRun]:
    runs = {}
    for plane, competing in study.stacks.items():
        competitors = len(competing) - 1
        volume = study.load(plane)
        if volume is not None:
            because = chosen_because(volume, competitors, others_elsewhere=study.others_elsewhere(plane))
            warnings = list(volume.warnings)
            files = {own.source.paths for own in competing}
            if len(files) > 1 and volume.source.kind == "NIfTI":
                warnings.append(
                    f"NIfTI does not say whose a volume is: all {len(files)} of this plane were taken for one patient's"
                )
            runs[plane] = _PlaneRun(volume, because, warnings=warnings)
    if not runs:
        last = study.left_out[-1]
        reason = last.reason if str(paths[0]) in last.reason else f"{last.what}: {last.reason}"
        raise InputError(f"{', '.join(map(str, paths))}: no volume can be read. {reason}")
    return runs


def _run_plane(
    plane: str,
    own: _PlaneRun,
    model: PlaneModel,
    preparation: Mode,
    size: int,
    seed: int,
    draws: int,
    seconds: dict[str, float],
    tell: Progress,
) -> None:
    with _timed(seconds, "prepare"):
        prepared = prepare(own.volume, preparation, size)
    restorer = Restorer(prepared.way_back, threads=threads()) if model.classes is not None else None
    slabs = len(prepared.way_back.starts)
    vectors = []
    for number, start in enumerate(prepared.way_back.starts):
        tell(f"{plane.capitalize()}: features", number, slabs)
        x0 = prepared.slab(number)[0]
        with _timed(seconds, "features"):
            found = model.features(x0, seed=seed, draws=draws, sample=start)
        with _timed(seconds, "heads"):
            output = model.heads(found, x0)
        for made in (output.logits, output.vector):
            if made is not None and not _all_finite(made):
                raise _not_finite(f"the {plane} volume")
        if output.vector is not None:
            vectors.append(output.vector)
        if restorer is not None:
            assert output.logits is not None
            with _timed(seconds, "restore"):
                restorer.add(output.logits)
    own.vector = model.series_vector(vectors) if vectors else None
    own.labels = restorer.labels() if restorer is not None else None
    own.labelled_slices = _in_view(prepared.way_back, own.volume)
    if own.labels is not None:
        own.at_the_edge = _at_the_edge(own.labels, prepared.way_back)
    model.release()


def _at_the_edge(labels: np.ndarray, way_back: WayBack) -> frozenset[int]:
    labelled = way_back.turn.apply(labels)[:, :, way_back.first : way_back.first + way_back.slices]
    ends = [labelled.take([0, -1], axis=axis) for axis in range(3)]
    return frozenset(int(label) for end in ends for label in np.unique(end))


def _all_finite(numbers: np.ndarray) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        total = numbers.sum()
    # Nothing brings a sum back from NaN or infinity, and adding reads once what a look at each would read and write.
    return bool(np.isfinite(total)) or bool(np.isfinite(numbers).all())


def _not_finite(what: str) -> InputError:
    """What is said where no label and no finding could be told from what the model gives."""
    return InputError(
        f"{what}: the model gives numbers that are NaN or infinite, so there is no result. Choose another engine or "
        "form, or fetch the model again."
    )


def _in_view(way_back: WayBack, volume: Volume) -> tuple[int, int]:
    """First prepared slice and the last plus one, counted as the report shows them: in the plane's usual view."""
    first, stop = way_back.first, way_back.first + way_back.slices
    if way_back.turn != volume.turn and volume.turn.flips[2]:
        return way_back.shape[2] - stop, way_back.shape[2] - first
    return first, stop


def _patient_data(model: StudyModel, runs: Mapping[str, _PlaneRun], patient: Patient | None) -> PatientData | None:
    """Whether patient data can be fused with what the images gave."""
    if patient is None:
        return None
    reason = None
    missing = [plane for plane in tasks.PLANES if plane not in runs or runs[plane].vector is None]
    if model.late_fusion is None:
        reason = f"the weights have no fusion with patient data for the {model.joint}"
    elif missing:
        reason = f"the fusion with patient data needs all three planes, and there is no {' and no '.join(missing)}"
    return PatientData(known=patient.known(), used=reason is None, reason=reason)


def _findings_with(patient: Patient, model: StudyModel, runs: Mapping[str, _PlaneRun]) -> tuple[Finding, ...]:
    """Probabilities per label from the planes' vectors and what is known of the patient."""
    late = model.late_fusion
    assert late is not None
    vectors = [own for own in (runs[plane].vector for plane in tasks.PLANES) if own is not None]
    width = sum(len(own) for own in vectors)
    if width != late.width:
        raise InputError(
            f"the weights' fusion with patient data reads {late.width} numbers of the planes, and their poolings give "
            f"{width}. Train it again with these poolings."
        )
    logits, shares = model.fuse_with_patient(np.stack(vectors), late.encoding.columns(patient))
    return tuple(
        _finding(label, float(probability), late.thresholds, {}, images_share=float(share))
        for label, probability, share in zip(tasks.LABELS[model.joint], sigmoid(logits), shares, strict=True)
    )


def probabilities_of(
    model: StudyModel, vectors: Mapping[str, Array]
) -> tuple[NDArray[np.float64], dict[str, Array]] | None:
    """Of a study, from its planes' vectors: fused where all three are there, else the mean over those that are.

    Args:
        model: of the study's joint.
        vectors: by plane, [width].

    Returns:
        Probabilities, [labels], and each plane's shares of them, [labels], where they are known; None where the model
        scores no findings of these planes.
    """
    single = {p: model.planes[p].score(vector) for p, vector in vectors.items() if model.planes[p].scores}
    rows = single if model.fusion_name == "gating" else vectors
    if model.fusion_name is not None and len(rows) == len(tasks.PLANES):
        logits, gates = model.fuse(np.stack([rows[plane] for plane in tasks.PLANES]))
        return sigmoid(logits), {} if gates is None else dict(zip(tasks.PLANES, gates, strict=True))
    if not single:
        return None
    mean: NDArray[np.float64] = np.mean([sigmoid(logits) for logits in single.values()], axis=0)
    return mean, {plane: np.full(len(mean), 1 / len(single), np.float32) for plane in single}


def _findings(model: StudyModel, runs: dict[str, _PlaneRun]) -> tuple[Finding, ...]:
    """Probabilities per label, or why there are none."""
    labels = tasks.LABELS[model.joint]
    found = probabilities_of(model, {p: own.vector for p, own in runs.items() if own.vector is not None})
    if found is None:
        reason = f"the weights have no diagnosis head for the {model.joint}"
        if model.fusion_name is not None:
            reason = "the fusion needs all three planes, and the weights have no single-plane head"
        return tuple(
            Finding(label=label.key, name=label.name, status="not evaluated", reason=reason) for label in labels
        )
    probabilities, shares = found
    return tuple(
        _finding(label, float(probability), model.thresholds, {p: float(share[n]) for p, share in shares.items()})
        for n, (label, probability) in enumerate(zip(labels, probabilities, strict=True))
    )


def sigmoid(logits: Array) -> NDArray[np.float64]:
    """Probabilities of logits."""
    return 0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float64))  # no exponential that could overflow


def _finding(
    label: tasks.Label,
    probability: float,
    thresholds: Mapping[str, float],
    shares: dict[str, float],
    images_share: float | None = None,
) -> Finding:
    if not np.isfinite(probability):
        raise _not_finite(label.name)
    threshold = thresholds.get(label.key, DEFAULT_THRESHOLD)
    return Finding(
        label=label.key,
        name=label.name,
        status="present" if probability >= threshold else "absent",
        probability=probability,
        threshold=threshold,
        plane_weights=shares,  # type: ignore[arg-type]
        images_share=images_share,
    )


def _result(
    study: Study,
    model: StudyModel,
    runs: dict[str, _PlaneRun],
    findings: tuple[Finding, ...],
    patient: Patient | None,
    patient_data: PatientData | None,
    preparation: Mode,
    seed: int,
    seconds: dict[str, float],
) -> StudyResult:
    volumes = [own.volume for own in runs.values()]
    sides = sorted({v.source.laterality for v in volumes if v.source.laterality})
    used = {plane: own for plane, own in model.planes.items() if plane in runs}
    return StudyResult(
        untrained=None if model.trained else tasks.UNTRAINED_NOTICE,
        study_hash=study.study_hash,
        joint=model.joint,
        laterality=sides[0] if len(sides) == 1 else None,
        preparation=preparation,
        seed=seed,
        model=Model(
            weights=model.name,
            digest=model.digest,
            trained=model.trained,
            timestep={plane: own.timestep for plane, own in used.items()},  # type: ignore[misc]
            block={plane: own.block for plane, own in used.items()},  # type: ignore[misc]
            fusion="patient data" if patient_data is not None and patient_data.used else model.fusion_name,
            notice=model.notice,
            engine=model.engine,
            form=model.form,
            bundle=model.bundle,
        ),
        planes=tuple(_plane_result(plane, own, model) for plane, own in runs.items()),
        findings=findings,
        patient_data=patient_data,
        left_out=tuple(study.left_out),
        warnings=(
            *_study_warnings(model, runs, sides, len(study.elsewhere)),
            *_preparation_warnings(model, preparation),
            *_patient_warnings(model, patient, patient_data),
        ),
        versions=versions(),
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
        peak_memory_mb=round(peak_memory_mb()),
    )


def _study_warnings(model: StudyModel, runs: dict[str, _PlaneRun], sides: list[str], elsewhere: int) -> Iterator[str]:
    missing = [plane for plane in tasks.PLANES if plane not in runs]
    if missing:
        yield f"no {' and no '.join(missing)} volume was used, so findings rest on {len(runs)} of 3 planes"
    if len(sides) > 1:  # a volume that could not be read was replaced by another
        yield f"the headers name both sides ({', '.join(sides)}); laterality is left open"
    if elsewhere:
        yield f"one joint is read at a time: volumes of another side or place were left out ({elsewhere})"
    parts = {own.volume.source.body_part for own in runs.values() if own.volume.source.body_part}
    for part in sorted(parts):
        if model.joint not in part.lower():
            yield f"the header says the body part is {part}, but the {model.joint} was asked for"


def _preparation_warnings(model: StudyModel, preparation: Mode) -> Iterator[str]:
    if model.preparation not in (None, preparation):
        yield (
            f"the heads were trained on studies of the {model.preparation} preparation, and this one was prepared as "
            f"{preparation}: what they say of it was never tested"
        )


def _patient_warnings(model: StudyModel, patient: Patient | None, patient_data: PatientData | None) -> Iterator[str]:
    if patient is None or patient_data is None:
        return
    if not patient_data.used:
        yield f"patient data were given and not used: {patient_data.reason}; findings rest on the images alone"
    elif model.late_fusion is not None:
        yield from model.late_fusion.encoding.oddities(patient)


def _plane_result(plane: str, own: _PlaneRun, model: StudyModel) -> PlaneResult:
    volume = own.volume
    return PlaneResult(
        plane=plane,  # type: ignore[arg-type]
        description=describe(volume),
        series_hash=volume.source.series_hash,
        chosen_because=own.because,
        obliquity_degrees=round(plane_of(volume.affine, volume.source.kind)[1], 1),
        shape=volume.shape,
        spacing_mm=tuple(round(mm, 4) for mm in spacing(volume.affine)),  # type: ignore[arg-type]
        echo_time_ms=volume.source.echo_time,
        contrast=contrast_name(volume.source),
        labelled_slices=own.labelled_slices if own.labels is not None else None,
        segmentation_reason=None if own.labels is not None else f"the weights have no {plane} segmentation head",
        structures=_structures(own, _names(model.planes[plane])) if own.labels is not None else (),
        warnings=tuple(own.warnings),
    )


def _names(model: PlaneModel) -> tuple[str, ...]:
    return tasks.class_names(model.classes) if model.classes is not None else ()


def _structures(own: _PlaneRun, names: tuple[str, ...]) -> tuple[StructureVolume, ...]:
    assert own.labels is not None
    known = {s.key: s.name for s in tasks.STRUCTURES}
    counts = label_counts(own.labels)
    ml = abs(float(np.linalg.det(own.volume.affine[:3, :3]))) / 1000.0  # cubic mm per voxel
    return tuple(
        StructureVolume(
            index=n,
            key=name,
            name=known.get(name, name.replace("_", " ").capitalize()),
            ml=round(int(counts[n]) * ml, 4),
            voxels=int(counts[n]),
            cut_off=n in own.at_the_edge,
        )
        for n, name in enumerate(names)
        if n > 0
    )


def _arrays(
    runs: dict[str, _PlaneRun], model: StudyModel
) -> tuple[dict[str, PlaneArrays], dict[str, tuple[np.ndarray, np.ndarray]]]:
    arrays, label_maps = {}, {}
    for plane, own in runs.items():
        turn = own.volume.turn
        arrays[plane] = PlaneArrays(
            voxels=turn.apply(own.volume.voxels),
            labels=None if own.labels is None else turn.apply(own.labels),
            affine=turn.apply_affine(own.volume.affine, own.volume.shape),
            names=_names(model.planes[plane]) if plane in model.planes else (),
        )
        if own.labels is not None:
            label_maps[plane] = (own.labels, own.volume.affine)
    return arrays, label_maps
