"""What goes on beside an input while a server takes it: exceptions that end threads, errors that are logged."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from orthokernels.bench.edge.fuzz.target import Target

_SETTLE_SECONDS = 10.0


class Watch:
    """Watches from ``start`` to ``stop``.

    Args:
        loggers: where errors are logged, which are tracebacks that were caught.
    """

    def __init__(self, *loggers: str) -> None:
        self._loggers = [logging.getLogger(name) for name in loggers]
        self._uncaught: list[BaseException] = []
        self._logged = _Errors()

    def start(self) -> None:
        self._hook, threading.excepthook = threading.excepthook, self._note
        for logger in self._loggers:
            logger.addHandler(self._logged)

    def stop(self) -> None:
        threading.excepthook = self._hook
        for logger in self._loggers:
            logger.removeHandler(self._logged)

    def _note(self, told: threading.ExceptHookArgs) -> None:
        if told.exc_value is not None:
            self._uncaught.append(told.exc_value)

    def check(self) -> None:
        """No thread ended by an exception, and nothing was logged as an error."""
        if self._uncaught:
            raise self._uncaught.pop()
        assert not self._logged.records, self._logged.records.pop()


class Served(Target):
    """A target that is a server's ``run`` in a thread, under a watch until the end."""

    def serve(self, run: Callable[[threading.Event], None], *loggers: str) -> None:
        """Begin; ``loggers`` as of ``Watch``."""
        self._watch, self._stop = Watch(*loggers), threading.Event()
        self._watch.start()
        self._thread = threading.Thread(target=run, args=(self._stop,))
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._watch.stop()


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


def settled(condition: Callable[[], bool], seconds: float = _SETTLE_SECONDS) -> bool:
    """Whether ``condition`` holds, at once or before long: a server has more to do when its answer is there."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return condition()
