"""What people and probes see: status, retry, the audit log, health, metrics; and what must not be seen."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from pathlib import Path

import pydicom
import pytest
from orthokernels.edge import audit
from orthokernels.edge.config import Disk, Retention, Watch
from orthokernels.edge.database import NAME, Database
from orthokernels.edge.doctor.site import look_at_clock
from orthokernels.edge.receive.folder import FolderWatcher
from orthokernels.edge.receive.intake import Intake
from orthokernels.edge.retention import Cleaner
from orthokernels.edge.service import Service
from orthokernels.edge.status import open_store, recent
from orthokernels.edge.store import Image, Store

from orthokernels.errors import InputError
from tests.edge.kit import archive_destination, config, edit, free_port, get, late_image, store, wait_for, write_study
from tests.edge.test_config import edge

EMPTY = Disk(keep_free_bytes=0, refuse_above=1.0, clean_above=1.0)  # as no limit of it is reached on any disk


def test_probes_tell_of_health_and_readiness(serve):
    service = serve()
    assert get(service, "/healthz") == (200, "ok\n")
    wait_for(lambda: get(service, "/readyz")[0] == 200)


def test_full_disk_and_missing_model_are_not_ready(serve):
    service = serve(disk={"keep_free_bytes": 2**60}, work={"command": ["false"]})
    wait_for(lambda: "the model can't be used" in get(service, "/readyz")[1])
    status, told = get(service, "/readyz")
    assert status == 503
    assert "are kept free" in told


def test_full_queue_is_not_ready_and_is_told_to_whoever_looks(serve, study, tmp_path):
    peers = [{"ae_title": "MR1", "hosts": ["127.0.0.1"]}]
    service = serve(
        receive={"port": free_port(), "peers": peers, "limits": {"waiting_studies": 1}}, work={"command": ["false"]}
    )
    told = "1 studies are waiting, and no new one is taken in"
    assert told not in get(service, "/readyz")[1]
    assert store(service.config, study).returncode == 0
    refused = store(service.config, write_study(tmp_path / "new", study="1.2.4")[:1])
    assert "OutOfResources" in refused.stderr
    assert told in get(service, "/readyz")[1]
    assert f"Images are refused: {told}" in get(service, "/")[1]
    (tmp_path / "appliance.toml").write_text(
        f'[appliance]\ndata = "{service.config.appliance.data}"\n[receive.limits]\nwaiting_studies = 1\n'
        "[disk]\nkeep_free_bytes = 0\nrefuse_above = 1.0\nclean_above = 1.0\n"
    )
    assert f"images are refused: {told}" in edge("status", "--config", tmp_path / "appliance.toml").stdout


def test_folder_of_another_user_is_told_in_a_sentence(tmp_path, monkeypatch):
    """As to whoever asks for the status without being the service's user; root may enter every folder."""
    settings = config(tmp_path)
    Database(settings.appliance.data).close()

    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(InputError, match="can't be read by this user"):
        open_store(settings)
    assert look_at_clock(settings).verdict == "ok"


def fill(database: Database) -> None:
    """Write into a database until its disk is full."""
    with database.read() as connection:
        connection.execute("PRAGMA max_page_count = 1")  # as many as there are
    while True:
        with database.write() as connection:
            audit.append(connection, "x", "x", "x")


def test_full_disk_is_told_as_such_at_the_start_and_not_as_a_fault_of_the_database(tmp_path):
    service = Service(config(tmp_path))
    with pytest.raises(sqlite3.OperationalError, match="full"):  # and not that nothing could be rolled back
        fill(service.store.database)
    with pytest.raises(InputError, match=r"can't be opened or written now \(database or disk is full\)\. See that"):
        service.start()
    service.store.database.close()
    os.close(service._lock)


