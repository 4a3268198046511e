"""Contenders timed in turn, round by round, with a cold cache, and captured as CUDA graphs where they are short.

A contender that fails, runs out of memory or takes too long to warm up is told about, and the others go on.
"""

from __future__ import annotations

import gc
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple

import torch

Call = Callable[[], object]
GRAPH_BELOW = 100e-6  # seconds: below it, events around plain launches measure the host
_LEAD, _MOST_LEAD = 500e-6, 20e-3  # seconds that the device waits for the host: at a call's first time, and at most
_CYCLES = 2e9  # a second of the device, rather too many
WARM_UPS = 3  # torch.compile's own graphs run once plainly, are recorded, and are replayed from the third call on


class Effort(NamedTuple):
    """How long a case may be repeated, and how many rounds it takes at least and at most."""

    seconds: float = 3.0
    least: int = 5
    most: int = 50


class Contender(NamedTuple):
    """``build`` prepares and returns the call that is timed; either may raise."""

    name: str
    build: Callable[[], Call]


@dataclass
class Timing:
    """All repetitions of a contender in seconds, or the reason why there are none.

    ``memory`` is the most device memory that it held beyond what was there before it was built, in bytes; None on a
    CPU. ``notes`` say how it was timed.
    """

    seconds: list[float] = field(default_factory=list)
    memory: int | None = None
    notes: list[str] = field(default_factory=list)
    reason: str | None = None
    tried: bool = True


class Deadline:
    """Seconds that are left of a number of minutes."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        return self._end - time.monotonic()


class Absent(Exception):  # noqa: N818
    """A contender can not be tried here; the message says why."""


class OutOfTime(BaseException):
    """A limit ran out. Not an ``Exception``: compilers catch those of a candidate that they try, and go on."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` inside after so many seconds. Without effect outside the main thread, as signals are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Clock(ABC):
    """How a call is timed on a device."""

    captures = False

    def here(self) -> AbstractContextManager[object]:
        """Everything that is timed is built and called inside."""
        return nullcontext()

    @abstractmethod
    def start(self, call: Call) -> Callable[[], float]:
        """Begin a call; what is returned waits for its end and gives its seconds."""

    def capture(self, call: Call) -> Call:
        """The call as a graph, which is replayed."""
        raise NotImplementedError

    def held(self) -> tuple[int, int] | None:
        """Bytes in live tensors, and bytes taken from the device, with nothing kept in reserve."""
        return None

    def peak(self, call: Call, before: tuple[int, int] | None) -> int | None:
        """Call once; the most bytes that were held beyond ``before``."""
        call()
        return None


class HostClock(Clock):
    """Seconds on the host, for a device that finishes before a call returns."""

    def start(self, call: Call) -> Callable[[], float]:
        started = time.perf_counter()
        call()
        spent = time.perf_counter() - started
        return lambda: spent


class CudaClock(Clock):
    """Events around a call on a stream of its own, behind a write that leaves nothing of its inputs in the L2 cache.

    The device then waits for as long as the host took to launch the call before, so that all of it is queued when it
    begins, and no gap between launches is timed. Building on the same stream matters: a backward pass runs on the
    stream of its forward pass, and would break the capture of another one.
    """

    captures = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.cold = torch.empty(4 * max(cache, 32 * 2**20), dtype=torch.int8, device=device)
        self._leads: dict[int, float] = {}

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            yield

    def here(self) -> AbstractContextManager[object]:
        return self._on_stream()

    def start(self, call: Call) -> Callable[[], float]:
        self.cold.zero_()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(self._leads.get(id(call), _LEAD) * _CYCLES))
        first.record()
        began = time.perf_counter()
        call()
        self._leads[id(call)] = min(1.2 * (time.perf_counter() - began) + 10e-6, _MOST_LEAD)
        last.record()

        def read() -> float:
            last.synchronize()
            return float(first.elapsed_time(last)) / 1e3

        return read

    def capture(self, call: Call) -> Call:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            call()
        graph.replay()
        torch.cuda.synchronize(self.device)
        return graph.replay

    def held(self) -> tuple[int, int]:
        gc.collect()
        torch.cuda.synchronize(self.device)
        empty_cache()
        return torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)

    def peak(self, call: Call, before: tuple[int, int] | None) -> int | None:
        assert before is not None
        # What torch.compile's own graphs keep for themselves is no live tensor, but it is taken from the device.
        kept = self.held()[1] - before[1]
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        torch.cuda.synchronize(self.device)
        return max(torch.cuda.max_memory_allocated(self.device) - before[0], kept)


