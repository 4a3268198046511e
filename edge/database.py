"""One SQLite file for all that must not be lost: write-ahead log, every commit synced to disk."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orthokernels.edge.durable import make_folder

from orthokernels.errors import InputError

NAME = "appliance.sqlite3"
_SCHEMA = Path(__file__).with_name("schema.sql")

# 2 added corrections, and indexes of the audit log; 3 the forms of segmentation; 4 indexes of what is still here;
# 5 images that are done without. The schema only ever adds, so that reading it again brings an older file up to date.
_VERSION = 5


class Database:
    """One connection, shared by the process's threads in turn: each of our transactions takes about a millisecond.

    Raises:
        InputError: the file was written by a newer version, is no database, or can't be opened or written now.
    """

    def __init__(self, data: Path) -> None:
        make_folder(data)
        self.path = data / NAME
        self._lock = threading.RLock()
        self._depth = 0
        self._afterwards: list[Callable[[], None]] = []
        try:
            self._connection = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=30.0)
            self._connection.row_factory = sqlite3.Row
            self.path.chmod(0o600)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._prepare()
        except (sqlite3.OperationalError, OSError) as error:
            raise unwritable(data, error) from error
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.path}: can't be used as a database ({error}). Restore it from a copy.") from error

    def _prepare(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise InputError(f"{self.path}: was written by a newer orthokernels. Install that version again.")
        if version < _VERSION:
            self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA.read_text()} PRAGMA user_version = {_VERSION};")
            self._connection.execute("COMMIT")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on disk when this ends, or nothing. One within another joins it."""
        with self._lock:
            if self._depth == 0:
                self._connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self._connection
            except BaseException:
                self._depth -= 1
                if self._depth == 0:
                    self._afterwards.clear()
                    if self._connection.in_transaction:  # a full disk has rolled it back already
                        self._connection.execute("ROLLBACK")
                raise
            self._depth -= 1
            if self._depth == 0:
                self._commit()

    def _commit(self) -> None:
        afterwards, self._afterwards = self._afterwards, []
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        for call in afterwards:
            call()

    def afterwards(self, call: Callable[[], None]) -> None:
        """Call this once the transaction that is open now is on disk; never, if it is rolled back."""
        self._afterwards.append(call)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            yield self._connection

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def unwritable(data: Path, error: sqlite3.OperationalError | OSError) -> InputError:
    """What is said where nothing is wrong with the database, but with what it lies on or with who else holds it."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    remedy = "See that its disk has room and can be written, and that no other program holds the file."
    return InputError(f"{data / NAME}: can't be opened or written now ({why}). {remedy}")
