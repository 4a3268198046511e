"""Checkpoints in, safetensors out; and everything a checkpoint or a weights folder can have wrong with it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion import FUSIONS, POOLINGS, SegmentationHead, UNet, cosine_schedule
from orthokernels.models.orthodiffusion.published import convert_checkpoint
from orthokernels.models.orthodiffusion.untrained import random_weights, save_random
from orthokernels.models.orthodiffusion.weights import digest_of, load_module, load_weights, save_encoder, save_module
from orthokernels.models.weights_folder import FeaturePoint, Settings


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return UNet().state_dict()


def checkpoint(path, state, prefix="denoise_fn.", entry="ema", **more):
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({entry: {**wrapped, "betas": cosine_schedule().float()}, "step": 21499, **more}, path)
    return path


@pytest.mark.parametrize("prefix", ["denoise_fn.", "denoise_fn.module."])
def test_published_checkpoint_converts_and_loads(tmp_path, state, prefix):
    source = checkpoint(tmp_path / "sagittal_model.pt", state, prefix, model={"denoise_fn.other": torch.zeros(1)})
    written, card = convert_checkpoint(source, tmp_path / "weights")
    assert written == tmp_path / "weights" / "sagittal.safetensors"
    found = load_file(written)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    stored = json.loads(written.with_suffix(".json").read_text())
    assert stored["digest"] == card.digest == digest_of(state)
    assert stored["plane"] == "sagittal"
    assert stored["origin"]["entry"] == "ema"
    assert stored["origin"]["step"] == "21499"
    assert stored["shapes"]["out.2.weight"] == [1, 64, 3, 3, 3]
    weights = load_weights(str(tmp_path / "weights"))
    assert list(weights.planes) == ["sagittal"]
    assert weights.trained
    assert weights.planes["sagittal"].segmentation is None


def test_checkpoint_without_ema_uses_the_model(tmp_path, state):
    source = checkpoint(tmp_path / "x.pt", state, entry="model")
    _, card = convert_checkpoint(source, tmp_path / "x.safetensors")
    assert card.origin["entry"] == "model"


def refused(tmp_path, content, message, **kwargs):
    path = tmp_path / "axial_model.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match=message) as caught:
        convert_checkpoint(path, tmp_path / "out", **kwargs)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_table_in_place_of_a_checkpoint_is_one_sentence(tmp_path):
    (tmp_path / "studies.csv").write_text("study,patient,joint\n")  # its first letter pops an empty stack
    with pytest.raises(InputError, match=r"studies\.csv: not a readable PyTorch checkpoint"):
        convert_checkpoint(tmp_path / "studies.csv", tmp_path / "out", plane="axial")


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path, state):
    def wrap(state):
        return {"ema": {f"denoise_fn.{name}": tensor for name, tensor in state.items()}}

    missing = {k: v for k, v in state.items() if k != "out.0.weight"}
    refused(tmp_path, wrap(missing), "out.0.weight is missing")
    refused(tmp_path, wrap({**state, "extra": torch.zeros(1)}), "extra is unknown")
    refused(tmp_path, wrap({**state, "out.0.weight": torch.zeros(7)}), r"out.0.weight has shape \[7\], not \[64\]")
    refused(tmp_path, wrap({**state, "out.0.bias": torch.full((64,), torch.nan)}), "NaN or infinite")
    refused(tmp_path, wrap({}), "has no 'denoise_fn.' weights")
    refused(tmp_path, {"state": {}}, "neither an 'ema' nor a 'model'")
    refused(tmp_path, [1, 2], "neither an 'ema' nor a 'model'")


def test_another_schedule_is_refused(tmp_path, state):
    content = {f"denoise_fn.{name}": tensor for name, tensor in state.items()}
    refused(tmp_path, {"ema": {**content, "betas": torch.linspace(1e-4, 0.02, 1000)}}, "another noise schedule")


class _Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_pickle_payload_is_refused_and_not_run(tmp_path):
    target = tmp_path / "pwned"
    refused(tmp_path, {"ema": _Payload(target)}, "loading it could run its code")
    (tmp_path / "axial_model.pt").write_bytes(pickle.dumps({"ema": _Payload(target)}))
    with pytest.raises(InputError):
        convert_checkpoint(tmp_path / "axial_model.pt", tmp_path / "out")
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a zip", b"nonsense" * 50])
def test_damaged_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "axial_model.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"axial_model\.pt"):
        convert_checkpoint(path, tmp_path / "out")


def test_plane_must_be_known(tmp_path, state):
    source = checkpoint(tmp_path / "model.pt", state)
    with pytest.raises(InputError, match="which plane is it"):
        convert_checkpoint(source, tmp_path / "out")
    assert convert_checkpoint(source, tmp_path / "out", plane="axial")[0].name == "axial.safetensors"


def small_set(folder):
    """A folder with every kind of module for one plane and a fusion, at toy size."""
    torch.manual_seed(1)
    unet = {"base_channels": 32, "channel_mults": (1, 1)}
    save_module(UNet(**unet), folder / "axial.safetensors", "unet", arguments=unet, plane="axial")
    head = {"in_channels": 32, "classes": 12}
    save_module(
        SegmentationHead(**head), folder / "axial.segmentation.safetensors", "segmentation_head", arguments=head
    )
    save_module(POOLINGS["none"](32), folder / "axial.knee.pooling.safetensors", "none", arguments={"channels": 32})
    linear = {"in_features": 32, "out_features": 8}
    save_module(nn.Linear(**linear), folder / "axial.knee.head.safetensors", "linear", arguments=linear)
    save_module(FUSIONS["gating"](), folder / "knee.fusion.safetensors", "gating", arguments={})
    settings = Settings(name="toy", timestep={"sagittal": 100, "coronal": 100, "axial": 50})
    (folder / "weights.json").write_text(settings.model_dump_json())


def test_folder_with_every_module_loads(tmp_path):
    small_set(tmp_path)
    weights = load_weights(str(tmp_path))
    plane = weights.planes["axial"]
    assert (weights.name, weights.fusion_name, plane.timestep, plane.block) == ("toy", "gating", 50, "mid_2")
    assert plane.segmentation is not None
    assert plane.pooling is not None
    assert plane.head is not None
    assert not any(p.requires_grad for m in weights.modules().values() for p in m.parameters())
    assert load_weights(str(tmp_path)).digest() == weights.digest()


def test_changed_weights_and_cards_are_refused(tmp_path):
    small_set(tmp_path)
    path, card = tmp_path / "axial.safetensors", tmp_path / "axial.json"
    content, facts = path.read_bytes(), json.loads(card.read_text())
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="does not match the digest"):
        load_weights(str(tmp_path))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_weights(str(tmp_path))
    path.write_bytes(content)
    for change, message in (
        ({"arguments": {"base_channels": 64}}, "does not fit its card"),
        ({"arguments": {"wrong": 1}}, "does not fit its card"),
        ({"module": "os.system"}, "describes a module 'os.system'"),
        ({"surprise": 1}, "no valid card"),
    ):
        card.write_text(json.dumps({**facts, **change}))
        with pytest.raises(InputError, match=message):
            load_weights(str(tmp_path))
    card.unlink()
    with pytest.raises(InputError, match="no valid card"):
        load_module(path, "unet")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"thresholds": {"knee": {"ACL": float("nan")}}}, r"thresholds\.knee\.ACL = nan: input should be"),
        ({"thresholds": {"knee": {"ACL": 1.5}}}, r"thresholds\.knee\.ACL = 1\.5: input should be less than"),
        ({"format": 2}, "format = 2: input should be 1"),
        ({"block": {"axial": "mid_9"}}, r"axial\.safetensors: does not fit its card \(no feature called 'mid_9'\)"),
        ({"size": 17}, r"a patch of \(1, 2, 2\) does not divide a volume of \(16, 17, 17\)"),
    ],
)
def test_settings_that_nothing_can_be_run_with_are_refused(tmp_path, settings, said):
    network = {"base_channels": 8, "channel_mults": (1, 1), "groups": 4, "patch": (1, 2, 2)}
    save_module(UNet(**network), tmp_path / "axial.safetensors", "unet", arguments=network)
    (tmp_path / "weights.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=said):
        load_weights(str(tmp_path))


def test_a_card_says_what_is_wrong_with_it(tmp_path):
    network = {"base_channels": 8, "channel_mults": (1, 1), "groups": 4}
    save_module(UNet(**network), tmp_path / "axial.safetensors", "unet", arguments=network)
    card = tmp_path / "axial.json"
    facts = json.loads(card.read_text())
    for change, said in (({"format": 2}, "format = 2: input should be 1"), ({"surprise": 1}, "surprise = 1: extra")):
        card.write_text(json.dumps({**facts, **change}))
        with pytest.raises(InputError, match=rf"no valid card for axial\.safetensors \({said}"):
            load_weights(str(tmp_path))


def test_unknown_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ORTHOKERNELS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="weights fetch"):
        load_weights("published")
    with pytest.raises(InputError, match="no such folder"):
        load_weights(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="holds no denoiser"):
        load_weights(str(tmp_path))
    with pytest.raises(InputError, match="whole number"):
        load_weights("random:x")
    with pytest.raises(InputError, match=r"the seed must be less than 2\*\*63"):
        load_weights(f"random:{2**63}")


def test_random_weights_repeat_and_say_so():
    first = random_weights(3, planes=("axial",))
    assert not first.trained
    before = torch.get_rng_state()
    assert first.digest() == random_weights(3, planes=("axial",)).digest()
    assert torch.equal(before, torch.get_rng_state())
    assert first.digest() != random_weights(4, planes=("axial",)).digest()


def test_fetch_without_a_connection_says_what_to_do(tmp_path):
    """The real client against a port where nobody listens."""
    done = subprocess.run(
        [sys.executable, "-m", "orthokernels.cli", "weights", "fetch", "--out", str(tmp_path / "w")],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 2
    assert "can't be reached" in done.stderr
    assert "weights convert" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


SMALL = {
    "base_channels": 8,
    "channel_mults": (1, 2),
    "attention_rates": (2,),
    "groups": 4,
    "patch": (1, 2, 2),
}


def small_folder(folder, settings=None):
    """A weights folder with a small axial denoiser and the encoder of a task, fine-tuned by hand."""
    torch.manual_seed(0)
    denoiser = UNet(**SMALL)
    save_module(denoiser, folder / "axial.safetensors", "unet", arguments=SMALL, plane="axial")
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            parameter += 1.0 if name.startswith(("input_blocks.", "middle_block.")) else 0.0
    save_encoder(denoiser, folder / "axial.segmentation.encoder.safetensors", arguments=SMALL, plane="axial")
    if settings is not None:
        (folder / "weights.json").write_text(settings.model_dump_json())
    return denoiser


def test_fine_tuned_encoder_stands_beside_the_denoiser_it_came_from(tmp_path):
    tuned = small_folder(tmp_path)
    plane = load_weights(str(tmp_path)).planes["axial"]
    assert plane.encoder is None
    found, kept = plane.segmentation_encoder.state_dict(), plane.denoiser.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in tuned.state_dict().items())
    moved = {name for name in kept if not torch.equal(found[name], kept[name])}
    assert {name.split(".")[0] for name in moved} == {"input_blocks", "middle_block"}


def test_encoder_of_another_network_is_refused(tmp_path):
    small_folder(tmp_path)
    other = {**SMALL, "base_channels": 16}
    save_module(UNet(**other), tmp_path / "axial.safetensors", "unet", arguments=other, plane="axial")
    with pytest.raises(InputError, match=r"axial\.segmentation\.encoder\.safetensors: is not the encoder"):
        load_weights(str(tmp_path))


def test_a_module_that_was_trained_on_another_one_is_refused(tmp_path):
    small_folder(tmp_path)
    denoiser, encoder = (
        json.loads((tmp_path / f"axial{name}.json").read_text())["digest"] for name in ("", ".segmentation.encoder")
    )
    arguments = {"arguments": {"channels": 32}, "plane": "axial", "joint": "knee"}
    pooling = tmp_path / "axial.knee.pooling.safetensors"

    def save(**origin):
        save_module(POOLINGS["none"](32), pooling, "none", origin=origin, **arguments)

    whole = {"denoiser": denoiser, "segmentation": "none", "segmentation.encoder": encoder}
    for read in ({}, {"denoiser": denoiser}, whole):
        save(**read)
        assert load_weights(str(tmp_path)).planes["axial"].pooling is not None
    for part, named in (("denoiser", "denoiser"), ("segmentation.encoder", "segmentation encoder")):
        save(**{**whole, part: "0" * 64})
        with pytest.raises(
            InputError, match=rf"axial\.knee\.pooling\.safetensors: was trained on another {named} than"
        ):
            load_weights(str(tmp_path))
    save(**whole)
    (tmp_path / "axial.segmentation.encoder.safetensors").unlink()
    with pytest.raises(InputError, match="was trained on another segmentation encoder than the one beside it"):
        load_weights(str(tmp_path))


def test_settings_say_size_notice_and_the_point_of_each_task(tmp_path):
    points = {"segmentation": {"axial": FeaturePoint(timestep=30, block="mid_0")}}
    small_folder(tmp_path, Settings(size=64, preparation="published", notice="Made for a test.", points=points))
    weights = load_weights(str(tmp_path))
    plane = weights.planes["axial"]
    assert (weights.size, weights.preparation, weights.notice) == (64, "published", "Made for a test.")
    assert (plane.timestep, plane.block) == (100, "mid_2")
    assert (plane.segmentation_point.timestep, plane.segmentation_point.block) == (30, "mid_0")


def test_segmentation_of_another_joint_is_not_loaded(tmp_path):
    small_folder(tmp_path)
    head = SegmentationHead(16, classes=3)
    facts = {"arguments": {"in_channels": 16, "classes": 3}, "plane": "axial", "joint": "knee"}
    save_module(head, tmp_path / "axial.segmentation.safetensors", "segmentation_head", **facts)
    assert load_weights(str(tmp_path), "knee").planes["axial"].segmentation is not None
    assert load_weights(str(tmp_path), "ankle").planes["axial"].segmentation is None


def test_half_precision_on_disk_is_float32_once_loaded(tmp_path):
    torch.manual_seed(0)
    head = nn.Linear(16, 4)
    save_module(head, tmp_path / "h.safetensors", "linear", half=True, arguments={"in_features": 16, "out_features": 4})
    assert load_file(tmp_path / "h.safetensors")["weight"].dtype == torch.float16
    found = load_module(tmp_path / "h.safetensors", "linear")[0]
    assert found.weight.dtype == torch.float32
    # float16 has 11 significant bits, so rounding moves a value by at most 2^-11 of itself
    assert torch.allclose(found.weight, head.weight, rtol=2**-11, atol=2**-24)


def test_random_weights_that_were_saved_are_the_same(tmp_path):
    save_random(3, tmp_path)
    saved, drawn = load_weights(str(tmp_path)), random_weights(3)
    assert saved.digest() == drawn.digest()
    assert (saved.name, saved.trained, saved.fusion_name) == ("random:3", False, "gating")


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_saved_weights_are_as_readable_as_any_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        save_module(nn.Linear(2, 2), tmp_path / "axial.knee.head.safetensors", "linear")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}
