"""Segmentations as label maps where a destination accepts them, else binary: each gets one form and keeps it."""

from __future__ import annotations

import sys

import pydicom
import pytest
from orthokernels.edge.config import Config
from orthokernels.edge.forms import FORMS, STORAGE, choose, form_of
from orthokernels.edge.status import summary
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage
from pynetdicom import AE, evt

from tests.edge.kit import SEGMENTING, Archive, archive_destination, free_port, store, wait_for, write_study

BINARY, LABEL_MAP = STORAGE.values()
WORK = {"command": [sys.executable, str(SEGMENTING)]}
RESULTS = {"planes": ["sagittal"]}

# Classes that dcmtk's storescp does not know by name have to be listed for it.
PROFILE = f"""[[TransferSyntaxes]]
[Plain]
TransferSyntax1 = LocalEndianExplicit
[[PresentationContexts]]
[Modern]
PresentationContext1 = {BINARY}\\Plain
PresentationContext2 = {LABEL_MAP}\\Plain
PresentationContext3 = {Comprehensive3DSRStorage}\\Plain
PresentationContext4 = {SecondaryCaptureImageStorage}\\Plain
[[Profiles]]
[Modern]
PresentationContexts = Modern
"""


class Peer:
    """A storage SCP on pynetdicom that accepts these classes and keeps what ``takes`` lets it."""

    def __init__(self, port: int, classes, takes=lambda kept: 0x0000) -> None:
        self.kept: dict[str, pydicom.Dataset] = {}
        entity = AE(ae_title="PACS")
        for sop_class in classes:
            entity.add_supported_context(sop_class)

        def store(event) -> int:
            status = takes(self.kept)
            if status == 0x0000:
                self.kept[event.dataset.SOPInstanceUID] = event.dataset
            return status

        self._server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])

    def stop(self) -> None:
        self._server.shutdown()


def contents(archive: Archive) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in archive.folder.iterdir()]


def forms(objects) -> set[str]:
    return {form for form in map(form_of, objects) if form}


def assert_one_form_whole(objects, form: str) -> None:
    """One segmentation, one report that names it and nothing else of ours, a picture and a page."""
    assert sorted(one.Modality for one in objects) == ["OT", "OT", "SEG", "SR"]
    assert forms(objects) == {form}
    (segmentation,) = (one for one in objects if one.Modality == "SEG")
    (report,) = (one for one in objects if one.Modality == "SR")
    assert named_by(report) & {BINARY, LABEL_MAP} == {STORAGE[form]}
    assert str(segmentation.SOPInstanceUID) in named_by(report)


def named_by(report) -> set[str]:
    return {
        str(own)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
        for own in (one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID)
    }


def test_each_destination_gets_the_form_that_it_accepts_or_asks_for_and_keeps_it_for_a_later_version(start, tmp_path):
    (tmp_path / "profile.cfg").write_text(PROFILE)
    archives = {
        "old": Archive(tmp_path / "old"),  # this dcmtk does not know label maps
        "modern": Archive(tmp_path / "modern", None, "-xf", str(tmp_path / "profile.cfg"), "Modern"),
        "plain": Archive(tmp_path / "plain", None, "-pm"),
        "asked": Archive(tmp_path / "asked", None, "-pm"),
    }
    wishes = {"old": "auto", "modern": "auto", "plain": None, "asked": True}
    expected = dict(zip(archives, ("binary", "label map", "binary", "label map"), strict=True))
    try:
        for archive in archives.values():
            archive.start()
        service = start(
            work=WORK,
            results=RESULTS,
            destinations=[
                archive_destination(archive.port, name=name, label_map=wishes[name])
                for name, archive in archives.items()
            ],
        )
        assert store(service.config, write_study(tmp_path / "one", planes=("sagittal",))).returncode == 0
        wait_for(lambda: service.store.jobs(("sent",)))
        for name, archive in archives.items():
            assert_one_form_whole(contents(archive), expected[name])
        assert {own["destination"]: own["form"] for own in service.deliveries.of(1)} == expected
        told = summary(service.config, service.store.database)["segmentations"]
        assert told == {name: {form: 1} for name, form in expected.items()}

        assert store(service.config, write_study(tmp_path / "two", seed=1, planes=("sagittal",))).returncode == 0
        wait_for(lambda: len(service.store.jobs(("sent",))) == 2)
        for name, archive in archives.items():
            objects = contents(archive)
            assert forms(objects) == {expected[name]}
            here = {one.SOPInstanceUID for one in objects}
            (replaced,) = (one for one in objects if "PredecessorDocumentsSequence" in one)
            (study,) = replaced.PredecessorDocumentsSequence
            (series,) = study.ReferencedSeriesSequence
            assert {one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence} < here
    finally:
        for archive in archives.values():
            archive.stop()