# Why no graph is captured any more: a capture that failed may stay open in PyTorch's allocator, and spoil what follows.
_no_capture: list[str] = []


def empty_cache() -> None:
    """Give the device's kept memory back, where no capture that failed forbids it."""
    if not _no_capture:
        torch.cuda.empty_cache()


def clock_of(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else HostClock()


def measure(
    contenders: Sequence[Contender],
    clock: Clock,
    *,
    effort: Effort = Effort(),  # noqa: B008
    deadline: Deadline | None = None,
    patience: float = 90.0,
) -> dict[str, Timing]:
    """Time contenders against each other.

    Each is built and warmed up, in the order given and within ``patience`` seconds; then rounds go over all that are
    ready, each round from another one on. If the quickest takes less than 100 us, all are captured as CUDA graphs; one
    that can not be is timed as it is, with a note, and none is captured behind it in this process.

    Returns:
        Each name with its timing.
    """
    deadline = deadline or Deadline(minutes=1e6)
    found = {contender.name: Timing() for contender in contenders}
    ready: dict[str, Call] = {}
    estimates: dict[str, float] = {}
    with clock.here():
        for contender in contenders:
            _prepare(contender, clock, found[contender.name], ready, estimates, min(patience, deadline.left()))
        if clock.captures and ready and min(estimates.values()) < GRAPH_BELOW:
            for name, call in list(ready.items()):
                ready[name] = _captured(call, clock, found[name])
        rounds = effort.least
        if ready:
            spare = min(effort.seconds, max(deadline.left(), 0.0))
            rounds = min(max(int(spare / (sum(estimates[name] for name in ready) + 1e-9)), effort.least), effort.most)
        began = time.monotonic()
        for number in range(rounds):
            if number >= 3 and deadline.left() < 0:
                break
            if number >= effort.least and time.monotonic() - began > effort.seconds:  # the host's own time comes on top
                break
            _round(ready, clock, found, number)
    return found


def _prepare(
    contender: Contender, clock: Clock, timing: Timing, ready: dict[str, Call], estimates: dict[str, float],
    patience: float,
) -> None:  # fmt: skip
    if patience <= 0:
        timing.reason, timing.tried = "no time was left", False
        return
    try:
        with time_limit(patience):
            before = clock.held()
            call = contender.build()
            for _ in range(WARM_UPS):
                call()
            timing.memory = clock.peak(call, before)
            estimates[contender.name] = min(clock.start(call)() for _ in range(2))
        ready[contender.name] = call
    except OutOfTime:
        timing.reason = f"it was not warm after {patience:.0f} s"
    except Absent as error:
        timing.reason, timing.tried = str(error), False
    except Exception as error:
        timing.reason = reason_of(error)


def _captured(call: Call, clock: Clock, timing: Timing) -> Call:
    if _no_capture:
        timing.notes.append(f"no CUDA graph: an earlier one failed here, {_no_capture[0]}"[:200])
        return call
    try:
        captured = clock.capture(call)
    except Exception as error:
        _no_capture.append(reason_of(error))
        timing.notes.append(f"no CUDA graph: {_no_capture[0]}")
        return call
    timing.notes.append("CUDA graph")
    return captured


def _round(ready: dict[str, Call], clock: Clock, found: dict[str, Timing], number: int) -> None:
    names = list(ready)
    started: dict[str, Callable[[], float]] = {}
    for place in range(len(names)):
        name = names[(place + number) % len(names)]
        try:
            started[name] = clock.start(ready[name])
        except Exception as error:
            found[name].reason = reason_of(error)
            del ready[name]
    for name, read in started.items():
        try:
            found[name].seconds.append(read())
        except Exception as error:
            found[name].reason = reason_of(error)
            ready.pop(name, None)


def reason_of(error: Exception) -> str:
    """An error in one line of at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = lines[0] if lines else "no message"
    kind = "out of memory" if isinstance(error, torch.OutOfMemoryError) else type(error).__name__
    return f"{kind}: {told}"[:200]
