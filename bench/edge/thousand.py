"""A thousand studies in a row through an appliance to which everything happens that may: is anything lost, or doubled?

    python -m orthokernels.bench.edge.thousand [--studies 1000] [--out FOLDER]

It runs from a checkout, with the tests' small model in the worker and dcmtk's storescp as the archive. While a sender
pushes study after study and pushes again what was not acknowledged,

- the appliance is killed by -9 at every step of a study in turn, before and after its transaction, those to rejected
  and dead included; not where it becomes committed, which this archive is not asked for (a test does, with Orthanc);
- the archive is down for a while, several times, and its network is cut;
- the scanner's network is cut in the middle of an association;
- the disk is full for a while, where the script may mount a small file system of its own: no space left, for real;
- some studies are rejected by the model, and some end its process.

In the end every instance that was acknowledged belongs to a study whose objects the archive has, or which is visibly
rejected or put aside; every study was worked on as one version; and the archive has nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pydicom
import typer
from orthokernels.bench.edge.fuzz.files import enhanced_data_set
from orthokernels.bench.edge.proxy import Proxy
from orthokernels.bench.edge.wire import Context, Peer, free_port, release_request
from orthokernels.bench.record import circumstances, heading
from orthokernels.edge import audit
from orthokernels.edge.config import Config
from orthokernels.edge.database import Database
from orthokernels.edge.dcmtk import program
from orthokernels.edge.store import Store
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian

from orthokernels.errors import InputError

TESTS = Path(__file__).parents[2] / "tests" / "edge"
EVENTS = ("received", "settling", "checked", "inferring", "writing", "sending", "delivered", "sent")
RARE = ("rejected", "dead")  # one study in a hundred each: the blow falls at the first
BLOWS = [(event, when) for event in (*EVENTS, *RARE) for when in ("before", "after")]
PLANES = ("sagittal", "coronal")
DISK_MEGABYTES = 192

_CLASS = str(EnhancedMRImageStorage)
_CONTEXT: Context = (1, _CLASS, (str(ExplicitVRLittleEndian),))
_OUT_OF_RESOURCES = 0xA700
_WAIT_SECONDS = 600.0


@dataclass
class Story:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    associations: int = 0
    scanner_cuts: int = 0
    archive_cuts: int = 0
    archive_down: int = 0
    disk_full: int = 0
    refused: int = 0
    acknowledged: set[str] = field(default_factory=set)


class Appliance:
    """The service as a process that ends itself at a blow, and is started again with the next."""

    def __init__(self, config: Config, folder: Path, every: int, story: Story) -> None:
        self._config, self._every, self._story = config, every, story
        self._file = folder / "appliance.json"
        self._file.write_text(config.model_dump_json())
        self._log = (folder / "appliance.log").open("ab")
        self._blow: tuple[str, str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._struck = 0

    def see_to_it(self, blows: bool = True) -> None:
        """Start it if it does not run."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            if self._process.returncode != -9 or self._blow is None:
                raise RuntimeError(f"the appliance ended with status {self._process.returncode}, by itself")
            self._story.kills[" ".join(self._blow)] += 1
            self._struck += 1
        self._blow = BLOWS[self._struck % len(BLOWS)] if blows else None
        event, when = self._blow or ("none", "after")
        occurrence = 1 if event in RARE else self._every
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "under_fire.py"), str(self._file), event, when, str(occurrence)],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip
        self._story.starts += 1
        _wait(lambda: self._running() is False or _listens(self._config.receive.port))

    def _running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(60)
            self._process.kill()
            self._process.wait()
            self._process = None
        self._log.close()


