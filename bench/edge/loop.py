"""From the last image to SEG and SR accepted, beside the bundle run by itself: the appliance whole, dcmtk at both ends.

    python -m orthokernels.bench.edge.loop --bundle BUNDLE --study FOLDER [--out FOLDER]

Each round pushes the study under identifiers of its own with storescu into ``orthokernels edge serve``, a process with
the model loaded, which sends what it makes to storescp; then ``orthokernels run --bundle`` does the same study as a
process that starts cold. Headers say how many images there are, so no time is spent on waiting for more of them. The
parts are read from the audit log; the last image counts from the moment that it was on disk and in the database.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import pydicom
import typer
from orthokernels.bench.edge.wire import free_port
from orthokernels.bench.record import circumstances, heading
from orthokernels.edge import audit
from orthokernels.edge.config import Config
from orthokernels.edge.database import Database
from orthokernels.edge.dcmtk import program
from orthokernels.edge.store import Job, Store

from orthokernels.bundle.verify import verify
from orthokernels.errors import InputError

MOST_OVER_BARE = 1.3

# What happens between two entries of the audit log; the first begins with the last image.
PARTS = {
    "settling": "association closed",
    "checked": "headers examined",
    "inferring": "picked up",
    "writing": "read, checked and run",
    "sending": "objects written",
    "delivered": "accepted by the destination",
}
_WARM = "writing"  # the bundle at work, without what a process costs to start
_WAIT_SECONDS = 900.0


def main(
    bundle: Annotated[Path, typer.Option(help="Folder of a bundle.")],
    study: Annotated[Path, typer.Option(help="Folder with a three-plane study, DICOM.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for loop.json and loop.md.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Counted repetitions, after one that warms up.")] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Measure, and print the table."""
    for tool in ("storescu", "storescp"):
        program(tool)  # before anything is made
    facts = {
        **circumstances(f"python -m orthokernels.bench.edge.loop --rounds {rounds} --threads {threads}"),
        "weights": verify(bundle).manifest.name,
        "threads": threads,
        "held_to_times_bare": MOST_OVER_BARE,
        "rows": measure(bundle, study, rounds, threads),
    }
    facts["times_bare"] = round(
        statistics.median(row["seconds"] for row in facts["rows"])
        / statistics.median(row["bare"] for row in facts["rows"]),
        3,
    )
    print(table(facts))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "loop.json").write_text(json.dumps(facts, indent=1) + "\n")
        (out / "loop.md").write_text(table(facts))


