"""Forms of a graph: what is stored in them, how far off they are, and what quantising does when too much is lost."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("nncf")

from orthokernels.export.forms import in_half, weighted_nodes, with_int8_weights  # noqa: E402
from orthokernels.export.gate import auroc_used, dice_used, logits_used  # noqa: E402
from orthokernels.export.graphs import plan_graphs  # noqa: E402
from orthokernels.export.onnx_file import save, write_onnx  # noqa: E402
from orthokernels.export.quantise import slow_layers, write_int8, write_int8_qdq  # noqa: E402

from .networks import ENGINES, inputs_of, random_weights  # noqa: E402


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A segmentation head's source, its fp32 file, and inputs to calibrate with."""
    source = plan_graphs([random_weights()]).graphs["axial.segmentation"]
    path = tmp_path_factory.mktemp("head") / "head.fp32.onnx"
    write_onnx(source, path, {"graph": source.name})
    return source, path, [inputs_of(source.inputs, 1, seed) for seed in range(4)]


def relative(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# Half precision rounds to 2^-11 and INT8 weights to 2^-8 of the largest; a dozen layers add up to a few times that.
@pytest.mark.parametrize(("change", "bound"), [(in_half, 5e-3), (with_int8_weights, 3e-2)])
def test_forms_without_data_are_close_in_both_engines(head, change, bound, tmp_path):
    source, fp32, (given, *_) = head
    path = tmp_path / "form.onnx"
    save(change(onnx.load(fp32)), path)
    for run in ENGINES.values():
        assert relative(run(path, given)["logits"], run(fp32, given)["logits"]) < bound
    model = onnx.load(path)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"graph": source.name}
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {1}  # float32


def test_every_layers_weights_are_int8_with_a_scale_for_each_channel(head):
    model = with_int8_weights(onnx.load(head[1]))
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    read = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(read) == len(weighted_nodes(onnx.load(head[1])))
    for node in read:
        stored, scale = (tensors[name] for name in node.input)
        assert stored.dtype == np.int8
        assert scale.shape == stored.shape[:1]


def test_int8_in_both_files_runs_in_every_engine(head, tmp_path):
    source, fp32, inputs = head
    made = write_int8(source.name, fp32, tmp_path / "g.int8.xml", inputs, lambda session: 0.0)
    other = write_int8_qdq(source.name, fp32, tmp_path / "g.onnx", inputs, lambda session: 0.0, like=made)
    assert not made.refused
    assert not made.in_float
    assert not other.refused
    expected = ENGINES["openvino"](fp32, inputs[0])["logits"]
    assert relative(ENGINES["openvino"](tmp_path / "g.int8.xml", inputs[0])["logits"], expected) < 0.2
    for run in ENGINES.values():
        assert relative(run(tmp_path / "g.onnx", inputs[0])["logits"], expected) < 0.2
    assert (tmp_path / "g.int8.bin").stat().st_size < fp32.stat().st_size / 2


def test_layers_are_taken_back_until_little_enough_is_lost(head, tmp_path):
    source, fp32, inputs = head
    expected = ENGINES["openvino"](fp32, inputs[0])["logits"]

    def used(session) -> float:
        return relative(session(inputs[0])["logits"], expected) / 0.02

    made = write_int8(source.name, fp32, tmp_path / "g.int8.xml", inputs, used, largest=0.5)
    assert made.used_at_first > 0.5
    assert made.refused or made.used <= 0.5
    assert made.sums_in_float
    if not made.refused:
        assert relative(ENGINES["openvino"](tmp_path / "g.int8.xml", inputs[0])["logits"], expected) <= 0.01 + 1e-6
        assert all("allowance" in reason for reason in made.in_float.values())


def test_a_form_that_loses_too_much_is_refused_and_leaves_no_file(tmp_path):
    source = plan_graphs([random_weights()]).graphs["axial.knee.head"]
    write_onnx(source, tmp_path / "fp32.onnx", {})
    inputs = [inputs_of(source.inputs, 1)]
    made = write_int8(source.name, tmp_path / "fp32.onnx", tmp_path / "g.int8.xml", inputs, lambda session: 2.0)
    assert made.refused == "uses up 2.00 of the allowance, and 0.50 is accepted of one graph"
    assert [path.name for path in tmp_path.iterdir()] == ["fp32.onnx"]


def test_a_transposed_convolution_of_one_slice_stays_in_float(tmp_path):
    source = plan_graphs([random_weights(published=True)]).graphs["axial.segmentation"]
    write_onnx(source, tmp_path / "head.onnx", {})
    model = onnx.load(tmp_path / "head.onnx")
    transposed = [node.name for node in model.graph.node if node.op_type == "ConvTranspose"]
    assert len(transposed) == 4
    assert list(slow_layers(model)) == transposed[:1]  # the others' maps have 2, 4 and 8 slices


def test_the_allowance_is_used_up_at_the_gate():
    assert dice_used([0.8, 0.9], [0.8, 0.9]) == 0
    assert dice_used([0.8, 0.895], [0.8, 0.9]) == pytest.approx(0.005 / 1.7 / 0.001)  # of the mean
    assert dice_used([0.81, 0.89], [0.8, 0.9]) == pytest.approx(2)  # one structure gains what the other loses
    assert dice_used([None, 0.9], [None, 0.9]) == 0
    assert auroc_used({"ACL": 0.9, "PCL": None}, {"ACL": 0.905, "PCL": None}) == pytest.approx(1)
    logits = np.array([[-1.0, 3.0], [1.0, 5.0]])
    assert logits_used(logits + np.array([0.1, 0.0]), logits) == pytest.approx(1)  # a tenth of a spread of 1
