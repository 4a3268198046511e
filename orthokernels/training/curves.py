"""A run's figures as curves for TensorBoard, and its progress on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from orthokernels.errors import InputError

# Told of the steps done, the steps in all, and the latest figures.
Tell = Callable[[int, int, Mapping[str, float]], None]


@contextmanager
def curves(out: Path, start: int, first: bool) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A function that writes figures of a step under ``out``/tensorboard; in processes but the first it does nothing.

    Steps after ``start`` that a killed run had written are replaced.
    """
    if not first:
        yield lambda step, figures: None
        return
    from torch.utils.tensorboard import SummaryWriter

    try:
        writer = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)
    except OSError as error:
        raise InputError(f"{out}: can't be written ({error.strerror}). Choose another --out.") from error

    def write(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    try:
        yield write
    finally:
        writer.close()


@contextmanager
def progress(what: str, every: int, silent: bool = False) -> Iterator[Tell]:
    """A progress bar on a terminal, a line every so many steps elsewhere, nothing when silent; on standard error.

    What is told first is shown whatever its number: where a run begins, before a step that may take a minute.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if silent:
        yield lambda done, steps, figures: None
        return
    if not console.is_terminal:
        yield _lines(what, every)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    shown = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*shown, TextColumn("{task.fields[told]}"), console=console) as bar:
        task = bar.add_task(what, total=None, told="")

        def tell(done: int, steps: int, figures: Mapping[str, float]) -> None:
            bar.update(task, completed=done, total=steps, told=told(figures))

        yield tell


def _lines(what: str, every: int) -> Tell:
    """Lines on standard error, from the second one on with the time that the rest will take at the pace so far."""
    began: tuple[int, float] | None = None

    def line(done: int, steps: int, figures: Mapping[str, float]) -> None:
        nonlocal began
        left = ""
        if began is None or done <= began[0]:  # the first, or once more from the beginning
            began = done, time.monotonic()
        elif done < steps and not (every and done % every == 0):
            return
        elif done < steps:
            pace = (time.monotonic() - began[1]) / (done - began[0])
            left = f"  {timedelta(seconds=round(pace * (steps - done)))} left"
        print(f"{what} {done}/{steps}{told(figures)}{left}", file=sys.stderr, flush=True)

    return line


def told(figures: Mapping[str, float]) -> str:
    """The loss and the first validation figure, in a few characters each."""
    names = ["loss", *[name for name in figures if name.startswith("validation/")][:1]]
    return "".join(f"  {name.replace('/', ' ')} {figures[name]:.4g}" for name in names if name in figures)