def test_database_that_can_not_be_opened_is_not_called_broken(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(InputError, match="can't be opened or written now"):
        Database(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / NAME).write_bytes(b"no database " * 500)
    with pytest.raises(InputError, match="Restore it from a copy"):
        Database(tmp_path / "other")


def test_study_that_was_put_aside_is_listed_however_many_came_after_it(tmp_path):
    store = Store(Database(tmp_path))
    for number in range(150):
        store.add(Image(f"1.2.{number}", "1.1", f"1.3.{number}", "1.4", "digest", 1, f"images/{number}", "MR1"), 5)
    first, *_ = reversed(store.jobs())
    store.move(first.id, "dead", "worker", "put aside after 2 attempts: it was ended by SIGKILL")
    for limit in (30, 100):
        listed = [job["id"] for job in recent(store, limit)]
        assert listed == [*range(150, 150 - limit, -1), first.id]
    assert len(recent(store, 150)) == 150


def test_metrics_count_images_and_jobs(serve, study):
    service = serve()
    assert store(service.config, study).returncode == 0
    wait_for(lambda: 'orthokernels_jobs{state="sent"} 1.0' in get(service, "/metrics")[1])


def test_audit_log_is_a_chain_and_a_changed_entry_shows(start, study):
    service = start()
    assert store(service.config, study).returncode == 0
    wait_for(lambda: service.store.jobs(("sent",)))
    entries = list(audit.entries(service.store.database))
    assert [entry["event"] for entry in entries] == [
        "started", "received", "settling", "checked", "inferring", "writing", "sending", "sent",
    ]  # fmt: skip
    assert all(entry["intact"] for entry in entries)
    with service.store.database.write() as connection:
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute("UPDATE audit SET actor = 'someone' WHERE number = 3")
        connection.execute("DROP TRIGGER audit_is_fixed")
        connection.execute("UPDATE audit SET actor = 'someone' WHERE number = 3")
    assert [entry["number"] for entry in audit.entries(service.store.database) if not entry["intact"]] == [3]


SECRETS = {
    "PatientName": "Xanthopoulos^Zephyrine",
    "PatientID": "PID-7351-QUIBBLE",
    "PatientBirthDate": "19510203",
    "AccessionNumber": "ACC-90417-WOMBAT",
    "ReferringPhysicianName": "Featherstonehaugh^Q",
    "StudyDescription": "knee of the mayor",
    "ProtocolName": "mayor-protocol",
}


def test_neither_log_nor_audit_nor_metrics_nor_queue_name_patient_or_study(serve, study, capfd, caplog, tmp_path):
    """A study that is evaluated, one that ends its worker, one that is rejected, one set aside, one that is refused."""
    service = serve(settle={"quiet_seconds": 0.3}, work={"attempts": 1})
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("orthokernels").setLevel(logging.DEBUG)
        good = write_study(tmp_path / "good", study="1.2.83514", **SECRETS)
        crash = write_study(tmp_path / "crash", study="1.2.83515", SeriesDescription="crash", **SECRETS)
        reject = write_study(tmp_path / "reject", study="1.2.83516", SeriesDescription="reject", **SECRETS)
        assert store(service.config, [*good, *crash, *reject]).returncode == 0
        wait_for(lambda: len(service.store.jobs(("sent", "dead", "rejected"))) == 3)
        other = edit(good[0], StudyDescription="another mayor")
        assert store(service.config, [other]).returncode == 0
        assert store(service.config, study, calling="MAYOR").returncode != 0
    told = {
        "log": caplog.text,
        "output": "".join(capfd.readouterr()),
        "audit": json.dumps(list(audit.entries(service.store.database))),
        "metrics": get(service, "/metrics")[1],
        "readiness": get(service, "/readyz")[1],
        "status": json.dumps(recent(service.store)),
    }
    assert "set aside" in told["metrics"]
    assert "the worker process died" in told["log"]
    assert "rejected an association" in told["log"]
    secrets = [part for value in SECRETS.values() for part in value.split("^") if len(part) > 1]
    for where, text in told.items():
        for secret in (*secrets, "mayor", "1.2.8351"):
            assert secret not in text, (where, secret)


def cleaner(service, **days: float) -> Cleaner:
    config = service.config
    retention = config.retention.model_copy(update=days)
    return Cleaner(service.store, config.appliance.data, config.disk, retention)


def files(service) -> list[Path]:
    return list(service.config.appliance.data.rglob("*.dcm"))


def test_what_was_delivered_goes_in_its_time_and_is_still_known(start, study, archive):
    service = start(destinations=[archive_destination(archive.port)])
    assert store(service.config, study).returncode == 0
    wait_for(lambda: service.store.jobs(("sent",)))
    assert cleaner(service, delivered_days=1.0).clean() == 0
    assert cleaner(service, delivered_days=0.0).clean() == 1
    assert files(service) == []
    assert store(service.config, study).returncode == 0
    assert len(service.store.jobs()) == 1


def test_what_waits_for_an_archive_s_word_that_it_keeps_it_stays(start, study, archive):
    service = start(destinations=[archive_destination(archive.port)])
    assert store(service.config, study).returncode == 0
    wait_for(lambda: service.store.jobs(("sent",)))
    with service.store.database.write() as connection:
        connection.execute("UPDATE deliveries SET transaction_uid = '1.2', commit_until = 1e12")
    assert cleaner(service, delivered_days=0.0).clean() == 0
    assert service.deliveries.commitment_answered("1.2", service.deliveries.objects(1)[0].sop_uid.split())
    assert cleaner(service, delivered_days=0.0).clean() == 0  # the rest is owed again


def test_rejected_study_that_was_removed_and_is_sent_again_is_worked_on_again(start, study):
    service = start(settle={"quiet_seconds": 0.3})
    assert store(service.config, study[:3]).returncode == 0
    wait_for(lambda: service.store.jobs(("rejected",)))
    assert cleaner(service, rejected_days=0.0).clean() == 1
    assert files(service) == []
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("sent",)))
    assert job.version == 2
    assert len(service.store.files(job.id)) == len(study)


