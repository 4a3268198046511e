"""Whose study it is: shown where the configuration says so, since a page is seen by whoever passes it."""

from __future__ import annotations

from pathlib import Path

from orthokernels.edge import viewing, work
from orthokernels.edge.config import Config


def view_folder(config: Config, name: str) -> Path:
    """Where a job's view lies; ``name`` is the job's own, made of a hash and a number."""
    return config.appliance.data / work.FOLDER / name / viewing.FOLDER


def identity(config: Config, name: str) -> dict[str, str]:
    """Name, ID, accession number, date and description; empty where they are not to be shown, or not known yet."""
    if not config.page.show_patient:
        return {}
    return viewing.read_json(view_folder(config, name) / viewing.IDENTITY) or {}
