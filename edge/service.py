"""The appliance as one process: what starts, in which order, and how it stops."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orthokernels.edge import audit, viewing, work
from orthokernels.edge.clock import pull_back, push_on
from orthokernels.edge.config import Config
from orthokernels.edge.database import Database, unwritable
from orthokernels.edge.deliveries import Deliveries
from orthokernels.edge.durable import make_folder, remove_unfinished
from orthokernels.edge.mrd.model import InlineModel
from orthokernels.edge.notify import notify, watchdog_seconds
from orthokernels.edge.receive import intake
from orthokernels.edge.receive.folder import FolderWatcher
from orthokernels.edge.receive.intake import Intake
from orthokernels.edge.receive.open_studies import OpenStudies
from orthokernels.edge.receive.scp import Receiver
from orthokernels.edge.receive.stow import StowServer
from orthokernels.edge.retention import Cleaner
from orthokernels.edge.selfcheck import SelfCheck
from orthokernels.edge.send.sender import Sender
from orthokernels.edge.store import Store, remove_unknown
from orthokernels.edge.work import Worker

from orthokernels.errors import InputError

if TYPE_CHECKING:
    from orthokernels.edge.mrd.server import MrdServer

LOG = logging.getLogger("orthokernels.edge")

_HOUSEKEEPING_SECONDS = 1.0
_CLEAN_SECONDS = 60.0
_STOP_SECONDS = 20.0


class Service:
    """Everything that runs. ``start`` returns once the DICOM port listens; ``stop`` once all has ended."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._lock = _lock(config)
        self.store = Store(Database(config.appliance.data))
        undelivered = [peer.ae_title for peer in config.receive.peers if not peer.deliver]
        self.deliveries = Deliveries(self.store, config.destinations, undelivered)
        self._intake = Intake(config, self.store, self.deliveries)
        studies = OpenStudies(self.store)
        self._receiver = Receiver(config, self._intake, studies, self.deliveries.commitment_answered)
        self._stow = StowServer(config, config.stow, self._intake, studies) if config.stow else None
        self._senders = [Sender(config, destination, self.deliveries) for destination in config.destinations]
        self.inline = InlineModel(config) if config.mrd else None
        self._mrd = _mrd_server(config, self.inline, self.store.database) if self.inline else None
        self.workers = [
            Worker(config, self.store, self.deliveries, f"worker-{number}") for number in range(config.work.workers)
        ]
        self._cleaner = Cleaner(self.store, config.appliance.data, config.disk, config.retention)
        self.self_check = SelfCheck(config.appliance.data, self.store.database)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Put right what a crash left, then listen and work.

        Raises:
            InputError: the data folder can't be written, or the port can't be had.
        """
        quiet_libraries()
        try:
            self._recover()
        except sqlite3.OperationalError as error:
            raise unwritable(self.config.appliance.data, error) from error
        self._check()
        self._threads.append(self._receiver.start())  # a port in use stops it before anything else starts
        for number, worker in enumerate(self.workers):
            self.run(worker.run, f"worker-{number}")
        for sender in self._senders:
            self.run(sender.run, f"sender-{sender.name}")
        if self.config.watch is not None:
            self.run(FolderWatcher(self.config.watch, self._intake).run, "folder")
        if self._stow is not None:
            self.run(self._stow.run, "stow")
        if self._mrd is not None and self.inline is not None:
            self.run(self.inline.run, "inline-model")
            self.run(self._mrd.run, "mrd")
        self.run(self._keep_house, "housekeeping")
        title, receive = self.config.appliance.ae_title, self.config.receive
        LOG.info("listening as %s on %s:%d", title, receive.host, receive.port)

    def _recover(self) -> None:
        data = self.config.appliance.data
        for folder in (intake.FOLDER, work.FOLDER):
            make_folder(data / folder)
            remove_unfinished(data / folder)
        at_once = 1 + self.config.receive.limits.associations  # the watched folder's, and one of each
        at_once += self.config.stow.limits.requests if self.config.stow else 0
        swept = remove_unknown(self.store, data, (intake.FOLDER, work.FOLDER), at_once)
        viewing.remove_orphans(data / work.FOLDER)
        given_back = self.store.give_back_expired(all_owners=True)
        self._pull_back()
        self.store.association_closed([job.study_uid for job in self.store.jobs(("received",))], "appliance")
        ended = self.deliveries.end_unknown_destinations()
        with self.store.database.write() as connection:
            audit.append(connection, "started", "appliance", self.config.appliance.ae_title)
        LOG.info("started: %d jobs given back, %d files swept up, %d deliveries ended", given_back, swept, ended)

    def _check(self) -> None:
        """Disk and clock. What was finished is as old as it was, however far the clock was put forward."""
        if (moved := self.self_check.look()) > 0.0:
            push_on(self.store.database, moved)

    def _pull_back(self) -> None:
        """Times that were stored while the clock was ahead."""
        if pulled := pull_back(self.store.database, self.config.work.lease_seconds, self.config.destinations):
            LOG.warning("%d stored times lay ahead of the clock and were taken back to it", pulled)

    def run(self, target: Callable[[threading.Event], Any], name: str) -> None:
        """Start a thread that ends when it is told to; if it ends before that, the appliance is not alive."""
        thread = threading.Thread(target=target, args=(self._stop,), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _keep_house(self, stop: threading.Event) -> None:
        cleaned = 0.0
        while not stop.wait(_HOUSEKEEPING_SECONDS):
            try:
                self.store.give_back_expired()
                self.deliveries.commitment_overdue()
                if time.monotonic() - cleaned > _CLEAN_SECONDS:
                    cleaned = time.monotonic()
                    self._check()
                    self._pull_back()
                    self._cleaner.clean()
            except Exception:  # a fault of ours must not end the thread
                LOG.exception("housekeeping stumbled")

    @property
    def models(self) -> list[Worker | InlineModel]:
        """Whatever keeps a model loaded."""
        return [*self.workers, *([self.inline] if self.inline else [])]

    def alive(self) -> bool:
        """Whether every thread that was started still runs."""
        return all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Refuse what is new, end the workers; what is unfinished goes on at the next start."""
        self._receiver.stop()
        self._stop.set()
        for model in self.models:
            model.stop()
        until = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))
        with self.store.database.write() as connection:
            audit.append(connection, "stopped", "appliance", self.config.appliance.ae_title)
        self.store.database.close()
        os.close(self._lock)


