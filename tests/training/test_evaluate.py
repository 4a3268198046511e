"""Evaluation: the pipeline's own numbers, scored; and the files it writes."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from orthokernels import pipeline, tasks
from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.weights import load_weights
from orthokernels.models.weights_folder import load_settings
from orthokernels.training.config import LoopConfig, OptimiserConfig
from orthokernels.training.config_heads import DiagnoseConfig, EvaluateConfig, FusionConfig, HeadConfig, SegmentConfig
from orthokernels.training.diagnose import diagnose
from orthokernels.training.evaluate import evaluate, records_to_score, rows_of, score, write_evaluation
from orthokernels.training.metrics import dice
from orthokernels.training.predictions import run_records, study_findings
from orthokernels.training.records import read_records
from orthokernels.training.segment import segment
from orthokernels.training.series import load_labels, load_volume
from orthokernels.training.splits import load_splits
from orthokernels.training.tables import print_evaluation
from tests.training.toy import data_settings, write_studies, write_volume, write_weights

QUICK = HeadConfig(epochs=3, batch=8, learning_rate=1e-2)
CONFIG = EvaluateConfig(bootstrap=50)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_studies(tmp_path_factory.mktemp("studies"), 8)


@pytest.fixture(scope="module", params=["gating", "simple_concat"])
def trained(request, studies, tmp_path_factory):
    """A weights folder with all heads; the segmentation has an encoder of its own."""
    folder = tmp_path_factory.mktemp("weights")
    own = data_settings(studies)
    write_weights(folder)
    segment(studies, folder, folder, SegmentConfig(
        data=own, epochs=None, loop=LoopConfig(steps=6, batch=2, validate_every=0), optimiser=OptimiserConfig(rate=1e-2)
    ))  # fmt: skip
    fusion = FusionConfig(modes=(request.param,), keep=request.param, head=QUICK)
    diagnose(studies, folder, folder, DiagnoseConfig(data=own, pooling="local", probe=QUICK, fusion=fusion))
    return folder


def test_numbers_are_the_pipelines(studies, trained):
    weights = load_weights(str(trained))
    records = [r for r in read_records(studies, "knee") if r.study == "study_003"]
    outputs = run_records(records, weights)
    findings = study_findings(outputs, weights)
    made = pipeline.run([r.image for r in records], weights=weights)
    # The same operations in the same order, but for the logistic function, which the pipeline takes in float64.
    assert [f.probability for f in made.result.findings] == pytest.approx(findings.probability[0].tolist(), abs=2e-7)
    for output in outputs:
        truth = load_labels(output.record, load_volume(output.record))
        assert list(output.dice) == dice(made.label_maps[output.record.plane][0], truth, 12)


def test_one_object_holds_every_figure_with_its_interval(studies, trained, tmp_path):
    result = evaluate(studies, str(trained), CONFIG, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["dice"]) == set(tasks.PLANES)
    assert set(result["dice"]["axial"]) == {s.key for s in tasks.STRUCTURES}
    assert set(result["auroc"]) == {label.key for label in tasks.LABELS["knee"]}
    by_plane = [np.mean(list(result["dice"][plane].values())) for plane in tasks.PLANES]
    assert result["mean_dice"] == pytest.approx(np.mean(by_plane))
    best = max(result["single_plane"].values())
    assert result["fusion_gain"] == pytest.approx(result["macro_auroc"] - best)
    assert (result["studies"], result["patients"], result["series"]) == (8, 4, 24)
    names = {name for name, *_ in rows_of(result)}
    assert {"mean_dice", "dice", "surface_distance_mm", "macro_auroc", "auroc", "ece", "CF1", "OF1"} <= names
    for name, plane, item, value, bounds in rows_of(result):
        if value is not None and bounds is not None:
            # Percentiles of the draws need not hold the figure itself, but both lie in its range.
            assert np.isfinite([value, *bounds]).all(), (name, plane, item)
            assert bounds[0] <= bounds[1]


def test_studies_are_prepared_as_the_heads_were_trained(studies, trained):
    assert load_settings(trained).preparation == "full"
    other = EvaluateConfig(data={"preparation": "published"}, bootstrap=50)
    with pytest.raises(InputError, match=r"data\.preparation = published: the heads of .* of the full preparation"):
        evaluate(studies, str(trained), other)


def test_slices_that_were_not_looked_at_count_neither_way(studies, trained, tmp_path):
    """Twenty slices, of which the published preparation takes the centre 16: as if the others had no labels."""
    (own, *_) = read_records(studies, "knee")
    stored, labels = (
        np.pad(np.asanyarray(nibabel.load(path).dataobj), ((0, 0), (0, 0), (2, 2)), mode="edge")
        for path in (own.image, own.labels)
    )
    write_volume(tmp_path / "image.nii.gz", plane=own.plane, voxels=stored)
    weights = load_weights(str(trained))
    found = []
    for outside in (1, 255):
        labels[:, :, :2] = labels[:, :, -2:] = outside
        write_volume(tmp_path / "labels.nii.gz", plane=own.plane, voxels=labels)
        record = replace(own, image=tmp_path / "image.nii.gz", labels=tmp_path / "labels.nii.gz")
        (output,) = run_records([record], weights, mode="published")
        found.append((output.dice, output.distance))
    assert found[0] == found[1]
    assert any(value is not None for value in found[0][0])


def test_tables_and_plots_are_written(studies, trained, tmp_path, monkeypatch, capsys):
    result = evaluate(studies, str(trained), CONFIG, tmp_path / "out")
    monkeypatch.setenv("COLUMNS", "80")
    print_evaluation(result)
    told = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in told, "every figure is there on a plain terminal"
    assert "calibration error" in told
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {
        "evaluation.json", "metrics.csv", "series.csv", "findings.csv",
        "roc.png", "precision_recall.png", "calibration.png", "dice.png",
    }  # fmt: skip
    with (tmp_path / "out" / "series.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 24 * 11
    with (tmp_path / "out" / "findings.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8


def test_a_plane_that_can_not_be_scored_takes_no_interval_from_the_others(studies, trained):
    weights = load_weights(str(trained))
    outputs = run_records(read_records(studies), weights, surface_distance=False)
    blind = [replace(o, dice=(None,) * 11) if o.record.plane == "axial" else o for o in outputs]
    result = score(blind, None, weights, CONFIG.model_copy(update={"surface_distance": False}))
    assert result["mean_dice_by_plane"]["axial"] is None
    low, high = result["intervals"]["mean_dice"]
    assert low <= result["mean_dice"] <= high


def test_files_of_another_evaluation_do_not_stay_beside_the_new_ones(studies, trained, tmp_path):
    out = tmp_path / "out"
    evaluate(studies, str(trained), CONFIG, out)
    weights = load_weights(str(trained))
    for own in weights.planes.values():
        own.segmentation = None
    evaluate(studies, weights, CONFIG, out)
    assert not (out / "series.csv").exists()
    assert (out / "findings.csv").exists()


def test_findings_that_the_data_do_not_tell_are_left_out_of_the_figures(studies, trained, tmp_path):
    known = [label.key for label in tasks.LABELS["knee"]]
    told = [key for key in known if key not in ("PCL", "PD")]
    weights, records = load_weights(str(trained)), read_records(studies, "knee")
    outputs = run_records(records, weights, surface_distance=False)
    gaps = np.where(np.isin(known, told), 0.0, np.nan)
    partly = [replace(o, record=replace(o.record, findings=tuple(gaps + o.record.findings))) for o in outputs]
    whole, part = (score(own, study_findings(own, weights), weights, CONFIG) for own in (outputs, partly))
    assert list(part["auroc"]) == told
    assert part["auroc"] == {key: whole["auroc"][key] for key in told}
    assert part["studies_with_findings"] == whole["studies_with_findings"] == 8
    write_evaluation(tmp_path, part, partly, study_findings(partly, weights), weights)
    with (tmp_path / "findings.csv").open() as file:
        assert next(csv.reader(file)) == ["study", "patient", *(f"{key} truth" for key in told), *told]
    # A study that leaves one of them open is left out itself.
    open_one = [
        replace(o, record=replace(o.record, findings=(np.nan, *o.record.findings[1:])))
        if o.record.study == "study_003" else o for o in partly
    ]  # fmt: skip
    assert study_findings(open_one, weights).studies == tuple(f"study_{n:03d}" for n in range(8) if n != 3)


def test_a_place_that_can_not_be_written_is_said_before_the_data_are_read(tmp_path, trained):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"--out .*taken: can't be written"):
        evaluate(tmp_path / "no such data", str(trained), CONFIG, tmp_path / "taken")
    with pytest.raises(InputError, match="no such data"):
        evaluate(tmp_path / "no such data", str(trained), CONFIG, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nothing_to_score_is_one_sentence(studies, tmp_path):
    bare = write_weights(tmp_path / "bare")
    with pytest.raises(InputError, match="nothing can be scored"):
        evaluate(studies, str(bare), CONFIG)


def test_a_split_is_drawn_as_training_draws_it(studies):
    own = data_settings(studies, validate_share=0.25, test_share=0.25, split_seed=3)
    sides = load_splits(studies, own, tasks.PLANES)
    for side in ("train", "validate", "test"):
        chosen = records_to_score(studies, EvaluateConfig(data=own, split=side))
        assert chosen == sides[side]
        assert chosen


def test_split_that_no_study_is_in_is_one_sentence(studies, trained):
    with pytest.raises(InputError, match=r"no study is in the split 'test'.*data\.test_share and data\.split_seed"):
        evaluate(studies, str(trained), CONFIG.model_copy(update={"split": "test"}))
