"""Bundles that are not what their manifest says are refused, each with one line that says why."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from orthokernels.bundle import verify as checking
from orthokernels.bundle.manifest import SCHEMA
from orthokernels.bundle.signature import make_keys, sign
from orthokernels.bundle.verify import Verification, verify
from orthokernels.cli import main
from orthokernels.errors import InputError
from tests.data.series import noise, write_series


def onnx_model(op="Relu", *, domain="", external=None):
    """One op behind an addition of a constant."""
    constant = numpy_helper.from_array(np.ones((1, 3), np.float32), "one")
    if external is not None:
        constant.ClearField("raw_data")
        constant.data_location = TensorProto.EXTERNAL
        constant.external_data.add(key="location", value=external)
    nodes = [helper.make_node("Add", ["x", "one"], ["sum"]), helper.make_node(op, ["sum"], ["y"], domain=domain)]
    sides = ["batch", 3]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sides)], [constant],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("own", 1)])


def write_ir(folder):
    """The same graph as OpenVINO's own files."""
    path = folder / "graphs" / "small.int8.xml"
    openvino.save_model(openvino.convert_model(folder / "graphs" / "small.fp32.onnx"), path, compress_to_fp16=False)
    return path


def write_manifest(folder, **changes):
    """A manifest over whatever files there are."""
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size,
        }
        for path in folder.rglob("*") if path.is_file() and path.name not in ("manifest.json", "manifest.sig")
    }  # fmt: skip
    forms = {"fp32": ["graphs/small.fp32.onnx"], "int8": ["graphs/small.int8.xml", "graphs/small.int8.bin"]}
    record = {
        "schema_version": SCHEMA, "name": "small", "version": "0.1.0", "intended_use": "Tests.", "limits": [],
        "trained": False, "licence": "Apache-2.0", "origin": "written by hand", "size": 16, "depth": 16,
        "structures": {}, "joints": {}, "native": False, "minimum_versions": {}, "files": files,
        "graphs": {"small": {"inputs": {"x": ["batch", 3]}, "outputs": {"y": ["batch", 3]}, "forms": forms}},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({**record, **changes}))


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    (folder / "graphs").mkdir(parents=True)
    onnx.save_model(onnx_model(), folder / "graphs" / "small.fp32.onnx")
    write_ir(folder)
    write_manifest(folder)
    return folder


def refusal(folder, **options):
    with pytest.raises(InputError) as found:
        verify(folder, **options)
    message = str(found.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0), ("size", 10**6), ("depth", 15), ("structures", {"foo": []}),
        ("minimum_versions", {"orthokernels": "abc"}), ("minimum_versions", {"orthokernels": "1" * 5000}),
        ("joints", {"knee": {"weights_digest": "0", "findings": [], "planes": {"foo": {"timestep": 1, "block": "b"}}}}),
        ("joints", {"knee": {"weights_digest": "0", "findings": [], "planes": {}, "fusion_name": "foo"}}),
    ],
)  # fmt: skip
def test_values_that_no_model_has_are_refused(bundle, field, value):
    write_manifest(bundle, **{field: value})
    message = refusal(bundle)
    assert f"manifest.json: {field}" in message
    assert message.endswith(". Fetch the bundle again.")


@pytest.mark.parametrize("version", ["0.1.0", "2024.5", "0+unknown", "0.2.0.dev1+g1a2b3c4", "1.0rc1", "1"])
def test_a_minimum_version_is_any_that_a_package_may_have(bundle, version):
    write_manifest(bundle, minimum_versions={"orthokernels": version})
    assert verify(bundle).manifest.minimum_versions == {"orthokernels": version}


def test_a_whole_bundle_is_verified_and_named_by_its_manifest_s_digest(bundle):
    found = verify(bundle)
    assert found.digest == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert found.signer is None


def test_every_changed_byte_is_noticed(bundle):
    for path in [*bundle.rglob("*.onnx"), *bundle.rglob("*.xml"), *bundle.rglob("*.bin")]:
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            assert "does not match its digest" in refusal(bundle)
        path.write_bytes(content[:-1])
        assert f"has {len(content) - 1} bytes, not {len(content)}" in refusal(bundle)
        path.write_bytes(content)
    verify(bundle)


