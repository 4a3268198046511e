"""Appliances, archives and studies that the tests start, and stop again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from orthokernels.edge.dcmtk import program

from orthokernels.errors import InputError
from tests.edge.kit import (
    ORTHANC_LOGIN,
    SCRIPTS,
    STRIPES,
    Archive,
    config,
    free_port,
    listens,
    store,
    wait_for,
    write_study,
)


@pytest.fixture(autouse=True)
def _warnings_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Libraries that other tests load turn logging up or down for the whole process."""
    caplog.set_level("WARNING", logger="orthokernels.edge")


def needs(*tools: str) -> None:
    for tool in tools:
        try:
            program(tool)
        except InputError as missing:
            pytest.skip(str(missing))


@contextmanager
def starting(folder: Path) -> Iterator[Callable[..., Any]]:
    """What starts appliances in this process, arguments as of ``config``; they are stopped at the end."""
    from orthokernels.edge.service import Service

    needs("storescu")
    running = []

    def begin(**sections: Any) -> Service:
        service = Service(config(folder, **sections))
        service.start()
        running.append(service)
        return service

    yield begin
    for service in running:
        service.stop()


def with_page(start: Callable[..., Any], **sections: Any) -> Any:
    """An appliance and its page."""
    from orthokernels.edge.web import Page

    service = start(**sections)
    Page(service).start()
    wait_for(lambda: listens(service.config.page.port))
    return service


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start an appliance in this process; arguments as of ``config``."""
    with starting(tmp_path) as begin:
        yield begin


@pytest.fixture
def serve(start: Callable[..., Any]) -> Callable[..., Any]:
    """Start an appliance with its page."""
    return partial(with_page, start)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An appliance whose study 1 has a result that the page can show; a module's tests share it.

    Whatever is text in its headers is script as well.
    """
    folder = tmp_path_factory.mktemp("shown")
    with starting(folder) as begin:
        service = with_page(begin, work={"command": [sys.executable, str(STRIPES)]}, settle={"quiet_seconds": 0.5})
        assert store(service.config, write_study(folder / "study", **SCRIPTS)).returncode == 0
        wait_for(lambda: service.store.jobs(("sent",)), 60)
        yield service


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
