"""Every kernel against its definition in float64, on the device that is there, before anything is timed.

Inputs are drawn afresh in every run (the seed is printed), in both memory formats and every dtype, forward and
backward; whatever kernels are given to write on is poisoned with NaN first; a second run has to give the same bytes.
The error is the norm of the difference over the norm of the exact result. It may be twice the definition's own at the
same dtype, or one rounding where that is luckily small. The last checks write beyond the 2^31st element.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from orthokernels.bench.gpu.check_cases import CASES, Comparison, told
from orthokernels.bench.gpu.setting import Setting, setting_for
from orthokernels.bench.gpu.timing import reason_of
from rich.console import Console
from torch import Tensor

from orthokernels.backends.registry import ops_of
from orthokernels.errors import InputError
from orthokernels.ops import group_norm_silu, upsample2x_trilinear

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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


def checks(setting: Setting) -> Iterator[Checked]:
    """All checks, one op after the other."""
    for op in ops_of("triton"):
        for dtype in DTYPES[:1] if setting.tiny else DTYPES:  # interpreted kernels are slow
            for last in (False, True):
                for case in CASES[op](setting, dtype, last):
                    yield compare(op, case)
    if setting.device.type == "cuda":
        yield _captured(setting)
        if not setting.tiny:
            yield from _large(setting)


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
        what = told(torch.bfloat16, last, "beyond 2^31 elements")
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
            yield Checked("beyond 2^31 elements", what, math.nan, math.nan, reason_of(error))
        del x
        torch.cuda.empty_cache()


def _far(op: str, what: str, found: Tensor, want: Tensor) -> Checked:
    error = _distance(found, want)
    bound = float(torch.finfo(found.dtype).eps)
    return Checked(op, what, error, bound, None if error <= bound else f"off by {error:.2e}, allowed {bound:.2e}")


def main(
    device: Annotated[str, typer.Option(help="cuda[:N], or cpu with --tiny under TRITON_INTERPRET=1.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="Small shapes.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of the inputs; a fresh one without.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for check.json.")] = None,
) -> None:
    """Check every op's kernels. Exit 1 if one is wrong."""
    console = Console(width=160, highlight=False, emoji=False, markup=False)
    try:
        setting = setting_for(device, tiny)
    except InputError as error:
        Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(f"orthokernels: {error}")
        raise typer.Exit(2) from None
    drawn = torch.seed() % 2**31 if seed is None else seed
    torch.manual_seed(drawn)
    found = []
    for row in checks(setting):
        found.append(row)
        if row.fault:
            console.print(f"WRONG {row.op}, {row.what}: {row.fault}")
    for op in dict.fromkeys(row.op for row in found):
        own = [row for row in found if row.op == op]
        wrong = sum(row.fault is not None for row in own)
        worst = max((row.error for row in own if row.error == row.error), default=math.nan)
        console.print(f"{op}: {len(own) - wrong} of {len(own)} right, largest relative error {worst:.2e}")
    console.print(f"seed {drawn}, backend {setting.backend}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        rows = [{name: None if value != value else value for name, value in asdict(row).items()} for row in found]
        (out / "check.json").write_text(
            json.dumps({"seed": drawn, "backend": setting.backend, "rows": rows}, indent=1) + "\n"
        )
    if any(row.fault for row in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