class Archive:
    """storescp, behind a network that can be cut."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._port = free_port()
        self.network = Proxy(self._port)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [program("storescp"), "-aet", "PACS", "-od", str(self.folder), "-uf", str(self._port)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "TCP_NODELAY": "1"},
            )  # fmt: skip
            _wait(lambda: _listens(self._port))

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def objects(self) -> list[str]:
        """SOP Instance UIDs of all that it has."""
        return sorted(
            str(pydicom.dcmread(path, stop_before_pixels=True, force=True).SOPInstanceUID)
            for path in self.folder.iterdir()
        )


def main(
    studies: Annotated[int, typer.Option(min=20)] = 1000,
    every: Annotated[int, typer.Option(min=1, help="At which occurrence of a transition the blow falls.")] = 15,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for thousand.json and thousand.md.")] = None,
) -> None:
    """Run it, check what came of it, and print the table. Exit code 1: something was lost or doubled."""
    if not (TESTS / "under_fire.py").is_file():
        raise InputError(f"{TESTS}: is not there. Run this from a checkout, which has the tests' model.")
    program("storescp")  # before anything is made
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, _small_disk(Path(folder, "disk")) as mounted:
        facts = {
            **circumstances(f"python -m orthokernels.bench.edge.thousand --studies {studies} --every {every}"),
            "studies": studies,
            "own_file_system": mounted,
            **_through(Path(folder), studies, every, mounted),
            "seconds": round(time.monotonic() - started),
        }
    print(table(facts))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "thousand.json").write_text(json.dumps(facts, indent=1) + "\n")
        (out / "thousand.md").write_text(table(facts))
    if facts["lost"] or facts["doubled"] or facts["strange"]:
        raise typer.Exit(1)


@contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """A file system that can be filled; a plain folder where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0 if os.geteuid() == 0 else False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def _config(folder: Path, archive: int) -> Config:
    return Config.model_validate(
        {
            "appliance": {"data": folder / "disk" / "data"},
            "receive": {
                "port": free_port(),
                "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}],
                "limits": {"waiting_studies": 50},
            },
            "disk": {"keep_free_bytes": 0, "refuse_above": 1.0, "clean_above": 1.0},
            "settle": {"quiet_seconds": 3600.0, "give_up_seconds": 7200.0},
            "results": {"planes": list(PLANES)},
            "work": {"command": [sys.executable, str(TESTS / "threshold.py")]},
            "destinations": [
                {
                    "name": "archive", "ae_title": "PACS", "host": "127.0.0.1", "port": archive, "tries": 10000,
                    "first_wait_seconds": 0.2, "longest_wait_seconds": 1.0, "timeout_seconds": 10.0,
                }
            ],
            "page": {"port": free_port()},
        }
    )  # fmt: skip


def _through(folder: Path, studies: int, every: int, mounted: bool) -> dict[str, Any]:
    story, archive = Story(), Archive(folder / "archive")
    archive.start()
    config = _config(folder, archive.network.port)
    scanner = Proxy(config.receive.port)
    appliance = Appliance(config, folder, every, story)
    ballast = folder / "disk" / "ballast"
    try:
        for number in range(studies):
            _trouble(number, studies, archive, scanner, ballast if mounted else None, story)
            _push(number, appliance, scanner, story, ballast)
        archive.start()
        appliance.see_to_it()
        return _outcome(config, appliance, archive, story)
    finally:
        appliance.stop()
        archive.stop()
        scanner.close()
        archive.network.close()


def _trouble(number: int, studies: int, archive: Archive, scanner: Proxy, ballast: Path | None, story: Story) -> None:
    """What happens at this study; each thing several times in a run, whatever its length."""
    part = number * 20 // studies if (number * 20) % studies < 20 else None  # the first study of each twentieth
    if part is not None and part % 5 == 1:
        archive.stop()
        story.archive_down += 1
    elif part is not None:
        archive.start()
    if part is not None and part % 5 == 3 and ballast is not None:
        _fill(ballast)
        story.disk_full += 1
    if number % 10 == 4:
        scanner.cut_after(1000 + 700 * (number % 13))
        story.scanner_cuts += 1
    if number % 25 == 7:
        archive.network.cut_after(300 + 400 * (number % 7))
        story.archive_cuts += 1


def _fill(ballast: Path) -> None:
    """Leave no byte."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**20))
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))


def instances(number: int) -> Iterator[tuple[str, bytes]]:
    """SOP Instance UID and data set of a study's images, one file of 16 frames for each plane."""
    kind = {11: "reject me", 61: "crash please"}.get(number % 100, "volume")
    for index, plane in enumerate(PLANES, start=1):
        uid = f"1.2.9.{number}.{index}.1"
        yield uid, enhanced_data_set(plane, f"1.2.9.{number}", f"1.2.9.{number}.{index}", uid, f"{plane} {kind}")


def _push(number: int, appliance: Appliance, scanner: Proxy, story: Story, ballast: Path) -> None:
    """Send a study until all of it is acknowledged, as a scanner that keeps what was not."""
    owed = dict(instances(number))
    until = time.monotonic() + _WAIT_SECONDS
    refusals = 0
    while owed:
        if time.monotonic() > until:
            raise RuntimeError(f"study {number} was not taken in")
        appliance.see_to_it()
        for uid, status in _association(owed, scanner.port, story):
            if status == 0:
                story.acknowledged.add(uid)
                del owed[uid]
            else:
                story.refused += status == _OUT_OF_RESOURCES
                refusals += 1
        if owed:
            time.sleep(0.05)
        if refusals > 5:  # that was long enough
            ballast.unlink(missing_ok=True)