def test_late_image_of_a_study_that_was_removed_is_rejected_until_the_whole_study_comes_again(start, study, tmp_path):
    service = start(settle={"quiet_seconds": 0.5})
    assert store(service.config, study).returncode == 0
    wait_for(lambda: service.store.jobs(("sent",)))
    assert cleaner(service, kept_here_days=0.0).clean() == 1
    late = late_image(tmp_path)
    assert store(service.config, [late]).returncode == 0
    (rejected,) = wait_for(lambda: service.store.jobs(("rejected",)))
    remedy = "send the whole study again, or retry this to do without."
    assert rejected.reason == f"{len(study)} earlier images were removed; {remedy}"
    assert store(service.config, [*study, late]).returncode == 0
    job = wait_for(lambda: next((job for job in service.store.jobs(("sent",)) if job.version > 1), None))
    assert job.version == 3
    assert len(service.store.files(job.id)) == len(study) + 1


def test_removed_images_that_come_again_with_other_content_are_used(start, study, tmp_path):
    """Where the first ones' files are gone, nothing else would ever be made of what was acknowledged."""
    service = start(settle={"quiet_seconds": 0.5})
    assert store(service.config, study).returncode == 0
    (first,) = wait_for(lambda: service.store.jobs(("sent",)))
    assert cleaner(service, kept_here_days=0.0).clean() == 1
    coerced = [edit(path, PatientName="Coerced^Name") for path in write_study(tmp_path / "coerced")]
    assert store(service.config, coerced).returncode == 0
    second = wait_for(lambda: next((job for job in service.store.jobs(("sent",)) if job.version == 2), None))
    assert second.inputs_digest != first.inputs_digest
    used = [pydicom.dcmread(service.config.appliance.data / file) for file in service.store.files(second.id)]
    assert [str(image.PatientName) for image in used] == ["Coerced^Name"] * len(study)
    assert service.store.set_aside_of(second.study_uid) == 0
    assert store(service.config, study[:1]).returncode == 0  # now it is these that came first
    assert service.store.set_aside_of(second.study_uid) == 1


def test_study_that_lacks_a_removed_image_says_so_and_a_person_may_do_without(start, study, tmp_path):
    service = start(settle={"quiet_seconds": 0.5})
    locator = late_image(tmp_path)
    assert store(service.config, [*study, locator]).returncode == 0
    wait_for(lambda: service.store.jobs(("sent",)))
    assert cleaner(service, kept_here_days=0.0).clean() == 1
    with service.store.database.write() as connection:  # nothing had come of it, so that it is worked on again
        connection.execute("UPDATE jobs SET state = 'rejected'")
    assert store(service.config, study).returncode == 0
    (rejected,) = wait_for(lambda: [job for job in service.store.jobs(("rejected",)) if job.version == 2])
    assert rejected.reason.startswith("1 earlier image was removed; send the whole study again, or retry this")
    again = service.deliveries.retry(rejected, "test")
    job = wait_for(lambda: next((job for job in service.store.jobs(("sent",)) if job.id == again.id), None))
    assert len(service.store.files(job.id)) == len(study)
    assert store(service.config, [locator]).returncode == 0  # it came after all, as a late image does
    whole = wait_for(lambda: next((job for job in service.store.jobs(("sent",)) if job.version == 4), None))
    assert len(service.store.files(whole.id)) == len(study) + 1


