"""The sweep: it finds the block and timestep that know the answer, and writes them down."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.weights import load_weights
from orthokernels.models.weights_folder import FeaturePoint, load_settings
from orthokernels.training.config_heads import DiagnoseConfig, SweepConfig
from orthokernels.training.diagnose import diagnose
from orthokernels.training.sweep import _at, sweep
from orthokernels.training.weights_folder import change_settings
from tests.training.toy import data_settings, write_studies, write_weights


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_studies(tmp_path_factory.mktemp("studies"), 24)


def config(folder, **changes) -> SweepConfig:
    own = data_settings(folder, cache=folder / "prepared")
    return SweepConfig(
        **{"planes": ("axial",), "data": own, "timesteps": (10, 900), "blocks": ("in_1", "mid_2"), **changes}
    )


def test_least_noise_and_the_chosen_point_are_written(studies, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("axial",))
    rows = sweep(studies, weights, tmp_path / "out", config(studies, task="segmentation"))
    assert [(row["timestep"], row["block"]) for row in rows] == [
        (10, "in_1"), (10, "mid_2"), (900, "in_1"), (900, "mid_2")
    ]  # fmt: skip
    best = next(row for row in rows if row["chosen"])
    # At timestep 900 the volume is a hundredth of the noise; structures differ by their brightness.
    assert best["timestep"] == 10
    assert best["mean_recall"] > 3 / 12
    point = load_settings(tmp_path / "out").point("segmentation", "axial")
    assert (point.timestep, point.block) == (best["timestep"], best["block"])
    with (tmp_path / "out" / "sweep_segmentation.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    assert (tmp_path / "out" / "sweep_segmentation_axial.png").stat().st_size > 0


def test_diagnosis_sweep_sets_the_joints_point_alone(studies, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("axial",))
    rows = sweep(studies, weights, weights, config(studies))
    assert all(0 <= row["macro_auroc"] <= 1 for row in rows)
    assert set(load_settings(weights).points) == {"knee"}


def test_sweep_without_writing_leaves_the_settings(studies, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("axial",))
    sweep(studies, weights, weights, config(studies, write=False, timesteps=(10,), blocks=("in_1",)))
    assert load_settings(weights).points == {}


def test_points_that_heads_were_not_trained_at_are_not_written(studies, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("axial",))
    trained = DiagnoseConfig.model_validate(
        {
            "planes": ("axial",), "data": data_settings(studies), "pooling": "none", "probe": {"epochs": 1},
            "points": {"axial": {"timestep": 20, "block": "in_1"}},
        }
    )  # fmt: skip
    diagnose(studies, weights, weights, trained)
    settings = (weights / "weights.json").read_text()
    given = {"timesteps": (30,), "blocks": ("in_1",)}
    told = (
        r"axial\.knee\.head\.safetensors: was trained at timestep 20 behind in_1, and the sweep chose timestep 30 "
        r"behind in_1, .* train diagnose --set points\.axial\.timestep=30 --set points\.axial\.block=in_1\)\.$"
    )
    for out in (weights, tmp_path / "out"):
        with pytest.raises(InputError, match=told):
            sweep(studies, weights, out, config(studies, **given))
        assert (out / "weights.json").read_text() == settings
        assert (out / "sweep_diagnosis.csv").is_file()  # what was found is not lost
    sweep(studies, weights, weights, config(studies, **given, write=False))
    # A folder whose settings were moved from its heads gets their point back.
    moved = {"knee": {"axial": FeaturePoint(timestep=30, block="in_1")}}
    change_settings(weights, lambda own: own.model_copy(update={"points": moved}))
    sweep(studies, weights, weights, config(studies, **{**given, "timesteps": (20,)}))
    assert load_weights(str(weights), "knee", ("axial",)).planes["axial"].timestep == 20


def test_feature_under_a_voxel():
    maps = torch.arange(2 * 3 * 2 * 2 * 2).view(2, 3, 2, 2, 2)
    found = _at(maps, np.array([[0, 1], [0, 15], [31, 0], [16, 15]]), (16, 32, 32))
    np.testing.assert_array_equal(found, [maps[0, :, 0, 1, 1], maps[1, :, 1, 0, 0]])


def test_unknown_block_and_no_validation_are_one_sentence(studies, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("axial",))
    with pytest.raises(InputError, match="the axial network has no block 'in_99'"):
        sweep(studies, weights, weights, config(studies, blocks=("in_99",)))
    with pytest.raises(InputError, match="no axial series is held out"):
        sweep(studies, weights, weights, config(studies, data=data_settings(studies, validate_share=0.0)))


def test_a_sweep_that_could_score_nothing_is_refused_before_it_chooses(studies, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("axial",))
    data = tmp_path / "data"
    data.mkdir()
    for path in studies.glob("study_*"):
        (data / path.name).symlink_to(path)
    with (studies / "studies.csv").open() as file:
        header, *rows = csv.reader(file)
    with (data / "studies.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *([*row[:4], *["0"] * len(row[4:])] for row in rows)])
    with pytest.raises(InputError, match="no finding is both there and not there among the axial series"):
        sweep(data, weights, weights, config(studies))
    assert load_settings(weights).points == {}
