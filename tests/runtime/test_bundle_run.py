"""A bundle's graphs on every engine beside the reference; what tuning remembers; what damaged bundles get."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from orthokernels.bundle.manifest import FORMS
from orthokernels.bundle.verify import verify
from orthokernels.errors import InputError
from orthokernels.pipeline import load_model, run
from orthokernels.runtime.tuning import Choice, tune, tuned
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


def test_an_untuned_bundle_runs_on_the_native_engine(bundle):
    assert load_model(bundle=bundle).engine == "native"


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
