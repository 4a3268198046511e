"""Appliances, archives and studies that the tests start, and stop again."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.edge.kit import ORTHANC_LOGIN, Archive, config, free_port, listens, wait_for, write_study


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


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Callable[..., tuple[int, int]]]:
    """Start a real Orthanc, which knows an appliance at the port it is given; its DICOM port and its HTTP port."""
    if shutil.which("Orthanc") is None:
        pytest.skip("Orthanc is not installed (Debian's orthanc)")
    running = []

    def begin(appliance_port: int, plugins: tuple[Path, ...] = ()) -> tuple[int, int]:
        dicom, http = free_port(), free_port()
        user, password = ORTHANC_LOGIN.split(":")
        settings = {
            "Name": "archive", "DicomAet": "PACS", "DicomPort": dicom, "HttpPort": http,
            "StorageDirectory": str(tmp_path / "orthanc"), "IndexDirectory": str(tmp_path / "orthanc"),
            "AuthenticationEnabled": True, "RegisteredUsers": {user: password}, "RemoteAccessAllowed": False,
            "Plugins": [str(plugin) for plugin in plugins],
            "DicomModalities": {"appliance": ["ORTHOKERNELS", "127.0.0.1", appliance_port]},
        }  # fmt: skip
        file = tmp_path / "orthanc.json"
        file.write_text(json.dumps(settings))
        running.append(subprocess.Popen(["Orthanc", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_for(lambda: listens(dicom) and listens(http), 60)
        return dicom, http

    yield begin
    for process in running:
        process.terminate()
        process.wait(30)
