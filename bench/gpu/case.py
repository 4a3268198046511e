"""What is compared: a case and its contenders, the rows that come out, and what a row is held to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from orthokernels.bench.gpu.ceilings import Ceilings
from orthokernels.bench.gpu.timing import Contender, Effort, Timing
from orthokernels.bench.record import percentiles


class Corner(StrEnum):
    """Where a contender stands in the decomposition of the speed-up.

    ``UNFUSED`` are this package's kernels, one for each plain op: as parallel as the fused one, and not fused.
    """

    PLAIN_CONTIGUOUS = "plain PyTorch, contiguous"
    PLAIN_LAST = "plain PyTorch, channels-last"
    UNFUSED_CONTIGUOUS = "orthokernels unfused, contiguous"
    KERNELS_CONTIGUOUS = "orthokernels, contiguous"
    KERNELS_LAST = "orthokernels, channels-last"


class Bar(NamedTuple):
    """What a case is held to on one H200.

    ``kind``: "bandwidth" and "floor" are the least shares of the measured copy bandwidth and of the counted floor,
    "seconds" the most time, "faster" the least speed-up over ``against``, another contender, "memory" the most of its
    memory.
    """

    kind: Literal["bandwidth", "floor", "seconds", "faster", "memory"]
    limit: float
    against: str = ""


@dataclass(frozen=True)
class Case:
    """One computation, done by several contenders.

    Attributes:
        name: op, direction, shape and dtype.
        moved: fewest bytes that it reads and writes; 0 where they were not counted.
        operations: multiplications and additions of its matrix products; 0 where memory is what it takes.
        dtype: of its matrix products, a key of ``Ceilings.rates``.
        contenders: makes the inputs that they share, and gives them in order of importance; the first one is ours.
        bars: that the first contender is held to.
        effort: of its repetitions.
    """

    name: str
    moved: int
    operations: int
    dtype: str
    contenders: Callable[[], Sequence[Contender]]
    bars: tuple[Bar, ...] = ()
    effort: Effort = field(default_factory=Effort)


@dataclass(frozen=True)
class Row:
    """A contender's figures in a case, or the reason why there are none."""

    suite: str
    case: str
    contender: str
    timing: Timing
    moved: int
    operations: int
    dtype: str
    ratio: float | None  # of its median to the first contender's

    @property
    def state(self) -> str:
        return "measured" if self.timing.seconds else "failed" if self.timing.tried else "left out"

    @property
    def median(self) -> float | None:
        return statistics.median(self.timing.seconds) if self.timing.seconds else None

    def figures(self, ceilings: Ceilings) -> dict[str, Any]:
        """Everything that is printed: microseconds, GB/s (1e9) and TFLOP/s of what was counted, percent, MB (1e6)."""
        found: dict[str, Any] = {
            "suite": self.suite, "case": self.case, "contender": self.contender, "state": self.state,
            "note": self.timing.reason or "; ".join(self.timing.notes),
            "memory_mb": None if self.timing.memory is None else self.timing.memory / 1e6,
        }  # fmt: skip
        names = ("median_us", "p20_us", "p80_us", "gb_s", "tflop_s", "bandwidth_percent", "rate_percent")
        found |= dict.fromkeys((*names, "floor_percent"), None)
        median = self.median
        if median is not None:
            low, high = percentiles(self.timing.seconds)
            found |= {"median_us": median * 1e6, "p20_us": low * 1e6, "p80_us": high * 1e6}
            if self.moved:
                speed = self.moved / median
                found |= {"gb_s": speed / 1e9, "bandwidth_percent": 100 * speed / ceilings.bandwidth}
            if self.operations:
                rate = self.operations / median
                found |= {"tflop_s": rate / 1e12, "rate_percent": 100 * rate / ceilings.rates[self.dtype]}
            if self.moved or self.operations:
                floor = ceilings.floor(self.moved, self.operations, self.dtype)
                found["floor_percent"] = 100 * floor / median
        return found | {"ratio": self.ratio, "seconds": list(self.timing.seconds)}


