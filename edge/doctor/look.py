"""One look at one thing: what was looked at, whether it is in order, what was seen, and what to do where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Look:
    """``remedy`` is for "failed" and "note"; a note is nothing that stops the appliance from doing its work."""

    what: str
    verdict: Verdict
    seen: str
    remedy: str = ""
