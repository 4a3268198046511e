"""Which studies the open connections are bringing: one ends only with the last connection that brought images of it."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from orthokernels.edge.store import Store


class OpenStudies:
    """Shared by all ways in that have an end: associations and requests."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._of: dict[Hashable, set[str]] = {}
        self._lock = threading.Lock()

    def brought(self, connection: Hashable, study_uid: str) -> None:
        """An image of this study came on an open connection."""
        with self._lock:
            self._of.setdefault(connection, set()).add(study_uid)

    def any(self) -> bool:
        """Whether any connection that has brought images is open."""
        return bool(self._of)

    def closed(self, connection: Hashable) -> None:
        """The connection has ended; studies that no other one brings begin to settle."""
        with self._lock:
            ended = self._of.pop(connection, set())
            ended -= {study for studies in self._of.values() for study in studies}
        self._store.association_closed(ended, "appliance")
