"""A bundle's graphs on every engine beside the reference; what tuning remembers; what damaged bundles get."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from orthokernels.bundle.manifest import ENGINES_OF, FORMS
from orthokernels.bundle.verify import verify
from orthokernels.cli import main
from orthokernels.errors import InputError
from orthokernels.folders import read_table
from orthokernels.models.patient_data import Patient
from orthokernels.models.weights_folder import demo_folder
from orthokernels.pipeline import load_model, run
from orthokernels.runtime.model import open_bundle
from orthokernels.runtime.sessions import open_graph
from orthokernels.runtime.tuning import Choice, Timing, choices_file, contenders, tune, tuned, write_choice
from orthokernels.tasks import PLANES

ENGINES = ("openvino", "onnxruntime", "native")


def slab(size=64):
    return np.random.default_rng(5).uniform(-1, 1, (16, size, size)).astype(np.float32)


@pytest.fixture(scope="session")
def reference(weights, study):
    return run(study, weights=str(weights))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_the_reference_s_logits(weights, bundle, engine):
    model, reference = load_model(bundle=bundle, engine=engine), load_model(str(weights))
    x0 = slab()
    for plane in PLANES:
        found, expected = (
            own.planes[plane].heads(own.planes[plane].features(x0, seed=1, draws=2, sample=3), x0)
            for own in (model, reference)
        )
        error = np.linalg.norm(found.logits - expected.logits) / np.linalg.norm(expected.logits)
        assert error <= 1e-4  # the bound that every exported form has to keep in fp32


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_the_reference_s_study(bundle, study, reference, engine):
    found = run(study, bundle=bundle, engine=engine)
    assert (found.result.model.engine, found.result.model.bundle) == (engine, verify(bundle).digest)
    assert found.result.model.digest == reference.result.model.digest
    for plane in PLANES:
        own, expected = found.label_maps[plane][0], reference.label_maps[plane][0]
        # Untrained logits lie close together, so a few voxels are decided by the sixth digit.
        assert (own != expected).mean() <= 1e-3
    for own, expected in zip(found.result.findings, reference.result.findings, strict=True):
        assert own.threshold == expected.threshold
        assert own.plane_weights.keys() == expected.plane_weights.keys()
        # Histograms inside structures move by the few voxels above.
        assert own.probability == pytest.approx(expected.probability, abs=0.01)


@pytest.mark.parametrize("engine", ["openvino", "native"])
def test_patient_data_are_fused_as_by_the_reference(weights, bundle, study, engine):
    patient = Patient(age=50, sex="1", event="sport")
    found = run(study, bundle=bundle, patient=patient, engine=engine).result
    reference = run(study, weights=str(weights), patient=patient).result
    assert (found.model.fusion, found.model.engine) == ("patient data", engine)
    assert {own.threshold for own in found.findings} == {0.2, 0.5}  # the fusion's own, not those of the weights
    # The first label hears the patient alone. Of the histograms that the others hear too, a hundredth counts.
    bounds = [1e-6] + [1e-3] * (len(found.findings) - 1)
    for own, expected, bound in zip(found.findings, reference.findings, bounds, strict=True):
        assert own.probability == pytest.approx(expected.probability, abs=bound)
        assert own.images_share == pytest.approx(expected.images_share, abs=1e-6)
        assert own.threshold == expected.threshold


def digest_of_run(bundle, study, engine, threads):
    code = (
        "import hashlib, sys\nfrom orthokernels.pipeline import run\n"
        f"made = run({str(study)!r}, bundle={str(bundle)!r}, engine={engine!r})\n"
        "sha = hashlib.sha256()\n"
        "for plane in sorted(made.label_maps): sha.update(made.label_maps[plane][0].tobytes())\n"
        "sha.update(repr([f.probability for f in made.result.findings]).encode())\n"
        "assert 'torch' not in sys.modules\n"
        "print(sha.hexdigest())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_gives_the_same_bytes_at_any_number_of_threads(bundle, study, engine):
    digests = [digest_of_run(bundle, study, engine, threads) for threads in (1, 2)]
    assert len(set(digests)) == 1


def test_tuning_times_every_contender_and_run_uses_the_fastest(bundle):
    found = verify(bundle)
    timings = tune(found, "knee", ("axial",), rounds=1)
    assert {(own.engine, own.form) for own in timings} == {(engine, "fp32") for engine in ENGINES}
    seconds = [own.seconds for own in timings]
    assert seconds == sorted(seconds)
    assert min(seconds) > 0
    assert tuned(found.digest, "knee") == Choice(timings[0].engine, timings[0].form)
    assert load_model(bundle=bundle).engine == timings[0].engine
    assert tuned(found.digest, "knee", "onnxruntime") == Choice("onnxruntime", "fp32")
    assert tuned("0" * 64, "knee") is None


@pytest.mark.parametrize(
    "rows",
    ["x", None, 3, [1], [{}], [None], ["x"], [{"engine": "native"}], [{"engine": [], "form": {}}],
     [{"engine": "native", "form": []}]],
)  # fmt: skip
def test_damaged_rows_of_what_was_timed_are_passed_over(tmp_path, rows):
    write_choice("0" * 64, "knee", [Timing("native", "fp32", 1.0)])
    table = json.loads(choices_file().read_text())
    choices_file().write_text(json.dumps(dict.fromkeys(table, rows)))
    read_table.cache_clear()
    assert tuned("0" * 64, "knee") is None


def test_a_choice_that_can_not_be_kept_is_not_claimed(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["orthokernels", "bundle", "tune", str(bundle), "--rounds", "1"])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORTHOKERNELS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "Seconds" in said.out
    assert "now uses" not in said.out
    assert "bundles.json: can't be written" in said.err
    assert "ORTHOKERNELS_CACHE" in said.err
    monkeypatch.setenv("ORTHOKERNELS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "now uses" in capsys.readouterr().out


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_model_that_was_let_go_holds_no_graph_of_a_slab(bundle, engine):
    model = load_model(bundle=bundle, engine=engine, planes=("axial",))
    x0 = slab()
    plane = model.planes["axial"]
    before = plane.heads(plane.features(x0, seed=0, draws=1, sample=0), x0)
    assert "axial.knee.pooling" in model._graphs._sessions
    model.release()
    assert model._graphs._sessions == {}
    again = plane.heads(plane.features(x0, seed=0, draws=1, sample=0), x0)
    np.testing.assert_array_equal(again.vector, before.vector)


def test_an_untuned_bundle_runs_on_the_native_engine(bundle):
    assert load_model(bundle=bundle).engine == "native"


def changed_bundle(bundle, out, write):
    """A copy in which ``write`` changed files and the manifest's record, with a manifest that fits."""
    shutil.copytree(bundle, out)
    record = json.loads((out / "manifest.json").read_text())
    write(out, record)
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        if path.is_file() and name != "manifest.json":
            content = path.read_bytes()
            record["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (out / "manifest.json").write_text(json.dumps(record))
    return out


@pytest.fixture
def bundle_in_int8(bundle, tmp_path):
    """One of its heads has other forms, which hold what fp32 holds."""
    import openvino

    def write(folder, record):
        head = folder / "graphs" / "axial.knee.head.fp32.onnx"
        path = head.with_name("axial.knee.head.int8.xml")
        openvino.save_model(openvino.convert_model(head), path, compress_to_fp16=False)
        shutil.copyfile(head, head.with_name("axial.knee.head.fp16.onnx"))
        forms = record["graphs"]["axial.knee.head"]["forms"]
        forms["int8"] = ["graphs/axial.knee.head.int8.xml", "graphs/axial.knee.head.int8.bin"]
        forms["fp16"] = ["graphs/axial.knee.head.fp16.onnx"]

    return changed_bundle(bundle, tmp_path / "forms", write)


def test_a_form_alone_picks_the_engine_that_runs_it(bundle_in_int8):
    model = load_model(bundle=bundle_in_int8, form="int8")
    assert (model.engine, model.form) == ("openvino", "int8")
    assert load_model(bundle=bundle_in_int8, form="fp32").engine == "native"


@pytest.mark.parametrize(
    ("engine", "form", "said"),
    [
        ("auto", "int8_qdq", "has no graph in int8_qdq; its forms are fp32, fp16, int8"),
        ("openvino", "int8_weights", "has no graph in int8_weights"),
        ("onnxruntime", "int8", "the onnxruntime engine does not run int8; choose openvino"),
        ("onnxruntime", "fp16", "the onnxruntime engine does not run fp16; choose openvino"),
        ("native", "int8", "the native engine does not run int8; choose openvino"),
    ],
)
def test_an_engine_and_a_form_that_do_not_go_together_are_refused(bundle_in_int8, engine, form, said):
    with pytest.raises(InputError, match=said) as error:
        load_model(bundle=bundle_in_int8, engine=engine, form=form)
    assert "\n" not in str(error.value)


def test_nothing_is_tuned_that_no_export_judges(bundle_in_int8):
    found = verify(bundle_in_int8)
    own = [choice for choice in contenders(found) if choice.engine != "native"]
    assert own == [Choice(engine, form) for form in ("fp32", "fp16", "int8") for engine in ENGINES_OF[form]]
    earlier = [Timing("onnxruntime", "fp16", 0.1), Timing("openvino", "int8", 0.2)]
    write_choice(found.digest, "knee", earlier)
    assert tuned(found.digest, "knee") == Choice("openvino", "int8")
    assert tuned(found.digest, "knee", "onnxruntime") is None


def unrunnable(path, out):
    """The same graph but for its last step, an addition of what does not fit."""
    import onnx

    model = onnx.load(path)
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["whole" if own == name else own for own in node.output]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(5, np.float32), "five"))
    model.graph.node.append(onnx.helper.make_node("Add", ["whole", "five"], [name]))
    onnx.save(model, out)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_whatever_an_engine_says_of_a_graph_is_one_sentence(bundle, tmp_path, engine):
    broken, unfit = tmp_path / "broken.onnx", tmp_path / "unfit.onnx"
    broken.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=f"broken.onnx: {engine} can't open it") as error:
        open_graph(broken, engine)
    assert "\n" not in str(error.value)
    unrunnable(bundle / "graphs" / "axial.knee.head.fp32.onnx", unfit)
    with pytest.raises(InputError, match=f"unfit.onnx: {engine} can't (open|run) it") as error:
        open_graph(unfit, engine)({"vector": np.zeros((1, 24), np.float32)})
    assert "\n" not in str(error.value)