def serve(config: Config) -> None:
    """Run until SIGTERM or SIGINT."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    from orthokernels.edge.web import Page

    service = Service(config)
    page = Page(service)  # a token that can't be read, or a port in use, stops it before anything starts
    service.start()
    page.start()
    notify("READY=1")
    while not ended.wait(watchdog_seconds()):
        if service.alive() and service.store.waiting() >= 0:  # a database that hangs, hangs this too
            notify("WATCHDOG=1")
    notify("STOPPING=1")
    service.stop()


def quiet_libraries() -> None:
    """Libraries tell of names, UIDs and bytes that came in lines of their own; ours tell of hashes."""
    warnings.simplefilter("ignore")
    for name in ("pydicom", "pynetdicom", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _mrd_server(config: Config, model: InlineModel, database: Database) -> MrdServer:
    """Imported only where it is wanted: ismrmrd brings HDF5 along."""
    from orthokernels.edge.mrd.server import MrdServer

    assert config.mrd is not None
    return MrdServer(config, config.mrd, model, database)


def _lock(config: Config) -> int:
    """One appliance per data folder.

    Raises:
        InputError: another one runs on it, or it can't be made or written.
    """
    data = config.appliance.data
    try:
        make_folder(data)
        descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        told = f"appliance.data: {data}: can't be made or written ({error.strerror})"
        raise InputError(f"{told}. Make it for the user who runs this, or name another folder.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise InputError(f"{data}: another appliance runs on this folder. Stop it first.") from None
    return descriptor