def test_a_remembered_bundle_s_graphs_are_not_read_again_and_its_files_are(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("ORTHOKERNELS_CACHE", str(tmp_path / "cache"))
    read = []
    monkeypatch.setattr(checking, "check_graph", lambda folder, files: read.append(files))
    for _ in range(2):
        verify(bundle, remember=True)
    assert len(read) == 2  # its forms, once
    verify(bundle)
    assert len(read) == 4
    monkeypatch.setattr(checking, "_rules", lambda: "those of another version")
    verify(bundle, remember=True)
    assert len(read) == 6
    monkeypatch.undo()
    monkeypatch.setenv("ORTHOKERNELS_CACHE", str(tmp_path / "cache"))
    earlier = checking._rules()
    monkeypatch.setattr(checking, "REVISION", checking.REVISION + 1)
    assert checking._rules() != earlier
    path = bundle / "graphs" / "small.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="does not match its digest"):
        verify(bundle, remember=True)


def test_a_verification_beside_other_work_gives_the_bundle_or_the_reason(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("ORTHOKERNELS_CACHE", str(tmp_path / "cache"))
    assert Verification(bundle).result() == verify(bundle)
    (bundle / "extra").write_text("")
    with pytest.raises(InputError, match=r"extra is not in manifest\.json"):
        Verification(bundle).result()


def test_a_missing_file_is_named(bundle):
    (bundle / "graphs" / "small.int8.bin").unlink()
    assert "graphs/small.int8.bin is missing" in refusal(bundle)


def test_an_extra_file_is_named_wherever_it_lies(bundle):
    (bundle / "graphs" / "deep").mkdir()
    (bundle / "graphs" / "deep" / "extra").write_bytes(b"")
    assert "graphs/deep/extra is not in manifest.json" in refusal(bundle)


@pytest.mark.parametrize("name", ["graphs", "graphs/hidden"])
def test_a_folder_that_can_not_be_read_is_named(bundle, monkeypatch, name):
    (bundle / "graphs" / "hidden").mkdir()
    (bundle / "graphs" / "hidden" / "extra").write_bytes(b"")
    scan = os.scandir

    def refusing(path):  # root reads whatever it likes
        if os.fspath(path).endswith(name):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert f"{bundle / name}: can't be read (Permission denied)" in refusal(bundle)


@pytest.mark.parametrize("name", ["manifest.sig", "graphs/deep/deeper", "weights"])
def test_a_folder_without_any_listed_file_is_named(bundle, name):
    (bundle / name).mkdir(parents=True)
    assert f"the folder {name.removesuffix('/deeper')} holds no file of manifest.json" in refusal(bundle)


@pytest.mark.parametrize(
    "name",
    ["../outside.onnx", "graphs/../../outside.onnx", "/etc/passwd", "C:/outside.onnx", "graphs\\..\\x", "./a", ""],
)
def test_a_path_that_leaves_the_folder_is_refused(bundle, name):
    graphs = {"small": {"inputs": {}, "outputs": {}, "forms": {"fp32": [name]}}}
    write_manifest(bundle, graphs=graphs)
    assert repr(name) in refusal(bundle)
    write_manifest(bundle, files={name: {"sha256": "0" * 64, "bytes": 0}})
    assert repr(name) in refusal(bundle)


def test_golden_case_lies_inside_and_is_listed(bundle):
    def case(**changes):
        return {"knee": {"images": ["golden/1.dcm"], "labels": "golden/labels", "probabilities": {}, **changes}}

    (bundle / "golden").mkdir()
    (bundle / "golden" / "1.dcm").write_bytes(b"image")
    joints = {"knee": {"weights_digest": "", "findings": [], "planes": {}}}
    write_manifest(bundle, joints=joints, golden=case())
    assert "the golden case of the knee has golden/labels, which is not listed" in refusal(bundle)
    write_manifest(bundle, joints=joints, golden=case(images=["../1.dcm"]))
    assert repr("../1.dcm") in refusal(bundle)
    (bundle / "golden" / "labels").write_bytes(b"labels")
    write_manifest(bundle, golden=case())
    assert "has a golden case of the knee, and nothing else for it" in refusal(bundle)
    write_manifest(bundle, joints=joints, golden=case())
    verify(bundle)


@pytest.mark.parametrize("where", ["file", "folder", "manifest"])
def test_a_symbolic_link_is_refused(bundle, tmp_path, where):
    if where == "file":
        path = bundle / "graphs" / "small.fp32.onnx"
        path.rename(tmp_path / "outside.onnx")
        path.symlink_to(tmp_path / "outside.onnx")
    elif where == "folder":
        (bundle / "graphs").rename(tmp_path / "outside")
        (bundle / "graphs").symlink_to(tmp_path / "outside")
    else:
        (bundle / "manifest.json").rename(tmp_path / "outside.json")
        (bundle / "manifest.json").symlink_to(tmp_path / "outside.json")
    assert "symbolic link" in refusal(bundle)


def test_what_is_no_regular_file_is_refused(bundle):
    os.mkfifo(bundle / "graphs" / "pipe")
    assert "graphs/pipe is not a regular file" in refusal(bundle)
    (bundle / "manifest.json").unlink()
    os.mkfifo(bundle / "manifest.json")
    assert "manifest.json: is not a regular file" in refusal(bundle)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (onnx_model("RandomNormalLike"), "uses the op RandomNormalLike"),
        (onnx_model("Relu", domain="own"), "uses the op own::Relu"),
        (onnx_model(external="small.bin"), "keeps the tensor 'one' in 'small.bin'"),
        (onnx_model(external="../../secret"), "keeps the tensor 'one' in '../../secret'"),
    ],
)
def test_a_graph_that_does_more_than_it_may_is_refused(bundle, model, message):
    (bundle / "graphs" / "small.fp32.onnx").write_bytes(model.SerializeToString())
    write_manifest(bundle)
    assert message in refusal(bundle)


