"""The weights in the package: complete, small, as their card says, and better than chance on a knee they never saw."""

from __future__ import annotations

import numpy as np
import pytest

from orthokernels import pipeline, tasks
from orthokernels.data.phantom import make_study, write_dicom
from orthokernels.data.phantom.study import draw_findings
from orthokernels.models.orthodiffusion.weights import load_weights
from orthokernels.models.weights_folder import demo_folder, load_settings
from orthokernels.training.config import load_config
from orthokernels.training.demo import FIRST_TEST_SEED, RECIPE, REMARKS, DemoConfig
from orthokernels.training.metrics import dice
from orthokernels.training.series import Record
from orthokernels.training.splits import split_as_set

UNSEEN = 2_000_000  # studies to train with have seeds from 0, test studies from 1,000,000


@pytest.mark.parametrize("joint", list(tasks.LABELS))
def test_every_joint_is_complete_and_its_digest_is_the_card_s(joint):
    weights = load_weights("demo", joint)
    assert weights.trained
    assert weights.notice is not None
    assert tuple(weights.planes) == tasks.PLANES
    for own in weights.planes.values():
        assert own.pooling is not None
        assert own.head is not None
        assert (own.segmentation is not None) == (joint == "knee")
    assert set(weights.thresholds) == {label.key for label in tasks.LABELS[joint]}
    assert weights.digest() in (demo_folder() / "README.md").read_text()


def test_the_card_ends_with_the_recipe_s_remarks():
    assert (demo_folder() / "README.md").read_text().endswith("\n\n" + REMARKS.read_text().strip() + "\n")


def test_the_card_is_right_about_whom_was_chosen_on_and_what_the_tables_share():
    config = load_config(DemoConfig, RECIPE)
    knees = [Record(f"study_{n}", f"PHANTOM{n}", "axial", demo_folder()) for n in range(config.studies["knee"])]
    unseen, chosen_on = (
        {record.patient for record in split_as_set(knees, data)["validate"]}
        for data in (config.segment.data, config.diagnose["knee"].data)
    )
    assert (len(chosen_on), len(chosen_on - unseen)) == (120, 60)
    for n in range(FIRST_TEST_SEED, FIRST_TEST_SEED + config.test_studies):
        knee, ankle, shoulder = (list(draw_findings(n, joint).values()) for joint in ("knee", "ankle", "shoulder"))
        assert knee == shoulder
        assert knee[:4] == ankle


def test_the_package_stays_small():
    # 12 MB is what a wheel may grow by.
    assert sum(path.stat().st_size for path in demo_folder().iterdir()) <= 12e6


@pytest.fixture(scope="module")
def unseen():
    return make_study(UNSEEN, matrix=128, side=None)


@pytest.fixture(scope="module")
def made(unseen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unseen")
    write_dicom(unseen, folder / "study")
    return pipeline.run(folder / "study")


def test_a_run_takes_them_by_default_and_says_what_they_are(made):
    assert made.result.model.weights == "demo"
    assert made.result.model.notice == load_settings(demo_folder()).notice


@pytest.mark.parametrize("plane", tasks.PLANES)
def test_bones_of_an_unseen_knee_are_found(made, unseen, plane):
    truth = unseen.plane(plane)
    labels, affine = made.label_maps[plane]
    np.testing.assert_allclose(affine, truth.affine, atol=1e-3)
    keys = [structure.key for structure in tasks.STRUCTURES]
    found = dict(zip(keys, dice(labels, truth.labels, len(keys) + 1), strict=True))
    # Far below what the card says of 100 knees, far above what a broken path from head to native grid gives.
    assert found["femur"] > 0.8, found
    assert found["tibia"] > 0.8, found