def test_a_contender_that_fails_does_not_end_the_tuning(bundle, tmp_path):
    def write(folder, record):
        path = folder / "graphs" / "axial.segmentation.fp32.onnx"
        unrunnable(path, path)

    found = verify(changed_bundle(bundle, tmp_path / "unfit", write))
    timings = tune(found, "knee", ("axial",), rounds=1)
    assert [own.engine for own in timings if own.seconds is not None] == ["native"]
    assert {own.engine for own in timings if own.reason is not None} == {"openvino", "onnxruntime"}


@pytest.mark.parametrize("package", ["orthokernels", "openvino", "onnxruntime"])
def test_a_bundle_that_needs_a_newer_version_says_so(bundle, tmp_path, package):
    def write(folder, record):
        record["minimum_versions"][package] = "9999.0"

    newer = changed_bundle(bundle, tmp_path / "newer", write)
    engine = "native" if package == "orthokernels" else package
    with pytest.raises(InputError, match=rf"needs {package} 9999\.0 or newer, and this is \d.*\. Upgrade {package}\."):
        load_model(bundle=newer, engine=engine)
    if package != "orthokernels":  # what another engine needs is no matter
        load_model(bundle=newer, engine="native").release()


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_graph_that_changed_since_the_verification_is_not_opened(bundle, tmp_path, engine):
    folder = tmp_path / "changing"
    shutil.copytree(bundle, folder)
    model = load_model(bundle=folder, engine=engine, planes=("axial",)).planes["axial"]
    x0 = slab()
    before = model.heads(model.features(x0, seed=0, draws=1, sample=0), x0)
    model.release()
    path = folder / "graphs" / "axial.segmentation.fp32.onnx"
    content = path.read_bytes()
    path.write_bytes(content)  # touched, and the same
    again = model.heads(model.features(x0, seed=0, draws=1, sample=0), x0)
    np.testing.assert_array_equal(again.logits, before.logits)
    model.release()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"axial\.segmentation\.fp32\.onnx: its content does not match its digest"):
        model.heads(model.features(x0, seed=0, draws=1, sample=0), x0)


