"""Two processes on gloo against one with the double batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from orthokernels.cli import app
from orthokernels.errors import InputError
from orthokernels.training.checkpoint import Checkpoints
from orthokernels.training.distributed import alone, joined


def start(code, arguments, rank=0, world=1, port=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if world > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= {name: str(value) for name, value in place.items()}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, text=True, stdout=-1, stderr=-1
    )


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def finish(processes):
    results = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), [told[1][-2000:] for told in results]
    return [told[0] for told in results]


def train(launcher, data, out, settings):
    """``orthokernels train pretrain`` as a launcher starts it; its one JSON object."""
    command = [sys.executable, *launcher, "-m", "orthokernels.cli", "train", "pretrain", "--data", str(data)]
    command += ["--out", str(out), "--device", "cpu", "--json", *(part for own in settings for part in ("--set", own))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_two_processes_of_torchrun_train_as_one_with_the_double_batch(tmp_path, toy_settings, toy_data):
    common = [*toy_settings, "loop.steps=6", "loop.accumulate=2", "ema.start=2", "ema.every=2"]
    train([], toy_data, tmp_path / "one", [*common, "loop.batch=4"])
    # The module that the command "torchrun" is.
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    train([*torchrun, "--master-port", str(free_port())], toy_data, tmp_path / "two", [*common, "loop.batch=2"])
    one, both = (
        Checkpoints(tmp_path / name / "training" / "axial" / "checkpoints").newest()[1] for name in ("one", "two")
    )
    assert one["samples"] == both["samples"] == 6 * 8
    # The same samples and noise; only sums run in another order, so gradients differ by float32's rounding, 6e-8 of the
    # terms, a few hundred terms deep. Adam turns a gradient into a step of about the rate (2e-3) whatever its size, so
    # after 6 steps weights differ by 1e-2 times that, near 1e-7, more where a gradient is mostly cancelled: 1e-5 is a
    # two-hundredth of a step, and what a wrong share of the data or the noise gives is a whole step.
    for name, tensor in one["model"].items():
        torch.testing.assert_close(tensor, both["model"][name], rtol=0, atol=1e-5, msg=name)


def test_a_process_that_gets_no_number_stops_all_with_its_files(tmp_path):
    code = """
import sys, torch
from pathlib import Path
from torch import nn
from orthokernels.training.config import LoopConfig, OptimiserConfig
from orthokernels.training.distributed import joined
from orthokernels.training.loop import Run, TrainingStoppedError, train

class Samples:
    def __getitem__(self, number):
        return {"x": torch.full((2,), float("nan") if number == 11 else 1.0), "file": f"file_{number}"}

class Task:
    module = nn.Linear(2, 1)
    def loss(self, module, batch):
        return module(batch["x"]).square().mean(), {}
    def validate(self, module):
        return {}

with joined("cpu") as processes:
    config = LoopConfig(steps=9, batch=2, save_every=2)
    try:
        train(Task(), Run(Path(sys.argv[1]), Samples(), config, OptimiserConfig(), {}, processes=processes))
    except TrainingStoppedError as error:
        print(error)
"""
    port = free_port()
    told = finish([start(code, [tmp_path], rank, 2, port) for rank in (0, 1)])
    # Step 3 takes numbers 8 to 11; the second process has 10 and 11.
    assert all(one.startswith("step 3: the loss is nan. Its batch: file_10, file_11.") for one in told)
    assert Checkpoints(tmp_path / "checkpoints").newest()[0] == 2


@pytest.mark.parametrize("name", ["evaluate", "sweep", "labels", "demo"])
def test_a_command_that_is_not_shared_refuses_a_second_process(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = ["--out", str(tmp_path / "out")]
    given += [] if name == "demo" else ["--data", str(tmp_path), "--weights", str(tmp_path)]
    with pytest.raises(InputError, match=f"orthokernels train {name} runs as one process, and 2 were started"):
        CliRunner().invoke(app, ["train", name, *given], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_alone_nothing_is_exchanged():
    processes = alone()
    module = torch.nn.Linear(1, 1)
    assert processes.wrap(module) is module
    assert processes.greatest([1.0, 2.0]) == processes.total([1.0, 2.0]) == [1.0, 2.0]
    assert processes.gathered("a") == ["a"]
    processes.wait()


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(InputError, match="device 'cuda:99' can't be used"), joined("cuda:99"):
        pass