def test_what_a_person_gave_up_on_goes_in_its_time(start, study, tmp_path):
    service = start(destinations=[archive_destination(free_port(), tries=1)])
    assert store(service.config, study).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("dead",)))
    (tmp_path / "appliance.toml").write_text(f'[appliance]\ndata = "{service.config.appliance.data}"\n')
    assert edge("discard", "99", "--config", tmp_path / "appliance.toml").returncode == 2
    told = edge("retry", str(job.id), "--config", tmp_path / "appliance.toml")
    assert told.stdout.startswith(f"{job.id}: dead; archive: no longer configured. Discard it, or configure")
    told = edge("discard", str(job.id), "--config", tmp_path / "appliance.toml")
    assert (told.returncode, told.stdout) == (0, f"{job.id}: discarded\n")
    *_, entry = audit.entries(service.store.database)
    assert (entry["event"], entry["actor"], entry["intact"]) == ("discarded", "console", True)
    assert cleaner(service, rejected_days=1.0, delivered_days=0.0).clean() == 0
    assert cleaner(service, rejected_days=0.0).clean() == 1
    assert files(service) == []


def test_image_that_was_set_aside_goes_in_its_time(start, study, tmp_path):
    service = start(settle={"quiet_seconds": 60.0})
    assert store(service.config, study[:1]).returncode == 0
    other = edit(write_study(tmp_path / "other", planes=("sagittal",))[0], StudyDescription="another")
    assert store(service.config, [other]).returncode == 0
    assert len(files(service)) == 2
    cleaner(service, rejected_days=1.0).clean()
    assert len(files(service)) == 2
    cleaner(service, rejected_days=0.0).clean()
    assert len(files(service)) == 1
    with service.store.database.read() as connection:
        assert not connection.execute("SELECT * FROM asides").fetchall()


def test_what_was_not_delivered_never_goes(start, study):
    service = start(destinations=[archive_destination(free_port(), tries=1)])
    assert store(service.config, study).returncode == 0
    wait_for(lambda: service.store.jobs(("dead",)))
    assert cleaner(service, delivered_days=0.0, rejected_days=0.0).clean() == 0
    assert len(files(service)) == len(study) + 3


def test_house_is_kept_by_what_is_here_and_not_by_all_that_ever_came(tmp_path):
    """Thousands of studies that went long ago, and a hundred that are here; counted are the database's own steps."""
    store = Store(Database(tmp_path))
    cleaner = Cleaner(store, tmp_path, EMPTY, Retention())
    now, images = time.time(), 20
    finish(store, range(4000), images, now - 30 * 86400, here=False)
    assert in_steps(1000, store, cleaner) == 0
    finish(store, range(4000, 4100), images, now - 30 * 86400, here=True)
    finish(store, range(4100, 4200), images, now, here=True)
    assert in_steps(1_000_000, store, cleaner) == 100
    assert in_steps(50_000, store, cleaner) == 0
    with store.database.read() as connection:
        here = connection.execute("SELECT count(*), min(id) FROM instances WHERE file IS NOT NULL").fetchone()
    assert tuple(here) == (100 * images, 4100 * images)


