"""The worker process for inline use: one of its own, so that no study in the queue is waited for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orthokernels.edge import metrics
from orthokernels.edge.config import Config
from orthokernels.edge.guard import Guarded, WorkerDiedError

from orthokernels.errors import InputError

LOG = logging.getLogger("orthokernels.edge.mrd")

_LOOK_SECONDS = 0.2
_UNUSABLE_SECONDS = 30.0


class NoLabelsError(Exception):
    """The images get no labels; the message says why."""


class InlineModel(Guarded):
    """Keeps the process running, and asks it for one scanner at a time."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._free = threading.Lock()

    def run(self, stop: threading.Event) -> None:
        """Start the process, and again after each death, until told to stop."""
        while not stop.is_set():
            pause = _LOOK_SECONDS
            with self._free:
                try:
                    if not stop.is_set():
                        self._guard.start()
                    self.unusable = None
                except (InputError, WorkerDiedError) as error:
                    self.unusable = f"the model for inline use can't be used: {error}"
                    LOG.error("%s", self.unusable)
                    pause = _UNUSABLE_SECONDS
            stop.wait(pause)
        with self._free:
            self._guard.stop()

    def label(self, sources: Sequence[Path], out: Path, until: float) -> dict[str, Any]:
        """Label volumes before ``until``, by the monotonic clock; what the process answers, checked by who asked.

        Raises:
            NoLabelsError: there is no model, no time, or the volumes were rejected.
        """
        if not self._free.acquire(timeout=max(until - time.monotonic(), 0.0)):
            raise NoLabelsError("there was no time left: the model was busy")
        try:
            if not self._guard.ready:
                raise NoLabelsError(self.unusable or "the model is not loaded yet")
            left = max(until - time.monotonic(), 0.0)
            request = {"do": "label", "sources": [str(path) for path in sources], "out": str(out)}
            with metrics.SECONDS.labels("inline").time():
                answer = self._guard.ask(request, left)
        except WorkerDiedError as death:
            metrics.CRASHES.inc()
            raise NoLabelsError(f"the model gave no answer: {death}") from death
        finally:
            self._free.release()
        if answer.get("rejected"):
            raise NoLabelsError(" ".join(map(str, answer["rejected"])))
        return answer
