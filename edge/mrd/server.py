"""The MRD port: who may connect, how many at once, and what is noted of each connection."""

from __future__ import annotations

import logging
import shutil
import socket
import threading
import time
from contextlib import suppress

from orthokernels.edge import audit, metrics
from orthokernels.edge.config import Config, Mrd
from orthokernels.edge.database import Database
from orthokernels.edge.durable import make_folder, name_of
from orthokernels.edge.mrd.messages import Stream
from orthokernels.edge.mrd.model import InlineModel
from orthokernels.edge.mrd.session import Session
from orthokernels.edge.receive.connection import within
from orthokernels.edge.receive.listening import listen

LOG = logging.getLogger("orthokernels.edge.mrd")
FOLDER = "inline"

_LOOK_SECONDS = 0.2
_LINGER_SECONDS = 2.0
_STOP_SECONDS = 5.0


class MrdServer:
    """Listens until it is stopped.

    Raises:
        InputError: the port can't be had.
    """

    def __init__(self, config: Config, mrd: Mrd, model: InlineModel, database: Database) -> None:
        self._mrd = mrd
        self._model = model
        self._database = database
        self._disk = config.disk
        self._folder = config.appliance.data / FOLDER
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._socket = listen("mrd", mrd.host, mrd.port)

    def run(self, stop: threading.Event) -> None:
        """Serve until told to stop. What an earlier process left of its work is removed first."""
        shutil.rmtree(self._folder, ignore_errors=True)
        make_folder(self._folder)
        self._socket.settimeout(_LOOK_SECONDS)
        while not stop.is_set():
            try:
                connection, address = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:
                LOG.exception("a connection could not be taken")
                stop.wait(_LOOK_SECONDS)
                continue
            self._admit(connection, str(address[0]))
        self._socket.close()
        with self._lock:
            still_open = dict(self._open)
        for connection, thread in still_open.items():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(_STOP_SECONDS)

    def _admit(self, connection: socket.socket, host: str) -> None:
        refused = None
        thread = threading.Thread(target=self._serve, args=(connection, host), name=f"mrd-{host}", daemon=True)
        with self._lock:
            if not within(host, self._mrd.hosts):
                refused = "wrong host"
            elif len(self._open) >= self._mrd.limits.connections:
                refused = "too many"
            else:
                self._open[connection] = thread
        if refused:
            metrics.CONNECTIONS.labels(refused).inc()
            LOG.warning("closed an MRD connection from %s: %s", host, refused)
            connection.close()
            return
        metrics.CONNECTIONS.labels("accepted").inc()
        thread.start()

    def _serve(self, connection: socket.socket, host: str) -> None:
        name = name_of(f"{host} {time.time_ns()}")
        outcome = "failed: the scanner was gone before it was answered"
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = Stream(connection, self._mrd.limits)
            ended = Session(stream, self._model, self._folder, self._disk, self._mrd).run()
            outcome = f"{ended.returned} images returned, {ended.made} made"
            if ended.reason:
                outcome = f"{outcome}: {ended.reason}"
            stream.finish(_LINGER_SECONDS)
        except OSError as error:
            LOG.warning("the MRD connection from %s broke: %s", host, error)
        finally:
            with self._lock:
                del self._open[connection]
            connection.close()
            LOG.info("MRD connection %s from %s: %s", name, host, outcome)
            try:
                with self._database.write() as database:
                    audit.append(database, "inline", host, name, outcome)
            except Exception:  # the scanner was answered, and its place is another's now
                LOG.exception("an MRD connection could not be noted in the audit log")
