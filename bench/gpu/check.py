"""Every kernel against its definition in float64, on the device that is there, before anything is timed.

Inputs are drawn afresh in every run (the seed is printed), in both memory formats and every dtype, forward and
backward; whatever kernels are given to write on is poisoned with NaN first; a second run has to give the same bytes.
The error is the norm of the difference over the norm of the exact result. It may be twice the definition's own at the
same dtype, or one rounding where that is luckily small. The last checks write beyond the 2^31st element.

Nearly all of the time goes to Triton's compiler, one processor at a time; so each op at each dtype has a process of its
own, as many at once as there are cores. What is not done in time is told as that, not as wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from orthokernels.bench.gpu.check_cases import CASES, Comparison, told
from orthokernels.bench.gpu.setting import Setting, setting_for
from orthokernels.bench.gpu.timing import reason_of
from torch import Tensor

from orthokernels.backends.registry import ops_of
from orthokernels.errors import InputError
from orthokernels.ops import group_norm_silu, upsample2x_trilinear

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FAR = "beyond 2^31 elements"
WRONG, REFUSED, UNFINISHED = 1, 2, 3  # exit codes
# Those that compile longest begin first.
_SLOWEST = ("attention3d", "attention_block", "group_norm_silu", "plane_fusion")


@dataclass(frozen=True)
class Checked:
    """The largest relative error of a call's results, beside the definition's at the same dtype."""

    op: str
    what: str
    error: float
    plain: float
    fault: str | None


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, fresh memory is NaN: an element that nobody wrote is found."""
    plain, new = torch.empty, torch.Tensor.new_empty

    def nan(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() and type(tensor) is Tensor else tensor

    torch.empty = lambda *args, **kwargs: nan(plain(*args, **kwargs))
    torch.Tensor.new_empty = lambda self, *args, **kwargs: nan(new(self, *args, **kwargs))  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.empty, torch.Tensor.new_empty = plain, new  # type: ignore[method-assign]


def compare(op: str, case: Comparison) -> Checked:
    """Results, and the gradients of all tensors, of the kernels and of the definition."""
    what, tensors = case.what, case.tensors
    try:
        exact = _results(case.plain, {name: tensor.double() for name, tensor in tensors.items()}, case.gradients)
        same = _results(case.plain, tensors, case.gradients)
        with poisoned():
            found, again = (_results(case.ours, tensors, case.gradients) for _ in range(2))
    except Exception as error:
        return Checked(op, what, math.nan, math.nan, reason_of(error))
    worst, beside, fault = 0.0, 0.0, None
    names = ["result", *(f"gradient of {name}" for name in tensors)]
    for name, own, repeated, other, want in zip(names, found, again, same, exact, strict=False):
        off, own_plain = _distance(own, want), _distance(other, want)
        worst, beside = max(worst, off), max(beside, own_plain)
        rounding = max(float(torch.finfo(own.dtype).eps), 2e-6)
        if not off <= 2 * own_plain + rounding:  # NaN never passes
            fault = fault or f"{name}: off by {off:.2e}, the definition by {own_plain:.2e}"
        elif not torch.equal(own, repeated):
            fault = fault or f"{name}: a second run gave other bytes"
        elif own.shape != want.shape:
            fault = fault or f"{name}: shape {tuple(own.shape)}, not {tuple(want.shape)}"
    return Checked(op, what, worst, beside, fault)


def _results(function: Callable[..., Tensor], tensors: Mapping[str, Tensor], gradients: bool) -> list[Tensor]:
    if not gradients:
        with torch.no_grad():
            return [function(**tensors)]
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    y = function(**leaves)
    upstream = torch.sin(torch.arange(y.numel(), device=y.device, dtype=torch.float32) * 1.7 + 0.3).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), upstream.to(y.dtype))]


def _distance(own: Tensor, want: Tensor) -> float:
    if own.shape != want.shape:
        return math.inf
    size = float(torch.linalg.vector_norm(want))
    return float(torch.linalg.vector_norm(own.double() - want)) / (size or 1.0)


def parts(setting: Setting) -> list[str]:
    """What a process can check by itself: "OP DTYPE", and the volumes of more than 2^31 elements."""
    ops = sorted(ops_of("triton"), key=lambda op: _SLOWEST.index(op) if op in _SLOWEST else len(_SLOWEST))
    dtypes = DTYPES[:1] if setting.tiny else DTYPES  # interpreted kernels are slow
    found = [f"{op} {str(dtype).removeprefix('torch.')}" for op in ops for dtype in dtypes]
    return found + ([FAR] if setting.device.type == "cuda" and not setting.tiny else [])


def checks(setting: Setting, part: str) -> Iterator[Checked]:
    """A part's checks."""
    if part == FAR:
        yield from _large(setting)
        return
    op, dtype = part.split()
    for last in (False, True):
        for case in CASES[op](setting, getattr(torch, dtype), last):
            yield compare(op, case)
    if part == "denoise_step float32" and setting.device.type == "cuda":
        yield _captured(setting)


