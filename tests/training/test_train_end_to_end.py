"""Every sub-command of ``orthokernels train`` one after the other, at toy size, on one data set."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from orthokernels import pipeline, tasks
from orthokernels.cli import app
from orthokernels.errors import InputError
from tests.training.toy import write_studies, write_weights


def orthokernels(*arguments) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_from_images_to_an_evaluated_weights_folder(tmp_path):
    data, test = write_studies(tmp_path / "data", 12), write_studies(tmp_path / "test", 4, first=50)
    weights, common = tmp_path / "weights", []
    for setting in (f"data.cache={tmp_path / 'cache'}", "data.preparation=full", "data.workers=0"):
        common += ["--set", setting]
    short = ["--set", "loop.steps=3", "--set", "loop.batch=2", "--set", "data.validate_share=0.35", "--json"]
    network = []
    for setting in ("base_channels=8", "channel_mults=[1,2]", "groups=4", "attention_rates=[2]", "patch=[1,2,2]"):
        network += ["--set", f"network.{setting}"]
    made = orthokernels("train", "pretrain", "--data", data, "--out", weights, *common, *network, *short,
                        "--set", "data.size=32")  # fmt: skip
    assert set(json.loads(made)) == set(tasks.PLANES)

    rows = orthokernels(
        "train", "sweep", "--data", data, "--weights", weights, "--out", weights, *common, "--json",
        "--set", "timesteps=[20,100]", "--set", "blocks=[in_1,mid_2]", "--set", "data.validate_share=0.35",
    )  # fmt: skip
    assert sum(row["chosen"] for row in json.loads(rows)) == 3
    orthokernels("train", "segment", "--data", data, "--weights", weights, "--out", weights, *common, *short,
                 "--set", "epochs=null")  # fmt: skip
    found = orthokernels(
        "train", "diagnose", "--data", data, "--weights", weights, "--out", weights, *common, "--json",
        "--set", "pooling=local", "--set", "fusion.out_width=8", "--set", "data.validate_share=0.35",
    )  # fmt: skip
    assert json.loads(found)["kept_fusion"] in ("simple_concat", "linear_concat", "linear_add", "crossattn", "gating")

    result = json.loads(orthokernels("train", "evaluate", "--data", test, "--weights", weights, "--json",
                                     "--out", tmp_path / "evaluation"))  # fmt: skip
    assert {"mean_dice", "dice", "macro_auroc", "auroc", "intervals"} <= set(result)
    assert set(result["dice"]) == set(tasks.PLANES)
    told = orthokernels("train", "evaluate", "--data", test, "--weights", weights)
    assert "macro auroc" in told
    assert "femoral cartilage" in told

    rows = json.loads(orthokernels(
        "train", "labels", "--data", data, "--weights", weights, "--out", tmp_path / "labels", *common, "--json",
        "--set", "shares=[0.5]", "--set", "seeds=[0]", "--set", "loop.steps=1", "--set", "loop.batch=1",
        "--set", "data.test_share=0.35",
    ))  # fmt: skip
    assert [row["method"] for row in rows] == ["pretrained", "scratch", "monai"]

    run = pipeline.run(test / "study_050", weights=str(weights))
    assert set(run.label_maps) == set(tasks.PLANES)
    assert all(finding.probability is not None for finding in run.result.findings)


@pytest.mark.parametrize(
    ("command", "setting", "name"),
    [
        ("sweep", "timesteps=[10,1000]", "timesteps.1"),
        ("diagnose", "points.axial.timestep=1000", "points.axial.timestep"),
        ("segment", "points.axial.timestep=1000", "points.axial.timestep"),
        ("labels", "point.timestep=1000", "point.timestep"),
    ],
)
def test_a_timestep_beyond_the_last_is_one_sentence(tmp_path, command, setting, name):
    places = ("--data", tmp_path, "--weights", tmp_path, "--out", tmp_path / "out")
    with pytest.raises(InputError, match=rf"^{name} = 1000: input should be less than 1000\.$"):
        orthokernels("train", command, *places, "--set", setting)


@pytest.mark.parametrize("command", ["segment", "diagnose", "sweep", "labels"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--weights": "{tmp}/nowhere"}, "no such folder|has no sagittal denoiser"),
        ({"--data": "{tmp}/nowhere"}, "nowhere: can't be read"),
        ({}, "has no studies.csv"),
        ({"--set": "data.sice=3"}, "there is no setting data.sice"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, command, change, message):
    write_weights(tmp_path / "weights")
    arguments = {"--data": tmp_path, "--weights": tmp_path / "weights", "--out": tmp_path / "out"}
    given = [part for pair in {**arguments, **change}.items() for part in pair]
    with pytest.raises(InputError, match=message):
        orthokernels("train", command, *(str(part).format(tmp=tmp_path) for part in given))
