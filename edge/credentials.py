"""Secrets from files, so that no configuration, command line or log holds one."""

from __future__ import annotations

from pathlib import Path

from orthokernels.errors import InputError

SHORTEST_TOKEN = 16


def read_secret(path: Path, setting: str, shortest: int = 1) -> str:
    """The one line of printable ASCII that a file holds.

    Raises:
        InputError: it can't be read, holds something else, or fewer than ``shortest`` characters.
    """
    try:
        secret = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{setting}: {path}: can't be read ({error}).") from error
    if not secret.isprintable():
        raise InputError(f"{setting}: {path}: holds more than one line of text. Put nothing but the secret into it.")
    if len(secret) < shortest:
        raise InputError(f"{setting}: {path}: holds fewer than {shortest} characters. Put a longer one into it.")
    return secret
