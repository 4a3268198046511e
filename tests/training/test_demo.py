"""The whole recipe of the demo weights at toy size, and the card that says what came of it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from orthokernels import pipeline, tasks
from orthokernels.cli import app
from orthokernels.models.orthodiffusion.weights import load_weights
from orthokernels.training.card import model_card
from orthokernels.training.config import load_config
from orthokernels.training.demo import NOTICE, RECIPE, DemoConfig, data_folder

SMALL = [
    "studies={knee: 6, ankle: 6}", "test_studies=4", "matrix=32",
    "pretrain.data.size=32", "pretrain.data.workers=0", "pretrain.loop.steps=2", "pretrain.augment.crop=null",
    "pretrain.network.base_channels=8", "pretrain.network.groups=4", "pretrain.network.channel_mults=[1,2]",
    "pretrain.network.attention_rates=[2]", "pretrain.optimiser.warmup=0",
    "segment.loop.steps=2", "segment.loop.batch=1", "segment.data.workers=0", "segment.optimiser.warmup=0",
    "diagnose.knee.probe.epochs=2", "diagnose.knee.data.workers=0", "diagnose.knee.fusion.out_width=8",
    "diagnose.ankle.probe.epochs=2", "diagnose.ankle.data.workers=0", "segment.head_channels=[8,8]",
]  # fmt: skip


def test_recipe_in_the_package_is_valid():
    config = load_config(DemoConfig, RECIPE)
    assert set(config.studies) == set(tasks.LABELS)
    assert set(config.diagnose) == set(config.studies)
    assert {own.data.size for own in (config.pretrain, config.segment, *config.diagnose.values())} == {config.matrix}


def test_demo_from_nothing_to_a_card(tmp_path):
    settings = [part for setting in SMALL for part in ("--set", setting)]
    done = CliRunner().invoke(
        app, ["train", "demo", "--out", str(tmp_path), "--workers", "1", "--json", *settings], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found) == {"knee", "ankle"}
    assert "mean_dice" in found["knee"]
    assert "mean_dice" not in found["ankle"]
    weights = load_weights(str(tmp_path / "weights"), "ankle")
    assert (weights.notice, weights.size) == (NOTICE, 32)
    card = (tmp_path / "weights" / "README.md").read_text()
    assert tasks.RESEARCH_NOTICE in card
    assert weights.digest() in card
    assert "Achilles tendon rupture" in card
    assert "| Femur |" in card
    study = next(path for path in sorted(data_folder(tmp_path, "ankle", test=True).iterdir()) if path.is_dir())
    made = pipeline.run(study, weights=weights, joint="ankle")
    assert [finding.label for finding in made.result.findings] == ["ATFL", "CFL", "ATR", "OLT"]
    assert made.label_maps == {}


@pytest.mark.parametrize(
    ("value", "interval", "shown"),
    [(0.9, (0.85, 0.95), "0.900 (0.850 to 0.950)"), (0.9, (None, None), "0.900"), (None, None, "not in the test set")],
)
def test_card_shows_a_figure_with_its_interval_where_it_has_one(value, interval, shown):
    found = {
        "macro_auroc": 0.5,
        "auroc": {label.key: value for label in tasks.LABELS["ankle"]},
        "intervals": {"auroc": {label.key: interval for label in tasks.LABELS["ankle"]}},
    }
    weights = {"ankle": load_weights("random:0", "ankle", planes=("axial",))}
    card = model_card(weights, {"ankle": found}, title="Toy", about=["Made for a test."], facts={"data": "none"})
    assert f"| Achilles tendon rupture | {shown} |" in card
    assert "| data | none |" in card
