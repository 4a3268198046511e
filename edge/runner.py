"""The process that touches pixels: it decodes, infers and writes, within limits of memory that the appliance sets.

It reads one JSON object per line from its standard input (first the configuration, then requests) and answers each with
lines on its standard output, the last of which has "done". Whatever libraries print goes to standard error. It ends
with the appliance, whichever way that ends.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from orthokernels.edge.config import Config
from orthokernels.edge.forms import NEEDED, form_of
from orthokernels.edge.store import Verdict

from orthokernels.errors import InputError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_FULL = (errno.ENOSPC, errno.EDQUOT)
OUT_OF_MEMORY = 77  # exit status, so that the reason can be told


@dataclass(frozen=True)
class Request:
    """One study. ``out`` is an empty folder.

    Attributes:
        received: when the last of its images came, in seconds since 1970; 0 where nothing that is made bears a moment.
        supersedes: the reports of the versions before, newest first.
        reasons: why it gets no result, where that is what is asked for.
    """

    sources: tuple[Path, ...]
    out: Path
    received: float = 0.0
    supersedes: tuple[Path, ...] = ()
    reasons: tuple[str, ...] = ()


class Rejected(Exception):  # noqa: N818 - an outcome, not an error
    """The study gets no result; each reason is a sentence for the reader."""

    def __init__(self, *reasons: str) -> None:
        super().__init__(" ".join(reasons))
        self.reasons = reasons


class Evaluator(Protocol):
    """What the process does with a study.

    Attributes:
        verified: what the model was tried on before it may work, and how that came out; None where it could not be.
    """

    verified: str | None

    def examine(self, sources: Sequence[Path]) -> tuple[Verdict, str]:
        """Whether it is all there, and fit for the model."""

    def evaluate(self, request: Request, tell: Callable[[str, int, int], None], writing: Callable[[], None]) -> None:
        """Fill ``request.out`` with the results' DICOM files; call ``writing`` when the model is done.

        Raises:
            Rejected: it gets no result.
        """

    def label(self, request: Request) -> dict[str, Any]:
        """Label the NIfTI files ``request.sources``, for inline use.

        Fills ``request.out`` with one ``PLANE.npy`` for each plane, axes (i, j, k) of its file, uint8.

        Returns:
            "planes", the name of the file that each plane's labels are of; "findings" and "remarks", sentences.

        Raises:
            Rejected: they get no labels.
        """

    def abstain(self, request: Request) -> None:
        """Fill ``request.out`` with DICOM files that tell ``request.reasons``; nothing, where that can't be said."""


def serve(make: Callable[[Config], Evaluator]) -> None:
    """Answer requests until standard input ends. ``make`` loads the model, once."""
    end_with_parent()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    config = Config.model_validate_json(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_DATA, (config.work.memory_bytes, config.work.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold patients' images
    try:
        evaluator = make(config)
        _say(answers, done=True, verified=evaluator.verified)
        for line in sys.stdin:
            _answer(evaluator, json.loads(line), answers)
    except InputError as error:
        _say(answers, done=True, unusable=str(error))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def end_with_parent() -> None:
    """A worker that outlives the appliance would write into folders that a new one owns."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes, not the receiver


def _answer(evaluator: Evaluator, asked: dict[str, Any], answers: TextIO) -> None:
    sources = tuple(map(Path, asked["sources"]))
    if asked["do"] == "examine":
        verdict, because = evaluator.examine(sources)
        _say(answers, done=True, verdict=verdict, because=because)
        return
    request = Request(
        sources,
        Path(asked["out"]),
        received=float(asked.get("received", 0.0)),
        supersedes=tuple(map(Path, asked.get("supersedes", ()))),
        reasons=tuple(asked.get("reasons", ())),
    )
    rejected: list[str] | None = None
    told: dict[str, Any] = {}
    try:
        if asked["do"] == "abstain":
            evaluator.abstain(request)
        elif asked["do"] == "label":
            told = evaluator.label(request)
        else:
            evaluator.evaluate(
                request,
                lambda what, done, total: _say(answers, progress=f"{what} {done + 1}/{total}" if total > 1 else what),
                lambda: _say(answers, writing=True),
            )
    except Rejected as rejection:
        rejected = list(rejection.reasons)
    except InputError as error:
        rejected = [without_paths(str(error), sources)]
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise InputError(f"there is no room for results ({error.strerror})") from error  # no fault of the study's
    made = [_made(path) for path in sorted(request.out.glob("*.dcm"))]
    _say(answers, done=True, rejected=rejected, made=made, **told)


def without_paths(message: str, sources: Sequence[Path]) -> str:
    """A message about files, for readers to whom our names of them say nothing."""
    message = message.removeprefix(f"{', '.join(map(str, sources))}: ")
    for path in sources:
        message = message.replace(f"{path}: ", "an image: ").replace(str(path), "an image")
    return message[:500]


def _made(path: Path) -> dict[str, str | None]:
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*NEEDED, "SOPInstanceUID"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": path.name,
        "sop_class": str(header.SOPClassUID),
        "sop_uid": str(header.SOPInstanceUID),
        "digest": digest,
        "form": form_of(header),
    }


def _say(answers: TextIO, **told: Any) -> None:
    answers.write(json.dumps(told) + "\n")
