"""What a kernel is compiled for where no device is: its arguments' types, its constants, the launch's options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Configuration:
    """A kernel at one setting.

    Attributes:
        op: whose kernel it is.
        kernel: a ``triton.jit`` function.
        arguments: by name, in order: a pointer as its type ("*bf16"), anything else as a value it is called with.
        warps: of a program.
        stages: loads in flight in a loop; None where the launch leaves it to Triton.
        registers: the most a thread may have; None where the launch leaves it to the assembler.
    """

    op: str
    kernel: Any
    arguments: dict[str, Any]
    warps: int = 4
    stages: int | None = None
    registers: int | None = None

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__.lstrip("_")

    def options(self) -> dict[str, int]:
        """The options that a launch gives, by Triton's names."""
        options = {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}
        return {name: value for name, value in options.items() if value is not None}

    def constants(self) -> dict[str, Any]:
        """The arguments that are compiled in: those declared so, and whole numbers that are 1."""
        declared = {parameter.name for parameter in self.kernel.params if parameter.is_constexpr}
        plain = self._plain()
        return {
            name: value
            for name, value in self.arguments.items()
            if name in declared or (isinstance(value, int) and value == 1 and name not in plain)
        }

    def signature(self) -> dict[str, str]:
        """Types by name, as the compiler wants them."""
        constants = self.constants()
        return {n: "constexpr" if n in constants else _type(value) for n, value in self.arguments.items()}

    def divisible(self) -> dict[tuple[int], list[list[Any]]]:
        """Pointers and whole numbers that 16 divides, as a launch would find them."""
        left_out = self._plain() | self.constants().keys()
        return {
            (place,): [["tt.divisibility", 16]]
            for place, (name, value) in enumerate(self.arguments.items())
            if name not in left_out and (isinstance(value, str) or (isinstance(value, int) and value % 16 == 0))
        }

    def _plain(self) -> set[str]:
        """Arguments that a launch takes as they come, whether they are 1 or 16 divides them."""
        return {
            parameter.name
            for parameter in self.kernel.params
            if parameter.do_not_specialize or parameter.do_not_specialize_on_alignment
        }


def _type(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "fp32" if isinstance(value, float) else "i32"
