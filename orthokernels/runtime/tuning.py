"""Which engine and form of a bundle is fastest on this very machine: measured once, written down, used by ``run``.

The choice lies in the user's cache, not in the bundle, which nobody may change. It belongs to one bundle, one
processor, and the versions of the engines that were timed.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np

from orthokernels.bundle.manifest import ENGINES_OF, Form
from orthokernels.bundle.verify import Bundle
from orthokernels.errors import InputError
from orthokernels.folders import add_to_table, cache_folder, read_table
from orthokernels.models.study_model import PlaneModel, StudyModel
from orthokernels.system import processor, versions


@dataclass(frozen=True)
class Choice:
    """An engine, and the form of the graphs it runs."""

    engine: str
    form: Form


@dataclass(frozen=True)
class Timing:
    """Seconds of one slab of every plane, features and heads: the median of the rounds. Or why there are none."""

    engine: str
    form: Form
    seconds: float | None
    reason: str | None = None


def tune(
    bundle: Bundle,
    joint: str,
    planes: Sequence[str],
    *,
    rounds: int = 3,
    tell: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Timing]:
    """Time every engine that is installed in every form that the bundle has, round by round, and keep the fastest.

    Each round times one plane after the other, so that every contender meets the same moods of the machine.

    Returns:
        What was timed, fastest first; those that can not run come last.

    Raises:
        InputError: no engine can run the bundle.
    """
    from orthokernels.runtime.model import open_bundle

    found: list[Timing] = []
    models: dict[Choice, StudyModel] = {}
    for choice in contenders(bundle):
        try:
            models[choice] = open_bundle(bundle, joint, planes, choice.engine, choice.form)
        except InputError as error:
            found.append(Timing(choice.engine, choice.form, None, str(error)))
    taken: dict[Choice, float] = dict.fromkeys(models, 0.0)
    for number, plane in enumerate(planes):
        tell(f"{plane.capitalize()}: timing", number, len(planes))
        rows = {choice: model.planes[plane] for choice, model in models.items() if plane in model.planes}
        for choice, seconds in _time(rows, bundle.manifest.size, bundle.manifest.depth, rounds).items():
            if isinstance(seconds, InputError):
                found.append(Timing(choice.engine, choice.form, None, str(seconds)))
                del models[choice], taken[choice]
            else:
                taken[choice] += seconds
        for model in models.values():
            model.release()
    if not taken:
        raise InputError(f"{bundle.folder}: no engine here can run it. {found[-1].reason if found else ''}")
    done = sorted((Timing(own.engine, own.form, seconds) for own, seconds in taken.items()), key=_by_seconds)
    write_choice(bundle.digest, joint, done)
    return [*done, *found]


def _by_seconds(timing: Timing) -> float:
    assert timing.seconds is not None
    return timing.seconds


def goes_together(engine: str, form: str) -> bool:
    """Whether an engine is one that a form is run by; the native one computes in fp32 alone."""
    return form == "fp32" if engine == "native" else engine in ENGINES_OF.get(cast(Form, form), ())


def contenders(bundle: Bundle) -> Iterator[Choice]:
    """Every engine that is installed, in every form that the bundle has and it runs."""
    if bundle.manifest.native:
        yield Choice("native", "fp32")
    for form in bundle.manifest.forms:
        yield from (Choice(engine, form) for engine in ENGINES_OF[form] if find_spec(engine))


def _time(rows: dict[Choice, PlaneModel], size: int, depth: int, rounds: int) -> dict[Choice, float | InputError]:
    """Median seconds of a slab, or why it can't be run."""
    x0 = np.random.default_rng(0).uniform(-1, 1, (depth, size, size)).astype(np.float32)
    taken: dict[Choice, list[float]] = {choice: [] for choice in rows}
    failed: dict[Choice, float | InputError] = {}
    for _ in range(1 + rounds):  # the first opens the graphs and warms up
        for choice, model in rows.items():
            if choice in failed:
                continue
            started = time.perf_counter()
            try:
                model.heads(model.features(x0, seed=0, draws=1, sample=0), x0)
            except InputError as error:
                failed[choice] = error
                continue
            taken[choice].append(time.perf_counter() - started)
    medians = {choice: statistics.median(own[1:]) for choice, own in taken.items() if choice not in failed}
    return {**failed, **medians}


def write_choice(digest: str, joint: str, timings: Sequence[Timing]) -> None:
    """Write down what was timed, fastest first."""
    add_to_table(choices_file(), _key(digest, joint), [asdict(timing) for timing in timings])


def tuned(digest: str, joint: str, engine: str = "auto") -> Choice | None:
    """What was fastest on this machine, of one engine or of all; None where nothing was timed here.

    Pairs that an earlier version timed, and that do not go together, are passed over, and so is what is damaged.
    """
    rows = read_table(choices_file()).get(_key(digest, joint))
    for row in rows if isinstance(rows, list) else ():
        own, form = (row.get(name) for name in ("engine", "form")) if isinstance(row, dict) else (None, None)
        if isinstance(own, str) and isinstance(form, str) and engine in ("auto", own) and goes_together(own, form):
            return Choice(own, cast(Form, form))
    return None


def choices_file() -> Path:
    """The table of what was timed on this machine."""
    return cache_folder() / "tuning" / "bundles.json"


def _key(digest: str, joint: str) -> str:
    """Of the bundle, the joint, the processor, and the versions of what computes."""
    own = versions()
    engines = {name: own.get(name) for name in ("orthokernels", "openvino", "onnxruntime")}
    here = hashlib.sha256(json.dumps([processor(), engines], sort_keys=True).encode()).hexdigest()
    return f"{digest[:16]} {joint} {here[:16]}"
