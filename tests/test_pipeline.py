"""The whole way of a study, at toy size where the model does not matter and at full size once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch

from orthokernels import tasks
from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion import FUSIONS, POOLINGS, SegmentationHead, UNet
from orthokernels.models.orthodiffusion.weights import PlaneWeights, Weights
from orthokernels.pipeline import _all_finite, load_model, run
from orthokernels.result import StudyResult
from tests.data.series import noise, write_series
from tests.runtime.bundles import write_weights


def toy_weights(planes=tasks.PLANES, *, fusion="gating", heads=True, joint="knee", trained=True) -> Weights:
    """The published layout with a tenth of the width and sixteen-fold resolution loss, so that the heads fit."""
    labels = len(tasks.LABELS[joint])
    torch.manual_seed(0)
    made = {}
    for plane in planes:
        unet = UNet(base_channels=8, channel_mults=(1, 1, 1, 1, 2), groups=8)
        made[plane] = PlaneWeights(
            unet.eval(),
            segmentation=SegmentationHead(16).eval() if heads else None,
            pooling=POOLINGS["selfattn"](16, heads=2).eval() if heads else None,
            head=torch.nn.Linear(32, labels) if heads else None,
        )
    arguments = {"labels": labels} if fusion == "gating" else {"width": 32, "labels": labels}
    return Weights(
        "toy", trained, joint, made, FUSIONS[fusion](**arguments).eval() if heads else None, fusion if heads else None
    )


@pytest.fixture
def study(tmp_path) -> Path:
    for n, plane in enumerate(tasks.PLANES):
        write_series(
            tmp_path / "study" / plane, noise(n, slices=16, rows=40, columns=48), plane=plane, tilt=(6, -4, 5),
            ScanOptions="FS", Laterality="R", BodyPartExamined="KNEE",
        )  # fmt: skip
    return tmp_path / "study"


def test_the_native_engine_gives_the_same_labels_and_findings(study):
    reference, native = (run(study, weights="demo", engine=engine) for engine in ("torch", "native"))
    for plane in tasks.PLANES:
        labels, other = reference.label_maps[plane][0], native.label_maps[plane][0]
        # Noise is all background and muscle to these weights; two classes may tie within float32's error somewhere.
        assert (labels != other).mean() < 1e-4
    for one, other in zip(reference.result.findings, native.result.findings, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-4)


def test_the_native_engine_gives_the_real_knee_s_labels(real_data):
    series = real_data / "knee-mese"
    reference, native = (run(series, engine=engine).label_maps["sagittal"][0] for engine in ("torch", "native"))
    assert (reference > 0).sum() > 100_000
    assert (reference != native).mean() < 1e-6  # of 1.6 million voxels


def test_three_planes_give_label_maps_findings_and_report(study, tmp_path):
    out = tmp_path / "out"
    made = run(study, out, weights=toy_weights())
    files = {path.name for path in out.iterdir()}
    assert files == {
        "findings.json", "report.html",
        *(f"segmentation_{p}.nii.gz" for p in tasks.PLANES), *(f"montage_{p}.png" for p in tasks.PLANES),
    }  # fmt: skip
    result = StudyResult.model_validate_json((out / "findings.json").read_text())
    assert result == made.result
    assert [f.label for f in result.findings] == ["ACL", "PCL", "MM", "LM", "MCL", "LCL", "PD", "EFFU"]
    for finding in result.findings:
        assert 0 < finding.probability < 1
        assert finding.status == ("present" if finding.probability >= finding.threshold else "absent")
        assert sum(finding.plane_weights.values()) == pytest.approx(1, abs=1e-6)
    assert result.laterality == "R"
    assert result.untrained is None
    assert set(result.seconds) == {
        "read", "weights", "prepare", "features", "heads", "restore", "findings", "report"
    }  # fmt: skip
    html = (out / "report.html").read_text()
    assert tasks.RESEARCH_NOTICE in html
    assert "UNTRAINED" not in html
    # Hashes stand for the identifiers.
    assert "1.2.3" not in (out / "findings.json").read_text().replace(result.versions["torch"], "")


def test_label_maps_lie_on_the_scanners_grid(study, tmp_path):
    made = run(study, tmp_path / "out", weights=toy_weights())
    for plane in tasks.PLANES:
        image = nibabel.load(tmp_path / "out" / f"segmentation_{plane}.nii.gz")
        labels, affine = made.label_maps[plane]
        assert image.shape == (48, 40, 16)
        # NIfTI stores its affine in float32.
        np.testing.assert_allclose(image.affine, affine, atol=1e-4)
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), labels)
        assert tasks.RESEARCH_NOTICE in image.header["descrip"].item().decode()
        ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        volumes = next(p for p in made.result.planes if p.plane == plane).structures
        for structure in volumes:
            found = labels == structure.index
            assert structure.voxels == found.sum()
            assert structure.cut_off == (found.sum() > found[1:-1, 1:-1, 1:-1].sum())
            assert structure.ml == pytest.approx(structure.voxels * ml, abs=1e-4)


def test_run_remembers_each_slice_s_file_and_each_plane_s_vector(study):
    made = run(study, weights=toy_weights())
    for plane in tasks.PLANES:
        labels, affine = made.label_maps[plane]
        assert len(made.frames[plane]) == labels.shape[2]
        for k, (path, number) in enumerate(made.frames[plane]):
            corner = affine @ [0, labels.shape[1] - 1, k, 1]  # the pixel that DICOM's position is of
            position = pydicom.dcmread(path).ImagePositionPatient
            assert number == 0
            assert corner[:3] * [-1, -1, 1] == pytest.approx(position, abs=1e-4)  # headers round to 6 decimals
        assert made.vectors[plane].shape == (32,)
        assert np.isfinite(made.vectors[plane]).all()


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda own: own.planes["coronal"].segmentation, "the coronal volume: the model gives numbers that are NaN"),
        (lambda own: own.planes["axial"].pooling, "the axial volume: the model gives numbers that are NaN"),
        (lambda own: own.planes["axial"].head, "injury: the model gives numbers that are NaN"),
    ],
    ids=["segmentation", "pooling", "head"],
)
def test_numbers_that_are_not_finite_end_the_run(study, tmp_path, broken, said):
    weights = toy_weights()
    with torch.no_grad():
        for parameter in broken(weights).parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(InputError, match=said) as error:
        run(study, tmp_path / "out", weights=weights)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("some", "finite"),
    [([], True), ([1e38] * 9, True), ([np.nan], False), ([np.inf, -np.inf], False), ([1e38] * 9 + [-np.inf], False)],
    ids=["ordinary", "sum overflows", "nan", "both infinities", "infinity in a sum that overflows"],
)
def test_whether_all_numbers_are_finite_is_found_whatever_their_sum(some, finite, order):
    numbers = np.random.default_rng(3).standard_normal((5, 7, 11)).astype(np.float32)
    numbers.reshape(-1)[: len(some)] = some
    assert _all_finite(np.asarray(numbers, order=order)) is finite


def test_two_runs_write_the_same_label_maps_pictures_and_findings(study, tmp_path):
    for name in ("a", "b"):
        run(study / "axial", tmp_path / name, weights=toy_weights(["axial"]))
    for file in (tmp_path / "a").iterdir():
        first, second = file.read_bytes(), (tmp_path / "b" / file.name).read_bytes()
        if file.name == "findings.json":
            first, second = (
                {k: v for k, v in json.loads(text).items() if k not in ("seconds", "peak_memory_mb")}
                for text in (first, second)
            )
        if file.name != "report.html":  # it shows the times
            assert first == second, file.name


def test_seed_changes_features_and_draws_average_them(study):
    probabilities = {
        key: [f.probability for f in run(study / "axial", weights=toy_weights(), **options).result.findings]
        for key, options in {"0": {}, "1": {"seed": 1}, "draws": {"draws": 2}}.items()
    }
    assert probabilities["0"] != probabilities["1"]
    assert probabilities["0"] != probabilities["draws"]


@pytest.mark.parametrize("fusion", ["simple_concat", "linear_concat", "linear_add", "crossattn"])
def test_every_fusion_gives_findings_without_plane_weights(study, fusion):
    findings = run(study, weights=toy_weights(fusion=fusion)).result.findings
    assert all(f.probability is not None and f.plane_weights == {} for f in findings)


def test_gating_findings_are_the_gates_own(study):
    weights = toy_weights()
    made = run(study, weights=weights)
    single = []
    for plane in tasks.PLANES:
        alone = run(study, weights=weights, planes=[plane]).result
        assert all(f.plane_weights == {plane: 1.0} for f in alone.findings)
        single.append([np.log(f.probability / (1 - f.probability)) for f in alone.findings])
    logits, gates = weights.fusion(torch.tensor(np.array(single), dtype=torch.float32)[None])
    # Probabilities in, logits out and back: float32 keeps about six digits.
    np.testing.assert_allclose([f.probability for f in made.result.findings], logits[0].sigmoid().detach(), rtol=1e-4)
    np.testing.assert_allclose(
        [f.plane_weights["axial"] for f in made.result.findings], gates[0, 2].detach(), rtol=1e-4
    )


def test_study_with_two_planes_runs_on_them(study):
    result = run([study / "sagittal", study / "axial"], weights=toy_weights()).result
    assert [p.plane for p in result.planes] == ["sagittal", "axial"]
    assert "findings rest on 2 of 3 planes" in result.warnings[0]
    assert all(f.plane_weights == {"sagittal": 0.5, "axial": 0.5} for f in result.findings)


def test_volumes_of_one_nifti_file_are_one_patient_s_and_told_apart(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 999, (20, 22, 16, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(pixels, np.diag([-0.5, 0.5, 4.0, 1.0])), tmp_path / "dynamic.nii.gz")
    result = run(tmp_path, weights=toy_weights(["axial"], heads=False)).result
    (plane,) = result.planes
    assert plane.description == "dynamic, volume 1 (20 x 22 x 16)"
    assert not any("whose a volume is" in warning for warning in plane.warnings)
    assert [Path(own.what).name for own in result.left_out] == [
        f"dynamic.nii.gz, volume {n} (20 x 22 x 16)" for n in (2, 3)
    ]
    nibabel.save(nibabel.Nifti1Image(pixels[..., 0], np.diag([-0.5, 0.5, 4.0, 1.0])), tmp_path / "other.nii.gz")
    result = run(tmp_path, weights=toy_weights(["axial"], heads=False)).result
    assert any("all 2 of this plane were taken for one" in warning for warning in result.planes[0].warnings)


def test_weights_without_heads_leave_findings_and_labels_open_with_the_reason(study, tmp_path):
    result = run(study, tmp_path / "out", weights=toy_weights(heads=False)).result
    assert {f.status for f in result.findings} == {"not evaluated"}
    assert all("no diagnosis head" in f.reason for f in result.findings)
    assert all("no " + p.plane + " segmentation head" in p.segmentation_reason for p in result.planes)
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    assert len(list((tmp_path / "out").glob("montage_*.png"))) == 3


def test_published_preparation_labels_sixteen_slices(tmp_path):
    write_series(tmp_path, noise(0, slices=20))
    made = run(tmp_path, weights=toy_weights(["sagittal"]), preparation="published")
    assert made.result.planes[0].labelled_slices == (2, 18)
    labels, _ = made.label_maps["sagittal"]
    assert not labels[:, :, :2].any()
    assert not labels[:, :, 18:].any()


def test_a_study_is_prepared_as_the_heads_were_trained_and_otherwise_says_so(tmp_path):
    write_series(tmp_path, noise(0, slices=20))
    weights = replace(toy_weights(["sagittal"]), preparation="published")
    own = run(tmp_path, weights=weights).result
    assert (own.preparation, own.planes[0].labelled_slices) == ("published", (2, 18))
    assert not [warning for warning in own.warnings if "prepared as" in warning]
    other = run(tmp_path, weights=weights, preparation="full").result
    assert (other.preparation, other.planes[0].labelled_slices) == ("full", (0, 20))
    (told,) = [warning for warning in other.warnings if "prepared as" in warning]
    assert told.startswith("the heads were trained on studies of the published preparation")
    assert run(tmp_path, weights=toy_weights(["sagittal"])).result.preparation == "full"


def test_ankle_labels_are_scored_and_a_knee_header_is_told(study):
    result = run(study / "axial", weights=toy_weights(joint="ankle"), joint="ankle").result
    assert [f.label for f in result.findings] == ["ATFL", "CFL", "ATR", "OLT"]
    assert any("body part is KNEE" in warning for warning in result.warnings)


def test_output_folder_is_not_overwritten_unasked(study, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    for overwrite, message in ((False, "is not empty"), (True, "holds no earlier result")):
        with pytest.raises(InputError, match=message):
            run(study, out, weights=toy_weights(), overwrite=overwrite)
    assert [p.name for p in out.iterdir()] == ["precious.txt"]
    (out / "findings.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds precious\.txt, which is no part of a result and would be lost"):
        run(study / "axial", out, weights=toy_weights(["axial"]), overwrite=True)
    assert (out / "precious.txt").read_text() == "mine"
    (out / "precious.txt").unlink()
    run(study / "axial", out, weights=toy_weights(["axial"]), overwrite=True)
    assert (out / "report.html").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_came_into_the_output_folder_during_the_run_stays(study, tmp_path, overwrite):
    out = tmp_path / "out"

    def tell(what: str, done: int, total: int) -> None:
        if what == "Writing the report":
            out.mkdir()
            (out / "other.txt").write_text("mine")

    with pytest.raises(InputError, match="holds no earlier result" if overwrite else "is not empty"):
        run(study / "axial", out, weights=toy_weights(["axial"]), overwrite=overwrite, progress=tell)
    assert (out / "other.txt").read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"study", "out"}


def test_an_output_folder_whose_parent_goes_during_the_run_is_one_sentence(study, tmp_path):
    def tell(what: str, done: int, total: int) -> None:
        if what == "Writing the report":
            (tmp_path / "gone").rmdir()

    with pytest.raises(InputError, match=r"writing failed \(No such file or directory\); nothing was kept"):
        run(study / "axial", tmp_path / "gone" / "out", weights=toy_weights(["axial"]), progress=tell)


def test_a_name_too_long_for_a_folder_is_one_sentence(study, tmp_path):
    with pytest.raises(InputError, match="can't be written"):
        run(study / "axial", tmp_path / ("x" * 300), weights=toy_weights(["axial"]))


def test_a_file_whose_name_is_no_utf_8_is_left_out_and_the_result_written(study, tmp_path):
    (study / os.fsdecode(b"Bef\xfcnd.txt")).write_text("no image")
    run(study, tmp_path / "out", weights=toy_weights(["axial"]), planes=["axial"])
    told = json.loads((tmp_path / "out" / "findings.json").read_text())["left_out"]
    assert any(own["what"].endswith("Bef\\xfcnd.txt") for own in told)


def test_sigterm_leaves_nothing_half_made(study, tmp_path):
    code = (
        "import os, signal\nfrom orthokernels import cli, writing\n"
        "writing.html = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\ncli.main()"
    )
    small = write_weights(tmp_path / "small", planes=("axial",))
    arguments = ["run", str(study / "axial"), "--weights", str(small), "--out", str(tmp_path / "out"), "--quiet"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "")
    assert {p.name for p in tmp_path.iterdir()} == {"study", "small"}


def test_memory_is_let_go_where_a_plane_can_not_be_run(study, tmp_path):
    made = load_model(str(write_weights(tmp_path / "small")), engine="native")

    class Fails:
        def __getattr__(self, name: str):
            if name == "features":
                raise InputError("it can not")
            return getattr(made.planes["axial"], name)

    with pytest.raises(InputError, match="it can not"):
        run(study, model=replace(made, planes={**made.planes, "axial": Fails()}))
    assert made.planes["axial"].engine.memory.bytes == 0


def test_a_terminal_s_commands_in_a_header_are_not_obeyed(study, tmp_path):
    for file in (study / "axial").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.SeriesDescription = "AX \x1b[31mRED\x07"
        dataset.save_as(file)
    small = write_weights(tmp_path / "small", planes=("axial",))
    done = orthokernels("run", study / "axial", "--weights", small, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "\\x1b[31mRED" in done.stdout


def test_failed_run_leaves_nothing_behind(study, tmp_path):
    weights = toy_weights()
    weights.planes["axial"].block = "mid_9"
    with pytest.raises(ValueError, match="mid_9"):
        run(study, tmp_path / "out", weights=weights)
    assert [p.name for p in tmp_path.iterdir()] == ["study"]


def orthokernels(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "orthokernels.cli", *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def real_run(tmp_path_factory, real_data):
    """The published size on the real knee, through the command."""
    out = tmp_path_factory.mktemp("real") / "out"
    done = orthokernels("run", real_data / "knee-mese", "--out", out, "--weights", "random:0", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), out


def test_real_knee_runs_at_full_size_and_says_untrained(real_run):
    result, out = real_run
    assert result["planes"][0]["echo_time_ms"] == pytest.approx(37.872)
    assert len(result["left_out"]) == 7
    assert result["untrained"].startswith("UNTRAINED")
    assert "UNTRAINED" in (out / "report.html").read_text()
    labels = nibabel.load(out / "segmentation_sagittal.nii.gz")
    assert labels.shape == (256, 256, 24)
    assert b"UNTRAINED" in labels.header["descrip"].item()


def test_plain_lines_without_a_terminal_and_silence_when_quiet(study, tmp_path):
    arguments = ("run", study / "axial", "--weights", "random:0", "--preparation", "published")
    plain = orthokernels(*arguments, "--out", tmp_path / "a")
    assert plain.returncode == 0, plain.stderr
    assert plain.stderr.splitlines()[0] == "Reading the study"
    assert "\x1b" not in plain.stderr + plain.stdout
    assert "UNTRAINED" in plain.stdout
    assert tasks.RESEARCH_NOTICE in plain.stdout
    small = write_weights(tmp_path / "small", planes=("axial",))  # untrained too, and no half minute of the full size
    quiet = orthokernels("run", study / "axial", "--weights", small, "--out", tmp_path / "b", "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{data}/nowhere", "--out", "{out}"], "no such file or folder"),
        (["{data}/text", "--out", "{out}"], "not a DICOM file"),
        (["{data}/empty", "--out", "{out}"], "the folder is empty"),
        (["{data}/study", "--out", "{data}/study"], "is not empty"),
        (["{data}/study", "--out", "{data}/text/notes.txt"], "is a file"),
        (["{data}/study", "--out", "/proc/nowhere/out"], "can't be written"),
        (["{data}/study", "--out", "{out}", "--weights", "random:x"], "whole number"),
        (["{data}/study", "--out", "{out}", "--weights", "nowhere"], "no such folder"),
        (["{data}/study", "--out", "{out}", "--planes", "oblique"], "there is no plane 'oblique'"),
        (["{data}/study", "--out", "{out}", "--planes", ",,"], "no plane was named"),
        (["{data}/study", "--out", "{out}", "--preparation", "half"], "there is no preparation 'half'"),
        (["{data}/study", "--out", "{out}", "--joint", "hip"], "there is no joint 'hip'"),
        (["{data}/study", "--out", "{out}", "--device", "warp"], "device 'warp' can't be used"),
        (["{data}/study", "--out", "{out}", "--device", "meta"], "device 'meta' can't be used"),
        (
            ["{data}/study", "--out", "{out}", "--engine", "steam"],
            "no engine 'steam' for weights",
        ),
        (["{data}/study", "--out", "{out}", "--engine", "native", "--device", "cuda"], "native engine runs on the CPU"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_exit_code_2(tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("hello")
    write_series(tmp_path / "study", noise(0))
    out = tmp_path / "out"
    done = orthokernels("run", *(a.format(data=tmp_path, out=out) for a in arguments))
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line not in ("Reading the study", "Loading the model")]
    assert len(told) == 1
    assert told[0].startswith("orthokernels: ")
    assert "❌" not in told[0]  # "random:x" is no emoji
    assert not out.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "study", "text"]
