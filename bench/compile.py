"""Every kernel compiled for GPUs that are not there: registers, spilled bytes, shared memory.

Triton's compiler takes an explicit target, and its assembler tells what the machine code needs, with the options that
a launch would give it. CUDA C++ goes to nvcc, where there is one. A kernel that spills, or that wants more shared
memory than the target's multiprocessor has, fails.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from orthokernels.bench.tables import Table

from orthokernels.backends.cuda import sources
from orthokernels.backends.cuda.launch import TYPES
from orthokernels.backends.registry import ops_of
from orthokernels.errors import InputError

# Shared memory that one program may have, bytes (CUDA C++ programming guide, compute capabilities).
SHARED = {80: 166_912, 90: 232_448, 100: 232_448}


@dataclass(frozen=True)
class Compiled:
    """A kernel's needs on one target; ``fault`` says why it would not do, or is None."""

    op: str
    kernel: str
    types: str
    constants: str
    target: int
    registers: int
    spilled: int
    shared: int
    backend: str = "triton"

    @property
    def fault(self) -> str | None:
        if self.spilled:
            return f"{self.spilled} bytes are spilled"
        if self.shared > SHARED[self.target]:
            return f"{self.shared} bytes of shared memory; sm_{self.target} has {SHARED[self.target]}"
        return None


def compile_all(targets: tuple[int, ...] = tuple(SHARED)) -> Iterator[Compiled]:
    """Compile every kernel's default configurations for every target; CUDA C++ only where nvcc is on the path.

    Raises:
        InputError: Triton is missing, or is interpreting, or nvcc refuses a source or a target.
    """
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise InputError(f"Triton can't be imported ({error}). Install it: pip install triton.") from error
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InputError("TRITON_INTERPRET=1 interprets kernels instead of compiling them. Unset it.")
    places = [
        (op, place, target)
        for op in ops_of("triton")
        for place in range(len(_configurations(op)))
        for target in targets
    ]
    # Processes that start afresh, not forks: PyTorch has threads by now.
    with ProcessPoolExecutor(min(8, len(os.sched_getaffinity(0))), get_context("spawn")) as pool:
        yield from pool.map(_compile_place, places, chunksize=4)
    if no_nvcc() is None:
        for op in ops_of("cuda"):
            for target in targets:
                yield from compile_cuda(op, target)


def wanted_targets(told: str) -> tuple[int, ...]:
    """The targets of a command's option.

    Raises:
        InputError: one that is not in ``SHARED``.
    """
    wanted = told.split(",")
    if unknown := [target for target in wanted if not target.isdecimal() or int(target) not in SHARED]:
        raise InputError(f"--targets {unknown[0]}: there are {', '.join(map(str, SHARED))}.")
    return tuple(map(int, wanted))


def _configurations(op: str) -> list[Any]:
    """An op's configurations, of those that the compiler can't tell apart the first."""
    found: dict[str, Any] = {}
    for own in import_module(f"orthokernels.backends.triton.{op}").configurations():
        found.setdefault(repr((own.name, own.signature(), own.constants(), own.divisible(), own.options())), own)
    return list(found.values())


def _compile_place(place: tuple[str, int, int]) -> Compiled:
    """Compile one of an op's configurations for a target; kernels themselves can't be sent to a process."""
    op, number, target = place
    return compile_one(_configurations(op)[number], target)


def no_nvcc() -> str | None:
    """Why CUDA C++ is not compiled here, or None."""
    return None if shutil.which("nvcc") else "nvcc is not on PATH: the CUDA C++ kernels were not compiled."


def table(found: Sequence[Compiled]) -> Table:
    """A row for each kernel and setting, the targets side by side."""
    targets = sorted({row.target for row in found})
    columns = ("backend", "op", "kernel", "types", "constants", *(f"sm_{target}" for target in targets))
    made = Table(columns, title=_TITLE, caption=no_nvcc())
    rows: dict[tuple[str, ...], dict[int, Compiled]] = {}
    for row in found:
        rows.setdefault((row.backend, row.op, row.kernel, row.types, row.constants), {})[row.target] = row
    for key, own in rows.items():
        style = "bold red" if any(row.fault for row in own.values()) else None
        made.add_row(*key, *(_cell(own[target]) for target in targets), style=style)
    return made


_TITLE = "registers a thread / bytes spilled / bytes of shared memory"


def _cell(row: Compiled) -> str:
    needs = f"{row.registers} / {row.spilled} / {row.shared}"
    return f"{needs}: {row.fault}" if row.fault else needs


def compile_one(configuration: Any, target: int) -> Compiled:
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants = configuration.signature(), configuration.constants()
    source = ASTSource(configuration.kernel, signature, constants, configuration.divisible())
    log = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), redirect_stdout(log):
        knobs.compilation.always_compile = True  # what is taken from the cache is not assembled, and tells nothing
        knobs.nvidia.dump_ptxas_log = True
        made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=configuration.options())
    registers, spilled = _resources(log.getvalue())
    return Compiled(
        configuration.op, configuration.name, _first_pointer(signature),
        " ".join(f"{name}={_short(value)}" for name, value in constants.items()), target, registers, spilled,
        made.metadata.shared,
    )  # fmt: skip


def compile_cuda(op: str, target: int) -> Iterator[Compiled]:
    """Every kernel of an op's CUDA C++ source, in the order of nvcc's report.

    Raises:
        InputError: nvcc refuses the source or the target.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *sources.OPTIONS, f"-arch=sm_{target}", "-cubin", "--resource-usage"]
        command += ["-o", str(Path(folder) / "cubin"), str(sources.folder() / f"{op}.cu")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    if done.returncode:
        raise InputError(f"nvcc can't compile {op} for sm_{target}: {told.strip()}")
    for entry in re.split(r"Compiling entry function '", told)[1:]:
        words = entry[: entry.index("'")].removeprefix(f"{op}_").split("_")
        kernel, types = ([word for word in words if (word in TYPES) == wanted] for wanted in (False, True))
        registers, spilled = _resources(entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        yield Compiled(
            op, "_".join(kernel) or op.split("_")[-1], " ".join(types), "", target, registers, spilled,
            int(shared[1]) if shared else 0, "cuda",
        )  # fmt: skip


def _first_pointer(signature: dict[str, str]) -> str:
    return next(kind.lstrip("*") for kind in signature.values() if kind.startswith("*"))


def _short(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool | int) else str(value)


def _resources(log: str) -> tuple[int, int]:
    """Registers a thread and bytes spilled, as the assembler told."""
    registers = [int(found) for found in re.findall(r"Used (\d+) registers", log)]
    if not registers:
        raise RuntimeError(f"The assembler told nothing of registers: {log.strip() or 'an empty log'}")
    return max(registers), sum(int(found) for found in re.findall(r"(\d+) bytes spill (?:stores|loads)", log))