def test_native_weights_that_changed_since_the_verification_are_not_mapped(bundle, tmp_path):
    folder = tmp_path / "changing"
    shutil.copytree(bundle, folder)
    found = verify(folder)
    path = folder / "weights" / "axial.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"axial\.safetensors: its content does not match its digest"):
        open_bundle(found, "knee", ("axial",), "native")


def overwritten(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("stem", ["axial", "axial.segmentation"])
@pytest.mark.parametrize("change", [overwritten, lambda content: content[:4096]])
def test_native_weights_that_change_between_two_studies_are_not_read(bundle, tmp_path, stem, change):
    folder = tmp_path / "changing"
    shutil.copytree(bundle, folder)
    plane = open_bundle(verify(folder), "knee", ("axial",), "native").planes["axial"]
    x0 = slab()
    before = plane.heads(plane.features(x0, seed=0, draws=1, sample=0), x0)
    plane.release()
    path = folder / "weights" / f"{stem}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content)  # touched, and the same
    again = plane.heads(plane.features(x0, seed=0, draws=1, sample=0), x0)
    np.testing.assert_array_equal(again.logits, before.logits)
    plane.release()
    path.write_bytes(change(content))
    with pytest.raises(InputError, match=rf"{stem}\.safetensors: (its content does not match|has 4096 bytes)"):
        plane.heads(plane.features(x0, seed=0, draws=1, sample=0), x0)


def test_native_heads_and_fusions_do_not_read_their_files_again(bundle, tmp_path):
    folder = tmp_path / "changing"
    shutil.copytree(bundle, folder)
    model = open_bundle(verify(folder), "knee", PLANES, "native")
    rows = np.random.default_rng(6).normal(size=(3, 24)).astype(np.float32)
    patient = model.late_fusion.encoding.columns(Patient(age=40, sex="1"))

    def scored():
        logits = [plane.score(row) for plane, row in zip(model.planes.values(), rows, strict=True)]
        return np.stack([*logits, model.fuse(np.stack(logits))[0], model.fuse_with_patient(rows, patient)[0]])

    expected = open_bundle(verify(bundle), "knee", PLANES, "native")
    for path in (folder / "weights").glob("*.safetensors"):
        if path.stem.endswith((".head", ".fusion", ".patient_data", ".pooling")):
            path.write_bytes(path.read_bytes()[:-4096] + bytes(4096))
    found = scored()
    model = expected
    np.testing.assert_array_equal(found, scored())


def test_only_the_package_s_own_folder_makes_its_licence(drafted, tmp_path):
    from orthokernels.export.bundle import finish

    for weights in drafted.weights.values():
        weights.name = "demo"  # which training on top of the demo weights keeps
    made = replace(drafted, folder=shutil.copytree(drafted.folder, tmp_path / "own"))
    assert finish(made).licence == "as its origin says"
    assert finish(replace(made, packaged=True)).licence == "Apache-2.0"


def test_the_demo_weights_are_the_package_s_and_a_copy_of_them_is_not(tmp_path):
    from orthokernels.export.bundle import comes_with_the_package

    copy = shutil.copytree(demo_folder(), tmp_path / "demo")
    named = {name: comes_with_the_package(name) for name in ("demo", str(demo_folder()), str(copy), "random:0")}
    assert list(named.values()) == [True, True, False, False]


def test_a_bundle_says_which_joints_it_has(bundle):
    with pytest.raises(InputError, match="has nothing for the ankle; it has knee"):
        load_model(bundle=bundle, joint="ankle")


def test_forms_are_the_manifest_s():
    assert FORMS[0] == "fp32"  # what every graph has, and others fall back on


def command(*arguments):
    code = "from orthokernels.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_run_verifies_a_bundle_before_it_loads_it(bundle, study, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    path = damaged / "weights" / "axial.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = command("run", study, "--bundle", damaged, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "axial.safetensors: its content does not match its digest" in done.stderr
    assert not (tmp_path / "out").exists()


def test_weights_and_bundle_are_not_taken_together(bundle, study, tmp_path):
    done = command("run", study, "--bundle", bundle, "--weights", "random:0", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "are two models; pass one of them" in done.stderr


def test_the_verify_command_tells_what_a_bundle_is(bundle):
    done = command("bundle", "verify", bundle, "--json")
    told = json.loads(done.stdout)
    assert told["digest"] == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert told["manifest"]["trained"] is False
    plain = command("bundle", "verify", bundle).stdout
    assert "Verified:" in plain
    assert "Not signed" in plain


def test_the_same_weights_give_the_same_graphs_and_the_card_says_they_are_untrained(weights, bundle, tmp_path):
    from tests.runtime.bundles import make_bundle

    again = make_bundle(weights, tmp_path / "again")
    assert (again / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()
    assert "UNTRAINED" in (bundle / "MODEL_CARD.md").read_text()
    assert "<table>" in (bundle / "MODEL_CARD.html").read_text()


def test_a_bundle_is_never_overwritten(weights, bundle):
    from tests.runtime.bundles import make_bundle

    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="a bundle is never overwritten"):
        make_bundle(weights, bundle)
    assert (bundle / "manifest.json").read_bytes() == before
