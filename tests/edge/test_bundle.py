"""The appliance on a bundle of the demo weights: what it delivers is what the pipeline gives anywhere else."""

from __future__ import annotations

import gzip
import html
import json
import multiprocessing
import shutil
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

import orthokernels.models
from orthokernels.data.phantom.dataset import Recipe, write_single
from orthokernels.errors import InputError
from orthokernels.pipeline import StudyRun, run
from orthokernels.result import StudyResult
from tests.edge.conftest import needs, starting, with_page
from tests.edge.kit import Archive, archive_destination, ask, config, free_port, get, store, wait_for
from tests.edge.results import comments_of

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


@pytest.fixture(scope="module")
def offline(bundle, knee) -> StudyRun:
    """The pipeline, run by itself."""
    return run(knee, bundle=bundle, planes=["sagittal"])


@pytest.fixture(scope="module")
def service(bundle, knee, tmp_path_factory):
    """An appliance with that bundle, which has delivered the study to an archive."""
    needs("storescp")
    folder = tmp_path_factory.mktemp("appliance")
    archive = Archive(folder / "archive")
    archive.start()
    with starting(folder) as begin:
        service = with_page(
            begin,
            results={"planes": ["sagittal"]},
            work={"bundle": bundle, "command": [sys.executable, "-m", "orthokernels.edge.evaluate"]},
            destinations=[archive_destination(archive.port)],
        )
        assert store(service.config, knee).returncode == 0
        (job,) = wait_for(lambda: service.store.jobs(("sent", "rejected", "dead")), 120)
        assert job.state == "sent", job.reason
        service.archive = archive
        yield service
    archive.stop()


def doubts_on_the_study(service) -> list[str]:
    """What the checks before and after the model found doubtful, as it was kept."""
    checks = json.loads(next(service.config.appliance.data.glob("results/*/view/checks.json")).read_text())
    return [check["reason"] for check in checks if check["verdict"] == "doubtful"]


def test_delivered_objects_are_to_the_byte_those_of_the_pipeline_run_by_itself(
    service, bundle, knee, offline, tmp_path
):
    from orthokernels.edge.objects import write_objects

    from orthokernels.bundle.verify import verify

    written = write_objects(
        offline,
        knee,
        tmp_path / "offline",
        model_digest=verify(bundle).digest,
        configuration_digest=service.config.results.digest(),
        remarks=doubts_on_the_study(service),
    )
    made = {Path(made.file).name: made for made in service.deliveries.objects(1)}
    assert sorted(made) == sorted(path.name for path in written)
    for path in written:
        assert (service.config.appliance.data / made[path.name].file).read_bytes() == path.read_bytes()
    assert service.archive.objects() == sorted(one.sop_uid for one in made.values())


def test_doubts_on_a_study_are_in_its_report_and_on_its_page(service):
    """In the archive they are seen as on the appliance. The picture of a page has them too, as its bytes say above."""
    doubts = doubts_on_the_study(service)
    assert {"coronal: there is no volume", "axial: there is no volume"} <= set(doubts)
    (report,) = (made.file for made in service.deliveries.objects(1) if Path(made.file).name == "findings.dcm")
    assert set(doubts) <= set(comments_of(pydicom.dcmread(service.config.appliance.data / report)))
    page = html.unescape(get(service, "/study/1")[1])
    assert all(doubt in page for doubt in doubts)


def test_labels_that_go_back_to_a_scanner_are_to_the_byte_those_of_the_pipeline_run_by_itself(
    start, bundle, knee, tmp_path
):
    """Of the same slices as DICOM files and as a NIfTI file."""
    from orthokernels.data.study import read_study

    pytest.importorskip("ismrmrd", reason="ismrmrd, which speaks MRD, is not installed")
    from tests.edge.scanner import Scanner, of_dicom

    service = start(
        results={"planes": ["sagittal"]},
        work={"bundle": bundle, "command": [sys.executable, "-m", "orthokernels.edge.evaluate"]},
        mrd={"port": free_port(), "inline_seconds": 300.0},
    )
    volume = read_study(knee, ["sagittal"]).load("sagittal")
    nibabel.save(nibabel.Nifti1Image(volume.voxels, volume.affine), tmp_path / "knee.nii")
    (from_dicom, _), (from_nifti, _) = (
        run(source, bundle=bundle, planes=["sagittal"]).label_maps["sagittal"]
        for source in (knee, tmp_path / "knee.nii")
    )
    wait_for(lambda: service.inline.loaded, 120)
    with Scanner(service.config.mrd.port) as scanner:
        images, texts = scanner.scan(of_dicom(knee))
    place = {path: k for k, (path, _) in enumerate(volume.frames)}
    made = np.zeros_like(from_dicom)
    for path, image in zip(knee, images[len(knee) :], strict=True):
        made[:, ::-1, place[path]] = image.data[0, 0].T
    assert made.any()
    assert np.array_equal(made, from_dicom)
    assert np.array_equal(made, from_nifti)
    assert any("Anterior cruciate ligament injury: " in text for text in texts)


def test_page_shows_what_the_pipeline_gives_by_itself(service, offline):
    told = StudyResult.model_validate_json(get(service, "/study/1/findings.json")[1])
    measured = {"seconds": {}, "peak_memory_mb": None}
    assert told.model_copy(update=measured) == offline.result.model_copy(update=measured)
    for url, expected in (
        ("/study/1/volume/sagittal.nii.gz", offline.arrays["sagittal"].voxels),
        ("/study/1/labels/sagittal.nii.gz", offline.arrays["sagittal"].labels),
    ):
        shown = nibabel.Nifti1Image.from_bytes(gzip.decompress(ask(service, "GET", url).body))
        assert np.array_equal(np.asanyarray(shown.dataobj), expected)
    page = get(service, "/study/1")[1]
    for finding in offline.result.findings:
        assert finding.name in page
    assert "Demo weights" in page
    assert "demo" in get(service, "/model")[1]


def test_worker_tries_its_model_before_it_works_and_ends_with_its_helper(bundle, knee, tmp_path):
    """The golden case first. Then the process that draws is killed, and the worker falls with it."""
    from orthokernels.edge.evaluate import PipelineEvaluator
    from orthokernels.edge.runner import Request

    worker = PipelineEvaluator(config(tmp_path, results={"planes": ["sagittal"]}, work={"bundle": bundle}))
    assert worker.verified is not None
    assert "of the labelled voxels as recorded (sagittal)" in worker.verified
    (helper,) = multiprocessing.active_children()
    helper.kill()
    (tmp_path / "out").mkdir()
    with pytest.raises(BrokenProcessPool):
        worker.evaluate(Request(tuple(knee), tmp_path / "out"), lambda what, done, total: None, lambda: None)


def test_a_bundle_of_another_preparation_than_the_configuration_s_is_refused(bundle, tmp_path):
    from orthokernels.edge.evaluate import PipelineEvaluator

    assert json.loads((bundle / "manifest.json").read_text())["preparation"] == "full"
    with pytest.raises(InputError, match=r'results\.preparation = "published": .*Set results\.preparation = "full"'):
        PipelineEvaluator(config(tmp_path, results={"preparation": "published"}, work={"bundle": bundle}))


def test_model_that_gives_something_else_is_not_ready_and_evaluates_nothing(start, bundle, knee, tmp_path):
    import hashlib

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
