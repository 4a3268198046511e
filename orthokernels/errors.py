"""Errors that are the input's or the installation's fault, not the program's: one clear sentence, exit code 2."""

from __future__ import annotations

from importlib.util import find_spec


class InputError(Exception):
    """What was given can not be used. The message says what, where and what to do about it."""


class MissingExtraError(InputError):
    """A command needs a part of the package that was not installed."""

    def __init__(self, needs: str, module: str, extra: str) -> None:
        super().__init__(
            f"{needs} needs {module}, which is not installed. Install it: pip install 'orthokernels[{extra}]'"
        )


def need(what: str, module: str, extra: str) -> None:
    """Raise MissingExtraError unless ``module``, which ``what`` needs and ``extra`` installs, is here."""
    if find_spec(module) is None:
        raise MissingExtraError(what, module, extra)