def sparse(place):
    """A sparse tensor of which one half is kept elsewhere."""
    values = numpy_helper.from_array(np.ones(1, np.float32), "values")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    own = {"values": values, "indices": indices}[place]
    own.ClearField("raw_data")
    own.data_location = TensorProto.EXTERNAL
    own.external_data.add(key="location", value="../secret")
    return helper.make_sparse_tensor(values, indices, [3])


@pytest.mark.parametrize("place", ["values", "indices"])
@pytest.mark.parametrize("where", ["attribute", "attributes", "inner graph"])
def test_a_sparse_tensor_that_is_kept_elsewhere_is_found(bundle, place, where):
    model = onnx_model()
    node = helper.make_node("Constant", [], ["s"])
    if where == "attribute":
        node.attribute.append(helper.make_attribute("sparse_value", sparse(place)))
    elif where == "attributes":
        own = onnx.AttributeProto(name="own", type=onnx.AttributeProto.SPARSE_TENSORS)
        own.sparse_tensors.append(sparse(place))
        node.attribute.append(own)
    else:
        inner = helper.make_graph([], "inner", [], [], sparse_initializer=[sparse(place)])
        node.attribute.append(helper.make_attribute("then_branch", inner))
    model.graph.node.append(node)
    (bundle / "graphs" / "small.fp32.onnx").write_bytes(model.SerializeToString())
    write_manifest(bundle)
    assert f"keeps the tensor {place!r} in '../secret'" in refusal(bundle)


def test_an_unknown_op_inside_a_branch_is_found(bundle):
    inner = helper.make_graph(
        [helper.make_node("RandomUniform", [], ["r"], shape=[1, 3])], "inner", [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 3])],
    )  # fmt: skip
    node = helper.make_node("Relu", ["x"], ["y"])
    node.attribute.append(helper.make_attribute("then_branch", inner))
    model = onnx_model()
    model.graph.node.append(node)
    (bundle / "graphs" / "small.fp32.onnx").write_bytes(model.SerializeToString())
    write_manifest(bundle)
    assert "uses the op RandomUniform" in refusal(bundle)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('type="ReLU"', 'type="ReadValue"', "::ReadValue, which is not on the list"),
        ('version="opset1"', 'version="own"', "own::"),
        ('offset="0"', 'offset="4096"', "lies outside its weights file"),
        ('<?xml version="1.0"?>', '<!DOCTYPE x [<!ENTITY a "aaaa">]>', "can't be read as OpenVINO's IR"),
        ("<net ", "<net", "can't be read as OpenVINO's IR"),
        ("<net ", '<net xmlns="any" ', "has XML namespaces"),
        ("<layer ", '<layer xmlns="any" ', "has XML namespaces"),
        ("<net ", '<net xmlns:own="any" own:name="x" ', "has XML namespaces"),
        ("net", "graph", "its root is graph"),
    ],
)
def test_an_ir_that_does_more_than_it_may_is_refused(bundle, old, new, message):
    path = bundle / "graphs" / "small.int8.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    write_manifest(bundle)
    assert message in refusal(bundle)


def test_bytes_that_are_no_onnx_are_refused(bundle):
    (bundle / "graphs" / "small.fp32.onnx").write_bytes(b"\xff" * 100)
    write_manifest(bundle)
    assert "can't be read as ONNX" in refusal(bundle)


def test_a_graph_of_another_kind_is_refused(bundle):
    (bundle / "graphs" / "small.pkl").write_bytes(b"")
    write_manifest(bundle, graphs={"small": {"inputs": {}, "outputs": {}, "forms": {"fp32": ["graphs/small.pkl"]}}})
    assert "small.pkl: is no graph" in refusal(bundle)


