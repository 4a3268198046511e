"""An accelerated model in two processes under DDP: the gradients of the plain one with the double batch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from orthokernels.models.orthodiffusion import UNet

# Run by both processes and by this one, so that all have the same weights and volumes.
MODEL = """
import torch
from orthokernels.models.orthodiffusion import UNet

def made():
    torch.manual_seed(0)
    model = UNet(base_channels=8, channel_mults=(1, 2), groups=4, attention_rates=(2,))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.2)
    return model, torch.randn(2, 1, 4, 6, 6), torch.tensor([10, 700])
"""

PROCESS = """
import sys
import torch
from torch import nn
from orthokernels.acceleration import accelerate

store, out, rank, backend = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
model, x, timesteps = made()
report = accelerate(model, backend=backend)
assert report.replaced, "nothing was replaced, so nothing is tested"
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
parallel = nn.parallel.DistributedDataParallel(model)
parallel(x[rank : rank + 1], timesteps[rank : rank + 1]).square().mean().backward()
torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, out)
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_two_processes_have_the_gradients_of_one_with_the_double_batch(backend, tmp_path):
    if backend == "cpu":
        pytest.importorskip("orthokernels._native")
    files = [tmp_path / f"{rank}.pt" for rank in (0, 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MODEL + PROCESS, str(tmp_path / "store"), str(files[rank]), str(rank), backend],
            stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    told = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    names: dict = {}
    exec(MODEL, names)
    model, x, timesteps = names["made"]()
    assert isinstance(model, UNet)
    model.double()(x.double(), timesteps).square().mean().backward()
    found = [torch.load(path) for path in files]
    for name, parameter in model.named_parameters():
        assert torch.equal(found[0][name], found[1][name]), name
        # float32's rounding, 6e-8, through a dozen layers and sums of some hundred terms.
        want, largest = parameter.grad.float(), float(parameter.grad.abs().max())
        torch.testing.assert_close(found[0][name], want, rtol=0, atol=1e-4 * largest + 1e-6, msg=name)
