from __future__ import annotations

import pytest

from orthokernels import tasks
from orthokernels.tasks import JOINTS, LABELS, STRUCTURES, Code

# Verhoeff's tables: multiplication and permutation in the dihedral group of order 10.
_TIMES = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_TURNED = (
    "0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258",
)  # fmt: skip


def check_digit_holds(number: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(number)):
        total = int(_TIMES[total][int(_TURNED[place % 8][int(digit)])])
    return total == 0


def every_code() -> list[Code]:
    found = [*JOINTS.values()]
    for structure in STRUCTURES:
        found += [structure.code, structure.region, structure.modifier]
    for labels in LABELS.values():
        for label in labels:
            found += [label.code, label.site]
    return [code for code in found if code is not None]


def test_check_digit_refuses_a_wrong_number():
    assert check_digit_holds("71341001")
    assert not check_digit_holds("71341002")
    assert not check_digit_holds("17341001")  # two digits swapped


@pytest.mark.parametrize("code", every_code(), ids=lambda code: code.value)
def test_every_code_is_well_formed_and_names_its_source(code):
    assert code.source
    assert code.meaning
    if code.scheme == "SCT":
        assert check_digit_holds(code.value)
    else:
        assert code.scheme == "RADLEX"
        assert code.value.startswith("RID")
        assert code.value[3:].isdecimal()


def test_structures_are_the_eleven_in_order():
    assert [s.key for s in STRUCTURES] == [
        "femur", "tibia", "patella", "fibula", "femoral_cartilage", "tibial_cartilage", "patellar_cartilage",
        "medial_meniscus", "lateral_meniscus", "acl", "pcl",
    ]  # fmt: skip
    assert [s.index for s in STRUCTURES] == list(range(1, 12))
    assert len({s.colour for s in STRUCTURES}) == 11


def test_labels_are_the_published_ones():
    keys = {joint: [label.key for label in labels] for joint, labels in LABELS.items()}
    assert keys["knee"] == ["ACL", "PCL", "MM", "LM", "MCL", "LCL", "PD", "EFFU"]
    assert keys["ankle"] == ["ATFL", "CFL", "ATR", "OLT"]
    assert keys["shoulder"] == ["SSP", "ISP", "SSC", "LHBT injury", "AC", "GHJ", "LHBT effusion", "SASD"]


def test_class_names_follow_the_head():
    assert tasks.class_names(12) == ("background", *(s.key for s in STRUCTURES))
    assert tasks.class_names(11)[:3] == ("background", "class_1", "class_2")
    assert len(tasks.class_names(11)) == 11
