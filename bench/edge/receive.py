"""How fast the appliance takes images in: 160 of 384 x 384 by dcmtk's storescu, with and without its TCP delay.

    python -m orthokernels.bench.edge.receive [--out FILE]

The sender's own time counts, as a scanner would see it; every image is on disk and in the database when it ends. Beside
it, in turns, stand a plain disk, which writes the same bytes, file and folder synced one by one, with nothing else; the
intake alone, which also syncs a row for each, with neither sender nor network; and, by the same sender, dcmtk's
storescp, which syncs nothing, and, where it is installed, Orthanc as it is by default.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from orthokernels.bench.record import circumstances
from orthokernels.edge.config import Config
from orthokernels.edge.database import Database
from orthokernels.edge.dcmtk import program
from orthokernels.edge.durable import write_durably
from orthokernels.edge.receive.intake import Arrival, Intake
from orthokernels.edge.receive.open_studies import OpenStudies
from orthokernels.edge.receive.part10 import read_meta
from orthokernels.edge.receive.scp import Receiver
from orthokernels.edge.store import Store
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

IMAGES, SIDE = 160, 384
_NO_DELAY = {"TCP_NODELAY": "1"}
HELD_TO_SECONDS = 0.6


def main(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the figures.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Counted repetitions, after one that warms up.")] = 5,
    port: Annotated[int, typer.Option(help="A free port.")] = 11119,
) -> None:
    """Measure, and print one JSON object."""
    program("storescu")  # before anything is made
    with tempfile.TemporaryDirectory() as folder:
        series = Path(folder, "series")
        write_series(series)
        facts: dict[str, Any] = {**circumstances("python -m orthokernels.bench.edge.receive"), "images": IMAGES}
        facts["megabytes"] = round(sum(path.stat().st_size for path in series.iterdir()) / 1e6, 1)
        facts["held_to_seconds"] = HELD_TO_SECONDS
        contenders: dict[str, Callable[[Path], float]] = {
            "no_delay": lambda data: _received(series, data, port, _NO_DELAY),
            "delay": lambda data: _received(series, data, port, {}),
            "intake_alone": lambda data: _intake_alone(series, data),
            "disk_alone": lambda data: _disk_alone(series, data),
            "storescp": lambda data: _by_storescp(series, data, port),
        }
        if shutil.which("Orthanc"):
            contenders["orthanc"] = lambda data: _by_orthanc(series, data, port)
        found: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            for name, run in contenders.items():
                data = Path(folder, f"{name}{number}")
                os.sync()  # what the one before left to be written is not this one's
                found[name].append(run(data))
                shutil.rmtree(data)
        facts |= {name: _told(seconds[1:]) for name, seconds in found.items()}
    print(json.dumps(facts, indent=1))
    if out is not None:
        out.write_text(json.dumps(facts, indent=1) + "\n")


def _told(seconds: list[float]) -> dict[str, Any]:
    return {"median": round(statistics.median(seconds), 3), "seconds": [round(second, 3) for second in seconds]}


def write_series(folder: Path) -> None:
    """MR images of one series; the pixels are noise, which nothing on the way looks at."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(1, IMAGES + 1):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.1.{number}")
        image.StudyInstanceUID, image.SeriesInstanceUID, image.Modality = "1.2.3", "1.2.3.1", "MR"
        image.Rows = image.Columns = SIDE
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.PixelData = noise.integers(0, 4096, (SIDE, SIDE), dtype=np.uint16).tobytes()
        image.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)


def _disk_alone(series: Path, target: Path) -> float:
    contents = [path.read_bytes() for path in sorted(series.iterdir())]
    started = time.perf_counter()
    for number, content in enumerate(contents):
        write_durably(target / f"{number}.dcm", (content,))
    return time.perf_counter() - started


def _intake_alone(series: Path, data: Path) -> float:
    arrivals = []
    for path in sorted(series.iterdir()):
        with path.open("rb") as file:
            syntax = read_meta(file).syntax
            arrivals.append(Arrival(io.BytesIO(file.read()), syntax, source="MR1", priority=2))
    database = Database(data)
    intake = Intake(_config(data), Store(database))
    started = time.perf_counter()
    for arrival in arrivals:
        intake.take(arrival)
    seconds = time.perf_counter() - started
    database.close()
    return seconds


def _config(data: Path, port: int = 1) -> Config:
    return Config.model_validate(
        {
            "appliance": {"data": data},
            "receive": {"port": port, "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]},
            "disk": {"keep_free_bytes": 0, "refuse_above": 1.0},
        }
    )


def _received(series: Path, data: Path, port: int, environment: dict[str, str]) -> float:
    config = _config(data, port)
    with _receiving(config):
        seconds = _send(series, port, config.appliance.ae_title, environment)
    if len(list(data.rglob("images/*/*.dcm"))) != IMAGES:
        raise RuntimeError("images are missing")
    return seconds


def _send(series: Path, port: int, called: str, environment: dict[str, str]) -> float:
    command = [program("storescu"), "-aet", "MR1", "-aec", called, "+sd", "127.0.0.1", str(port), str(series)]
    started = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, **environment})
    return time.perf_counter() - started


def _by_storescp(series: Path, data: Path, port: int) -> float:
    data.mkdir()
    with _running([program("storescp"), "-od", str(data), str(port)], port):
        return _send(series, port, "STORESCP", _NO_DELAY)


def _by_orthanc(series: Path, data: Path, port: int) -> float:
    data.mkdir()
    settings = {
        "DicomPort": port, "DicomAet": "ORTHANC", "HttpServerEnabled": False,
        "StorageDirectory": str(data), "IndexDirectory": str(data),
    }  # fmt: skip
    file = data.with_suffix(".json")
    file.write_text(json.dumps(settings))
    with _running(["Orthanc", str(file)], port):
        return _send(series, port, "ORTHANC", _NO_DELAY)


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    """Another receiver, once it listens."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env={**os.environ, **_NO_DELAY})
    try:
        deadline = time.monotonic() + 60
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not listen")
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def _receiving(config: Config) -> Iterator[None]:
    database = Database(config.appliance.data)
    store = Store(database)
    receiver = Receiver(config, Intake(config, store), OpenStudies(store), lambda transaction, kept: False)
    receiver.start()
    try:
        yield
    finally:
        receiver.stop()
        for thread in threading.enumerate():
            if "AcceptorThread" in thread.name:  # an association, which ends in the database
                thread.join()
        database.close()


if __name__ == "__main__":
    typer.run(main)
