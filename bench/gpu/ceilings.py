"""What the device reaches at most: bytes a second of a large copy, operations a second of a large matrix product."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from orthokernels.bench.gpu.setting import Setting
from orthokernels.bench.gpu.timing import Call, Clock, Contender, Effort, measure

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Ceilings:
    """Measured on random data, never taken from a datasheet.

    Attributes:
        bandwidth: bytes read plus bytes written, a second.
        rates: multiplications plus additions a second by dtype; float32's is TF32's, which convolutions use.
    """

    bandwidth: float
    rates: dict[str, float]

    def floor(self, moved: int, operations: int, dtype: str) -> float:
        """Seconds that no implementation stays below, of the bytes and operations counted."""
        return max(moved / self.bandwidth, operations / self.rates[dtype])


def measure_ceilings(setting: Setting, clock: Clock) -> Ceilings:
    """Median of some ten repetitions each: a copy of 2 GiB, and a product of 8192 x 8192 matrices in each dtype.

    Raises:
        RuntimeError: one of them could not be run; nothing else can then be judged.
    """
    elements, side = (2**12, 32) if setting.tiny else (2**30, 8192)
    effort = Effort(seconds=0.5, least=2, most=2) if setting.tiny else Effort(seconds=1.0, least=5, most=20)
    copied = 2 * 2 * elements
    timings = measure(
        [Contender("copy", lambda: _copy(elements, setting.device))]
        + [Contender(name, lambda own=own: _product(side, own, setting.device)) for name, own in DTYPES.items()],
        clock,
        effort=effort,
    )
    for name, timing in timings.items():
        if not timing.seconds:
            raise RuntimeError(f"the ceilings could not be measured, {name}: {timing.reason}")
    medians = {name: statistics.median(timing.seconds) for name, timing in timings.items()}
    rates = {name: 2 * side**3 / medians[name] for name in DTYPES}
    return Ceilings(copied / medians["copy"], rates)


def _copy(elements: int, device: torch.device) -> Call:
    source = torch.randn(elements, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _product(side: int, dtype: torch.dtype, device: torch.device) -> Call:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        with tf32():
            a @ b

    return multiply


@contextmanager
def tf32() -> Iterator[None]:
    """Products of float32 matrices on the matrix units."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
