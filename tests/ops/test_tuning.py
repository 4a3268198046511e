"""What is found faster on a device is kept on disk, read again, and never trusted blindly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orthokernels.errors import InputError
from orthokernels.folders import cache_folder, read_table

tuning = pytest.importorskip("orthokernels.backends.triton.tuning", reason="Triton is not installed")

CANDIDATES = [{"TILE": 1, "num_warps": 4}, {"TILE": 2, "num_warps": 4}, {"TILE": 4, "num_warps": 8}]


@pytest.fixture
def file(tmp_path, monkeypatch):
    read_table.cache_clear()
    monkeypatch.setattr(tuning, "_milliseconds", lambda run, candidate: {1: 3.0, 2: 1.0, 4: 2.0}[candidate["TILE"]])
    return tmp_path / "tuning" / "device.json"


def found(file, kind=("forward", 8), candidates=CANDIDATES):
    return tuning._found("op", kind, candidates, file, lambda candidate: None)


def test_nothing_is_tried_unless_asked_for(file, monkeypatch):
    monkeypatch.delenv("ORTHOKERNELS_TUNE", raising=False)
    assert found(file) == CANDIDATES[0]
    assert not file.exists()


def test_the_fastest_is_kept_and_read_by_who_does_not_tune(file, monkeypatch):
    monkeypatch.setenv("ORTHOKERNELS_TUNE", "1")
    assert found(file) == CANDIDATES[1]
    assert found(file, ("backward", 8)) == CANDIDATES[1]
    assert len(json.loads(file.read_text())) == 2
    monkeypatch.delenv("ORTHOKERNELS_TUNE")
    read_table.cache_clear()
    assert found(file) == CANDIDATES[1]
    assert found(file, ("forward", 9)) == CANDIDATES[0]  # of another size nothing is known


def test_what_is_no_candidate_any_more_is_not_used(file, monkeypatch):
    monkeypatch.setenv("ORTHOKERNELS_TUNE", "1")
    found(file)
    monkeypatch.delenv("ORTHOKERNELS_TUNE")
    assert found(file, candidates=[CANDIDATES[0], CANDIDATES[2]]) == CANDIDATES[0]


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_broken_file_is_as_none(file, content, monkeypatch):
    monkeypatch.delenv("ORTHOKERNELS_TUNE", raising=False)
    file.parent.mkdir()
    file.write_text(content)
    assert found(file) == CANDIDATES[0]


def test_a_candidate_that_does_not_run_is_none(monkeypatch):
    def run(candidate):
        raise RuntimeError("out of resources")

    monkeypatch.setattr(tuning.triton.testing, "do_bench", lambda call, **options: call() or 1.0)
    assert tuning._milliseconds(run, CANDIDATES[0]) == float("inf")


def test_where_every_candidate_fails_nothing_is_kept(file, monkeypatch):
    monkeypatch.setenv("ORTHOKERNELS_TUNE", "1")
    monkeypatch.setattr(tuning, "_milliseconds", lambda run, candidate: float("inf"))
    assert found(file) == CANDIDATES[0]
    assert not file.exists()


def test_on_a_cpu_the_default_runs():
    assert tuning.setting("op", (), CANDIDATES, torch.device("cpu"), print) == CANDIDATES[0]


def test_a_device_s_file_has_its_name(monkeypatch, tmp_path):
    monkeypatch.setenv("ORTHOKERNELS_CACHE", str(tmp_path))
    assert tuning._file("NVIDIA H200 (MIG 1g)") == tmp_path / "tuning" / "NVIDIA-H200-MIG-1g-.json"


@pytest.fixture
def devices(monkeypatch, tmp_path):
    """Two GPUs by name; returns how often they were asked for it."""
    asked = []
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: asked.append(device) or f"GPU {device}")
    monkeypatch.setenv("ORTHOKERNELS_CACHE", str(tmp_path))
    monkeypatch.delenv("ORTHOKERNELS_TUNE", raising=False)
    read_table.cache_clear()
    return asked


def chosen(device="cuda:0", kind=("forward", 8)):
    return tuning.setting("op", kind, CANDIDATES, torch.device(device), lambda candidate: None)


def test_a_choice_is_looked_up_once_for_each_kind_and_device(devices):
    for _ in range(3):
        assert chosen() == chosen("cuda") == chosen("cuda:1") == chosen(kind=("forward", 9)) == CANDIDATES[0]
    assert devices == [0, 1, 0]


def test_tuning_that_is_switched_on_later_is_heard(devices, file, monkeypatch):
    assert chosen() == CANDIDATES[0]
    monkeypatch.setenv("ORTHOKERNELS_TUNE", "1")
    assert chosen() == CANDIDATES[1]


def test_a_user_without_a_home_gets_the_default(devices, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ORTHOKERNELS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert chosen() == CANDIDATES[0]
    with pytest.raises(InputError, match="name one with ORTHOKERNELS_CACHE"):
        cache_folder()