def measure(bundle: Path, study: Path, rounds: int, threads: int) -> list[dict[str, float]]:
    """Seconds of each counted round: of the appliance, its parts, and the bundle run by itself."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TCP_NODELAY": "1"}
    rows = []
    with tempfile.TemporaryDirectory() as folder, _archive(Path(folder, "archive"), environment) as archive:
        config = _config(Path(folder), bundle, archive)
        with _serving(config, Path(folder, "appliance.json"), environment):
            for number in range(rounds + 1):
                images = Path(folder, f"study{number}")
                study_uid = renamed(study, images, number)
                _push(config, images, environment)
                seconds = _parts(_delivered(config, study_uid), config)
                seconds["bare"] = _bare(bundle, images, Path(folder, f"out{number}"), environment)
                rows.append({name: round(value, 3) for name, value in seconds.items()})
    return rows[1:]


def renamed(study: Path, folder: Path, number: int) -> str:
    """A copy of a study under identifiers of its own, whose acquisitions say how many images they have."""
    folder.mkdir()
    images = [pydicom.dcmread(path) for path in sorted(study.rglob("*.dcm"))]
    if not images:
        raise InputError(f"{study}: has no .dcm file. Pass a folder with a three-plane DICOM study.")
    counts = Counter(image.SeriesInstanceUID for image in images)
    for index, image in enumerate(images):
        image.AcquisitionNumber, image.ImagesInAcquisition = 1, str(counts[image.SeriesInstanceUID])
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            known = uuid.uuid5(uuid.NAMESPACE_OID, f"{getattr(image, keyword)} {number}")
            setattr(image, keyword, f"2.25.{known.int}")
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(folder / f"{index:04d}.dcm", enforce_file_format=True)
    return str(images[0].StudyInstanceUID)


def _config(folder: Path, bundle: Path, archive: int) -> Config:
    return Config.model_validate(
        {
            "appliance": {"data": folder / "data"},
            "receive": {"port": free_port(), "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]},
            "disk": {"keep_free_bytes": 0, "refuse_above": 1.0},
            "work": {"bundle": bundle.resolve()},
            "destinations": [{"name": "archive", "ae_title": "PACS", "host": "127.0.0.1", "port": archive}],
            "page": {"port": free_port()},
        }
    )


@contextmanager
def _archive(folder: Path, environment: dict[str, str]) -> Iterator[int]:
    folder.mkdir()
    port = free_port()
    with _running([program("storescp"), "-aet", "PACS", "-od", str(folder), "-uf", str(port)], environment):
        yield port


@contextmanager
def _serving(config: Config, file: Path, environment: dict[str, str]) -> Iterator[None]:
    file.write_text(config.model_dump_json())
    serve = "import sys; from orthokernels.edge.service import serve, Config; " + (
        "serve(Config.model_validate_json(open(sys.argv[1]).read()))"
    )
    with _running([sys.executable, "-c", serve, str(file)], environment) as process:
        until = time.monotonic() + _WAIT_SECONDS
        while not _ready(config.page.port):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the appliance did not become ready")
            time.sleep(0.2)
        yield


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def _push(config: Config, images: Path, environment: dict[str, str]) -> None:
    subprocess.run(
        [program("storescu"), "-aet", "MR1", "-aec", config.appliance.ae_title, "+sd", "127.0.0.1",
         str(config.receive.port), str(images)],
        check=True, env=environment,
    )  # fmt: skip


def _delivered(config: Config, study_uid: str) -> Job:
    """The study's job, once it has come to an end.

    Raises:
        RuntimeError: it was not delivered.
    """
    store = Store(Database(config.appliance.data))
    try:
        until = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < until:
            for job in store.jobs(("sent", "rejected", "dead")):
                if job.study_uid == study_uid:
                    if job.state != "sent":
                        raise RuntimeError(f"the study was not delivered but {job.state}: {job.reason}")
                    return job
            time.sleep(0.2)
        raise RuntimeError("the study did not come to an end")
    finally:
        store.database.close()


def _parts(job: Job, config: Config) -> dict[str, float]:
    database = Database(config.appliance.data)
    try:
        entries = [entry for entry in audit.entries(database) if entry["subject"] == job.name]
        with database.read() as connection:
            row = connection.execute("SELECT max(received_at) FROM instances WHERE study_uid = ?", (job.study_uid,))
            last = began = float(row.fetchone()[0])
    finally:
        database.close()
    seconds = {}
    for event in PARTS:
        at = next(datetime.fromisoformat(str(e["at"])).timestamp() for e in entries if e["event"] == event)
        seconds[event], last = at - last, at
    return {"seconds": last - began, **seconds}


def _bare(bundle: Path, images: Path, out: Path, environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "orthokernels.cli", "run", str(images), "--bundle", str(bundle), "-o", str(out), "-q"],
        check=True, env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - started


def times_warm(facts: dict[str, Any]) -> float:
    """All of it beside the part that a model which is loaded already can not do without."""
    rows = facts["rows"]
    return statistics.median(row["seconds"] for row in rows) / statistics.median(row[_WARM] for row in rows)


def table(facts: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = facts["rows"]
    lines = [
        *heading(facts),
        f"From the last image to everything accepted, {facts['times_bare']:.2f} times the bundle run by itself in a "
        "process of its own, which starts the interpreter, verifies the bundle and loads the model each time; held to "
        f"{facts['held_to_times_bare']:g}. The appliance has done that before; {times_warm(facts):.2f} times its own "
        f"warm part, '{PARTS[_WARM]}'. Bundle of {facts['weights']}, {facts['threads']} threads, {len(rows)} rounds.",
        "",
        "| what | median, s | from | to |",
        "|---|---|---|---|",
    ]
    names = {"seconds": "last image to accepted", **{k: f"of it: {v}" for k, v in PARTS.items()}}
    for key, name in {**names, "bare": "`orthokernels run --bundle`, a process"}.items():
        values = [row[key] for row in rows]
        lines.append(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