def _captured(setting: Setting) -> Checked:
    """A sampler's step in a CUDA graph: replayed, it gives the bytes that it gives outside of one."""
    from orthokernels.ops import denoise_step

    what = "in a CUDA graph"
    volumes = (torch.randn(2, 3, 7, 33, 65, device=setting.device) for _ in range(3))
    given: dict[str, Any] = dict(zip(("x", "output", "previous"), volumes, strict=True))
    given["coefficients"] = torch.randn(7, device=setting.device)
    seed = torch.tensor([12345], device=setting.device)

    def step() -> Tensor:
        return denoise_step(**given, clip=0.9, seed=seed, step=3, backend=setting.backend)[0]

    try:
        with torch.no_grad():
            want = step()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = step()
            found.fill_(math.nan)
            graph.replay()
    except Exception as error:
        return Checked("denoise_step", what, math.nan, math.nan, reason_of(error))
    fault = None if torch.equal(found, want) else "the graph gave other bytes than the step outside of it"
    return Checked("denoise_step", what, _distance(found, want.double()), 0.0, fault)


def _large(setting: Setting) -> Iterator[Checked]:
    """Volumes of more than 2^31 elements in bfloat16; the last channel alone is looked at."""
    from orthokernels.ops.group_norm_silu import reference as norm_reference
    from orthokernels.ops.upsample2x_trilinear import reference as doubled

    sides = (16, 2064, 2064)  # 32 channels of them: 2.18e9
    if torch.cuda.mem_get_info(setting.device)[0] < 24e9:
        return
    for last in (False, True):
        what = told(torch.bfloat16, last, FAR)
        x = torch.empty((1, *sides, 32) if last else (1, 32, *sides), dtype=torch.bfloat16, device=setting.device)
        x = x.normal_().movedim(-1, 1) if last else x.normal_()
        try:
            found = group_norm_silu(x, 32, backend=setting.backend)[:, -1:]
            want = norm_reference(x[:, -1:].double(), 1)
            yield _far("group_norm_silu", what, found, want)
            del found, want
            small = x[:, :, :, :1032, :1032]
            small = small[:, :, :8].movedim(1, -1).contiguous().movedim(-1, 1) if last else small[:, :, :8].contiguous()
            found = upsample2x_trilinear(small, backend=setting.backend)[:, -1:]
            yield _far("upsample2x_trilinear", what, found, doubled(small[:, -1:].double()))
        except Exception as error:
            yield Checked(FAR, what, math.nan, math.nan, reason_of(error))
        del x
        torch.cuda.empty_cache()


def _far(op: str, what: str, found: Tensor, want: Tensor) -> Checked:
    error = _distance(found, want)
    bound = float(torch.finfo(found.dtype).eps)
    return Checked(op, what, error, bound, None if error <= bound else f"off by {error:.2e}, allowed {bound:.2e}")


@dataclass
class Process:
    """A part that is being checked elsewhere; each check is a row of JSON in a file, so that a stop loses none."""

    part: str
    running: subprocess.Popen[bytes]
    told: Path

    def rows(self) -> list[Checked]:
        """All that was found so far, in whole lines; a compiler may have told something between them."""
        lines = self.told.read_text(errors="replace").splitlines(keepends=True)
        return [Checked(**json.loads(line)) for line in lines if line.startswith('{"op": ') and line.endswith("}\n")]


@dataclass(frozen=True)
class Part:
    """A part's end: what it found, and why that is not all, or None."""

    part: str
    rows: list[Checked]
    unfinished: str | None


def _op(part: str) -> str:
    return part if part == FAR else part.split()[0]


def check_parts(
    wanted: Sequence[str], command: Callable[[str], list[str]], *, seconds: float, workers: int
) -> Iterator[Part]:  # fmt: skip
    """Check parts in processes of their own, each given as it ends.

    Args:
        wanted: the parts, in the order in which they begin.
        command: that checks a part, and tells on standard output.
        seconds: after which what still runs is stopped, and what has not begun is left.
        workers: processes at once.
    """
    waiting, end = list(wanted), time.monotonic() + seconds
    running: list[Process] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                late = time.monotonic() > end
                while waiting and not late and len(running) < workers:
                    running.append(_begin(waiting.pop(0), command, Path(folder)))
                for own in [own for own in running if late or own.running.poll() is not None]:
                    running.remove(own)
                    yield _ended(own, seconds)
                if late:
                    yield from (Part(part, [], f"not begun within {seconds:.0f} s") for part in waiting)
                    return
                time.sleep(0.05)
        finally:
            for own in running:
                own.running.kill()
                own.running.wait()


def _begin(part: str, command: Callable[[str], list[str]], folder: Path) -> Process:
    told = folder / part.replace(" ", "-").replace("^", "")
    with told.open("wb") as rows, told.with_suffix(".errors").open("wb") as errors:
        return Process(part, subprocess.Popen(command(part), stdout=rows, stderr=errors), told)


