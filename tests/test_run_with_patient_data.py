"""A study with what is known of its patient: fused with the images by either engine, or left out with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from orthokernels import cli, tasks
from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.weights import load_weights
from orthokernels.models.patient_data import Patient
from orthokernels.models.weights_folder import demo_folder
from orthokernels.pipeline import load_model, run
from orthokernels.report import html
from tests.data.series import noise, write_series
from tests.runtime.bundles import write_late_fusion

LABELS = tasks.LABELS["knee"]
THRESHOLDS = {LABELS[0].key: 0.0, LABELS[1].key: 1.0}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for n, plane in enumerate(tasks.PLANES):
        write_series(folder / plane, noise(n, slices=16, rows=40, columns=48), plane=plane)
    return folder


def with_late_fusion(folder: Path, **changes) -> Path:
    """The demo weights and an untrained fusion with patient data, whose first label hears the patient alone."""
    shutil.copytree(demo_folder(), folder)
    width = json.loads((folder / "knee.fusion.json").read_text())["arguments"]["width"]
    write_late_fusion(folder, **{"mri_width": 3 * width, "thresholds": THRESHOLDS, **changes})
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return with_late_fusion(tmp_path_factory.mktemp("weights") / "own")


def told(tmp_path: Path, **facts) -> Path:
    path = tmp_path / "patient.json"
    path.write_text(json.dumps(facts))
    return path


@pytest.fixture(scope="module")
def fused(study, weights):
    patient = Patient(age=50, sex="1", event="sport")
    return {engine: run(study, weights=str(weights), patient=patient, engine=engine) for engine in ("torch", "native")}


def test_findings_are_those_of_the_fusion_with_patient_data(fused, weights):
    made = fused["torch"]
    fusion = load_weights(str(weights)).late_fusion
    vectors = torch.from_numpy(np.concatenate([made.vectors[plane] for plane in tasks.PLANES]))[None]
    columns = [torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 1, 0]]), torch.tensor([[0.0, 0, 1]]), torch.tensor([1])]
    with torch.no_grad():
        expected = fusion(vectors, *columns)
    findings = made.result.findings
    np.testing.assert_allclose([f.probability for f in findings], expected["fused"][0].sigmoid(), rtol=1e-5)
    np.testing.assert_allclose([f.images_share for f in findings], expected["alpha"], rtol=1e-6)
    assert all(f.plane_weights == {} for f in findings)
    assert made.result.model.fusion == "patient data"


def test_thresholds_are_the_fusion_s_own(fused):
    findings = fused["torch"].result.findings
    assert [(f.threshold, f.status) for f in findings[:2]] == [(0.0, "present"), (1.0, "absent")]
    assert findings[2].threshold == 0.5


def test_the_native_engine_gives_the_same_findings_and_digest(fused):
    reference, native = (fused[engine].result for engine in ("torch", "native"))
    assert native.model.digest == reference.model.digest
    for one, other in zip(reference.findings, native.findings, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-4)  # Winograd's error through the network
        assert one.images_share == pytest.approx(other.images_share, abs=1e-6)


def test_the_result_tells_what_was_known_and_no_value(fused):
    result = fused["torch"].result
    assert result.patient_data.model_dump() == {"known": ("age", "sex", "event"), "used": True, "reason": None}
    assert "sport" not in result.model_dump_json()
    page = html(result, {})
    assert "Weight of images and patient data" in page
    assert "images 50 %, patient data 50 %" in page


def test_another_patient_changes_what_hears_the_patient_alone(fused, study, weights):
    other = run(study, weights=str(weights), patient=Patient(age=20, event="fall"), engine="native").result.findings
    assert other[0].probability != pytest.approx(fused["native"].result.findings[0].probability, abs=1e-3)


def test_without_patient_data_nothing_changes(study, weights):
    plain, own = (run(study, weights=name, engine="native").result for name in ("demo", str(weights)))
    assert plain.findings == own.findings
    assert own.patient_data is None


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_weights_without_such_a_fusion_leave_patient_data_out_and_say_so(study, engine):
    plain = run(study / "axial", engine=engine).result
    result = run(study / "axial", engine=engine, patient=Patient(age=50)).result
    assert result.findings == plain.findings
    assert not result.patient_data.used
    why = "the weights have no fusion with patient data for the knee"
    assert result.warnings[-1] == f"patient data were given and not used: {why}; findings rest on the images alone"


def test_a_missing_plane_leaves_patient_data_out_and_says_so(study, weights):
    result = run([study / "axial", study / "coronal"], weights=str(weights), engine="native", patient=Patient(age=50))
    assert result.result.patient_data.reason == (
        "the fusion with patient data needs all three planes, and there is no sagittal"
    )
    assert all(f.images_share is None for f in result.result.findings)


def test_values_that_training_never_met_are_told(study, weights):
    patient = Patient(height=1.7, event="asteroid")
    warnings = run(study, weights=str(weights), engine="native", patient=patient).result.warnings
    assert "the patient's height lies 17 deviations from training's mean of 170: is it in the unit" in " ".join(
        warnings
    )
    assert "the event was not among training's, so it counts as unknown" in warnings


def test_a_fusion_trained_with_other_poolings_is_refused(study, tmp_path):
    folder = with_late_fusion(tmp_path / "own", mri_width=30)
    with pytest.raises(InputError, match="reads 30 numbers of the planes, and their poolings give"):
        run(study, weights=str(folder), engine="native", patient=Patient(age=50))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"age": "old"}', "age is 'old'; input should be a valid number, or leave it out where unknown"),
        ('{"age": -3}', "age is -3; input should be greater than or equal to 0"),
        ('{"age": 1e999}', "age is inf; input should be less than or equal to 130"),
        ('{"sex": "F"}', "sex is 'F'; input should be '0' or '1'"),
        ('{"sex": true}', "sex is True; input should be '0' or '1'"),
        ('{"name": "Ada"}', "has no use for 'name'; it may hold age, height, weight, sex, patient_type, event"),
        ("{}", "says nothing of the patient. Give age, height"),
        ("[1]", "is no JSON object of age"),
        ("{", "is no JSON object of age"),
        (" " * 70_000, "is larger than 64 KiB"),
        (None, "can't be read (No such file or directory). Give a JSON file."),
    ],
)
def test_a_bad_patient_file_ends_with_one_sentence_and_exit_code_2(
    study, tmp_path, monkeypatch, capsys, content, message
):
    path = tmp_path / "patient.json"
    if content is not None:
        path.write_text(content)
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["orthokernels", "run", str(study), "--out", str(out), "--patient", str(path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert str(path) in said
    assert not out.exists()


def test_the_command_line_takes_a_patient(study, weights, tmp_path):
    arguments = ["run", str(study), "--out", str(tmp_path / "out"), "--weights", str(weights), "--engine", "native"]
    made = CliRunner().invoke(cli.app, [*arguments, "--patient", str(told(tmp_path, age=50, sex=1)), "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["patient_data"] == {"known": ["age", "sex"], "used": True, "reason": None}


@pytest.mark.parametrize(
    ("origin", "arguments", "message"),
    [
        ({}, {}, "no encoding of patients"),
        ({"encoding": "[]"}, {}, "no encoding of patients"),
        ({"encoding": '{"mean": [0, 0, 0], "deviation": [1, 1, 0], "events": ["UNK"]}'}, {}, "no encoding of patients"),
        ({"encoding": '{"mean": [0, 0, 0], "deviation": [1, 1, 1], "events": ["UNK"]}'}, {}, "1 events, which its"),
        (None, {"events": 4}, "does not fit its card"),
        (None, {"continuous": 2}, "does not fit its card"),
    ],
)
@pytest.mark.parametrize("engine", ["torch", "native"])
def test_a_damaged_card_is_refused(weights, tmp_path, engine, origin, arguments, message):
    folder = shutil.copytree(weights, tmp_path / "own")
    path = folder / "knee.patient_data.json"
    card = json.loads(path.read_text())
    card["arguments"] |= arguments
    card["origin"] = card["origin"] if origin is None else origin
    path.write_text(json.dumps(card))
    with pytest.raises(InputError, match=message) as refused:
        load_model(str(folder), engine=engine)
    assert "knee.patient_data.safetensors" in str(refused.value)