def in_steps(most: int, store: Store, cleaner: Cleaner) -> int:
    """What a round of the cleaner removes; SQLite's machine is interrupted where it takes more steps than that."""
    called = iter(range(most // 100))
    with store.database.read() as connection:
        connection.set_progress_handler(lambda: next(called, None) is None, 100)
        try:
            return cleaner.clean()
        finally:
            connection.set_progress_handler(None, 0)


def finish(store: Store, numbers: range, images: int, changed_at: float, *, here: bool) -> None:
    """Studies that were delivered at that time, with or without their files."""
    with store.database.write() as connection:
        for study in numbers:
            connection.execute(
                "INSERT INTO jobs (id, study_uid, version, state, priority, created_at, changed_at, last_image_at) "
                "VALUES (?, ?, 1, 'sent', 5, ?, ?, ?)",
                (study + 1, f"1.2.{study}", changed_at, changed_at, changed_at),
            )
            connection.execute(
                "INSERT INTO deliveries (job, destination, state, next_try_at, changed_at) "
                "VALUES (?, 'archive', 'sent', 0, 0)",
                (study + 1,),
            )
            connection.execute(
                "INSERT INTO objects (job, sop_class, sop_uid, digest, file) VALUES (?, '1', ?, '', ?)",
                (study + 1, f"1.3.{study}", f"results/{study}/report.dcm" if here else None),
            )
            for number in range(study * images, (study + 1) * images):
                connection.execute(
                    "INSERT INTO instances VALUES (?, ?, '1', ?, '1', '', 1, ?, 'MR1', 0)",
                    (number, f"1.4.{number}", f"1.2.{study}", f"images/{study}/{number}.dcm" if here else None),
                )
                connection.execute("INSERT INTO job_instances VALUES (?, ?)", (study + 1, number))


def test_what_no_destination_was_to_get_has_a_time_of_its_own_which_a_full_disk_does_not_shorten(start, study):
    service = start()
    assert store(service.config, study).returncode == 0
    wait_for(lambda: service.store.jobs(("sent",)))
    assert cleaner(service, delivered_days=0.0).clean() == 0
    full = cleaner(service, delivered_days=0.0)
    full._disk = EMPTY.model_copy(update={"clean_above": 1e-9})
    assert full.clean() == 0
    assert cleaner(service, kept_here_days=0.0).clean() == 1
    assert files(service) == []
    assert store(service.config, study).returncode == 0  # its results are nowhere, so it is worked on again
    again = wait_for(lambda: next((job for job in service.store.jobs(("sent",)) if job.version == 2), None))
    assert len(service.store.files(again.id)) == len(study)


def test_what_was_delivered_goes_before_its_time_where_the_disk_is_full(start, study, archive):
    service = start(destinations=[archive_destination(archive.port)])
    assert store(service.config, study).returncode == 0
    wait_for(lambda: service.store.jobs(("sent",)))
    full = cleaner(service)
    assert full.clean() == 0
    full._disk = EMPTY.model_copy(update={"clean_above": 1e-9})
    assert full.clean() == 1


@pytest.mark.parametrize("limit", [{"refuse_above": 1e-9}, {"keep_free_bytes": 2**60}])
def test_what_was_delivered_goes_before_images_are_refused_for_its_sake(start, study, archive, limit):
    """As it is by default, where images are refused long before the disk is so full that it is cleaned for itself."""
    service = start(destinations=[archive_destination(archive.port)])
    assert store(service.config, study).returncode == 0
    wait_for(lambda: service.store.jobs(("sent",)))
    full = cleaner(service)
    full._disk = EMPTY
    assert full.clean() == 0
    full._disk = EMPTY.model_copy(update=limit)
    assert full.clean() == 1
    assert files(service) == []


def test_watched_folder_is_emptied_and_what_is_no_image_is_moved_aside(start, study, tmp_path):
    import shutil

    folder = tmp_path / "watched"
    (folder / "sub").mkdir(parents=True)
    service = start(watch={"folder": folder, "seconds_unchanged": 0.2})
    for path in study:
        shutil.copy(path, folder / "sub" / f"{path.parent.name}-{path.name}")
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "link.dcm").symlink_to("/etc/passwd")
    (job,) = wait_for(lambda: service.store.jobs(("sent",)))
    assert len(service.store.files(job.id)) == len(study)
    wait_for(lambda: (folder / "rejected" / "notes.txt").is_file())
    assert sorted(path.name for path in folder.rglob("*") if not path.is_dir()) == ["link.dcm", "notes.txt"]


def test_folder_waits_a_while_for_room_and_then_is_emptied(start, study, tmp_path, caplog, monkeypatch):
    """A full disk would be told each second, and every file that waits be read for it."""
    import shutil

    folder = tmp_path / "watched"
    folder.mkdir()
    shutil.copy(study[0], folder / "image.dcm")
    service = start(watch={"folder": folder, "seconds_unchanged": 0.2}, disk={"keep_free_bytes": 2**60})
    wait_for(lambda: "are kept free" in caplog.text)
    time.sleep(2.5)  # looks once a second
    assert caplog.text.count("are kept free") == 1
    service._intake.disk = EMPTY
    steady = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: steady() + 30.0)
    wait_for(lambda: not (folder / "image.dcm").exists())


