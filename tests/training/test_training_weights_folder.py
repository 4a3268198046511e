"""The weights folder that training reads and adds to: whose denoisers it holds, and whose heads."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion import MultiscaleSegmentationHead
from orthokernels.models.orthodiffusion.weights import save_encoder, save_module
from orthokernels.models.weights_folder import Settings, load_card
from orthokernels.training.weights_folder import (
    load_denoiser,
    load_segmentation,
    load_segmentation_encoder,
    started_from,
)
from tests.training.toy import NETWORK, write_weights

WIDER = {**NETWORK, "base_channels": 12}


def start(weights, out):
    with started_from(weights, out):
        pass


def digest(folder, plane):
    return load_card(folder / f"{plane}.safetensors", ("unet",)).digest


def test_out_with_another_denoiser_is_refused_and_left_as_it_is(tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("sagittal", "axial"))
    out = write_weights(tmp_path / "out", planes=("axial",), network=WIDER)
    before = digest(out, "axial")
    with pytest.raises(InputError, match=r"out: its axial denoiser is another than that of --weights .*weights\."):
        start(weights, out)
    assert digest(out, "axial") == before
    assert not (out / "sagittal.safetensors").exists()


def test_out_that_began_with_these_weights_is_taken_up(tmp_path):
    weights, out = write_weights(tmp_path / "weights"), tmp_path / "out"
    start(weights, out)
    (out / "weights.json").write_text('{"name": "kept"}')
    (out / "sagittal.safetensors").unlink()
    start(weights, out)
    assert digest(out, "sagittal") == digest(weights, "sagittal")
    assert (out / "weights.json").read_text() == '{"name": "kept"}'


def test_a_copy_that_breaks_off_leaves_no_half_file(tmp_path, monkeypatch):
    weights, out = write_weights(tmp_path / "weights", planes=("axial",)), tmp_path / "out"

    def half(source, place):
        place = Path(place)
        if source.suffix == ".json":  # whole, and to go again as well
            return shutil.copy(source, place)
        (place / source.name if place.is_dir() else place).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("orthokernels.training.weights_folder.shutil.copy2", half)
        with pytest.raises(InputError, match="No space left on device"):
            start(weights, out)
    assert not out.exists()
    start(weights, out)
    assert digest(out, "axial") == digest(weights, "axial")


def test_what_was_copied_goes_again_where_the_data_are_refused(tmp_path):
    weights, out = write_weights(tmp_path / "weights"), tmp_path / "out"

    def read_from(folder):
        with started_from(weights, folder):
            assert digest(folder, "axial") == digest(weights, "axial")
            raise InputError("no data")

    def refused(folder):
        with pytest.raises(InputError, match="no data"):
            read_from(folder)

    refused(out)
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refused(out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    refused(weights)  # nothing is copied onto itself, and nothing taken away
    assert digest(weights, "axial")


def test_a_segmentation_of_another_denoiser_is_not_built_on(tmp_path):
    folder = write_weights(tmp_path / "weights", planes=("axial",))
    denoiser, card = load_denoiser(folder, "axial")
    head = {"widths": (8, 16, 16, 16), "classes": 12, "patch": (1, 2, 2)}

    def save(digest):
        facts = {"plane": "axial", "origin": {"denoiser": digest}}
        path = folder / "axial.segmentation.safetensors"
        save_module(MultiscaleSegmentationHead(**head), path, "multiscale_segmentation_head", arguments=head, **facts)
        return save_encoder(denoiser, folder / "axial.segmentation.encoder.safetensors", **facts).digest

    encoder = save(card.digest)
    _, read = load_segmentation(folder, "axial", denoiser, Settings())
    assert read["segmentation.encoder"] == encoder
    save("0" * 64)
    with pytest.raises(InputError, match=r"axial\.segmentation\.safetensors: was trained on another denoiser"):
        load_segmentation(folder, "axial", denoiser, Settings())
    with pytest.raises(InputError, match=r"encoder\.safetensors: was trained on another denoiser than the one beside"):
        load_segmentation_encoder(folder, "axial", denoiser)
