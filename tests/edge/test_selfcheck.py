"""Readiness: disk and clock looked at before studies are welcome; systemd told the truth."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from orthokernels.edge import audit, notify
from orthokernels.edge.database import Database
from orthokernels.edge.selfcheck import SelfCheck, clock_faults, disk_faults

from tests.edge.kit import listens, wait_for


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