def test_file_that_can_not_be_dealt_with_holds_up_no_other_and_is_told_once(start, study, tmp_path, caplog):
    """A file of that name where the folder for rejected ones would be: what is no image can't be moved."""
    import shutil

    folder = tmp_path / "watched"
    folder.mkdir()
    (folder / "rejected").write_text("in the way")
    (folder / "a.txt").write_text("not DICOM")
    for number, path in enumerate(study):
        shutil.copy(path, folder / f"image{number}.dcm")
    os.utime(folder / "image0.dcm", (2**32, 2**32))  # by another machine's clock
    service = start(watch={"folder": folder, "seconds_unchanged": 0.2})
    wait_for(lambda: service.store.jobs(("sent",)))
    wait_for(lambda: not list(folder.glob("image*")))
    time.sleep(2.5)  # looks once a second
    assert caplog.text.count("can't be read or removed") == 1
    assert (folder / "a.txt").is_file()


def test_file_that_another_takes_the_place_of_while_it_is_read_costs_neither(tmp_path):
    """As by an export of the next study under the same names."""
    first, second = (write_study(tmp_path / name, study=f"1.2.{name}", planes=("axial",))[0] for name in ("3", "4"))
    settings = config(tmp_path)
    intake = Intake(settings, Store(Database(settings.appliance.data)))
    exported = tmp_path / "watched" / "IM1"
    exported.parent.mkdir()
    os.replace(first, exported)

    class Replaced:
        def __getattr__(self, name):
            return getattr(intake, name)

        def take(self, arrival):
            intake.take(arrival)
            if second.exists():
                os.replace(second, exported)

    watcher = FolderWatcher(Watch(folder=exported.parent, seconds_unchanged=0.01), Replaced())
    wait_for(lambda: watcher.look() == 0 and not exported.exists())
    assert {job.study_uid for job in intake.store.jobs()} == {"1.2.3", "1.2.4"}


def test_file_whose_copy_stalled_waits_for_its_rest_and_is_rejected_if_none_comes(start, study, tmp_path, monkeypatch):
    folder = tmp_path / "watched"
    folder.mkdir()
    whole = study[0].read_bytes()
    (folder / "stalled.dcm").write_bytes(whole[:-100])
    service = start(watch={"folder": folder, "seconds_unchanged": 0.2})
    (folder / "whole.dcm").write_bytes(study[1].read_bytes())
    wait_for(lambda: not (folder / "whole.dcm").exists())
    assert (folder / "stalled.dcm").read_bytes() == whole[:-100]
    (folder / "stalled.dcm").write_bytes(whole)
    wait_for(lambda: not (folder / "stalled.dcm").exists())
    (job,) = service.store.jobs()
    assert len(service.store.files(job.id)) == 2
    monkeypatch.setattr("orthokernels.edge.receive.folder.UNFINISHED_SECONDS", 0.5)
    (folder / "broken.dcm").write_bytes(study[2].read_bytes()[:-100])
    wait_for(lambda: (folder / "rejected" / "broken.dcm").is_file())
    assert len(service.store.files(job.id)) == 2


def test_rejected_files_of_the_same_name_do_not_overwrite_each_other(start, tmp_path):
    folder = tmp_path / "watched"
    for name in ("one", "two", "three"):
        (folder / name).mkdir(parents=True)
        (folder / name / "notes.txt").write_text(name)
    start(watch={"folder": folder, "seconds_unchanged": 0.2})
    rejected = folder / "rejected"
    wait_for(lambda: len(list(rejected.glob("*"))) == 3)
    assert {path.read_text() for path in rejected.iterdir()} == {"one", "two", "three"}
    assert {path.name for path in rejected.iterdir()} == {"notes.txt", "notes-2.txt", "notes-3.txt"}


def test_rejected_study_is_taken_up_again_as_a_new_version(start, study):
    service = start(settle={"quiet_seconds": 0.3})
    assert store(service.config, study[:3]).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("rejected",)))
    again = service.deliveries.retry(job, "test")
    assert (again.version, again.state) == (2, "settling")
