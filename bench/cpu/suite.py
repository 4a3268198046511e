"""``orthokernels bench cpu``: the native engine and its peers, interleaved, medians and ratios round by round.

- ``features``: one plane's feature pass at the published size, 1 x 1 x 16 x 256 x 256 to "mid_2", batch 1.
- ``layer``: the convolution that it spends its time in, 64 to 64 channels at that size, bias included.
- ``denoiser``: the whole network once.
- ``sampling``: 50 steps of DDIM with it; rounds are not warmed up, since each has 50 passes.
- ``finetuning``: forward, backward and Adam of a diagnosis head, the encoder and the middle, one volume a step.
- ``heads``: both segmentation heads, a diagnosis head with its pooling, and a fusion.
- ``others``: MONAI's networks, as its tutorials set them up, under ``accelerate``, and a training step of one.
- ``sweep``: single ops as ``backend="auto"`` runs them, widths 16 to 128, planes 128 to 512, depths 8 to 32.

``ratios`` are "their time / ours", the median over the rounds. The layers' table holds every layer's time against the
larger of its operations over the measured matrix rate and its bytes over the measured copy rate.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from orthokernels.bench.cpu.finetuning import finetuning
from orthokernels.bench.cpu.others import others
from orthokernels.bench.cpu.peers import PEERS, Call, Inputs, made_ready
from orthokernels.bench.cpu.subjects import (
    SIDES,
    TINY,
    Subject,
    heads,
    layer,
    network,
    sampling,
    state_of,
    sweep,
    unet_pass,
)
from orthokernels.bench.record import circumstances, heading, percentiles
from torch import nn

from orthokernels import _native
from orthokernels.errors import InputError

Suite = Literal["features", "layer", "denoiser", "sampling", "finetuning", "heads", "others", "sweep"]
SUITES: tuple[Suite, ...] = get_args(Suite)
HALF_GIBIBYTE = 2**29
LIMITS = ("ORTHOKERNELS_ISA", "ONEDNN_MAX_CPU_ISA")  # of our instruction set, and of PyTorch's and OpenVINO's
# glibc's options of malloc, as malloc.h numbers them, and the largest threshold that it takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD = -1, -3, 2**25
SHORTEST = 0.1  # seconds of one measurement: shorter calls are repeated, since others share the machine
MOST_REPEATS = 200
MORE_ROUNDS = 3  # so many times as many where a call takes less than that


def run_suite(
    suite: Suite, *, threads: int, rounds: int, tiny: bool = False, peers: Sequence[str] = (), cases: str = ""
) -> dict[str, Any]:
    """Measure one suite.

    Args:
        threads: of ours and of every peer.
        rounds: counted, after one that warms up; three times as many of calls that take less than a tenth of a second.
        tiny: a small volume and network, to try the machinery; says nothing about speed.
        peers: whom to measure beside ours; all of them where it is empty.
        cases: of the sweep, those whose names hold this.

    Returns:
        ``seconds`` (median, 20th and 80th percentile) and ``ratios`` by name, the error of each against ``reference``,
        ``layers`` of ours, ``left_out`` with reasons, and the circumstances. A suite of several cases has these of each
        in ``cases``.

    Raises:
        InputError: no case's name holds ``cases``, or MONAI is needed and not installed.
    """
    torch.manual_seed(0)
    keep_freed_memory()
    limits = "".join(f"{name}={os.environ[name]} " for name in LIMITS if name in os.environ)
    command = f"{limits}orthokernels bench cpu --suite {suite} --threads {threads} --rounds {rounds}" + " --tiny" * tiny
    command += f" --peers {','.join(peers)}" if peers else ""
    command += f" --cases '{cases}'" if cases else ""
    rates = measured_rates(threads)
    found = [
        _measured(own, threads, rounds, rates, peers, warm=suite != "sampling", shortest=0.0 if tiny else SHORTEST)
        for own in _subjects(suite, threads, tiny, cases)
    ]
    if not found:
        raise InputError(f"--cases {cases}: no case's name holds it; one is 'conv3d, 16 channels, 8 x 128 x 128'.")
    return {
        **circumstances(command),
        "suite": suite,
        "sides": list(TINY if tiny else SIDES),
        "threads": threads,
        "instruction_set": _native.instruction_set(),
        "rates": rates,
        "peak_resident_mb": peak_resident(suite, threads, tiny) if suite in ("features", "denoiser") else None,
        **(found[0] if suite not in ("heads", "others", "sweep") else {"cases": found}),
    }


def keep_freed_memory() -> None:
    """Have malloc keep what is freed, up to results of 32 MiB: the state that a process that runs for long ends in.

    By itself glibc comes to it step by step, and gives the heap's end back in between: who asks next meets memory that
    the process never had, which takes longer to come than some ops. Larger results of PyTorch's do as a rule;
    ours lie in memory that is used again (``backends/cpu/kept_memory.py``). Other systems' malloc is left as it is.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        option(M_TRIM_THRESHOLD, 2 * HALF_GIBIBYTE)


def _subjects(suite: Suite, threads: int, tiny: bool, cases: str) -> Iterator[Subject]:
    """The suite's cases, each made when the one before it is measured."""
    if suite == "sweep":
        yield from sweep(threads, tiny, cases)
    elif suite in ("heads", "others"):
        yield from {"heads": heads, "others": others}[suite](threads, tiny)
    elif suite in ("layer", "sampling", "finetuning"):
        yield {"layer": layer, "sampling": sampling, "finetuning": finetuning}[suite](threads, tiny)
    else:
        yield unet_pass(suite, threads, tiny)