def _association(owed: dict[str, bytes], port: int, story: Story) -> list[tuple[str, int]]:
    """What was answered to each, before the association ended one way or the other."""
    answers: list[tuple[str, int]] = []
    story.associations += 1
    with suppress(OSError), Peer(port, 30.0) as peer:
        if peer.associate(_CONTEXT) != {1: 0}:
            return answers
        for uid, content in owed.items():
            status = peer.store(content, _CLASS, uid)
            if status is None:
                return answers
            answers.append((uid, status))
        peer.send(release_request())
        peer.receive()
    return answers


def _outcome(config: Config, appliance: Appliance, archive: Archive, story: Story) -> dict[str, Any]:
    """Wait for the end, and count."""
    until = time.monotonic() + _WAIT_SECONDS
    while not _at_rest(config):
        appliance.see_to_it(blows=False)
        if time.monotonic() > until:
            break
        time.sleep(0.5)
    appliance.stop()
    database = Database(config.appliance.data)
    try:
        jobs = Store(database).jobs(limit=10**6)
        with database.read() as connection:
            kept = {row["sop_uid"]: row["file"] for row in connection.execute("SELECT sop_uid, file FROM instances")}
            made = [(row["job"], row["sop_uid"]) for row in connection.execute("SELECT job, sop_uid FROM objects")]
            ended = {
                row["sop_uid"]
                for row in connection.execute(
                    "SELECT sop_uid FROM instances JOIN job_instances ON instance = instances.id "
                    "JOIN jobs ON jobs.id = job "
                    "WHERE state IN ('sent', 'committed') OR (state IN ('rejected', 'dead') AND reason IS NOT NULL)"
                )
            }
        intact = all(bool(entry["intact"]) for entry in audit.entries(database))
    finally:
        database.close()
    delivered = archive.objects()
    without_file = {uid for uid in story.acknowledged if not (config.appliance.data / str(kept.get(uid))).is_file()}
    versions = Counter(job.study_uid for job in jobs)
    wanted = sorted(uid for _, uid in made)
    return {
        **{name: value for name, value in asdict(story).items() if name not in ("acknowledged", "kills")},
        "kills": dict(story.kills),
        "acknowledged": len(story.acknowledged),
        "states": dict(Counter(job.state for job in jobs)),
        "objects": len(delivered),
        "lost": sorted((story.acknowledged - ended) | without_file) + sorted(set(wanted) - set(delivered)),
        "doubled": sorted(uid for uid, count in versions.items() if count > 1) + _doubles(wanted) + _doubles(delivered),
        "strange": sorted(set(delivered) - set(wanted)) + ([] if intact else ["the audit log"]),
    }


def _doubles(uids: list[str]) -> list[str]:
    return sorted(uid for uid, count in Counter(uids).items() if count > 1)


def _at_rest(config: Config) -> bool:
    database = Database(config.appliance.data)
    try:
        with database.read() as connection:
            open_jobs = connection.execute(
                "SELECT count(*) FROM jobs WHERE state NOT IN ('sent', 'committed', 'rejected', 'dead')"
            ).fetchone()[0]
            owed = connection.execute("SELECT count(*) FROM deliveries WHERE state = 'waiting'").fetchone()[0]
        return not open_jobs and not owed
    finally:
        database.close()


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(condition: Any) -> None:
    until = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError("waited too long")
        time.sleep(0.02)


def table(facts: dict[str, Any]) -> str:
    """The story and its end as Markdown."""
    states = facts["states"]
    kills = facts["kills"]
    rows = [
        ("studies pushed", facts["studies"]),
        ("instances acknowledged", facts["acknowledged"]),
        ("associations that took", facts["associations"]),
        ("kills by -9", f"{sum(kills.values())}, at {len(kills)} of {len(BLOWS)} moments"),
        ("cuts of the scanner's network", facts["scanner_cuts"]),
        ("times that the archive was down", facts["archive_down"]),
        ("cuts of the archive's network", facts["archive_cuts"]),
        (
            "times that the disk was full",
            facts["disk_full"] if facts["own_file_system"] else "not tried (no file system may be mounted)",
        ),
        ("instances refused with 0xA700, and sent again", facts["refused"]),
        ("studies delivered", states.get("sent", 0)),
        ("studies rejected with the reason, reported to the archive", states.get("rejected", 0)),
        ("studies put aside with the reason", states.get("dead", 0)),
        ("objects in the archive", facts["objects"]),
        ("**lost**", len(facts["lost"])),
        ("**doubled**", len(facts["doubled"])),
        ("**neither, but not as it should be**", len(facts["strange"])),
        ("seconds", facts["seconds"]),
    ]
    lines = [*heading(facts), "| what | count |", "|---|---|", *(f"| {what} | {count} |" for what, count in rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
