"""dicom-validator over the DICOM standard's tables that highdicom carries.

dicom-validator makes its tables from the standard's DocBook, which is fetched from the network and comes with no
package. highdicom carries an extract of PS3.3 as JSON: the modules of each IOD with their usage, the attributes of each
module with their types, items of sequences and macros written out. These are turned into dicom-validator's form here.

The extract has no conditions and no enumerated values. So an attribute of type 1C or 2C, a module of usage C and a
functional group may be there or not; what is there must be known at its place, have a value where its type is 1 or 1C,
and hold what its type demands within. Taken from PS3.3 by hand, since without it little would be held of a report or
of frames: which attributes go with which value type of a content item, that content items hold content items, and the
two functional groups that a segmentation can not lack.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from dicom_validator.validator.dicom_info import DicomInfo
from dicom_validator.validator.error_handler import NullValidationResultHandler
from dicom_validator.validator.iod_validator import IODValidator
from dicom_validator.validator.validation_result import DicomTag, Status
from highdicom._standard_utils import construct_module_tree, get_iod_module_map, get_sop_class_iod_map
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag

# PS3.3 table C.17-5 with C.18: required in content items of these value types, and not allowed in others.
VALUE_TYPES = {
    "TextValue": ["TEXT"],
    "DateTime": ["DATETIME"],
    "Date": ["DATE"],
    "Time": ["TIME"],
    "PersonName": ["PNAME"],
    "UID": ["UIDREF"],
    "MeasuredValueSequence": ["NUM"],
    "ConceptCodeSequence": ["CODE"],
    "ReferencedSOPSequence": ["COMPOSITE", "IMAGE", "WAVEFORM"],
    "GraphicType": ["SCOORD", "SCOORD3D"],
    "GraphicData": ["SCOORD", "SCOORD3D"],
    "ReferencedFrameOfReferenceUID": ["SCOORD3D"],
    "TemporalRangeType": ["TCOORD"],
    "ContinuityOfContent": ["CONTAINER"],
    "TabulatedValuesSequence": ["TABLE"],
}
# PS3.3 table A.51-2. MF: mandatory in each frame's groups, not allowed in the shared ones. MU: mandatory where the
# condition holds.
FUNCTIONAL_GROUPS = {
    "FrameContentSequence": {"use": "M", "cond": {"type": "MF"}},
    "SegmentIdentificationSequence": {
        "use": "C",
        "cond": {"type": "MU", "tag": "(0062,0001)", "index": 0, "op": "!=", "values": ["LABELMAP"]},
    },
}


def faults(dataset: Dataset) -> list[str]:
    """What dicom-validator says against an object: module, path of keywords, and kind of fault, of each one."""
    standard, silent = _standard(dataset.SOPClassUID), NullValidationResultHandler()
    result = IODValidator(dataset, standard, error_handler=silent).validate()
    assert result.status in (Status.Passed, Status.Failed), result.status
    return sorted(
        f"{module}: {_path(tag)} {error.code.name}"
        for module, errors in result.module_errors.items()
        for tag, error in errors.items()
    )


def _path(tag: DicomTag) -> str:
    return "/".join(keyword_for_tag(one) or str(one) for one in (*(tag.parents or ()), tag.tag))


@cache
def _standard(sop_class: str) -> DicomInfo:
    """The tables of one SOP class. The dictionary is left out: only messages of dicom-validator's own need it."""
    usages = {
        module["key"]: {"ref": module["key"], "use": module["usage"]}
        for module in get_iod_module_map()[get_sop_class_iod_map()[sop_class]]
    }
    modules = {name: _attributes(construct_module_tree(name)) for name in usages}
    groups: dict[str, Any] = {}
    for attributes in list(modules.values()):
        if _key("ContentSequence") in attributes:
            _nest_content(modules, attributes)
        if _key("PerFrameFunctionalGroupsSequence") in attributes:
            groups = _functional_groups(modules, attributes)
    iod: dict[str, Any] = {"title": sop_class, "modules": usages, "group_macros": groups}
    return DicomInfo({}, {sop_class: iod}, modules)


def _attributes(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        _key(keyword): {
            "name": keyword,
            "type": attribute["type"].value,
            **({"items": _attributes(attribute)} if "attributes" in attribute else {}),
        }
        for keyword, attribute in tree["attributes"].items()
        if tag_for_keyword(keyword) is not None  # overlays' repeat through groups 6000 to 601E; we write none
    }


def _key(keyword: str) -> str:
    return str(Tag(keyword)).replace(" ", "")


def _nest_content(modules: dict[str, Any], document: dict[str, Any]) -> None:
    """Hold each content item's attributes to its value type, and let items nest, which the extract does once."""
    content = document[_key("ContentSequence")]
    modules["content item"] = content["items"]
    for attributes in (document, content["items"]):
        for keyword, kinds in VALUE_TYPES.items():
            attribute = attributes[_key(keyword)]
            attribute["type"] = f"{attribute['type'][0]}C"
            attribute["cond"] = {"type": "MN", "tag": _key("ValueType"), "index": 0, "op": "=", "values": kinds}
    content["items"] = {"include": [{"ref": "content item"}]}
    modules["content item"][_key("ContentSequence")] = content


def _functional_groups(modules: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    """Make each functional group a module of its own; how each is used, by its sequence's keyword."""
    frames, shared = image[_key("PerFrameFunctionalGroupsSequence")], image[_key("SharedFunctionalGroupsSequence")]
    groups = {attribute["name"]: {tag: attribute} for tag, attribute in frames["items"].items()}
    modules.update(groups)
    frames["items"] = shared["items"] = {"include": [{"ref": "FuncGroup"}]}
    return {name: {"ref": name, **FUNCTIONAL_GROUPS.get(name, {"use": "U"})} for name in groups}