def test_retries_keep_to_the_form_that_was_begun_and_a_person_s_retry_chooses_anew_where_nothing_was_taken(
    start, tmp_path
):
    port, modern = free_port(), (*STORAGE.values(), Comprehensive3DSRStorage, SecondaryCaptureImageStorage)
    service = start(
        work=WORK, results=RESULTS, destinations=[archive_destination(port, label_map="auto", tries=3)]
    )  # fmt: skip
    peer = Peer(port, modern, lambda kept: 0xA700)  # it accepts label maps, and has no room for anything
    assert store(service.config, write_study(tmp_path / "in", planes=("sagittal",))).returncode == 0
    (job,) = wait_for(lambda: service.store.jobs(("dead",)))
    assert form_at(service) == "label map"
    peer.stop()

    peer = Peer(port, [own for own in modern if own != LABEL_MAP], lambda kept: 0xA700 if kept else 0x0000)
    service.deliveries.retry(job, "test")
    wait_for(lambda: service.store.job(job.id).state == "dead")
    assert form_at(service) == "binary"
    assert forms(peer.kept.values()) == {"binary"}  # the report was taken, which names the binary one
    first = peer.kept
    peer.stop()

    peer = Peer(port, modern)  # now it accepts both, and has the one's report
    service.deliveries.retry(service.store.job(job.id), "test")
    wait_for(lambda: service.store.job(job.id).state == "sent")
    peer.stop()
    assert_one_form_whole([*first.values(), *peer.kept.values()], "binary")

    with service.store.database.write() as connection:
        connection.execute("UPDATE deliveries SET transaction_uid = '1.2', commit_until = 1e12")
    assert service.deliveries.commitment_answered("1.2", {*first, *peer.kept})
    assert service.store.job(job.id).state == "committed"  # of the other form nothing is owed


def form_at(service) -> str | None:
    (own,) = service.deliveries.of(1)
    return own["form"]


@pytest.mark.parametrize(
    ("label_map", "accepted", "before", "chosen"),
    [
        (False, FORMS, None, "binary"),
        (True, (), None, "label map"),
        ("auto", FORMS, None, "label map"),
        ("auto", ("binary",), None, "binary"),
        ("auto", (), None, "binary"),
        ("auto", FORMS, "binary", "binary"),
        ("auto", ("binary",), "label map", "binary"),
        ("auto", ("label map",), "binary", "label map"),
    ],
)
def test_form_is_that_of_the_setting_or_of_what_is_accepted_and_came_before(label_map, accepted, before, chosen):
    classes = {STORAGE[form] for form in accepted}
    assert choose(label_map, FORMS, classes, before) == chosen
    for only in FORMS:  # a job of a time when the setting was another: better in another form than not at all
        assert choose(label_map, [only], classes, before) == only


def test_forms_that_are_made_are_those_that_a_destination_may_get():
    def made(results: bool, *wishes) -> tuple[str, ...]:
        destinations = [archive_destination(1, name=f"a{n}", label_map=wish) for n, wish in enumerate(wishes)]
        return Config.model_validate({"results": {"label_map": results}, "destinations": destinations}).forms()

    assert made(False) == made(False, None) == made(True, False) == ("binary",)
    assert made(True) == made(True, None) == made(False, True) == ("label map",)
    assert made(False, "auto") == made(False, True, None) == FORMS
