"""Appliances, archives and studies that the tests start, and stop again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.edge.kit import Archive, config, write_study


def needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian's dcmtk has storescu and storescp)")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start an appliance in this process; arguments as of ``config``."""
    from orthokernels.edge.service import Service

    needs("storescu")
    running = []

    def begin(**sections: Any) -> Service:
        service = Service(config(tmp_path, **sections))
        service.start()
        running.append(service)
        return service

    yield begin
    for service in running:
        service.stop()


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    needs("storescp")
    archive = Archive(tmp_path / "archive")
    archive.start()
    yield archive
    archive.stop()


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sagittal, coronal and axial, 16 slices each."""
    return write_study(tmp_path_factory.mktemp("study"))
