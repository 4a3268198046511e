"""Readiness: disk and clock looked at before studies are welcome; systemd told the truth."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from orthokernels.edge import audit, notify
from orthokernels.edge.clock import pull_back
from orthokernels.edge.config import DimseDestination, Settle
from orthokernels.edge.database import Database
from orthokernels.edge.deliveries import Deliveries
from orthokernels.edge.health import destinations_health
from orthokernels.edge.selfcheck import SelfCheck, clock_faults, disk_faults
from orthokernels.edge.store import Image, Store

from tests.edge.kit import archive_destination, free_port, listens, store, wait_for


def test_nothing_is_said_to_be_in_order_before_it_was_looked_at(tmp_path):
    check = SelfCheck(tmp_path, Database(tmp_path))
    assert check.reasons == ("disk and clock were not checked yet",)
    check.look()
    assert check.reasons == ()
    assert not (tmp_path / "self-check").exists()


def test_disk_that_can_not_be_written_is_told(tmp_path):
    (tmp_path / "self-check").mkdir()  # in the way of the file that it writes, for root too
    assert "can't be written" in next(disk_faults(tmp_path))


def test_clock_that_lost_its_battery_is_told(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 86400.0)
    assert "1970" in next(clock_faults(None))


def test_clock_behind_what_was_recorded_is_told(tmp_path):
    now = datetime.now(UTC)
    assert list(clock_faults((now + timedelta(minutes=30)).isoformat())) == []
    assert "is behind" in next(clock_faults((now + timedelta(hours=2)).isoformat()))
    database = Database(tmp_path)
    with database.write() as connection:
        audit.append(connection, "started", "appliance", "X")
    check = SelfCheck(tmp_path, database)
    check.look()
    assert check.reasons == ()


def test_one_start_with_a_clock_in_the_future_counts_until_the_next_entry(tmp_path):
    database = Database(tmp_path)
    with database.write() as connection:
        audit.append(connection, "started", "appliance", "X")
        connection.execute("DROP TRIGGER audit_is_fixed")
        connection.execute("UPDATE audit SET at = '2099-01-01T00:00:00.000+00:00'")
    wrong = SelfCheck(tmp_path, database)
    wrong.look()
    assert "is behind what the audit log has recorded (2099" in " ".join(wrong.reasons)
    with database.write() as connection:
        audit.append(connection, "started", "appliance", "X")
    right = SelfCheck(tmp_path, database)
    right.look()
    assert right.reasons == ()


@pytest.mark.parametrize(("seconds", "how"), [(7200.0, "forward"), (-7200.0, "back")])
def test_clock_that_is_moved_is_told_for_a_day(tmp_path, monkeypatch, caplog, seconds, how):
    check = SelfCheck(tmp_path, Database(tmp_path))
    check.look()
    assert check.notes == ()
    wall, steady = time.time, time.monotonic
    monkeypatch.setattr(time, "time", lambda: wall() + seconds)
    for _ in range(2):
        check.look()
        assert f"the clock was put {how} by 7200 seconds" in " ".join(check.notes)
    assert caplog.text.count("the clock was put") == 1
    monkeypatch.setattr(time, "monotonic", lambda: steady() + 90000.0)
    check.look()
    assert check.notes == ()


def test_clock_that_is_kept_in_time_is_not_told(tmp_path, monkeypatch):
    check = SelfCheck(tmp_path, Database(tmp_path))
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() - 0.5)
    check.look()
    assert check.notes == ()


def test_a_destination_does_as_it_did_last_whatever_the_clock_said(tmp_path, monkeypatch):
    database = Database(tmp_path)
    archive = DimseDestination(**archive_destination(1))
    clock = SimpleNamespace()
    monkeypatch.setattr(audit, "datetime", clock)
    states = [destinations_health(database, [archive])[0].state]
    for event, hour in (("not delivered", 9), ("delivered", 7), ("not delivered", 5)):
        clock.now = lambda zone, hour=hour: datetime(2026, 11, 29, hour, tzinfo=zone)
        with database.write() as connection:
            audit.append(connection, event, "archive", "study")
        states.append(destinations_health(database, [archive])[0].state)
    assert states == ["unused", "failing", "taking", "failing"]


def test_study_and_delivery_of_a_clock_that_was_ahead_go_on_once_it_is_put_right(tmp_path, monkeypatch):
    store, settle = Store(Database(tmp_path)), Settle(quiet_seconds=0.01, early=False)
    archive = DimseDestination(**archive_destination(1))
    deliveries = Deliveries(store, [archive])
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + 1e6)
    store.add(Image("1.2.1", "1.1", "1.2", "1.3", "digest", 1, "images/a", "MR1"), 5)
    (job,) = store.jobs()
    with store.database.write() as connection:
        connection.execute("UPDATE jobs SET lease_owner = 'x', lease_until = ?", (time.time(),))
        connection.execute(
            "INSERT INTO deliveries (job, destination, state, next_try_at, commit_until, changed_at) "
            "VALUES (?1, 'archive', 'waiting', ?2, ?2, ?2)",
            (job.id, time.time()),
        )
    monkeypatch.setattr(time, "time", wall)
    assert store.lease_to_settle("worker", 30, settle) is None
    assert deliveries.due("archive") is None
    assert pull_back(store.database, 30.0, [archive]) == 7
    assert pull_back(store.database, 30.0, [archive]) == 0
    assert deliveries.due("archive").job == job.id
    with store.database.read() as connection:
        changed, until = connection.execute("SELECT changed_at, commit_until FROM deliveries").fetchone()
    assert changed <= time.time()
    assert until <= time.time() + archive.commitment_seconds
    monkeypatch.setattr(time, "time", lambda: wall() + 30.1)  # the lease's longest
    assert store.lease_to_settle("worker", 30, settle).id == job.id


def test_times_that_lie_ahead_are_taken_back_at_the_start(start, tmp_path):
    database, future = Database(tmp_path / "data"), time.time() + 1e6
    with database.write() as connection:
        connection.execute(
            "INSERT INTO jobs (study_uid, version, state, priority, created_at, changed_at, last_image_at) "
            "VALUES ('1.2', 1, 'settling', 5, ?1, ?1, ?1)",
            (future,),
        )
    database.close()
    (job,) = start(work={"command": ["false"]}).store.jobs()
    assert max(job.created_at, job.changed_at, job.last_image_at) <= time.time()


def test_times_that_may_lie_ahead_stay_as_they_are(start, study):
    service = start(destinations=[archive_destination(free_port(), first_wait_seconds=600, longest_wait_seconds=600)])
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("sending",)))
    wait_for(lambda: service.deliveries.of(job.id)[0]["tries"] == 1)
    before = service.deliveries.of(job.id)
    service._pull_back()
    assert service.deliveries.of(job.id) == before


def test_no_files_time_is_over_because_the_clock_was_put_forward(start, study, monkeypatch):
    """By years, as after a start with a clock that had lost its battery; what lay ahead was taken back to that."""
    service = start()
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("sent",)))
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() - 1e9)
    service._check()
    service._pull_back()
    assert service.store.job(job.id).changed_at <= time.time()
    monkeypatch.setattr(time, "time", wall)
    service._check()
    assert service._cleaner.clean() == 0
    assert wall() - 60 < service.store.job(job.id).changed_at <= time.time()
    monkeypatch.setattr(time, "time", lambda: wall() + 31 * 86400)
    assert service._cleaner.clean() == 1  # its time runs as ever


@pytest.fixture
def systemd(tmp_path):
    """What systemd would hear: a datagram socket under a name of its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(60)
        yield listening


def test_service_tells_systemd_when_it_listens_and_that_it_lives_and_that_it_stops(systemd, tmp_path):
    from tests.edge.kit import config

    settings = config(tmp_path)
    file = tmp_path / "appliance.toml"
    file.write_text(
        f'[appliance]\ndata = "{settings.appliance.data}"\n[receive]\nport = {settings.receive.port}\n'
        f"[page]\nport = {settings.page.port}\n"
    )
    environment = {**os.environ, "NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "400000"}
    environment.pop("WATCHDOG_PID", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "orthokernels.cli", "edge", "serve", "--config", str(file)], env=environment
    )
    try:
        assert systemd.recv(64) == b"READY=1"
        assert listens(settings.receive.port)
        assert systemd.recv(64) == b"WATCHDOG=1"
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: systemd.recv(64) == b"STOPPING=1")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_without_systemd_nothing_is_told(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notify.notify("READY=1")
    assert notify.watchdog_seconds() is None


def test_watchdog_of_another_process_is_not_ours(monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert notify.watchdog_seconds() is None
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify.watchdog_seconds() == 30.0