def _ended(own: Process, seconds: float) -> Part:
    """A part whose process ended; one that runs is stopped."""
    if own.running.poll() is None:
        own.running.kill()
        own.running.wait()
        return Part(own.part, own.rows(), f"stopped after {seconds:.0f} s, within a check of it")
    rows = own.rows()
    if own.running.returncode == 0:
        return Part(own.part, rows, None)
    # A process that breaks off is no lack of time: an illegal access ends it, say, or a signal.
    errors = own.told.with_suffix(".errors").read_text(errors="replace").strip().splitlines()
    reason = f"exit code {own.running.returncode}: {errors[-1] if errors else 'it told nothing'}"[:200]
    return Part(own.part, [*rows, Checked(_op(own.part), own.part, math.nan, math.nan, reason)], None)


def summary(op: str, ended: Sequence[Part]) -> str:
    """A line of an op whose parts have ended."""
    rows = [row for part in ended for row in part.rows]
    wrong = sum(row.fault is not None for row in rows)
    worst = max((row.error for row in rows if row.error == row.error), default=math.nan)
    line = f"{op}: {len(rows) - wrong} of {len(rows)} right, largest relative error {worst:.2e}"
    return "; ".join([line, *(f"{part.part} {part.unfinished}" for part in ended if part.unfinished)])


def _write(out: Path, seed: int, setting: Setting, ended: Sequence[Part]) -> None:
    """``check.json``, whole at any time."""
    rows = [
        {name: None if value != value else value for name, value in asdict(row).items()}
        for part in ended
        for row in part.rows
    ]
    unfinished = [{"part": part.part, "reason": part.unfinished} for part in ended if part.unfinished]
    facts = {"seed": seed, "backend": setting.backend, "rows": rows, "unfinished": unfinished}
    out.mkdir(parents=True, exist_ok=True)
    beside = out / "check.json.part"
    beside.write_text(json.dumps(facts, indent=1) + "\n")
    beside.rename(out / "check.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every op's kernels. Exit 1 if one is wrong, 3 if none is and not all were checked in time."""
    options = argparse.ArgumentParser(prog="python -m orthokernels.bench.gpu.check", description=main.__doc__)
    options.add_argument("--device", default="cuda", help="cuda[:N], or cpu with --tiny under TRITON_INTERPRET=1.")
    options.add_argument("--tiny", action="store_true", help="Small shapes.")
    options.add_argument("--seed", type=int, help="Of the inputs; a fresh one without.")
    options.add_argument("--out", type=Path, help="Folder for check.json.")
    options.add_argument("--ops", help="Those to check, separated by commas; by default all.")
    options.add_argument("--seconds", type=float, default=600.0, help="After which what still runs is stopped.")
    options.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="Processes at once.")
    options.add_argument("--part", help=argparse.SUPPRESS)
    given = options.parse_args(arguments)
    try:
        setting = setting_for(given.device, given.tiny)
        wanted = parts(setting)
        if given.ops is not None:
            asked = [op.strip() for op in given.ops.split(",")]
            if unknown := [op for op in asked if op not in ops_of("triton")]:
                raise InputError(f"--ops {unknown[0]}: there are {', '.join(ops_of('triton'))}.")
            wanted = [part for part in wanted if part.split()[0] in asked]
    except InputError as error:
        print(f"orthokernels: {error}", file=sys.stderr)
        return REFUSED
    seed = torch.seed() % 2**31 if given.seed is None else given.seed
    if given.part is not None:
        torch.manual_seed(seed)
        for row in checks(setting, given.part):
            print(json.dumps(asdict(row)), flush=True)
        return 0
    return _check_all(wanted, setting, seed, given)


def _check_all(wanted: Sequence[str], setting: Setting, seed: int, given: argparse.Namespace) -> int:
    own = [sys.executable, "-m", "orthokernels.bench.gpu.check", "--device", given.device, "--seed", str(seed)]
    own += ["--tiny"] if setting.tiny else []
    print(f"seed {seed}, backend {setting.backend}", flush=True)
    ended: list[Part] = []
    for part in check_parts(
        wanted, lambda part: [*own, "--part", part], seconds=given.seconds, workers=max(1, given.workers)
    ):
        ended.append(part)
        for row in part.rows:
            if row.fault:
                print(f"WRONG {row.op}, {row.what}: {row.fault}", flush=True)
        op = _op(part.part)
        of_op = [other for other in ended if _op(other.part) == op]
        if len(of_op) == sum(_op(name) == op for name in wanted):
            print(summary(op, of_op), flush=True)
        if given.out is not None:
            _write(given.out, seed, setting, ended)
    if any(row.fault for part in ended for row in part.rows):
        return WRONG
    return UNFINISHED if any(part.unfinished for part in ended) else 0


if __name__ == "__main__":
    sys.exit(main())