def rows_of(suite: str, case: Case, timings: Mapping[str, Timing]) -> list[Row]:
    """Every contender's row, the first contender's first."""
    first = next(iter(timings.values()))
    ours = statistics.median(first.seconds) if first.seconds else None
    return [
        Row(
            suite, case.name, name, timing, case.moved, case.operations, case.dtype,
            statistics.median(timing.seconds) / ours if ours and timing.seconds else None,
        )
        for name, timing in timings.items()
    ]  # fmt: skip


def decompose(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The speed-up from plain PyTorch, contiguous, to the kernels, channels-last, as a product of what brought it.

    With T of the corners' median times:

        total       = T(plain, contiguous) / T(kernels, channels-last) = parallelism fusion layout
        parallelism = T(plain, contiguous) / T(unfused, contiguous)     the same ops one by one, in our kernels
        fusion      = T(unfused, contiguous) / T(kernels, contiguous)   what lay between them is not written
        layout      = T(kernels, contiguous) / T(kernels, channels-last)

    Where nothing unfused was measured, parallelism and fusion are one number, ``kernels``. ``layout_alone`` is what
    channels-last brings to plain PyTorch. None where a corner is missing.
    """
    times: dict[str, float] = {row.contender: row.median for row in rows if row.median is not None}
    plain, kernels, last = (
        times.get(corner) for corner in (Corner.PLAIN_CONTIGUOUS, Corner.KERNELS_CONTIGUOUS, Corner.KERNELS_LAST)
    )
    if plain is None or kernels is None or last is None:
        return None
    unfused, plain_last = times.get(Corner.UNFUSED_CONTIGUOUS), times.get(Corner.PLAIN_LAST)
    return {
        "suite": rows[0].suite, "case": rows[0].case, "total": plain / last, "layout": kernels / last,
        "kernels": plain / kernels,
        "fusion": None if unfused is None else unfused / kernels,
        "parallelism": None if unfused is None else plain / unfused,
        "layout_alone": None if plain_last is None else plain / plain_last,
        "microseconds": {str(corner): times[corner] * 1e6 for corner in Corner if corner in times},
    }  # fmt: skip


def judge(case: Case, rows: Sequence[Row], ceilings: Ceilings, *, binding: bool) -> list[dict[str, Any]]:
    """Each bar of a case with the value found; ``met`` is None where the device is another one, or nothing was found.

    Args:
        binding: the device is what the bars were set for.
    """
    found = []
    for bar in case.bars:
        value = _value(bar, rows, ceilings)
        above = bar.kind in ("bandwidth", "floor", "faster")
        met = None if value is None or not binding else (value >= bar.limit if above else value <= bar.limit)
        told = _TOLD[bar.kind].format(limit=bar.limit, us=bar.limit * 1e6, share=100 * bar.limit, against=bar.against)
        found.append(
            {"case": case.name, "contender": rows[0].contender, "bar": told, "kind": bar.kind, "value": value}
            | {"limit": bar.limit, "met": met}
        )
    return found


_TOLD = {
    "bandwidth": "at least {share:g} % of the measured copy bandwidth",
    "floor": "at least {share:g} % of its floor",
    "seconds": "at most {us:g} us",
    "faster": "at least {limit:g} x {against}",
    "memory": "at most {limit:g} of the memory of {against}",
}


def _value(bar: Bar, rows: Sequence[Row], ceilings: Ceilings) -> float | None:
    ours, other = rows[0], next((row for row in rows if row.contender == bar.against), None)
    if ours.median is None:
        return None
    if bar.kind == "seconds":
        return ours.median
    if bar.kind == "bandwidth":
        return ours.moved / ours.median / ceilings.bandwidth
    if bar.kind == "floor":
        return ceilings.floor(ours.moved, ours.operations, ours.dtype) / ours.median
    if other is None or other.median is None:
        return None
    if bar.kind == "faster":
        return other.median / ours.median
    return ours.timing.memory / other.timing.memory if ours.timing.memory and other.timing.memory else None
