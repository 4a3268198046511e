"""Archives that report what they keep on the association that asked them."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import pytest
from orthokernels.edge import audit
from orthokernels.edge.config import DimseDestination
from orthokernels.edge.deliveries import Made, NotDeliveredError
from orthokernels.edge.receive import scp
from orthokernels.edge.send import scu
from orthokernels.edge.send.scu import WRITTEN, ask_commitment
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel

from tests.edge.kit import archive_destination, free_port, store, wait_for

MADE = Made("1.2.840.10008.5.1.4.1.1.7", "1.2.3", "digest", "file")


class Asked:
    """What the asking side knows: whether the report is awaited, and what it said."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.reports: list[tuple[str, set[str]]] = []

    def committed(self, transaction: str, kept: set[str]) -> bool:
        time.sleep(self.seconds)
        self.reports.append((transaction, kept))
        return True

    def awaited(self) -> bool:
        return not self.reports

    def ask(self, port: int, **more) -> float:
        """How long the asking took."""
        destination = DimseDestination(**archive_destination(port, commitment=True, **more))
        begun = time.monotonic()
        ask_commitment("ORTHOKERNELS", destination, [MADE], "1.9", self.committed, self.awaited)
        return time.monotonic() - begun


def report(association, asked: Dataset, answers: list[int | None]) -> None:
    told = Dataset()
    told.TransactionUID, told.ReferencedSOPSequence = asked.TransactionUID, asked.ReferencedSOPSequence
    status, _ = association.send_n_event_report(told, 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1")
    answers.append(status.get("Status"))


@contextmanager
def reporting(act, keep=None):
    """An archive that calls ``act`` with the event and what was asked, for each N-ACTION; its port."""
    entity = AE(ae_title="PACS")
    for sop_class in (StorageCommitmentPushModel, *WRITTEN):
        entity.add_supported_context(sop_class)
    port = free_port()
    handlers = [(evt.EVT_N_ACTION, lambda event: (act(event, event.action_information), None)),
                (evt.EVT_C_STORE, keep or (lambda event: 0x0000))]  # fmt: skip
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield port
    finally:
        server.shutdown()


def later(seconds: float, answers: list[int | None]):
    """Report so long after the answer."""

    def act(event, asked) -> int:
        threading.Timer(seconds, report, (event.assoc, asked, answers)).start()
        return 0x0000

    return act


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.5])
def test_report_on_the_asking_association_is_heard_and_answered(seconds):
    answers: list[int | None] = []
    asked = Asked()
    with reporting(later(seconds, answers)) as port:
        assert asked.ask(port) < seconds + 3.0
        wait_for(lambda: answers, 5)
    assert asked.reports == [("1.9", {"1.2.3"})]
    assert answers == [0x0000]


@pytest.mark.parametrize("status", [0x0000, 0x0110])
def test_report_before_the_answer_counts_whatever_the_answer_is(status):
    """The archive answers while the report is still being taken in; its own answer is not needed any more."""
    answers: list[int | None] = []

    def act(event, asked) -> int:
        threading.Thread(target=report, args=(event.assoc, asked, answers)).start()
        time.sleep(0.1)
        return status

    asked = Asked(0.4)
    with reporting(act) as port:
        asked.ask(port)
    assert asked.reports == [("1.9", {"1.2.3"})]


def test_report_whose_answer_is_waited_for_before_the_request_is_answered():
    answers: list[int | None] = []

    def act(event, asked) -> int:
        report(event.assoc, asked, answers)
        return 0x0000

    asked = Asked()
    with reporting(act) as port:
        asked.ask(port)
    assert asked.reports
    assert answers == [0x0000]


def test_archive_that_does_not_report_holds_the_sender_up_for_the_bound_at_most(monkeypatch):
    monkeypatch.setattr(scu, "_REPORT_SECONDS", 1.0)
    asked = Asked()
    with reporting(lambda event, asked: 0x0000) as port:
        assert 0.9 < asked.ask(port) < 3.0
    with reporting(lambda event, asked: 0x0000) as port:
        assert asked.ask(port, timeout_seconds=0.8) < 1.0, "the association would be aborted for its silence"
    assert not asked.reports


def test_archive_that_releases_is_waited_for_no_longer():
    def act(event, asked) -> int:
        threading.Timer(0.2, event.assoc.release).start()
        return 0x0000

    with reporting(act) as port:
        assert Asked().ask(port) < 3.0


def test_archive_that_refuses_and_does_not_report_was_not_asked():
    with (
        reporting(lambda event, asked: 0x0110) as port,
        pytest.raises(NotDeliveredError, match="did not take the commitment request"),
    ):
        Asked().ask(port)


def test_study_is_committed_by_a_report_on_the_asking_association(start, study):
    answers: list[int | None] = []
    stored = []

    def keep(event) -> int:
        stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    with reporting(later(0.3, answers), keep) as port:
        service = start(destinations=[archive_destination(port, commitment=True, tries=1)])
        assert store(service.config, study).returncode == 0
        (job,) = wait_for(lambda: service.store.jobs(("committed", "dead")))
        assert job.state == "committed"
        assert audit.latest(service.store.database, "commitment", "archive")["outcome"] == "success"
        assert len(stored) == 3
        wait_for(lambda: answers, 5)
    assert answers == [0x0000]


def test_archive_whose_name_is_not_known_does_not_keep_studies_out(start, study, monkeypatch, caplog):
    """Its reports come in once the name is known."""
    known: list[str] = []
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *rest, **more):
        if host == "archive.invalid" and not known:
            raise socket.gaierror(-2, "Name or service not known")
        return look_up("127.0.0.1" if host == "archive.invalid" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(scp, "_LOOKUP_SECONDS", 0.1)
    unknown = archive_destination(free_port(), commitment=True, host="archive.invalid", tries=100)
    service = start(destinations=[unknown])
    assert not may_report(service)
    wait_for(lambda: "destination archive: host 'archive.invalid' is not known" in caplog.text)
    assert store(service.config, study).returncode == 0
    assert not may_report(service)
    assert caplog.text.count("its commitment reports are refused") == 1
    known.append("archive")
    wait_for(lambda: may_report(service))
    known.clear()
    wait_for(lambda: "those found last count" in caplog.text)
    assert may_report(service)


def test_nobody_waits_while_an_archives_name_is_looked_up(start, study, monkeypatch):
    """Not even where a host knocks that is not listed, and may be the archive: connections are taken one by one."""
    looking, answered = threading.Event(), threading.Event()
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *rest, **more):
        if host != "archive.invalid":
            return look_up(host, *rest, **more)
        looking.set()
        answered.wait(30)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    service = start(destinations=[archive_destination(free_port(), commitment=True, host="archive.invalid")])
    port = service.config.receive.port
    try:
        with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)):
            assert looking.wait(10)
            begun = time.monotonic()
            assert store(service.config, study[:1]).returncode == 0
            assert time.monotonic() - begun < 10
    finally:
        answered.set()


def may_report(service) -> bool:
    """Whether the archive may open an association to report."""
    entity = AE(ae_title="PACS")
    entity.add_requested_context(StorageCommitmentPushModel)
    receive = service.config.receive
    association = entity.associate("127.0.0.1", receive.port, ae_title=service.config.appliance.ae_title)
    accepted = association.is_established
    if accepted:
        association.release()
    return accepted
