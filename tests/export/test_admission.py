"""What loses too much on the judged studies goes back to fp32 by itself, and the rest of the form stays."""

from __future__ import annotations

import shutil

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

from orthokernels.export import admission, parity  # noqa: E402
from orthokernels.export.bundle import BundleFolder, draft, finish  # noqa: E402
from orthokernels.export.examples import phantom_records  # noqa: E402

from orthokernels.bundle.verify import verify  # noqa: E402
from orthokernels.tasks import PLANES  # noqa: E402
from tests.runtime.bundles import POOLING, SIZE, write_late_fusion, write_weights  # noqa: E402

STUDIES = 4  # enough for the order of logits to turn round


def negated(path, out) -> None:
    """A head whose every logit has the other sign: findings are found where they are not."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, out)


def test_heads_that_lose_too_much_go_back_and_the_form_stays(tmp_path, monkeypatch):
    for module in (admission, parity):
        monkeypatch.setattr(module, "LEAST_STUDIES", STUDIES)
    # Random weights' classes are noise: on some processors one voxel is another's, which nine tenths of so few feel.
    fp32_bound = parity.LARGEST_RELATIVE_ERROR
    monkeypatch.setattr(parity, "LARGEST_RELATIVE_ERROR", 1e-2)
    (tmp_path / "weights").mkdir()
    weights = write_weights(tmp_path / "weights", trained=True)
    write_late_fusion(weights, 3 * POOLING["kept"], {"ACL": 0.4})
    records = {"knee": phantom_records(tmp_path / "phantoms", "knee", SIZE, range(STUDIES))}
    with BundleFolder(tmp_path / "bundle") as folder:
        made = draft(str(weights), folder.draft)
        heads = [f"{plane}.knee.head" for plane in PLANES] + ["knee.late_fusion"]
        for name in (*(f"{plane}.segmentation" for plane in PLANES), *heads):
            path = folder.draft / "graphs" / f"{name}.int8_weights.onnx"
            write = negated if name in heads else shutil.copyfile
            write(folder.draft / "graphs" / f"{name}.fp32.onnx", path)
            made.add(name, "int8_weights", [path])
        finish(made)
        checked, refused = admission.admit(made, records, workers=1, tell=lambda what, done, total: None)
        finish(made, refused=refused)
        folder.publish(None)
    assert admission._graphs(made, "knee", ("head",)) == {*heads, "knee.fusion"}
    assert admission._graphs(made, "knee", ("head",), {"axial"}) == {"axial.knee.head"}
    assert not refused
    assert checked.result["forms"]["int8_weights"]["admitted"]
    manifest = verify(tmp_path / "bundle").manifest
    assert "int8_weights" in manifest.graphs["axial.segmentation"].forms
    assert not list((tmp_path / "bundle").rglob("*head.int8_weights*"))
    assert not list((tmp_path / "bundle").rglob("*fusion.int8_weights*"))
    notes = {own.graph: own.refused for own in manifest.quantised}
    assert notes.keys() == set(heads)
    assert "AUROC uses up" in notes["axial.knee.head"]
    assert any(
        f"int8_weights onnxruntime: AUROC by {plane} head uses up" in notes["axial.knee.head"] for plane in PLANES
    )
    used = checked.result["forms"]["int8_weights"]["used"]
    assert used["knee, int8_weights onnxruntime: AUROC by patient data"] <= 1
    own, fp32 = (checked.result["joints"]["knee"][name] for name in ("int8_weights onnxruntime", "reference"))
    assert own["auroc"] == pytest.approx(fp32["auroc"], abs=1e-9, nan_ok=True)
    outputs = {f"{plane} {of}" for plane in PLANES for of in ("logits", "vector", "head logits")}
    outputs |= {"study logits", "gate shares", "patient data logits", "patient data shares"}
    for name in ("fp32 openvino", parity.FEW):
        errors = checked.result["joints"]["knee"][name]["errors"]
        assert errors.keys() == outputs
        assert max(errors[f"{plane} logits"]["relative"] for plane in PLANES) <= fp32_bound  # maps count nothing
    assert checked.result["joints"]["knee"][parity.FEW]["studies"] == STUDIES


def test_a_plane_whose_own_head_alone_loses_too_much_goes_back_without_the_others():
    used = {
        "knee, int8 openvino: AUROC": 0.9,
        "knee, int8 openvino: AUROC by sagittal head": 2.5,
        "knee, int8 openvino: AUROC by axial head": 0.7,
        "ankle, int8 openvino: AUROC by coronal head": 1.5,
        "ankle, int8 openvino: AUROC by patient data": 1.1,
        "shoulder, int8 openvino: Dice": 1.3,
    }
    failing = admission._failing({"forms": {"int8": {"used": used}}}, "int8")
    assert failing == {"knee": {"sagittal"}, "ankle": set(PLANES), "shoulder": set(PLANES)}


def test_two_processes_find_what_one_does(tmp_path):
    (tmp_path / "weights").mkdir()
    planes = ("axial", "sagittal")  # exporting a plane's graphs takes a while
    weights = write_weights(tmp_path / "weights", planes=planes)
    records = {"knee": phantom_records(tmp_path / "phantoms", "knee", SIZE, range(1))}
    with BundleFolder(tmp_path / "bundle") as folder:
        finish(draft(str(weights), folder.draft))
        folder.publish(None)
    one, two = (parity.check(verify(tmp_path / "bundle"), records, workers=workers) for workers in (1, 2))
    assert one.vectors.keys() == {("knee", plane) for plane in planes}
    assert list(one.result["joints"]["knee"]) == list(two.result["joints"]["knee"])
    for name, own in one.result["joints"]["knee"].items():
        for output, error in own["errors"].items():
            other = two.result["joints"]["knee"][name]["errors"][output]
            assert other["relative"] == pytest.approx(error["relative"], rel=0.5, abs=1e-7)  # threads may add otherwise
