"""The result of one check: what was looked at, what was found, what is allowed, and a sentence for the reader."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "doubtful", "failed"]


@dataclass(frozen=True)
class Check:
    """One check of a study or of its result.

    Attributes:
        name: what was looked at: "body part", "slice distance", "volume", ...
        verdict: "failed" means that no result may be given; "doubtful" that a reader must know of it.
        reason: a sentence, whatever the verdict.
        plane, structure: what it is about, where it is about one.
        measured: the number that was looked at.
        allowed: the least and the greatest number that pass.
    """

    name: str
    verdict: Verdict
    reason: str
    plane: str | None = None
    structure: str | None = None
    measured: float | None = None
    allowed: tuple[float, float] | None = None


def within(
    name: str,
    measured: float,
    allowed: tuple[float, float],
    unit: str,
    *,
    otherwise: Verdict,
    plane: str | None = None,
    structure: str | None = None,
) -> Check:
    """Check that a number lies in a range."""
    what = ", ".join(part for part in (plane, structure and structure.replace("_", " "), name) if part)
    low, high = allowed
    passes = low <= measured <= high
    reason = f"{what}: {measured:.3g}{unit}, {'within' if passes else 'outside'} {low:.3g} to {high:.3g}{unit}"
    return Check(name, "passed" if passes else otherwise, reason, plane, structure, measured, allowed)


def failures(checks: Iterable[Check]) -> list[str]:
    """The reasons why no result may be given; none where one may."""
    return [check.reason for check in checks if check.verdict == "failed"]


def doubts(checks: Iterable[Check]) -> list[str]:
    """What a reader of the result must know."""
    return [check.reason for check in checks if check.verdict == "doubtful"]
