"""What a joint names graphs for, and what those graphs read and make."""

from __future__ import annotations

from pathlib import Path

import pytest

from orthokernels.bundle.manifest import SCHEMA, Manifest
from orthokernels.bundle.roles import check_roles
from orthokernels.errors import InputError

PLANES = ("sagittal", "coronal", "axial")
LABELS, CLASSES = 2, 3


def graph(inputs, outputs):
    return {
        "inputs": {name: ["batch"] for name in inputs.split()},
        "outputs": {name: ["batch", *sides] for name, *sides in (own.split(":") for own in outputs.split())},
        "forms": {"fp32": ["graphs/any.onnx"]},
    }


def record():
    """A knee of three planes, whose pooling reads what the segmentation finds."""
    made = {
        "features": graph("volume noise", "in_1 mid_2"),
        "segmentation": graph("in_1 mid_2 volume", "logits"),
        "pooling": graph("mid_2 logits volume", "vector"),
        "head": graph("vector", "logits"),
        "fusion": graph("sagittal coronal axial", "logits"),
        "gating": graph("planes", "logits shares"),
        "late_fusion": graph("sagittal coronal axial continuous sex patient_type event", "logits share"),
    }
    for name, own in made.items():
        if "logits" in own["outputs"]:
            own["outputs"]["logits"] = ["batch", CLASSES if name == "segmentation" else LABELS]
    plane = {
        "timestep": 10, "block": "mid_2", "classes": CLASSES, "segmentation_features": "features",
        "diagnosis_features": "features", "segmentation": "segmentation", "pooling": "pooling", "head": "head",
    }  # fmt: skip
    knee = {
        "weights_digest": "0", "findings": [{"key": key, "name": key} for key in "ab"],
        "planes": {name: dict(plane) for name in PLANES},
        "fusion": "fusion", "fusion_name": "crossattn", "late_fusion": "late_fusion",
    }  # fmt: skip
    return {
        "schema_version": SCHEMA, "name": "small", "version": "0.1.0", "intended_use": "Tests.", "limits": [],
        "trained": False, "licence": "Apache-2.0", "origin": "written by hand", "size": 16, "depth": 16,
        "structures": {}, "joints": {"knee": knee}, "native": False, "minimum_versions": {}, "files": {},
        "graphs": made,
    }  # fmt: skip


def check(changed):
    check_roles(Path("manifest.json"), Manifest.model_validate(changed))


def test_graphs_that_fit_what_they_are_named_for_pass():
    own = record()
    check(own)
    own["joints"]["knee"] |= {"fusion": "gating", "fusion_name": "gating"}
    check(own)
    own["joints"]["knee"]["planes"]["axial"] = {"timestep": 10, "block": "mid_2", "diagnosis_features": "features"}
    check(own)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("segmentation_features", None, "the graph 'segmentation' can't be the knee's axial segmentation: it reads "
         "'in_1', which is not given"),
        ("diagnosis_features", None, "axial pooling: it reads 'mid_2'"),
        ("segmentation_features", "segmentation", "axial features of the segmentation: it reads 'in_1'"),
        ("head", "fusion", "axial head: it reads 'sagittal'"),
        ("head", "pooling", "axial head: it reads 'mid_2'"),
        ("pooling", "segmentation", "axial pooling: it makes no 'vector'"),
        ("pooling", "features", "axial pooling: it reads 'noise'"),
        ("segmentation", "pooling", "axial segmentation: it reads 'logits'"),
        ("segmentation", None, "the knee's axial has classes without a segmentation"),
        ("classes", None, "the knee's axial has classes without a segmentation, or the reverse"),
        ("classes", 12, "axial segmentation: it tells 3 classes apart, not 12"),
    ],
)  # fmt: skip
def test_a_plane_s_graph_that_can_not_do_its_part_is_named(field, value, told):
    own = record()
    own["joints"]["knee"]["planes"]["axial"][field] = value
    with pytest.raises(InputError) as found:
        check(own)
    assert told in str(found.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fusion_name": "gating"}, "'fusion' can't be the knee's fusion by gating: it reads 'sagittal'"),
        ({"fusion": "gating"}, "'gating' can't be the knee's fusion of vectors: it reads 'planes'"),
        ({"fusion": "head"}, "fusion of vectors: it reads 'vector'"),
        ({"fusion_name": None}, "the knee's fusion has no fusion_name"),
        ({"late_fusion": "fusion"}, "late fusion: it makes no 'share'"),
        ({"findings": []}, "head: it tells 2 classes apart, not 0"),
    ],
)
def test_a_joint_s_graph_that_can_not_do_its_part_is_named(changes, told):
    own = record()
    own["joints"]["knee"] |= changes
    with pytest.raises(InputError) as found:
        check(own)
    assert told in str(found.value)


def test_a_graph_that_reads_what_no_engine_gives_is_named():
    own = record()
    own["graphs"]["features"]["inputs"]["extra"] = ["batch"]
    with pytest.raises(InputError, match="it reads 'extra', which is not given"):
        check(own)
