"""Heads in INT8: what they read is of very different sizes, and findings hang on small differences of many numbers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("nncf")

from orthokernels.export.forms import weighted_nodes, with_int8_weights  # noqa: E402
from orthokernels.export.graphs import plan_graphs  # noqa: E402
from orthokernels.export.onnx_file import save, write_onnx  # noqa: E402
from orthokernels.export.quantise import write_int8_of_vectors  # noqa: E402
from orthokernels.export.two_bytes import in_two_bytes  # noqa: E402

from .networks import ENGINES, random_weights  # noqa: E402

STUDIES = 32


def head_on_vectors(folder):
    """A head over numbers whose spreads lie four orders of magnitude apart, with weights that undo them."""
    weights = random_weights(pooling="grid")
    head = weights.planes["axial"].head
    rng = np.random.default_rng(0)
    spreads = 10 ** rng.uniform(-3, 1, head.in_features)
    middle = rng.normal(0, 10, head.in_features) * spreads
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(rng.normal(0, 1, head.weight.shape) / spreads))
    source = plan_graphs([weights]).graphs["axial.knee.head"]
    write_onnx(source, folder / "head.onnx", {})
    rows = [(middle + spreads * rng.normal(size=len(middle))).astype(np.float32) for _ in range(2 * STUDIES)]
    given = [{"vector": row[None]} for row in rows]
    return folder / "head.onnx", given[:STUDIES], given[STUDIES:]


def error(run, path, fp32, given) -> float:
    """Root mean square error of the logits over their spread, in the worst label."""
    found, expected = (np.concatenate([run(own, row)["logits"] for row in given]) for own in (path, fp32))
    return float((np.sqrt(np.square(found - expected).mean(axis=0)) / expected.std(axis=0)).max())


def test_two_bytes_keep_logits_where_one_byte_of_the_weights_does_not(tmp_path):
    fp32, known, others = head_on_vectors(tmp_path)
    save(in_two_bytes(onnx.load(fp32), known), tmp_path / "two.onnx")
    for run in ENGINES.values():
        # A second byte leaves 64 / 127 / 254 / sqrt(12) = 5.7e-4 deviations of each input, less of the weights.
        assert error(run, tmp_path / "two.onnx", fp32, others) < 1.5e-3
    save(with_int8_weights(onnx.load(fp32)), tmp_path / "one.onnx")
    assert error(ENGINES["onnxruntime"], tmp_path / "one.onnx", fp32, others) > 1.5e-3


def test_every_product_of_a_head_is_of_bytes(tmp_path):
    fp32, known, _ = head_on_vectors(tmp_path)
    model = in_two_bytes(onnx.load(fp32), known)
    made = {name: node for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == 4 * len(weighted_nodes(onnx.load(fp32)))
    assert {made[name].op_type for node in products for name in node.input} == {"DequantizeLinear"}
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [made[node.input[1]].input[0] for node in products]
    assert {stored[name] for name in weights} == {onnx.TensorProto.INT8}


@pytest.mark.parametrize("fusion", ["gating", "linear_concat", "simple_concat"])
def test_fusions_with_layers_between_are_kept_too(fusion, tmp_path):
    plan = plan_graphs([random_weights(fusion=fusion)])
    source = plan.graphs["knee.fusion"]
    write_onnx(source, tmp_path / "fusion.onnx", {})
    rng = np.random.default_rng(1)
    given = [
        {name: rng.standard_normal((1, *sides), dtype=np.float32) for name, sides in source.inputs.items()}
        for _ in range(2 * STUDIES)
    ]
    save(in_two_bytes(onnx.load(tmp_path / "fusion.onnx"), given[:STUDIES]), tmp_path / "two.onnx")
    for run in ENGINES.values():
        assert error(run, tmp_path / "two.onnx", tmp_path / "fusion.onnx", given[STUDIES:]) < 5e-3  # layers add up


def test_a_number_that_never_changed_takes_no_room_from_others(tmp_path):
    fp32, known, others = head_on_vectors(tmp_path)
    for row in (*known, *others):
        row["vector"][:, 3] = 0.0
    save(in_two_bytes(onnx.load(fp32), known), tmp_path / "two.onnx")
    assert error(ENGINES["onnxruntime"], tmp_path / "two.onnx", fp32, others) < 1.5e-3


def test_both_files_are_written_and_a_refused_one_is_not(tmp_path):
    fp32, known, _ = head_on_vectors(tmp_path)
    paths = {"int8": tmp_path / "head.int8.xml", "int8_qdq": tmp_path / "head.int8_qdq.onnx"}
    made = write_int8_of_vectors("axial.knee.head", fp32, paths, known, lambda session: 0.1)
    assert [(own.form, own.refused, own.in_float) for own in made] == [("int8", "", {}), ("int8_qdq", "", {})]
    assert all(path.is_file() for path in (*paths.values(), tmp_path / "head.int8.bin"))
    (refused,) = write_int8_of_vectors(
        "axial.knee.head", fp32, {"int8": tmp_path / "no.xml"}, known, lambda session: 2.0
    )
    assert refused.refused == "uses up 2.00 of the allowance, and 0.50 is accepted of one graph"
    assert not list(tmp_path.glob("no.*"))


def test_a_study_far_outside_the_known_ones_is_not_cut_off(tmp_path):
    fp32, known, others = head_on_vectors(tmp_path)
    spread = np.concatenate([row["vector"] for row in known]).std(axis=0)
    far = [{"vector": row["vector"] + 40 * spread * (np.arange(len(spread)) == 5)} for row in others]
    save(in_two_bytes(onnx.load(fp32), known), tmp_path / "two.onnx")
    assert error(ENGINES["onnxruntime"], tmp_path / "two.onnx", fp32, far) < 1.5e-3
