"""Being asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


class AskedToStop(SystemExit):
    """A run that a signal asked to stop, all its steps in a checkpoint; the exit code is 128 + the signal's number."""

    def __init__(self, number: int, step: int, place: Path) -> None:
        super().__init__(128 + number)
        self.told = f"stopped after step {step}; the same command goes on from {place}"


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list whose one number becomes that of the first SIGTERM or SIGINT; a second one ends the process at once."""
    asked = [0]
    before: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():  # there, signals are not ours to take
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked[0] = number
        for own, handler in before.items():
            signal.signal(own, handler)

    for number in (int(signal.SIGTERM), int(signal.SIGINT)):
        before[number] = signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