def test_a_newer_schema_says_to_upgrade(bundle):
    write_manifest(bundle, schema_version=SCHEMA + 1)
    assert f"has schema {SCHEMA + 1}, and this version of orthokernels reads {SCHEMA}. Upgrade it." in refusal(bundle)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is not JSON"), (b"[1]", "the whole"), (b"[" * 100_000, "is not JSON"), (b'{"schema_version": 1}', "name")],
)
def test_a_broken_manifest_is_refused(bundle, content, message):
    (bundle / "manifest.json").write_bytes(content)
    assert message in refusal(bundle)


def test_a_manifest_with_an_unknown_field_is_refused(bundle):
    write_manifest(bundle, surprise=1)
    assert "surprise" in refusal(bundle)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    assert "is no bundle" in refusal(tmp_path)


def test_graphs_that_are_named_must_be_there(bundle):
    plane = {"timestep": 100, "block": "mid_2", "segmentation": "nowhere"}
    joint = {"weights_digest": "0" * 64, "findings": [], "planes": {"axial": plane}}
    write_manifest(bundle, joints={"knee": joint})
    assert "uses the graph 'nowhere', which is not there" in refusal(bundle)
    write_manifest(
        bundle, graphs={"small": {"inputs": {}, "outputs": {}, "forms": {"int8": ["graphs/small.int8.xml"]}}}
    )
    assert "has no fp32 form" in refusal(bundle)


def test_a_signature_says_who_made_the_bundle(bundle, tmp_path):
    private, public = tmp_path / "own.pem", tmp_path / "own.pub"
    signer = make_keys(private, public)
    sign(bundle, private)
    assert verify(bundle, key=public).signer == signer
    assert private.stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="would be both keys"):
        make_keys(tmp_path / "one.pem", tmp_path / "one.pem")
    assert not (tmp_path / "one.pem").exists()


def test_a_signature_of_another_or_none_is_refused(bundle, tmp_path):
    make_keys(tmp_path / "own.pem", tmp_path / "own.pub")
    make_keys(tmp_path / "other.pem", tmp_path / "other.pub")
    assert "is not signed" in refusal(bundle, key=tmp_path / "own.pub")
    sign(bundle, tmp_path / "other.pem")
    assert "the bundle was signed by" in refusal(bundle, key=tmp_path / "own.pub")


def test_whatever_runs_a_bundle_can_ask_who_signed_it(bundle, tmp_path, monkeypatch, capsys):
    make_keys(tmp_path / "own.pem", tmp_path / "own.pub")
    make_keys(tmp_path / "other.pem", tmp_path / "other.pub")
    write_series(tmp_path / "study", noise(0, slices=16, rows=16, columns=16), plane="axial")
    out = tmp_path / "out"
    run = ["run", str(tmp_path / "study"), "--out", str(out), "--bundle", str(bundle)]

    def told(*arguments):
        monkeypatch.setattr("sys.argv", ["orthokernels", *arguments, "--key", str(tmp_path / "own.pub")])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert not out.exists()
        return " ".join(capsys.readouterr().err.split())

    commands = (("bundle", "verify", str(bundle)), ("bundle", "tune", str(bundle)), run)
    for command in commands:
        assert "is not signed, and a signature by" in told(*command)
    sign(bundle, tmp_path / "other.pem")
    for command in commands:
        assert "the bundle was signed by" in told(*command)
    sign(bundle, tmp_path / "own.pem")
    assert "has nothing for the knee" in told(*run)  # whose signature is no matter any more
    assert "weights are not signed" in told(*run[:-2])


def test_a_manifest_changed_after_signing_is_refused(bundle, tmp_path):
    make_keys(tmp_path / "own.pem", tmp_path / "own.pub")
    sign(bundle, tmp_path / "own.pem")
    write_manifest(bundle, name="another")
    assert "does not fit manifest.json" in refusal(bundle)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"algorithm": "none"}', b"[]", b"[" * 100_000])
def test_a_damaged_signature_is_refused(bundle, content):
    (bundle / "manifest.sig").write_bytes(content)
    assert "is no Ed25519 signature" in refusal(bundle)


def test_a_key_is_never_overwritten(tmp_path):
    make_keys(tmp_path / "own.pem", tmp_path / "own.pub")
    with pytest.raises(InputError, match="is there already"):
        make_keys(tmp_path / "own.pem", tmp_path / "new.pub")


def test_half_a_pair_of_keys_is_not_left(tmp_path):
    with pytest.raises(InputError, match="can't be written"):
        make_keys(tmp_path / "own.pem", tmp_path / "nowhere" / "own.pub")
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_with_one_line_and_exit_code_2(bundle):
    (bundle / "graphs" / "small.int8.bin").unlink()
    command = [sys.executable, "-c", "from orthokernels.cli import main; main()", "bundle", "verify", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip().endswith("small.int8.bin is missing. Fetch the bundle again.")
