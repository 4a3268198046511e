"""An appliance that ends itself by SIGKILL just before or just after a given event of its log is committed.

Arguments: the configuration as JSON; the event, or "none"; "before" or "after"; at which of its occurrences, by default
the first.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from orthokernels.edge import audit
from orthokernels.edge.config import Config
from orthokernels.edge.database import Database
from orthokernels.edge.service import serve


def main(config: Config, event: str, when: str, occurrence: int) -> None:
    append, commit = audit.append, Database._commit
    happening: set[str] = set()
    left = occurrence

    def noted(connection, what, *rest):
        happening.add(what)
        append(connection, what, *rest)

    def committed(self) -> None:
        nonlocal left
        left -= event in happening
        struck = event in happening and left <= 0
        happening.clear()
        if struck and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        commit(self)
        if struck:
            os.kill(os.getpid(), signal.SIGKILL)

    audit.append, Database._commit = noted, committed
    serve(config)


if __name__ == "__main__":
    main(Config.model_validate_json(Path(sys.argv[1]).read_text()), sys.argv[2], sys.argv[3], int((*sys.argv, 1)[4]))
