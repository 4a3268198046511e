"""Peers and studies for the appliance's tests: dcmtk's tools as scanner and archive, small three-plane studies."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pydicom
from orthokernels.edge.config import Config
from orthokernels.edge.dcmtk import program
from safetensors.numpy import save_file

from tests.data.series import noise, write_series

SEGMENTING = Path(__file__).with_name("segmenting.py")
THRESHOLD = Path(__file__).with_name("threshold.py")
STRIPES = Path(__file__).with_name("stripes.py")
ABSTAINING = Path(__file__).with_name("abstaining.py")
SLICES = 16
ORTHANC_LOGIN = "orthokernels:secret"

SCRIPT = "<script>alert(1)</script>"
SCRIPTS = dict.fromkeys(("PatientName", "PatientID", "SeriesDescription", "StudyDescription", "ProtocolName"), SCRIPT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def config(folder: Path, **sections: Any) -> Config:
    """Fast settings on loopback: scanner MR1 may send, studies settle early or after 2 seconds."""
    given = {
        "appliance": {"data": folder / "data"},
        "receive": {"port": free_port(), "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]},
        "disk": {"keep_free_bytes": 0, "refuse_above": 1.0, "clean_above": 1.0},
        "settle": {"quiet_seconds": 2.0},
        "work": {"command": [sys.executable, str(THRESHOLD)]},
        "page": {"port": free_port()},
    }
    for name, section in sections.items():
        known = given.get(name)
        given[name] = {**known, **section} if isinstance(known, dict) else section
    return Config.model_validate(given)


def archive_destination(port: int, **more: Any) -> dict[str, Any]:
    return {
        "name": "archive", "ae_title": "PACS", "host": "127.0.0.1", "port": port,
        "first_wait_seconds": 0.2, "longest_wait_seconds": 1.0, "timeout_seconds": 10.0, **more,
    }  # fmt: skip


def web_destination(port: int, **more: Any) -> dict[str, Any]:
    return {
        "name": "web", "kind": "dicomweb", "url": f"http://127.0.0.1:{port}/dicom-web",
        "first_wait_seconds": 0.2, "longest_wait_seconds": 1.0, "timeout_seconds": 10.0, **more,
    }  # fmt: skip


def write_study(
    folder: Path, seed: int = 0, *, study: str = "1.2.3", planes: Sequence[str] = ("sagittal", "coronal", "axial"),
    **header: Any,
) -> list[Path]:  # fmt: skip
    """A series per plane of 16 slices of 20 x 24, which say how many they are; UIDs depend on seed and study alone."""
    files = []
    for number, plane in enumerate(planes):
        own = write_series(
            folder / plane,
            noise(seed + number, SLICES),
            plane=plane,
            study=study,
            series=f"{study}.{number + 1}",
            **{"AcquisitionNumber": 1, "ImagesInAcquisition": str(SLICES), "PatientName": "Secret^Name", **header},
        )
        for index, path in enumerate(own):
            edit(path, SOPInstanceUID=f"{study}.{number + 1}.{seed + 1}.{index + 1}")
        files += own
    return files


def late_image(folder: Path) -> Path:
    """An image of the study in a series of its own."""
    return edit(
        write_study(folder / "late", planes=("sagittal",))[0],
        SOPInstanceUID="1.2.3.99", SeriesInstanceUID="1.2.3.4", ImagesInAcquisition="1",
    )  # fmt: skip


def edit(path: Path, **attributes: Any) -> Path:
    dataset = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_bundle(folder: Path, images: Sequence[Path]) -> Path:
    """A bundle without a model, for workers that need none: it verifies, and carries ``images`` as the knee's golden
    study, of which nothing is recorded."""
    study = folder / "golden" / "knee" / "study"
    study.mkdir(parents=True)
    for number, path in enumerate(images):
        shutil.copy(path, study / f"{number:04d}.dcm")
    labels = study.parent / "labels.safetensors"
    save_file({}, labels)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    golden = {"images": sorted(name for name in files if name.endswith(".dcm")), "probabilities": {}}
    record = {
        "name": "none", "version": "0.1.0", "intended_use": "Tests.", "limits": [], "trained": False,
        "licence": "Apache-2.0", "origin": "written by a test", "size": 16, "depth": 16, "structures": {},
        "graphs": {}, "native": False, "minimum_versions": {},
        "joints": {"knee": {"weights_digest": "0" * 64, "findings": [], "planes": {}}},
        "golden": {"knee": {**golden, "labels": labels.relative_to(folder).as_posix()}},
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        },
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(record))
    return folder


def store(
    config: Config, paths: Sequence[Path], *options: str, calling: str = "MR1", called: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Push files with dcmtk's storescu, as a scanner would."""
    return subprocess.run(
        [
            program("storescu"), "-v", "-aet", calling, "-aec", called or config.appliance.ae_title, *options,
            "127.0.0.1", str(config.receive.port), *map(str, paths),
        ],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "TCP_NODELAY": "1"},
    )  # fmt: skip


def get(service: Any, path: str, **headers: str) -> tuple[int, str]:
    """Status and text of what the page answers; bytes that are no UTF-8 are replaced."""
    answer = ask(service, "GET", path, headers)
    return answer.status, answer.body.decode(errors="replace")


class Answer(NamedTuple):
    status: int
    headers: HTTPMessage
    body: bytes


def ask(
    service: Any, method: str, path: str, headers: Mapping[str, str] = {}, fields: Mapping[str, str] | None = None
) -> Answer:
    """What the page answers to one request, redirections not followed; ``fields`` are sent as a form."""
    connection = HTTPConnection("127.0.0.1", service.config.page.port, timeout=30)
    if fields is not None:
        headers = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    connection.request(method, path, urlencode(fields) if fields is not None else None, headers)
    answer = connection.getresponse()
    return Answer(answer.status, answer.headers, answer.read())


class Archive:
    """dcmtk's storescp, which can be stopped and started again at the same port."""

    def __init__(self, folder: Path, port: int | None = None, *options: str) -> None:
        self.folder, self.port = folder, port or free_port()
        self._options = options
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [program("storescp"), "-aet", "PACS", "-od", str(self.folder), "-uf", *self._options, str(self.port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "TCP_NODELAY": "1"},
        )  # fmt: skip
        wait_for(lambda: listens(self.port))

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def objects(self) -> list[str]:
        """SOP Instance UIDs of what arrived; a file that is being written may not tell its own yet."""
        found = (
            pydicom.dcmread(path, stop_before_pixels=True, force=True).get("SOPInstanceUID")
            for path in self.folder.iterdir()
            if path.is_file()
        )
        return sorted(str(uid) for uid in found if uid is not None)


def orthanc_objects(http: int) -> dict[str, str]:
    """Orthanc's own identifiers of the objects that it holds, by SOP Instance UID."""
    login = base64.b64encode(ORTHANC_LOGIN.encode()).decode()
    asked = urllib.request.Request(
        f"http://127.0.0.1:{http}/instances?expand", headers={"Authorization": f"Basic {login}"}
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return {one["MainDicomTags"]["SOPInstanceUID"]: one["ID"] for one in json.load(answer)}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What ``condition`` gives once it is true; fails after ``seconds``, which only a broken appliance needs."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} seconds")
