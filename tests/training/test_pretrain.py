"""Pre-training end to end at toy size: what it writes, and that a killed run ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion import GaussianDiffusion
from orthokernels.models.orthodiffusion.weights import load_weights
from orthokernels.training.checkpoint import Checkpoints
from orthokernels.training.config import PretrainConfig, load_config
from orthokernels.training.loop import TrainingStoppedError
from orthokernels.training.pretrain import pretrain
from orthokernels.training.splits import load_splits
from tests.training.toy import write_studies, write_volume


def command(data, out, settings, *more):
    options = [option for setting in settings for option in ("--set", setting)]
    return [
        sys.executable, "-m", "orthokernels.cli", "train", "pretrain", "--data", str(data), "--out", str(out),
        "--device", "cpu", *options, *more,
    ]  # fmt: skip


def started(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, env=environment, text=True, stdout=pipe, stderr=pipe, start_new_session=True)


def config(settings, *more):
    return load_config(PretrainConfig, None, [*settings, *more])


def wait_for(found, running, seconds=90):
    deadline = time.monotonic() + seconds
    while not found():
        assert running.poll() is None, running.communicate()[1][-2000:]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def test_pretraining_lowers_the_loss_and_writes_usable_weights(tmp_path, toy_data, toy_settings):
    ema = ["ema.start=0", "ema.every=1", "ema.decay=0.5"]
    chosen = config(toy_settings, "loop.steps=60", "loop.validate_every=20", "half=yes", *ema)
    (made,) = pretrain(toy_data, tmp_path / "out", chosen)
    assert made.records == {"train": 6, "validate": 2, "test": 0}
    # An untrained network predicts no noise at all, whose error is 1.
    assert made.figures["validation/loss"] < 0.8
    weights = load_weights(str(tmp_path / "out"), planes=("axial",))
    assert weights.size == 32
    assert weights.planes["axial"].denoiser.patch == (2, 2, 2)
    card = json.loads(made.weights.with_suffix(".json").read_text())
    assert card["plane"] == "axial"
    assert card["digest"] == made.digest
    assert card["origin"]["series"] == "6 train, 2 validate, 0 test"
    assert card["origin"]["steps"] == "60"
    kept = Checkpoints(tmp_path / "out" / "training" / "axial" / "checkpoints").newest()[1]["ema"]
    stored = weights.planes["axial"].denoiser.state_dict()
    assert all(torch.equal(stored[name], tensor.half().float()) for name, tensor in kept.items())


def test_every_option_trains(tmp_path, toy_data, toy_settings):
    chosen = config(
        toy_settings, "loop.steps=3", "loop.precision=bf16", "min_snr_gamma=5", "loss=l1", "loop.clip_norm=1",
        "augment.crop=16", "augment.gain=0.1", "augment.gamma=0.2", "augment.shift=0.1", "network.checkpoint=true",
        "optimiser.warmup=2", "optimiser.schedule=cosine", "optimiser.weight_decay=0.01", "data.preparation=full",
        "loop.deterministic=true", "loop.channels_last=false", "picture_steps=2", "data.workers=1",
    )  # fmt: skip
    (made,) = pretrain(toy_data, tmp_path / "out", chosen)
    assert np.isfinite(made.figures["loss"])
    assert (tmp_path / "out" / "training" / "axial" / "sample.png").stat().st_size > 1000


def test_recomputing_and_memory_format_do_not_change_the_weights_but_by_rounding(tmp_path, toy_data, toy_settings):
    def trained(name, *more):
        pretrain(toy_data, tmp_path / name, config(toy_settings, "loop.steps=3", *more))
        return load_weights(str(tmp_path / name), planes=("axial",)).planes["axial"].denoiser.state_dict()

    plain = trained("plain", "loop.channels_last=false")
    for name, more in (("recomputed", ["network.checkpoint=true"]), ("last", ["loop.channels_last=true"])):
        other = trained(name, "loop.channels_last=false", *more)
        for key, tensor in plain.items():  # 3 steps of 1e-3, and rounding moves each by far less than one
            torch.testing.assert_close(tensor, other[key], rtol=0, atol=1e-5, msg=f"{name} {key}")


def test_a_run_killed_twice_ends_with_the_weights_of_one_that_was_not(tmp_path, toy_data, toy_settings):
    settings = [*toy_settings, "loop.steps=24", "loop.save_every=4", "ema.start=6", "ema.every=2", "data.workers=1"]
    (whole,) = pretrain(toy_data, tmp_path / "whole", config(settings))
    checkpoints = Checkpoints(tmp_path / "cut" / "training" / "axial" / "checkpoints")
    for steps in (4, 13):
        running = started(command(toy_data, tmp_path / "cut", settings))
        try:
            wait_for(lambda steps=steps: checkpoints.steps() and checkpoints.steps()[-1] >= steps, running)
        finally:
            os.kill(running.pid, signal.SIGKILL)
            running.communicate()
    assert checkpoints.steps()[-1] < 24
    assert not (tmp_path / "cut" / "axial.safetensors").exists()
    (resumed,) = pretrain(toy_data, tmp_path / "cut", config(settings))
    assert resumed.digest == whole.digest


def test_a_run_asked_to_stop_says_where_it_stands_and_goes_on(tmp_path, toy_data, toy_settings):
    settings = [*toy_settings, "loop.steps=400", "loop.save_every=300", "data.workers=1"]
    running = started(command(toy_data, tmp_path / "out", settings, "--set", "loop.log_every=1"))
    checkpoints = Checkpoints(tmp_path / "out" / "training" / "axial" / "checkpoints")
    curves = tmp_path / "out" / "training" / "axial" / "tensorboard"
    try:
        wait_for(lambda: curves.exists() and any(curves.iterdir()), running)
        time.sleep(0.5)
        os.killpg(running.pid, signal.SIGTERM)  # as schedulers do: the loader's workers get it too
        told = running.communicate(timeout=60)[1]
    finally:
        running.kill()
    assert running.returncode == 128 + signal.SIGTERM, told
    (step,) = checkpoints.steps()
    assert 0 < step < 300
    assert f"stopped after step {step}" in told


def test_the_command_prints_one_json_object(tmp_path, toy_data, toy_settings):
    running = started(command(toy_data, tmp_path / "out", toy_settings, "--set", "loop.steps=2", "--json"))
    out, told = running.communicate(timeout=90)
    assert running.returncode == 0, told
    facts = json.loads(out)["axial"]
    assert facts["steps"] == 2
    assert facts["weights"] == str(tmp_path / "out" / "axial.safetensors")
    assert told == ""


def test_the_command_refuses_bad_data_in_one_message_before_it_trains(tmp_path, toy_settings):
    write_studies(tmp_path / "data", 2)
    (tmp_path / "data" / "study_000" / "axial.nii.gz").write_bytes(b"")
    labels = np.zeros((32, 32, 18), np.uint8)
    write_volume(tmp_path / "data" / "study_001" / "axial_labels.nii.gz", plane="axial", voxels=labels)
    running = started(command(tmp_path / "data", tmp_path / "out", toy_settings))
    told = running.communicate(timeout=60)[1]
    assert running.returncode == 2
    assert "the data set has 2 problems" in told
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_names_the_files(tmp_path, toy_data, toy_settings):
    with pytest.raises(TrainingStoppedError, match=r"step \d+: the .* is (nan|inf)") as stopped:
        pretrain(toy_data, tmp_path / "out", config(toy_settings, "loop.steps=30", "optimiser.rate=1e30"))
    assert str(toy_data) in str(stopped.value)
    step, _ = Checkpoints(tmp_path / "out" / "training" / "axial" / "checkpoints").newest()
    assert step > 0
    assert f"step {step + 1}:" in str(stopped.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("network.groups=8", r"network\.groups was 4, is 8"),
        ("data.validate_share=0.5", r"training series was 6 .*, is 4"),
        ("data.preparation=full", r"data\.preparation was published, is full"),
        ("augment.gain=0.1", r"augment\.gain was 0\.0, is 0\.1"),
        ("loss=l1", "loss was l2, is l1"),
        ("min_snr_gamma=5", r"min_snr_gamma was None, is 5\.0"),
        ("ema.decay=0.9", r"ema\.decay was 0\.995, is 0\.9"),
        ("optimiser.weight_decay=0.1", r"optimiser\.weight_decay was 0\.0, is 0\.1"),
    ],
)
def test_resuming_with_another_network_or_other_data_is_refused(tmp_path, toy_data, toy_settings, change, message):
    pretrain(toy_data, tmp_path, config(toy_settings, "loop.steps=1"))
    with pytest.raises(InputError, match=message):
        pretrain(toy_data, tmp_path, config(toy_settings, "loop.steps=2", change))
    pretrain(toy_data, tmp_path, config(toy_settings, "loop.steps=1", change), resume=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("planes=[frontal]", "there is no plane 'frontal'"),
        ("network.groups=3", "network: groups=3 does not divide every width"),
        ("network.patch=[3,2,2]", r"network: a patch of \(3, 2, 2\) does not divide a volume of \(16, 32, 32\)"),
        ("augment.crop=17", r"network: a patch of \(2, 2, 2\) does not divide a volume of \(16, 17, 17\)"),
        ("validate_timesteps=[1000]", r"validate_timesteps\.0 = 1000: input should be less than 1000"),
    ],
)
def test_settings_that_do_not_fit_are_told_before_training(tmp_path, toy_data, toy_settings, change, message):
    with pytest.raises(InputError, match=message):
        pretrain(toy_data, tmp_path, config(toy_settings, "loop.steps=1", change))
    assert not list(tmp_path.glob("training/*/checkpoints/*"))


def test_an_out_that_can_not_be_made_is_one_sentence(tmp_path, toy_data, toy_settings):
    (tmp_path / "file").write_text("no folder\n")
    with pytest.raises(InputError, match=r"^--out .*file/x: can't be written \(Not a directory\)\. Choose another"):
        pretrain(toy_data, tmp_path / "file" / "x", config(toy_settings, "loop.steps=1"))


def test_a_given_split_is_used_and_the_rest_stays_out(tmp_path, toy_settings):
    write_studies(tmp_path, 6)
    text = (tmp_path / "studies.csv").read_text().splitlines()
    splits = ["split", "train", "train", "val", "val", "", ""]
    (tmp_path / "studies.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(text, splits, strict=True)))
    sides = load_splits(tmp_path, config(toy_settings).data, ("axial",))
    assert {r.patient for r in sides["train"]} == {"patient_000"}
    assert {r.patient for r in sides["validate"]} == {"patient_001"}
    assert not sides["test"]


def test_a_pair_of_published_tables_is_train_and_validation(tmp_path, toy_settings):
    for name in ("a", "b"):
        write_volume(tmp_path / f"{name}.nii.gz", plane="axial")
        (tmp_path / f"{name}.csv").write_text(f"filename,ID\n{name}.nii.gz,0\n")
    chosen = config(toy_settings, f"data.validation={tmp_path / 'b.csv'}", "loop.steps=1")
    (made,) = pretrain(tmp_path / "a.csv", tmp_path / "out", chosen)
    assert (made.records["train"], made.records["validate"]) == (1, 1)


def test_a_table_that_repeats_a_validation_patient_is_refused(tmp_path, toy_settings):
    write_volume(tmp_path / "a.nii.gz", plane="axial")
    (tmp_path / "a.csv").write_text("filename,ID\na.nii.gz,0\n")
    chosen = config(toy_settings, f"data.validation={tmp_path / 'a.csv'}")
    with pytest.raises(InputError, match=r"patient a\.nii\.gz: is in train and in validate"):
        load_splits(tmp_path / "a.csv", chosen.data, ("axial",))


def test_min_snr_weights_are_the_papers():
    diffusion = GaussianDiffusion()
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 4, 1, 2, 3, 3).unbind()
    timesteps = torch.tensor([0, 300, 700, 999])
    alpha_bar = diffusion.alpha_bar[timesteps]
    snr = alpha_bar / (1 - alpha_bar)
    weight = torch.minimum(snr, torch.tensor(5.0)) / snr  # for a prediction of the noise
    error = noise.square().flatten(1).mean(dim=1).double()  # of a denoiser that predicts nothing
    found = diffusion.loss(lambda x, t: torch.zeros_like(x), x0, timesteps, noise, min_snr_gamma=5.0)
    # float32 sums of 18 terms: a few times 6e-8.
    torch.testing.assert_close(found.double(), (weight * error).mean(), rtol=1e-6, atol=0)


def test_help_is_instant_and_imports_no_torch():
    code = (
        "import sys\nsys.argv = ['orthokernels', 'train', 'pretrain', '--help']\n"
        "from orthokernels.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'numpy', 'nibabel', 'yaml', 'tensorboard'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout
