"""The appliance on a bundle of the demo weights: what it delivers is what the pipeline gives anywhere else."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import orthokernels.models
from orthokernels.data.phantom.dataset import Recipe, write_single
from orthokernels.errors import InputError
from tests.edge.conftest import needs
from tests.edge.kit import archive_destination, config, store, wait_for

pytest.importorskip("torch", reason="PyTorch, which makes bundles, is not installed")

DEMO = Path(orthokernels.models.__file__).with_name("demo")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    from orthokernels.export.bundle import BundleFolder, draft, finish

    weights, out = tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("made") / "bundle"
    for path in DEMO.iterdir():  # one plane of the knee: the graphs of all planes and joints take minutes
        names = path.name.split(".")
        if names[0] in ("weights", "sagittal") and not {"ankle", "shoulder"} & set(names):
            shutil.copy(path, weights)
    with BundleFolder(out) as folder:
        finish(draft(str(weights), folder.draft))
        folder.publish(None)
    return out


@pytest.fixture(scope="module")
def knee(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("phantom") / "study"
    write_single(folder, 2000000, Recipe(joint="knee", matrix=128))
    return sorted(folder.glob("*sagittal/*.dcm"))


def test_delivered_objects_are_to_the_byte_those_of_the_pipeline_run_by_itself(start, archive, bundle, knee, tmp_path):
    from orthokernels.edge.objects import write_objects

    from orthokernels.bundle.verify import verify
    from orthokernels.pipeline import run

    service = start(
        results={"planes": ["sagittal"]},
        work={"bundle": bundle, "command": [sys.executable, "-m", "orthokernels.edge.evaluate"]},
        destinations=[archive_destination(archive.port)],
    )
    assert store(service.config, knee).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("sent", "rejected", "dead")), 120)
    assert job.state == "sent", job.reason
    offline = write_objects(
        run(knee, bundle=bundle, planes=["sagittal"]),
        knee,
        tmp_path / "offline",
        model_digest=verify(bundle).digest,
        configuration_digest=service.config.results.digest(),
    )
    made = {Path(made.file).name: made for made in service.deliveries.objects(job.id)}
    assert sorted(made) == sorted(path.name for path in offline)
    for path in offline:
        assert (service.config.appliance.data / made[path.name].file).read_bytes() == path.read_bytes()
    assert archive.objects() == sorted(one.sop_uid for one in made.values())


def test_worker_tries_its_model_on_the_golden_case_before_it_works(bundle, tmp_path):
    from orthokernels.edge.evaluate import PipelineEvaluator

    verified = PipelineEvaluator(config(tmp_path, results={"planes": ["sagittal"]}, work={"bundle": bundle})).verified
    assert verified is not None
    assert "of the labelled voxels as recorded (sagittal)" in verified


def test_model_that_gives_something_else_is_not_ready_and_evaluates_nothing(start, bundle, knee, tmp_path):
    import hashlib
    import json

    import numpy as np
    from orthokernels.edge.web import Page
    from safetensors.numpy import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    record = json.loads((other / "manifest.json").read_text())
    labels = other / record["golden"]["knee"]["labels"]
    save_file({plane: np.roll(own, 5, axis=0) for plane, own in load_file(labels).items()}, labels)
    content = labels.read_bytes()
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    record["files"][record["golden"]["knee"]["labels"]] = entry
    (other / "manifest.json").write_text(json.dumps(record))
    service = start(
        results={"planes": ["sagittal"]},
        work={"bundle": other, "command": [sys.executable, "-m", "orthokernels.edge.evaluate"]},
    )
    assert store(service.config, knee).returncode == 0
    (worker,) = service.workers
    wait_for(lambda: worker.unusable, 120)
    assert "does not come out on this machine" in next(iter(Page(service).not_ready()))
    assert [job.state for job in service.store.jobs(("sent", "sending", "rejected", "dead"))] == []


def test_demo_goes_from_storescu_to_an_archive_and_says_where_to_look(bundle, tmp_path, capsys):
    from orthokernels.edge.demo import show

    needs("storescu", "storescp")
    show(bundle, tmp_path / "demo", keep=False)
    told = capsys.readouterr().out
    assert "The study is sent" in told
    assert "Comprehensive 3D SR" in told
    assert "Page:           http://127.0.0.1:" in told
    assert len(list((tmp_path / "demo" / "archive").iterdir())) >= 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something else than a demo"):
        show(bundle, tmp_path / "mine", keep=False)
    assert (tmp_path / "mine" / "thesis.txt").exists()
