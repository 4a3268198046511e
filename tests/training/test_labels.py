"""The label-efficiency comparison: who is trained on what, with which budget, and that it resumes."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from pydantic import ValidationError

from orthokernels.errors import InputError
from orthokernels.models.weights_folder import FeaturePoint
from orthokernels.training import contenders
from orthokernels.training import labels as comparison
from orthokernels.training.baselines import resnet18, unet3d
from orthokernels.training.config import LoopConfig, OptimiserConfig, PretrainConfig
from orthokernels.training.config_heads import HeadConfig, LabelsConfig
from orthokernels.training.labels import labels, subset
from orthokernels.training.pretrain import pretrain
from orthokernels.training.records import read_records
from orthokernels.training.splits import load_splits
from orthokernels.training.tables import print_labels
from tests.training.toy import NETWORK, data_settings, write_studies, write_weights


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_studies(tmp_path_factory.mktemp("studies"), 16)


def config(folder, **changes) -> LabelsConfig:
    return LabelsConfig(
        **{
            "data": data_settings(folder, validate_share=0.0, test_share=0.25), "shares": (0.3, 1.0), "seeds": (0,),
            "loop": LoopConfig(steps=2, batch=2, validate_every=0), "optimiser": OptimiserConfig(rate=1e-3),
            "pooling_heads": 2, "bootstrap": 20, **changes,
        }
    )  # fmt: skip


def test_share_is_of_patients_and_larger_ones_keep_the_smaller(studies):
    records = read_records(studies, "knee")
    kept = [subset(records, share, 3) for share in (0.01, 0.25, 0.5, 1.0)]
    patients = [{record.patient for record in own} for own in kept]
    assert [len(p) for p in patients] == [1, 2, 4, 8]
    assert patients[0] < patients[1] < patients[2] < patients[3]
    for own, names in zip(kept, patients, strict=True):  # all of a patient or none
        assert len(own) == sum(record.patient in names for record in records)
    assert subset(records, 0.5, 4) != kept[2]


def test_monai_networks_take_slabs():
    x = torch.zeros(2, 1, 16, 32, 32)
    assert unet3d(12)(x).shape == (2, 12, 16, 32, 32)
    assert resnet18(8)(x).shape == (2, 8)


@pytest.mark.parametrize("task", ["segmentation", "diagnosis"])
def test_every_method_and_share_has_a_row_with_its_gain_over_scratch(studies, tmp_path, task, monkeypatch):
    weights = write_weights(tmp_path / "weights", planes=("sagittal",))
    methods = ("pretrained", "scratch", "frozen", "untrained", "monai")
    own = config(studies, task=task, methods=methods)
    rows = labels(studies, weights, tmp_path / "out", own)
    assert {(row["method"], row["share"]) for row in rows} == {(m, s) for m in methods for s in (0.3, 1.0)}
    for row in rows:
        assert row["low"] <= row["high"]
        assert row["patients"] == {0.3: 2, 1.0: 6}[row["share"]]
        if row["method"] == "scratch":
            assert row["gain"] == row["gain_low"] == row["gain_high"] == 0
    name = f"label_efficiency_{task}_sagittal"
    assert (tmp_path / "out" / f"{name}.png").stat().st_size > 0
    with (tmp_path / "out" / f"{name}.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 10
    # Runs that are done are not done again, and those of other settings are not mixed in.
    monkeypatch.setattr(comparison, "train_and_score", lambda *a: pytest.fail("trained again"))
    assert labels(studies, weights, tmp_path / "out", own) == rows
    other = own.model_copy(update={"encoder_rate": 0.5})
    with pytest.raises(InputError, match="belongs to a comparison with other settings or data"):
        labels(studies, weights, tmp_path / "out", other)


def test_a_grid_reads_frozen_features_of_the_denoiser_and_of_random_weights(studies, tmp_path, capsys):
    weights = write_weights(tmp_path / "weights", planes=("sagittal",))
    chosen = {"task": "diagnosis", "pooling": "grid", "grid": (2, 2), "grid_kept": 2, "probe": HeadConfig(epochs=2)}
    rows = labels(
        studies, weights, tmp_path / "out", config(studies, methods=("frozen", "untrained"), seeds=(1,), **chosen)
    )
    assert len(rows) == 4
    assert all(row["gain"] == 0 for row in rows if row["method"] == "untrained")
    scores = {
        method: json.loads((tmp_path / f"out/runs/diagnosis_sagittal/{method}_1_1/scores.json").read_text())["scores"]
        for method in ("frozen", "untrained")
    }
    assert scores["frozen"] != scores["untrained"]
    print_labels(rows, "macro_auroc", "untrained")
    told = capsys.readouterr().out
    assert "diagnosis, sagittal: macro AUROC on the test patients" in told
    assert "30 % (2)" in told
    assert "against untrained" in told
    again = labels(
        studies, weights, tmp_path / "again", config(studies, methods=("frozen", "untrained"), seeds=(1,), **chosen)
    )
    assert again == rows
    with pytest.raises(ValidationError, match="grid reads frozen features and can not compare scratch"):
        config(studies, methods=("scratch", "frozen"), **chosen)


def test_a_killed_run_and_a_done_one_belong_to_denoiser_point_and_preparation(studies, tmp_path, monkeypatch):
    weights = write_weights(tmp_path / "weights", planes=("sagittal",))
    own = config(studies, methods=("frozen",), shares=(0.3,), loop=LoopConfig(steps=1, batch=1, validate_every=0))
    others = [
        own.model_copy(update={"point": FeaturePoint(timestep=20)}),
        own.model_copy(
            update={"data": data_settings(studies, validate_share=0, test_share=0.25, preparation="published")}
        ),
    ]
    # A run that is killed between its training and its scores.
    with monkeypatch.context() as killed:
        killed.setattr(contenders, "dice_per_series", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            labels(studies, weights, tmp_path / "out", own)
    for other, message in zip(others, (r"point\.timestep was 100, is 20", "data.preparation was full"), strict=True):
        with pytest.raises(InputError, match=message):
            labels(studies, weights, tmp_path / "out", other)
    labels(studies, weights, tmp_path / "out", own)
    wider = write_weights(tmp_path / "wider", planes=("sagittal",), network={**NETWORK, "base_channels": 12})
    for folder, other in ((weights, others[0]), (weights, others[1]), (wider, own)):
        with pytest.raises(InputError, match="belongs to a comparison with other settings or data"):
            labels(studies, folder, tmp_path / "out", other)


def test_test_patients_are_by_default_those_that_the_denoiser_never_saw(studies, tmp_path, capsys):
    by_default = data_settings(studies, **LabelsConfig().data.model_dump(include={"validate_share", "test_share"}))
    pretraining = data_settings(studies, **PretrainConfig().data.model_dump(include={"validate_share", "test_share"}))
    tested, seen = (load_splits(studies, own, ("sagittal",)) for own in (by_default, pretraining))
    assert tested["test"]
    assert [record.study for record in tested["test"]] == [record.study for record in seen["validate"]]
    network = {**NETWORK, "patch": (1, 2, 2)}
    chosen = PretrainConfig(
        planes=("sagittal",), data=pretraining.model_copy(update={"size": 32}), network=network,
        loop=LoopConfig(steps=1, batch=1),
    )  # fmt: skip
    pretrain(studies, tmp_path / "weights", chosen)
    quick = {"methods": ("frozen",), "shares": (1.0,), "loop": LoopConfig(steps=1, batch=1, validate_every=0)}
    for share, told in ((0.1, "held out"), (0.25, "perhaps seen")):
        own = config(studies, **quick, data=by_default.model_copy(update={"test_share": share}))
        rows = labels(studies, tmp_path / "weights", tmp_path / told, own)
        assert [row["test_patients"] for row in rows] == [told]
        print_labels(rows, "dice", "scratch")
        said = " ".join(capsys.readouterr().out.split())
        assert ("may have seen them" in said) == (told == "perhaps seen")
        assert ("pre-trained without them" in said) == (told == "held out")


def test_no_test_patients_is_one_sentence(studies, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("sagittal",))
    with pytest.raises(InputError, match="no sagittal series to test on"):
        labels(studies, weights, tmp_path / "out", config(studies, data=data_settings(studies, validate_share=0.0)))
