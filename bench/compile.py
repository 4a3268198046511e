"""Every Triton kernel compiled for GPUs that are not there: registers, spilled bytes, shared memory.

Triton's compiler takes an explicit target, and its assembler tells what the machine code needs, with the options that
a launch would give it. A kernel that spills, or that wants more shared memory than the target's multiprocessor has,
fails.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rich.table import Table

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

    @property
    def fault(self) -> str | None:
        if self.spilled:
            return f"{self.spilled} bytes are spilled"
        if self.shared > SHARED[self.target]:
            return f"{self.shared} bytes of shared memory; sm_{self.target} has {SHARED[self.target]}"
        return None


def compile_all(targets: tuple[int, ...] = tuple(SHARED)) -> Iterator[Compiled]:
    """Compile every kernel's default configurations for every target.

    Raises:
        InputError: Triton is missing, or is interpreting.
    """
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise InputError(f"Triton can't be imported ({error}). Install it: pip install triton.") from error
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InputError("TRITON_INTERPRET=1 interprets kernels instead of compiling them. Unset it.")
    for op in ops_of("triton"):
        for configuration in import_module(f"orthokernels.backends.triton.{op}").configurations():
            for target in targets:
                yield compile_one(configuration, target)


def table(found: Sequence[Compiled]) -> Table:
    """A row for each kernel and setting, the targets side by side."""
    targets = sorted({row.target for row in found})
    made = Table("op", "kernel", "types", "constants", *(f"sm_{target}" for target in targets), title=_TITLE)
    rows: dict[tuple[str, str, str, str], dict[int, Compiled]] = {}
    for row in found:
        rows.setdefault((row.op, row.kernel, row.types, row.constants), {})[row.target] = row
    for key, own in rows.items():
        made.add_row(*key, *(_cell(own[target]) for target in targets))
    return made


_TITLE = "registers a thread / bytes spilled / bytes of shared memory"


def _cell(row: Compiled) -> str:
    needs = f"{row.registers} / {row.spilled} / {row.shared}"
    return f"[bold red]{needs}: {row.fault}[/]" if row.fault else needs


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
        made = triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": configuration.warps})
    registers, spilled = _resources(log.getvalue())
    return Compiled(
        configuration.op, configuration.name, _first_pointer(signature),
        " ".join(f"{name}={_short(value)}" for name, value in constants.items()), target, registers, spilled,
        made.metadata.shared,
    )  # fmt: skip


def _first_pointer(signature: dict[str, str]) -> str:
    return next(kind.lstrip("*") for kind in signature.values() if kind.startswith("*"))


def _short(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool | int) else str(value)


def _resources(log: str) -> tuple[int, int]:
    """Registers a thread and bytes spilled, as the assembler told."""
    registers = [int(found) for found in re.findall(r"Used (\d+) registers", log)]
    if not registers:
        raise RuntimeError(f"Triton's assembler told nothing of registers: {log.strip() or 'an empty log'}")
    return max(registers), sum(int(found) for found in re.findall(r"(\d+) bytes spill (?:stores|loads)", log))
