"""The appliance is killed at every step of a study: what was acknowledged comes to its end, nothing is made twice."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from orthokernels.edge import config as configuration
from orthokernels.edge.audit import entries
from orthokernels.edge.database import Database
from orthokernels.edge.deliveries import Deliveries
from orthokernels.edge.service import Service
from orthokernels.edge.store import Store

from orthokernels.errors import InputError
from tests.edge.kit import (
    archive_destination,
    config,
    free_port,
    listens,
    orthanc_objects,
    store,
    wait_for,
    write_study,
)

UNDER_FIRE = Path(__file__).with_name("under_fire.py")
EVENTS = ("received", "settling", "checked", "inferring", "writing", "sending", "delivered", "sent")


class Appliance:
    """An appliance in a process of its own."""

    def __init__(self, settings, file: Path) -> None:
        self.settings, self._file = settings, file
        file.write_text(settings.model_dump_json())

    def start(self, event: str, when: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(UNDER_FIRE), str(self._file), event, when], stderr=subprocess.DEVNULL
        )
        wait_for(lambda: self._process.poll() is not None or listens(self.settings.receive.port))

    def killed(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def struck(self, images, event: str, when: str) -> None:
        """Send a study and see the blow fall, whether it comes before or after the last acknowledgement."""
        self.start(event, when)
        struck = False
        while store(self.settings, images).returncode != 0:  # the sender keeps what was not acknowledged
            wait_for(self.killed)
            struck = True
            self.start("none", "after")
        if not struck:
            wait_for(self.killed)
        self.stop()


def test_killed_at_every_step_to_a_delivery_nothing_is_lost_and_nothing_doubled(tmp_path, archive):
    settings = config(
        tmp_path,
        settle={"quiet_seconds": 3600.0},
        results={"planes": ["sagittal"]},
        destinations=[archive_destination(archive.port)],
    )
    appliance = Appliance(settings, tmp_path / "config.json")
    blows = [(event, when) for event in EVENTS for when in ("before", "after")]
    for number, (event, when) in enumerate(blows):
        images = write_study(tmp_path / f"study{number}", study=f"1.2.{100 + number}", planes=("sagittal",))
        appliance.struck(images, event, when)
    appliance.start("none", "after")
    database = Database(settings.appliance.data)
    queue = Store(database)
    wait_for(lambda: len(queue.jobs(("sent",))) == len(blows), 120)
    appliance.stop()
    assert Counter(job.study_uid for job in queue.jobs()) == {f"1.2.{100 + n}": 1 for n in range(len(blows))}
    made = [made for job in queue.jobs() for made in _objects(database, job.id)]
    assert len(made) == len(blows)
    assert archive.objects() == sorted(made)
    assert all(entry["intact"] for entry in entries(database))


def test_killed_where_a_study_is_rejected_put_aside_or_committed_it_ends_there_all_the_same(tmp_path, orthanc):
    port = free_port()
    dicom, http = orthanc(port)
    settings = config(
        tmp_path,
        receive={"port": port, "peers": [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]},
        settle={"quiet_seconds": 3600.0},
        results={"planes": ["sagittal"]},
        destinations=[archive_destination(dicom, commitment=True, commitment_seconds=2.0, tries=100)],
    )
    appliance = Appliance(settings, tmp_path / "config.json")
    ends = {"rejected": "reject me", "dead": "crash please", "committed": "volume"}
    blows = [(end, when) for end in ends for when in ("before", "after")]
    for number, (end, when) in enumerate(blows):
        folder, kind = tmp_path / f"study{number}", ends[end]
        images = write_study(folder, study=f"1.2.{200 + number}", planes=("sagittal",), SeriesDescription=kind)
        appliance.struck(images, end, when)
    appliance.start("none", "after")
    database = Database(settings.appliance.data)
    queue, deliveries = Store(database), Deliveries(Store(database), settings.destinations)

    def at_rest() -> bool:
        states = Counter(job.state for job in queue.jobs())
        ways = [own["state"] for job in queue.jobs() for own in deliveries.of(job.id)]
        return states == dict.fromkeys(ends, 2) and set(ways) == {"committed"}

    wait_for(at_rest, 120)
    appliance.stop()
    assert [job.study_uid for job in queue.jobs()] == [f"1.2.{200 + n}" for n in reversed(range(len(blows)))]
    made = [made for job in queue.jobs() for made in _objects(database, job.id)]
    assert len(made) == 4  # a result each of those committed, a report of those rejected
    assert sorted(orthanc_objects(http)) == sorted(made)
    assert all(entry["intact"] for entry in entries(database))


def _objects(database: Database, job: int) -> list[str]:
    with database.read() as connection:
        return [row[0] for row in connection.execute("SELECT sop_uid FROM objects WHERE job = ?", (job,))]


def test_worker_process_ends_with_an_appliance_that_is_killed(tmp_path, archive):
    settings = config(tmp_path)
    appliance = Appliance(settings, tmp_path / "config.json")
    appliance.start("received", "after")

    def workers() -> list[str]:
        found = subprocess.run(
            ["pgrep", "-P", str(appliance._process.pid)], capture_output=True, text=True, check=False
        )
        return found.stdout.split()

    pids = wait_for(workers)
    store(settings, write_study(tmp_path / "study", planes=("sagittal",)))
    wait_for(appliance.killed)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_second_appliance_on_the_same_folder_does_not_start(start):
    from orthokernels.edge.service import Service

    from orthokernels.errors import InputError

    service = start()
    with pytest.raises(InputError, match="another appliance runs on this folder"):
        Service(service.config)


def test_files_of_a_database_that_was_lost_are_not_swept_up(start, study, tmp_path):
    """Whoever moves a damaged database away, or loses it, still has what was acknowledged."""
    service = start()
    assert store(service.config, study).returncode == 0
    wait_for(lambda: service.store.jobs(("sent",)))
    data = service.config.appliance.data
    (tmp_path / "copy").mkdir()
    for folder in ("images", "results"):
        shutil.copytree(data / folder, tmp_path / "copy" / folder)
    lost = Service(service.config.model_copy(update={"appliance": configuration.Appliance(data=tmp_path / "copy")}))
    try:
        with pytest.raises(InputError, match=f"knows of no study, and {len(study) + 3} DICOM files lie beside it"):
            lost.start()
        assert len(list((tmp_path / "copy").rglob("*.dcm"))) == len(study) + 3
    finally:
        lost.stop()
