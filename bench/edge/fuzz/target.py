"""What is fuzzed, as the fuzzer sees it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class Target(abc.ABC):
    """Takes one input after the other, between ``__enter__`` and ``__exit__``.

    Attributes:
        seeds: good inputs, which are mutated.
        fragments: bytes that are known to be trouble here, which mutations insert.
    """

    seeds: Sequence[bytes]
    fragments: Sequence[bytes] = ()

    @abc.abstractmethod
    def __init__(self, folder: Path) -> None:
        """``folder`` is empty, and the target's own."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @abc.abstractmethod
    def take(self, content: bytes) -> str:
        """What became of an input, in a word: "taken" or "refused".

        Raises:
            Exception: something that should not happen to anybody; whatever it is, it is a finding.
        """

    def check(self) -> None:  # noqa: B027 - most have nothing to check
        """Called now and then, and at the end: whether all is still well.

        Raises:
            Exception: it is not, by one of the inputs since the last time.
        """
