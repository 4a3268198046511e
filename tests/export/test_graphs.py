"""Graphs compute what their modules do, in both runtimes, for any batch; and hold nothing but ONNX's own ops."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from orthokernels.export.graphs import plan_graphs  # noqa: E402
from orthokernels.export.modules import FeaturePass  # noqa: E402
from orthokernels.export.onnx_file import write_onnx  # noqa: E402

import orthokernels  # noqa: E402
from orthokernels.errors import InputError  # noqa: E402
from orthokernels.models.orthodiffusion import GaussianDiffusion, LateFusion  # noqa: E402
from orthokernels.models.orthodiffusion.pooling import GridPool  # noqa: E402
from orthokernels.models.orthodiffusion.weights import load_weights  # noqa: E402

from .networks import ENGINES, inputs_of, random_weights  # noqa: E402

# fp32 against fp32, layers fused and sums in another order: 1e-6 was seen, 1e-4 is what a bundle promises.
PARITY = 1e-4


@pytest.fixture(scope="module")
def demo():
    return [load_weights("demo", joint) for joint in ("knee", "ankle", "shoulder")]


def relative(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def check(source, folder) -> None:
    """Written, read by both engines, and equal to the module for one volume and for two."""
    path = folder / f"{source.name}.fp32.onnx"
    write_onnx(source, path, {"graph": source.name})
    for batch in (1, 2):
        given = inputs_of(source.inputs, batch)
        with torch.no_grad():
            expected = source.module(*(torch.from_numpy(value) for value in given.values()))
        for engine, run in ENGINES.items():
            found = run(path, given)
            assert list(found) == list(source.outputs), engine
            for (name, value), own in zip(found.items(), expected, strict=True):
                assert value.shape == (batch, *source.outputs[name])
                assert relative(value, own.numpy()) < PARITY, (engine, name)


@pytest.mark.parametrize("pooling", ["selfattn", "local", "none", "grid", "structures"])
def test_every_pooling(pooling, tmp_path):
    check(plan_graphs([random_weights(pooling=pooling)]).graphs["axial.knee.pooling"], tmp_path)


@pytest.mark.parametrize("fusion", ["simple_concat", "linear_concat", "linear_add", "crossattn", "gating"])
def test_every_fusion(fusion, tmp_path):
    plan = plan_graphs([random_weights(fusion=fusion, joint="ankle")])
    check(plan.graphs[plan.fusion["ankle"]], tmp_path)
    gated = fusion == "gating"
    assert list(plan.graphs["ankle.fusion"].outputs) == (["logits", "shares"] if gated else ["logits"])


@pytest.mark.parametrize("published", [False, True])
def test_features_and_both_segmentation_heads(published, tmp_path):
    plan = plan_graphs([random_weights(published=published)])
    check(plan.graphs["coronal.features"], tmp_path)
    check(plan.graphs["coronal.segmentation"], tmp_path)
    assert ("volume" in plan.graphs["coronal.segmentation"].inputs) == (not published)


def test_denoiser_takes_any_timestep(tmp_path):
    check(plan_graphs([random_weights(segmentation=False)], denoiser=True).graphs["axial.denoiser"], tmp_path)


def test_late_fusion_with_patient_data(tmp_path):
    torch.manual_seed(0)
    late = LateFusion(3 * 16, labels=4, events=5).eval()
    plan = plan_graphs([replace(random_weights(joint="ankle"), late_fusion=late)])
    source = plan.graphs[plan.late_fusion["ankle"]]
    check(source, tmp_path)
    given = {name: torch.from_numpy(value) for name, value in inputs_of(source.inputs, 2).items()}
    events = torch.tensor([4, 1])
    given["event"] = torch.nn.functional.one_hot(events, 5).float()
    vectors = torch.cat([given.pop(plane) for plane in ("sagittal", "coronal", "axial")], dim=1)
    expected = late(vectors, *[given[name] for name in ("continuous", "sex", "patient_type")], events)
    fused, share = source.module(*vectors.split(16, dim=1), *given.values())
    torch.testing.assert_close(fused, expected["fused"])
    torch.testing.assert_close(share, expected["alpha"].expand(2, -1))


def test_the_time_embedding_is_folded_without_a_trace():
    unet = random_weights().planes["axial"].denoiser
    given = inputs_of({"volume": (1, 16, 32, 32), "noise": (1, 16, 32, 32)}, 2)
    volume, noise = map(torch.from_numpy, given.values())
    folded = FeaturePass(unet, 300, ("in_3", "out_1"))
    timesteps = torch.full((2,), 300)
    expected = unet.features(GaussianDiffusion().add_noise(volume, timesteps, noise), timesteps, folded.blocks)
    for name, found in zip(folded.blocks, folded(volume, noise), strict=True):
        assert relative(found.numpy(), expected[name].numpy()) < 1e-5  # a bias is rounded once more: 1e-7 a layer
    assert "time_embed.0.weight" in unet.state_dict()  # the copy was changed, not the network


def test_an_accelerated_network_gives_the_same_file(tmp_path):
    weights = random_weights(segmentation=False)
    write_onnx(plan_graphs([weights]).graphs["axial.features"], tmp_path / "plain.onnx", {})
    orthokernels.accelerate(weights.planes["axial"].denoiser, backend="torch")
    write_onnx(plan_graphs([weights]).graphs["axial.features"], tmp_path / "accelerated.onnx", {})
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "accelerated.onnx").read_bytes()


def test_cells_that_do_not_divide_a_map(tmp_path):
    pooling = GridPool(4, cells=(3, 5), kept=2 * 4 * 15)
    source = plan_graphs([random_weights(pooling="grid")]).graphs["axial.knee.pooling"]
    check(
        replace(source, module=_OneTensor(pooling), inputs={"map": (4, 4, 8, 8)}, outputs={"vector": (120,)}), tmp_path
    )


class _OneTensor(torch.nn.Module):
    def __init__(self, pooling):
        super().__init__()
        self.pooling = pooling

    def forward(self, x):
        return (self.pooling(x),)


def test_a_file_tells_what_it_is_and_nothing_of_the_machine(tmp_path):
    weights = random_weights()
    source = plan_graphs([weights]).graphs["axial.features"]
    facts = {"graph": source.name, "labels": json.dumps(["a", "b"]), "notice": "Research use only."}
    write_onnx(source, tmp_path / "graph.onnx", facts)
    model = onnx.load(tmp_path / "graph.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props} == facts
    assert not model.functions
    assert {opset.domain for opset in model.opset_import} == {""}
    assert all(not node.doc_string and not node.metadata_props for node in model.graph.node)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert b".py" not in (tmp_path / "graph.onnx").read_bytes()


def test_demo_shares_a_pass_between_joints_and_none_between_tasks(demo):
    plan = plan_graphs(demo)
    features = [name for name in plan.graphs if name.startswith("axial") and name.endswith("features")]
    assert features == ["axial.segmentation.features", "axial.diagnosis.features"]
    for joint in ("knee", "ankle", "shoulder"):
        assert plan.planes[joint]["axial"].diagnosis_features == "axial.diagnosis.features"
    assert plan.planes["knee"]["axial"].segmentation == "axial.segmentation"
    assert plan.planes["ankle"]["axial"].segmentation is None
    assert plan.graphs["shoulder.fusion"].labels[3] == "LHBT injury"
    assert plan_graphs(demo[1:2]).planes["ankle"]["axial"].diagnosis_features == "axial.features"


def test_demo_graphs_compute_what_the_model_does(demo, tmp_path):
    plan = plan_graphs(demo)
    own = (
        "segmentation.features",
        "diagnosis.features",
        "segmentation",
        "knee.pooling",
        "shoulder.pooling",
        "knee.head",
    )
    for name in (*(f"sagittal.{graph}" for graph in own), "knee.fusion"):
        check(plan.graphs[name], tmp_path)


def test_weights_of_two_folders_do_not_mix():
    with pytest.raises(InputError, match="another sagittal denoiser"):
        plan_graphs([random_weights(), random_weights(joint="ankle", seed=1)])
