"""A run in a process of its own: it notes which input it is at before taking it, so that even a crash has a number."""

from __future__ import annotations

import json
import mmap
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from orthokernels.bench.edge.fuzz import TARGETS
from orthokernels.bench.edge.fuzz.mutate import mutated
from orthokernels.bench.edge.fuzz.target import Target
from orthokernels.edge.config import Work

# No input is longer than some kilobytes; what takes this long on it is a way to hold the appliance up.
SLOW_SECONDS = 5.0

# The worker's limit, a quarter of it: what needs more for some kilobytes is a bomb.
_MEMORY_BYTES = Work().memory_bytes // 4

_CHECK_EVERY = 200


def corpus(folder: Path, target: str) -> list[Path]:
    """Inputs that once failed, and some that are the first to try."""
    return sorted((folder / target).glob("*.bin"))


def make(target: str, folder: Path, seed: int, index: int) -> bytes:
    """An input of a run, without running it."""
    own = TARGETS[target](folder)
    return mutated(own.seeds, own.fragments, seed, index)


def run(target: str, seed: int, first: int, count: int, again: Path | None, marker: Path) -> None:
    """Take inputs ``first`` to ``first + count``, those of the corpus ``again`` before them; tell by JSON lines.

    ``marker``, a file of 8 bytes, holds the number of the input that is being taken; the corpus counts from below 0.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    told: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, marker.open("r+b") as file:
        place = mmap.mmap(file.fileno(), 8)
        with TARGETS[target](Path(folder)) as own:

            def inputs() -> Iterator[tuple[int, bytes]]:
                old = corpus(again, target) if again is not None else []
                for number, path in enumerate(old):
                    yield number - len(old), path.read_bytes()
                for index in range(first, first + count):
                    yield index, mutated(own.seeds, own.fragments, seed, index)

            for index, content in inputs():
                place[:8] = struct.pack("<q", index)
                what = _taken(own, content, index)
                told[what] = told.get(what, 0) + 1
                if (index + 1) % _CHECK_EVERY == 0 or index == first + count - 1:
                    _checked(own, index)
    _say(done=told)


def _taken(own: Target, content: bytes, index: int) -> str:
    started = time.perf_counter()
    try:
        what = str(own.take(content))
    except Exception:
        _say(finding=index, why=traceback.format_exc(limit=-3))
        return "finding"
    if (seconds := time.perf_counter() - started) > SLOW_SECONDS:
        _say(finding=index, why=f"took {seconds:.1f} seconds")
        return "finding"
    return what


def _checked(own: Target, index: int) -> None:
    try:
        own.check()
    except Exception:
        _say(finding=index, why=f"by one of the last {_CHECK_EVERY}: {traceback.format_exc(limit=-3)}")


def _say(**told: object) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    target, seed, first, count, again, marker = sys.argv[1:]
    run(target, int(seed), int(first), int(count), Path(again) if again else None, Path(marker))