def _measured(
    subject: Subject, threads: int, rounds: int, rates: dict[str, float], asked: Sequence[str], *, warm: bool,
    shortest: float,
) -> dict[str, Any]:  # fmt: skip
    """Every contender in turn, each round beginning with another; calls are repeated for ``shortest`` seconds."""
    left_out, peers = dict(subject.without), subject.peers
    unasked = {name for name in (PEERS if peers is None else peers) if asked and name not in asked}
    left_out |= dict.fromkeys(unasked, "not asked for")
    if peers is None:
        peers = dict(made_ready(subject.module, subject.inputs, threads, left_out, exported=subject.exported))
    left_out = {name: why for name, why in left_out.items() if name not in unasked}
    calls: dict[str, Call] = {"orthokernels": subject.ours}
    calls |= {name: call for name, call in peers.items() if name not in unasked}
    made: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    repeats = 1  # alike for all: of several calls in a row only the first meets fresh memory
    fastest = math.inf
    names = list(calls)
    number = 0
    while number < rounds + warm:
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            # One result of each at a time: memory that the process never had takes longer to come than some ops.
            made.pop(name, None)
            started = time.perf_counter()
            for _ in range(repeats):
                made[name] = calls[name]()
            took = (time.perf_counter() - started) / repeats
            fastest = min(fastest, took)
            if number >= warm:
                seconds[name].append(took)
        if number < warm:
            repeats = min(max(math.ceil(shortest / fastest), 1), MOST_REPEATS)
            rounds *= MORE_ROUNDS if repeats > 1 else 1
        number += 1
    inexact = "torch_eager" if "torch_eager" in made else "orthokernels"
    reference = "float64" if subject.exact else inexact
    expected = _float64(subject.module, subject.inputs) if subject.exact else made[inexact]
    return {
        "name": subject.name,
        "seconds": {name: _spread(each) for name, each in seconds.items()},
        "ratios": {name: _ratio(each, seconds["orthokernels"]) for name, each in seconds.items()},
        "reference": reference,
        "errors": {name: _relative(found, expected) for name, found in made.items()},
        "left_out": left_out,
        "layers": [_against_floor(own, rates) for own in subject.layers()],
    }


def _float64(module: nn.Module, inputs: Inputs) -> np.ndarray:
    with torch.inference_mode():
        exact = module.double()(*(torch.from_numpy(x).double() for x in inputs)).numpy()
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


def _against_floor(own: dict[str, Any], rates: dict[str, float]) -> dict[str, Any]:
    """A layer's facts with its floor, seconds, and its time over it. The operations are the definition's."""
    floor = max(own["operations"] / rates["operations"], own["bytes"] / rates["bytes"])
    return {**own, "floor": floor, "over_floor": own["seconds"] / floor}


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


def peak_resident(suite: Suite, threads: int, tiny: bool) -> float:
    """Peak resident memory of building and running the plan in a process of its own, without PyTorch; MB."""
    unet, sides = network(tiny), TINY if tiny else SIDES
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/state.npz"
        np.savez(path, **state_of(unet))
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
    ]
    cases = facts.get("cases", [facts])
    if facts["suite"] == "sweep":
        lines += _summary(cases)
    else:
        for case in cases:
            lines += [*([] if case is facts else ["", f"## {case['name']}"]), *_contenders(case)]
            if case is facts and facts["peak_resident_mb"] is not None:
                lines += ["", "Peak resident memory of the plan, in a process without PyTorch: "
                          f"{facts['peak_resident_mb']} MB."]  # fmt: skip
            lines += _layers(case["layers"])
    return "\n".join(lines) + "\n"


def _contenders(case: dict[str, Any]) -> Iterator[str]:
    yield from (
        "",
        f"| | median, s | 20 % | 80 % | their time / ours | relative L2 error to {case['reference']} |",
        "|---|---|---|---|---|---|",
    )
    for name, spread in case["seconds"].items():
        times = " | ".join(_three_digits(spread[which]) for which in ("median", "20%", "80%"))
        yield f"| {name} | {times} | {case['ratios'][name]:.2f} | {case['errors'][name]:.1e} |"
    yield from (f"\nLeft out: {name} ({why})." for name, why in case["left_out"].items())


def _three_digits(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 1000 else f"{seconds:.3g}"  # which writes 1550 as 1.55e+03


def _layers(layers: list[dict[str, Any]]) -> Iterator[str]:
    if not layers:
        return
    yield from (
        "",
        "| layer | algorithm | out | ms | of all | GFLOP/s of the definition | over its floor |",
        "|---|---|---|---|---|---|---|",
    )
    whole = sum(own["seconds"] for own in layers)
    for own in layers:
        out = " x ".join(map(str, (own["channels"], *own["sides"])))
        rate = own["operations"] / own["seconds"] / 1e9
        yield (
            f"| {own['name']} | {own['algorithm']} | {out} | {own['seconds'] * 1e3:.2f} "
            f"| {own['seconds'] / whole:.1%} | {rate:.0f} | {own['over_floor']:.2f} |"
        )


def _summary(cases: list[dict[str, Any]]) -> Iterator[str]:
    """A row for each case: how long ours takes, and every peer's ratio."""
    peers = [name for name in cases[0]["ratios"] if name != "orthokernels"]
    yield from ("", f"| | ours, ms | {' | '.join(peers)} |", "|---|---|" + "---|" * len(peers))
    for case in cases:
        ratios = " | ".join(f"{case['ratios'][name]:.2f}" for name in peers)
        yield f"| {case['name']} | {case['seconds']['orthokernels']['median'] * 1e3:.2f} | {ratios} |"
    yield from (f"\nLeft out: {name} ({why})." for name, why in cases[0]["left_out"].items())
