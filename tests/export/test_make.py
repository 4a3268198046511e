"""``export bundle`` from weights to a folder that verifies: which forms stay, and what is written of those that go."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("nncf")
pytest.importorskip("onnxscript")

from orthokernels.export.bundle import BundleFolder, Draft, _classes, _origin, joints_of
from orthokernels.export.chain import Recorder
from orthokernels.export.commands import check
from orthokernels.export.graphs import Plan
from orthokernels.export.make import CALIBRATION_STUDIES, Options, make_bundle

from orthokernels.bundle.golden import golden_study
from orthokernels.bundle.signature import make_keys
from orthokernels.bundle.verify import verify
from orthokernels.cli import main
from orthokernels.errors import InputError
from orthokernels.folders import umask
from orthokernels.models.orthodiffusion.weights import load_module, load_weights, save_module
from orthokernels.models.weights_folder import load_settings
from orthokernels.pipeline import load_model, run
from tests.edge.kit import write_bundle
from tests.runtime.bundles import write_weights


def weights_folder(tmp_path, **facts):
    (tmp_path / "weights").mkdir()
    return write_weights(tmp_path / "weights", **facts)


def test_trained_weights_become_a_signed_bundle_without_the_forms_that_too_few_studies_judged(tmp_path):
    weights = weights_folder(tmp_path, trained=True, planes=("axial",))  # exporting a plane's graphs takes a while
    settings = load_settings(weights).model_copy(update={"preparation": "published"})
    (weights / "weights.json").write_text(settings.model_dump_json())
    key = tmp_path / "own.pem"
    signer = make_keys(key, tmp_path / "own.pub")
    options = Options(forms=("fp32", "fp16"), studies=2, key=key, phantoms=tmp_path / "phantoms", workers=1)
    made = make_bundle(str(weights), tmp_path / "bundle", options)
    found = verify(tmp_path / "bundle", key=tmp_path / "own.pub")
    assert (found.signer, found.digest) == (signer, made.bundle.digest)
    assert {form for graph in found.manifest.graphs.values() for form in graph.forms} == {"fp32"}
    assert not list((tmp_path / "bundle").rglob("*fp16*"))
    (refused,) = found.manifest.refused
    assert refused.form == "fp16"
    assert "2 studies, and 100 are asked for" in refused.reason
    assert {metric.form for metric in found.manifest.metrics} == {"fp32"}
    assert found.manifest.preparation == "published"
    golden = golden_study(found, "knee")
    for engine in ("onnxruntime", "native"):
        made_of_it = run(golden, bundle=tmp_path / "bundle", planes=("axial",), engine=engine).result
        first, stop = made_of_it.planes[0].labelled_slices
        assert (made_of_it.preparation, stop - first) == ("published", 16)
    assert made.parity is not None
    assert made.parity["bundle"] == found.digest
    assert "Left out" not in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert "fp16: " in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    # Whoever serves a bundle is seldom who made it.
    files = [path for path in (tmp_path / "bundle").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".onnx", ".dcm"}
    assert not [path for path in files if path.stat().st_mode & 0o044 != 0o044 & ~umask()]


def test_untrained_weights_keep_every_form_and_int8_runs(tmp_path):
    weights = weights_folder(tmp_path)
    options = Options(forms=("fp32", "int8", "int8_qdq"), phantoms=tmp_path / "phantoms", workers=1)
    made = make_bundle(str(weights), tmp_path / "bundle", options)
    assert made.parity is None
    # They have nothing to lose, so no phantoms are made to judge them by, and no graph is run to be judged.
    assert len(list((tmp_path / "phantoms").rglob("study_*"))) == CALIBRATION_STUDIES
    graphs = verify(tmp_path / "bundle").manifest.graphs
    assert {"int8", "int8_qdq"} <= graphs["axial.segmentation"].forms.keys()
    quantised = {own.graph for own in made.bundle.manifest.quantised if not own.refused}
    assert quantised >= {"axial.segmentation", "axial.features", "axial.knee.head", "knee.fusion"}
    assert load_model(bundle=tmp_path / "bundle", engine="openvino", form="int8").form == "int8"


def test_the_command_ends_with_one_sentence_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", "from orthokernels.cli import main; main()", "export", "bundle"]
    (tmp_path / "file").write_text("")
    for arguments, told in (
        (("--weights", "random:x"), "whole number"),
        (("--weights", str(tmp_path / "nowhere")), "no such folder"),
        (("--forms", "int4"), "there is no form 'int4'"),
        (("--key", str(tmp_path / "mistyped.pem")), "can't be read as a private key"),
        (("--report", str(tmp_path / "file" / "report")), "file is no folder to write into"),
        (("--report", str(tmp_path / "bundle" / "report")), "is in the bundle"),
        (("--calibrate", str(tmp_path / "nowhere")), "no such file or folder"),
        (("--calibrate", str(tmp_path), "--forms", "fp32,fp16"), "none is calibrated; add int8 or int8_qdq"),
    ):
        out = tmp_path / "bundle"
        done = subprocess.run([*command, "--out", str(out), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert told in done.stderr
        assert "Traceback" not in done.stderr
        assert not out.exists()
        assert not list(tmp_path.glob(".bundle*"))


def test_a_check_knows_at_once_that_its_folder_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-c", "from orthokernels.cli import main; main()", "export", "check"]
    command.append(str(tmp_path / "bundle"))
    done = subprocess.run([*command, "--out", str(tmp_path / "file")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "file is no folder to write into" in done.stderr


def test_a_segmentation_of_another_joint_makes_that_joints_bundle(tmp_path):
    weights = weights_folder(tmp_path, trained=True, planes=("axial",))
    for path in weights.glob("*knee*"):
        path.unlink()
    assert list(joints_of(str(weights))) == ["knee"]  # it is of no joint by name
    module, card = load_module(weights / "axial.segmentation.safetensors", None)
    save_module(
        module, weights / "axial.segmentation.safetensors", card.module, arguments=card.arguments, joint="shoulder"
    )
    found = joints_of(str(weights))
    assert list(found) == ["shoulder"]
    assert _classes(found) == {"axial": 12}
    for path in weights.glob("axial.segmentation*"):
        path.unlink()
    assert list(joints_of(str(weights))) == ["knee"]  # a denoiser alone


def test_weights_that_are_trained_for_one_joint_alone_are_not_called_trained(tmp_path):
    weights = load_weights(str(weights_folder(tmp_path, trained=True, planes=("axial",))))
    made = Draft(tmp_path, {"knee": weights, "ankle": replace(weights, trained=False)}, Plan({}, {}), {})
    assert not made.trained
    assert _origin(made) == f"weights {weights.name!r}; not all of them are trained"
    assert replace(made, weights={"knee": weights}).trained


def test_a_check_writes_nothing_into_the_bundle(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", [])
    with pytest.raises(InputError, match="is in the bundle"):
        check(bundle, bundle / "golden" / ".." / "parity")
    assert not (bundle / "parity").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_is_told_in_one_sentence_and_nothing_is_left(number, tmp_path):
    with pytest.raises(InputError, match=r"--out .*bundle: can't be written"), BundleFolder(tmp_path / "bundle"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(FileNotFoundError), BundleFolder(tmp_path / "bundle"):
        (tmp_path / "nowhere").read_bytes()
    assert not list(tmp_path.iterdir())


def test_a_place_that_was_taken_meanwhile_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("orthokernels.export.bundle.verify", lambda folder: None)
    with BundleFolder(tmp_path / "bundle") as own:
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "mine").write_text("kept")
        with pytest.raises(InputError, match=r"--out .*bundle: can't be written"):
            own.publish(None)
    assert (tmp_path / "bundle" / "mine").exists()
    assert not list(tmp_path.glob(".bundle*"))


def test_joints_to_check_may_stand_apart(tmp_path, monkeypatch, capsys):
    bundle = write_bundle(tmp_path / "bundle", [])
    record = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**record, "golden": {}}))
    (bundle / "golden" / "knee" / "study").rmdir()  # nothing of it is listed
    arguments = [str(bundle), "--out", str(tmp_path / "out"), "--joints", "knee, hip"]
    monkeypatch.setattr("sys.argv", ["orthokernels", "export", "check", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert "has nothing for the hip; it has knee." in " ".join(capsys.readouterr().err.split())


def test_a_place_that_is_taken_is_left_alone(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text(json.dumps("kept"))
    with pytest.raises(InputError, match="a bundle is never overwritten"):
        make_bundle("demo", tmp_path / "bundle", Options())
    assert (tmp_path / "bundle" / "mine").exists()


def test_recording_keeps_no_more_than_it_may_and_one_call_at_least():
    call = {"x": np.zeros(100, np.float32)}
    for most_bytes, kept in ((1000, 2), (10, 1), (10_000, 5)):
        recorder = Recorder(lambda inputs: {}, 5, most_bytes)
        for _ in range(8):
            recorder(call)
            assert sum(own["x"].nbytes for own in recorder.inputs) <= max(most_bytes, 400)
        assert len(recorder.inputs) == kept
