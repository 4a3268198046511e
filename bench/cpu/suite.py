"""``orthokernels bench cpu``: the native engine and its peers, interleaved, medians and ratios round by round.

- ``features``: one plane's feature pass at the published size, 1 x 1 x 16 x 256 x 256 to "mid_2", batch 1.
- ``layer``: the convolution that it spends its time in, 64 to 64 channels at that size, bias included.
- ``denoiser``: the whole network once.

``ratios`` are "their time / ours", the median over the rounds. The layers' table holds every layer's time against the
larger of its operations over the measured matrix rate and its bytes over the measured copy rate.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from orthokernels.bench.cpu.peers import Call, made_ready
from orthokernels.bench.record import circumstances, heading, percentiles
from torch import Tensor, nn

from orthokernels import _native
from orthokernels.backends.cpu.algorithm import choose
from orthokernels.models.native import UNetPlan
from orthokernels.models.orthodiffusion import UNet

Suite = Literal["features", "layer", "denoiser"]
SIDES = (16, 256, 256)
TINY = (8, 32, 32)
TIMESTEP = 100
WIDTH = 64
HALF_GIBIBYTE = 2**29
LIMITS = ("ORTHOKERNELS_ISA", "ONEDNN_MAX_CPU_ISA")  # of our instruction set, and of PyTorch's and OpenVINO's


class FeaturePass(nn.Module):
    """A network up to a feature, at one timestep: what an exporter is given."""

    def __init__(self, unet: UNet, name: str) -> None:
        super().__init__()
        self.unet, self.name = unet, name

    def forward(self, x: Tensor) -> Tensor:
        timesteps = torch.full((1,), TIMESTEP, dtype=torch.int64)
        return self.unet.features(x, timesteps, (self.name,))[self.name]


def run_suite(suite: Suite, *, threads: int, rounds: int, tiny: bool = False) -> dict[str, Any]:
    """Measure one suite.

    Args:
        threads: of ours and of every peer.
        rounds: counted, after one that warms up.
        tiny: a small volume and network, to try the machinery; says nothing about speed.

    Returns:
        ``seconds`` (median, 20th and 80th percentile) and ``ratios`` by name, the error of each against float64,
        ``layers`` of ours, ``left_out`` with reasons, and the circumstances.
    """
    torch.manual_seed(0)
    sides = TINY if tiny else SIDES
    ours, module, x, layers = _subject(suite, sides, threads, tiny)
    left_out: dict[str, str] = {}
    calls: dict[str, Call] = {"orthokernels": ours, **dict(made_ready(module, x, threads, left_out))}
    expected = _float64(module, x)
    made: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            made[name] = call()
            if number > 0:
                seconds[name].append(time.perf_counter() - started)
    limits = "".join(f"{name}={os.environ[name]} " for name in LIMITS if name in os.environ)
    command = f"{limits}orthokernels bench cpu --suite {suite} --threads {threads} --rounds {rounds}" + " --tiny" * tiny
    return {
        **circumstances(command),
        "suite": suite,
        "sides": list(sides),
        "threads": threads,
        "instruction_set": _native.instruction_set(),
        "seconds": {name: _spread(each) for name, each in seconds.items()},
        "ratios": {name: _ratio(each, seconds["orthokernels"]) for name, each in seconds.items() if name in made},
        "errors": {name: _relative(found, expected) for name, found in made.items()},
        "left_out": left_out,
        "rates": (rates := measured_rates(threads)),
        "layers": [_against_floor(layer, rates) for layer in layers()],
        "peak_resident_mb": None if suite == "layer" else peak_resident(suite, sides, threads, tiny),
    }


def _subject(
    suite: Suite, sides: tuple[int, int, int], threads: int, tiny: bool
) -> tuple[Call, nn.Module, np.ndarray, Callable[[], list[dict[str, Any]]]]:
    """What is measured: ours, the PyTorch module, the input, and our layers' facts after a run."""
    rng = np.random.default_rng(0)
    if suite == "layer":
        conv = nn.Conv3d(WIDTH, WIDTH, 3, padding=1).eval()
        x = rng.standard_normal((1, WIDTH, *sides), dtype=np.float32)
        return _native_layer(conv, x, threads), conv, x, list
    unet = network(tiny)
    name = "mid_2" if suite == "features" else "final"
    plan = native_plan(unet, name, sides)
    x = rng.standard_normal((1, 1, *sides), dtype=np.float32)
    return lambda: plan.run(x[0], threads=threads)[name][None], FeaturePass(unet, name), x, plan.describe


def _native_layer(conv: nn.Conv3d, x: np.ndarray, threads: int) -> Call:
    """One convolution, its volumes channels last as the engine keeps them."""
    assert conv.bias is not None
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    sides = x.shape[2:]
    own = _native.Conv3d(weight, 1, sides, choose(WIDTH, WIDTH, 3, 1, sides))
    volume, made = np.ascontiguousarray(np.moveaxis(x[0], 0, -1)), np.empty((*sides, WIDTH), np.float32)

    def call() -> np.ndarray:
        own.run(volume, made, bias=bias, threads=threads)
        return np.moveaxis(made, -1, 0)[None]

    return call


