"""Who an incoming data set says it is: the few elements at its start that place it, and nothing beyond them."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

from pydicom.dataelem import RawDataElement
from pydicom.filereader import data_element_generator
from pydicom.uid import UID

from orthokernels.data.dicom.file import DAMAGE, short
from orthokernels.errors import InputError

_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_UIDS = (_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES)
_PIXELS, _UNDEFINED = 0x7FE00010, 0xFFFFFFFF

# PS3.5 section 9.1, but for leading zeros in a component, which real devices write.
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")


def is_uid(text: str) -> bool:
    """Whether this may be a UID; nothing else is ever used as one."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


@dataclass(frozen=True)
class Identity:
    """The UIDs of one instance."""

    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str


def ends_early(content: io.BytesIO, syntax: UID) -> bool:
    """Whether an image ends within an element or before its pixels, as a file does that is not wholly copied.

    No value is decoded.

    Args:
        content: the encoded data set, without preamble and file meta information.
        syntax: its transfer syntax.
    """
    content.seek(0)
    size, pixels = len(content.getbuffer()), False
    try:
        for element in data_element_generator(content, syntax.is_implicit_VR, syntax.is_little_endian, defer_size=0):
            pixels |= element.tag == _PIXELS
            if isinstance(element, RawDataElement) and _end(element) > size:
                return True
    except (*DAMAGE, struct.error):
        return True  # a sequence or fragments without their end
    return not pixels


def _end(element: RawDataElement) -> int:
    return 0 if element.length == _UNDEFINED else element.value_tell + element.length


def read_identity(content: io.BytesIO, syntax: UID, most_elements: int) -> Identity:
    """Read a data set up to its Series Instance UID; pixels come later and are not looked at.

    Args:
        content: the encoded data set, without preamble and file meta information.
        syntax: its transfer syntax.
        most_elements: top-level elements that are read before giving up.

    Raises:
        InputError: a UID is missing or is none, or the data set is damaged.
    """
    content.seek(0)
    found: dict[int, str] = {}
    elements = data_element_generator(
        content,
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
        stop_when=lambda tag, vr, length: tag > _SERIES,
        specific_tags=list(_UIDS),
    )
    try:
        for number, element in enumerate(elements):
            if number >= most_elements:
                raise InputError(f"has more than {most_elements} elements before its Series Instance UID")
            if element.tag in _UIDS and isinstance(element.value, bytes):
                found[element.tag] = element.value.decode("ascii").strip("\0 ")
    except (*DAMAGE, struct.error) as error:
        raise InputError(f"its header is damaged ({short(error)})") from error
    for tag, name in zip(_UIDS, ("SOP Class", "SOP Instance", "Study Instance", "Series Instance"), strict=True):
        uid = found.get(tag, "")
        if not is_uid(uid):
            raise InputError(f"its {name} UID is missing or is no UID")
    return Identity(*(found[tag] for tag in _UIDS))
