"""Holds the worker's process: starts it, gives it requests, and ends it when it takes too long or falls silent."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from orthokernels.edge.config import Config
from orthokernels.edge.runner import OUT_OF_MEMORY

from orthokernels.errors import InputError

LOG = logging.getLogger("orthokernels.edge.work")

# A line of an answer; what a worker says is checked too, since it has read what came from outside.
_LONGEST_LINE = 2**20


class WorkerDiedError(Exception):
    """The process ended, or was ended, before it had answered."""


class Guard:
    """One worker process, started when it is first asked and again after each death. It keeps the model loaded."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self.ready = False
        self.verified: str | None = None  # on what the process has tried its model

    def ask(
        self,
        request: dict[str, Any],
        seconds: float,
        *,
        told: Callable[[dict[str, Any]], None] = lambda told: None,
        alive: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Send a request and wait for its last answer; ``told`` gets those before it, ``alive`` is called each second.

        Raises:
            WorkerDiedError: the process died or took longer than ``seconds``; the reason is the message.
            InputError: the model can't be loaded, or there is no room for what it makes.
        """
        try:
            self._start_unless_it_runs(alive)
            self._send(request)
            answer = self._wait(seconds, told, alive)
            if "unusable" in answer:
                raise InputError(str(answer["unusable"]))
            return answer
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Start the process before it is asked, or again where it died idle: the model is there when a study comes.

        Raises:
            InputError: the model can't be loaded.
        """
        try:
            self._start_unless_it_runs(lambda: None)
        except BaseException:
            self.stop()
            raise

    def _start_unless_it_runs(self, alive: Callable[[], None]) -> None:
        if self.ready and self._process is not None and self._process.poll() is None:
            return
        if self.ready:
            LOG.warning("the worker process died idle: %s", self._how_it_ended())
        self.stop()
        self._start(alive)

    def _start(self, alive: Callable[[], None]) -> None:
        self._unread = b""
        self._process = subprocess.Popen(
            self._config.work.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._send(self._config.model_dump(mode="json"))
        ready = self._wait(self._config.work.start_seconds, lambda told: None, alive)
        if "unusable" in ready:
            raise InputError(str(ready["unusable"]))
        self.verified = ready.get("verified")
        self.ready = True

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerDiedError(self._how_it_ended()) from error

    def _wait(
        self, seconds: float, told: Callable[[dict[str, Any]], None], alive: Callable[[], None]
    ) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                for answer in self._answers():
                    if answer.get("done"):
                        return answer
                    told(answer)
                if time.monotonic() > until:
                    raise WorkerDiedError(f"it took longer than {seconds:g} seconds")
                if selector.select(timeout=1.0):
                    self._read()
                alive()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        part = self._process.stdout.read(2**16)
        if not part or len(self._unread) > _LONGEST_LINE:
            raise WorkerDiedError(self._how_it_ended())
        self._unread += part

    def _answers(self) -> Sequence[dict[str, Any]]:
        *lines, self._unread = self._unread.split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise WorkerDiedError("its answer is not JSON") from error

    def _how_it_ended(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        status = self._process.returncode
        if status is None:
            return "it closed its output"
        if status == OUT_OF_MEMORY:
            return f"it needed more than {self._config.work.memory_bytes >> 20} MB of memory"
        if status < 0:
            return f"it was ended by {signal.Signals(-status).name}"
        return f"it ended with exit status {status}"

    def kill(self) -> None:
        """End the process and all that it has started; may be called from another thread than that which waits."""
        process = self._process
        if process is not None and process.poll() is None:  # a number that was given back may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the process, and let go of it."""
        self.ready = False
        if self._process is None:
            return
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None


class Guarded:
    """Keeps a process of the model running: what is told of it, and how it is ended from another thread.

    Attributes:
        unusable: why there is no model, where there is none.
    """

    def __init__(self, config: Config) -> None:
        self._guard = Guard(config)
        self.unusable: str | None = None

    @property
    def loaded(self) -> bool:
        """Whether the process has said that its model is ready."""
        return self._guard.ready

    @property
    def verified(self) -> str | None:
        """How the process's model came through its golden case; None where there was none to try it on."""
        return self._guard.verified

    def stop(self) -> None:
        """End the process; the thread, which waits for it, goes on to see that it is told to stop."""
        self._guard.kill()
