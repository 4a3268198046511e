"""How far a long command has come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

# Told of each step: what is being done, steps done, steps in all.
Progress = Callable[[str, int, int], None]


@contextmanager
def progress(silent: bool) -> Iterator[Progress]:
    """A progress bar on a terminal, plain lines elsewhere, nothing when silent. All of it goes to standard error."""
    console = Console(stderr=True, highlight=False)
    if silent:
        yield lambda what, done, total: None
        return
    if not console.is_terminal:
        yield lambda what, done, total: print(f"{what} {done + 1}/{total}" if total > 1 else what, file=sys.stderr)
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (SpinnerColumn(), TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(what: str, done: int, total: int) -> None:
            part = f"{what} {done + 1}/{total}" if total > 1 else what
            bar.update(task, description=part, completed=done, total=total if total > 1 else None)

        yield tell
