"""Checkpoints: whole or not there, read without running code, and only by the run they belong to."""

from __future__ import annotations

import errno
import os
import pickle
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from orthokernels.errors import InputError
from orthokernels.training.checkpoint import (
    Checkpoints,
    check_same,
    random_states,
    read,
    restore_random_states,
)


def state(value=0.0):
    return {"model": {"w": torch.full((1000,), value)}, "step": 3, "ema": None, "names": ["a", ("b", 1.5)]}


def test_what_is_saved_is_read(tmp_path):
    kept = Checkpoints(tmp_path)
    assert kept.newest() is None
    kept.save(3, state(1.0))
    step, found = kept.newest()
    assert step == 3
    assert torch.equal(found["model"]["w"], torch.ones(1000))
    assert found["names"] == ["a", ("b", 1.5)]
    # It is an ordinary file of torch.save, with the digest behind it.
    assert torch.load(kept.path(3), weights_only=True)["step"] == 3


def test_only_the_newest_and_the_best_are_kept(tmp_path):
    kept = Checkpoints(tmp_path, keep=2)
    kept.save(1, state(), best=True)
    for step in (1, 2, 10):
        kept.save(step, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "step_00000002.pt", "step_00000010.pt"]
    assert kept.newest()[0] == 10
    assert kept.best()["step"] == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, damage):
    kept = Checkpoints(tmp_path)
    kept.save(1, state(1.0))
    kept.save(2, state(2.0))
    content = bytearray(kept.path(2).read_bytes())
    content[len(content) // 2] ^= 0x10
    changed = {"cut": content[: len(content) // 2], "flipped": content, "empty": b""}[damage]
    kept.path(2).write_bytes(changed)
    with pytest.warns(UserWarning, match=r"step_00000002\.pt: is cut short or damaged"):
        step, found = kept.newest()
    assert step == 1
    assert torch.equal(found["model"]["w"], torch.ones(1000))


def test_a_damaged_checkpoint_pushes_no_new_one_out(tmp_path):
    kept = Checkpoints(tmp_path, keep=1)
    kept.save(8, state())
    kept.path(8).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="There is none before it: the run begins anew"):
        assert kept.newest() is None
    for step in (1, 2):
        assert kept.save(step, state(step)).is_file()
    assert kept.steps() == [2, 8]


class Payload:
    def __reduce__(self):
        return print, ("code ran",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    import hashlib
    import io

    buffer = io.BytesIO()
    torch.save({"step": Payload()}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(Payload(), protocol=2)):
        (tmp_path / "step_00000001.pt").write_bytes(content + hashlib.sha256(content).digest())
        with pytest.raises(InputError, match="is no checkpoint of ours"):
            read(tmp_path / "step_00000001.pt")
    assert "code ran" not in capsys.readouterr().out


def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path):
    code = (
        "import sys, itertools, torch\n"
        "from orthokernels.training.checkpoint import Checkpoints\n"
        "kept = Checkpoints(sys.argv[1])\n"
        "for step in itertools.count(1):\n"
        "    kept.save(step, {'w': torch.full((500_000,), float(step))})\n"
    )
    saving = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "step_00000003.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.0173)  # somewhere in a save
    finally:
        os.kill(saving.pid, signal.SIGKILL)
        saving.wait()
    step, found = Checkpoints(tmp_path).newest()
    assert step >= 2
    assert torch.equal(found["w"], torch.full((500_000,), float(step)))
    Checkpoints(tmp_path).save(step + 1, {})
    assert not list(tmp_path.glob("*.writing"))


def test_random_states_come_back(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(1, random_states())
    drawn = [random.random(), np.random.random(), torch.rand(3)]
    restore_random_states(kept.newest()[1])
    again = [random.random(), np.random.random(), torch.rand(3)]
    assert drawn[:2] == again[:2]
    assert torch.equal(drawn[2], again[2])


def test_another_network_or_other_data_are_refused_in_a_sentence(tmp_path):
    stored = {"network.groups": 8, "data.size": 128, "plane": "axial"}
    check_same(stored, dict(stored), tmp_path)
    with pytest.raises(InputError, match=r"\(data\.size was 128, is 64; network\.groups was 8, is 4\).*--fresh"):
        check_same(stored, {**stored, "network.groups": 4, "data.size": 64}, tmp_path)


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    kept.save(1, state())

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("orthokernels.training.checkpoint.os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        kept.save(2, state())
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.pt"]


def test_a_folder_that_can_not_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        Checkpoints(tmp_path / "file").save(1, {})