def network(tiny: bool) -> UNet:
    """The published network with weights that keep the signal's size, zero-initialised layers included."""
    unet = UNet(base_channels=32, channel_mults=(1, 2), groups=8) if tiny else UNet()
    for parameter in unet.parameters():
        if parameter.ndim < 2:
            nn.init.normal_(parameter, std=0.05)
        else:
            nn.init.kaiming_normal_(parameter)
    return unet.eval()


def native_plan(unet: UNet, name: str, sides: tuple[int, int, int]) -> UNetPlan:
    state = {key: value.detach().numpy() for key, value in unet.state_dict().items()}
    return UNetPlan(state, sides=sides, names=(name,), timestep=TIMESTEP, groups=unet.groups)


def _float64(module: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        exact = module.double()(torch.from_numpy(x).double()).numpy()
    module.float()
    return np.asarray(exact)


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _spread(values: list[float]) -> dict[str, float]:
    low, high = percentiles(values)
    return {"median": statistics.median(values), "20%": low, "80%": high}


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


def measured_rates(threads: int) -> dict[str, float]:
    """Operations a second of PyTorch's float32 matrix product, and bytes a second of a copy, the best of several."""
    torch.set_num_threads(threads)
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    source, target = (torch.zeros(HALF_GIBIBYTE // 4) for _ in range(2))
    return {
        "operations": 2 * 2048**3 / _best(lambda: a @ b),
        "bytes": 2 * HALF_GIBIBYTE / _best(lambda: target.copy_(source)),
    }


def _best(run: Callable[[], object]) -> float:
    times = []
    for _ in range(6):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _against_floor(layer: dict[str, Any], rates: dict[str, float]) -> dict[str, Any]:
    """A layer's facts with its floor, seconds, and its time over it. The operations are the definition's."""
    floor = max(layer["operations"] / rates["operations"], layer["bytes"] / rates["bytes"])
    return {**layer, "floor": floor, "over_floor": layer["seconds"] / floor}


_RESIDENT = """
import sys
import numpy as np
sys.modules["torch"] = None
from orthokernels.models.native import UNetPlan
state = np.load(sys.argv[1])
sides, name, threads, groups = eval(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
plan = UNetPlan(state, sides=sides, names=(name,), timestep=100, groups=groups)
plan.run(np.zeros((1, *sides), np.float32), threads=threads)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_resident(suite: Suite, sides: tuple[int, int, int], threads: int, tiny: bool) -> float:
    """Peak resident memory of building and running the plan in a process of its own, without PyTorch; MB."""
    unet = network(tiny)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/state.npz"
        np.savez(path, **{key: value.detach().numpy() for key, value in unet.state_dict().items()})
        name = "mid_2" if suite == "features" else "final"
        command = [sys.executable, "-c", _RESIDENT, path, repr(sides), name, str(threads), str(unet.groups)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(json.loads(done.stdout) / 1000, 1)


def markdown(facts: dict[str, Any]) -> str:
    """The suite's figures as tables."""
    lines = [
        *heading(facts),
        f"{facts['threads']} threads, ours with {facts['instruction_set']}. PyTorch's matrix product "
        f"{facts['rates']['operations'] / 1e9:.0f} GFLOP/s, its copy {facts['rates']['bytes'] / 1e9:.1f} GB/s.",
        "",
        "| | median, s | 20 % | 80 % | their time / ours | relative L2 error to float64 |",
        "|---|---|---|---|---|---|",
    ]
    for name, spread in facts["seconds"].items():
        lines.append(
            f"| {name} | {spread['median']:.3f} | {spread['20%']:.3f} | {spread['80%']:.3f} "
            f"| {facts['ratios'][name]:.2f} | {facts['errors'][name]:.1e} |"
        )
    lines += [f"\nLeft out: {name} ({why})." for name, why in facts["left_out"].items()]
    if facts["peak_resident_mb"] is not None:
        lines.append(
            f"\nPeak resident memory of the plan, in a process without PyTorch: {facts['peak_resident_mb']} MB."
        )
    if facts["layers"]:
        lines += [
            "",
            "| layer | algorithm | out | ms | of all | GFLOP/s of the definition | over its floor |",
            "|---|---|---|---|---|---|---|",
        ]
        whole = sum(layer["seconds"] for layer in facts["layers"])
        for layer in facts["layers"]:
            out = " x ".join(map(str, (layer["channels"], *layer["sides"])))
            rate = layer["operations"] / layer["seconds"] / 1e9
            lines.append(
                f"| {layer['name']} | {layer['algorithm']} | {out} | {layer['seconds'] * 1e3:.2f} "
                f"| {layer['seconds'] / whole:.1%} | {rate:.0f} | {layer['over_floor']:.2f} |"
            )
    return "\n".join(lines) + "\n"
