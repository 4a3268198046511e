"""The conformance statement against the code: what it says is negotiated is what is negotiated."""

from __future__ import annotations

import re
from pathlib import Path

import orthokernels.edge
import pytest
from orthokernels.edge.config import Config
from orthokernels.edge.receive.intake import IMPLEMENTATION_UID, Status
from orthokernels.edge.receive.scp import IMAGE_CLASSES, SYNTAXES
from orthokernels.edge.send import scu
from orthokernels.edge.send.scu import WRITTEN
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from tests.edge.kit import listens, wait_for

STATEMENT = (Path(orthokernels.edge.__file__).parent / "CONFORMANCE.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading, up to the next."""
    found = re.search(rf"^#+ [\d.]+ {re.escape(title)}$(.*?)(?=^#|\Z)", STATEMENT, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found.group(1)


def uids(text: str) -> list[str]:
    return re.findall(r"\| (\d+(?:\.\d+)+) \|", text)


def test_accepted_contexts_are_the_receiver_s_own_in_its_order():
    told = uids(section("Presentation contexts accepted"))
    classes, syntaxes = told[: len(IMAGE_CLASSES) + 2], told[len(IMAGE_CLASSES) + 2 :]
    assert set(classes) == {Verification, *IMAGE_CLASSES, StorageCommitmentPushModel}
    assert syntaxes == list(SYNTAXES)


def test_proposed_contexts_are_those_of_the_objects_that_are_written():
    assert set(uids(section("Presentation contexts proposed"))) == {
        *WRITTEN,
        Verification,
        StorageCommitmentPushModel,
    }


def test_names_in_the_tables_are_those_of_the_uids():
    rows = re.findall(r"^\| ([^|]+ (?:Storage|SOP Class)) \| (\d[\d.]+) \|", STATEMENT, re.MULTILINE)
    assert len(rows) > 10
    for name, uid in rows:
        assert UID(uid).name in (name, uid)  # pydicom does not know the label map's yet


def test_answers_identifiers_and_limits_are_the_code_s():
    for status in Status:
        assert f"| 0x{status:04X} |" in section("Storage")
    policies = section("Association policies")
    assert f"| {IMPLEMENTATION_UID} |" in policies
    limits = Config().receive.limits
    assert f"| Largest PDU | {limits.pdu_bytes} bytes" in policies
    assert f"| Associations at one time | {limits.associations}," in policies
    assert f"port is {Config().receive.port}," in section("Network interfaces")
    for status in scu._KEPT:
        assert f"0x{status:04X}" in STATEMENT


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_running_receiver_accepts_each_syntax_for_each_image_class(receiver, syntax):
    entity = AE(ae_title="MR1")
    for image_class in IMAGE_CLASSES:
        entity.add_requested_context(image_class, syntax)
    association = entity.associate("127.0.0.1", receiver.config.receive.port, ae_title="ORTHOKERNELS")
    try:
        accepted = {(context.abstract_syntax, context.transfer_syntax[0]) for context in association.accepted_contexts}
    finally:
        association.release()
    assert accepted == {(image_class, syntax) for image_class in IMAGE_CLASSES}


@pytest.fixture(scope="module")
def receiver(tmp_path_factory):
    from orthokernels.edge.service import Service

    from tests.edge.kit import config

    service = Service(config(tmp_path_factory.mktemp("conformance")))
    service.start()
    wait_for(lambda: listens(service.config.receive.port))
    yield service
    service.stop()
