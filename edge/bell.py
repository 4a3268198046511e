"""Wakes threads that wait for work as soon as there is some, so that they need not look for it often."""

from __future__ import annotations

import threading


class Bell:
    """Counts how often it rang, so that a ring between looking for work and waiting for it is not missed."""

    def __init__(self) -> None:
        self._rung = threading.Condition()
        self.count = 0

    def ring(self) -> None:
        """Wake everyone who waits."""
        with self._rung:
            self.count += 1
            self._rung.notify_all()

    def wait(self, heard: int, seconds: float) -> None:
        """Wait until it has rung again since it had rung ``heard`` times, at most ``seconds``."""
        with self._rung:
            self._rung.wait_for(lambda: self.count != heard, seconds)
