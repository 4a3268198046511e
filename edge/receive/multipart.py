"""A multipart body, part by part while it comes: one part at a time is in memory, and no more of it than is allowed."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

# A part of DICOM needs Content-Type, and may have Content-Location, -ID, -Length and -Transfer-Encoding.
_MOST_HEADERS = 16
_LONGEST_HEADER = 4096

_LONGEST_BOUNDARY = 70  # RFC 2046 section 5.1.1


class MultipartError(Exception):
    """The body is no multipart body, or not the one that its header announced."""


class TooMuchError(Exception):
    """The body goes beyond a limit."""


@dataclass
class Part:
    """One part: the media type that it says it has, and its bytes."""

    media_type: str = ""
    content: io.BytesIO = field(default_factory=io.BytesIO)


class PartReader:
    """Takes a body's bytes as they come, and gives its parts as they end.

    Args:
        boundary: between the parts, as the request's header gives it.
        most_parts, most_bytes: parts of a body, and bytes of a part.

    Raises:
        MultipartError: that can't be a boundary.
    """

    def __init__(self, boundary: bytes, most_parts: int, most_bytes: int) -> None:
        if not 1 <= len(boundary) <= _LONGEST_BOUNDARY:
            raise MultipartError(f"the boundary must have 1 to {_LONGEST_BOUNDARY} characters")
        self._most_parts, self._most_bytes = most_parts, most_bytes
        self._finished: list[Part] = []
        self._begun = 0
        self._part = Part()
        self._header = [b"", b""]
        self.ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_begin": self._begin_header,
                "on_header_field": self._name,
                "on_header_value": self._value,
                "on_header_end": self._end_header,
                "on_part_data": self._data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
            max_header_count=_MOST_HEADERS,
            max_header_size=_LONGEST_HEADER,
        )

    def feed(self, data: bytes) -> list[Part]:
        """Parts that ended within ``data``.

        Raises:
            MultipartError: the bytes are no multipart body.
            TooMuchError: too many parts, or too large a one.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise MultipartError(f"the body is not multipart with this boundary ({str(error)[:100]})") from error
        finished, self._finished = self._finished, []
        return finished

    def _begin(self) -> None:
        self._begun += 1
        if self._begun > self._most_parts:
            raise TooMuchError(f"more than {self._most_parts} parts")
        self._part = Part()

    def _begin_header(self) -> None:
        self._header = [b"", b""]

    def _name(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _end_header(self) -> None:
        name, value = self._header
        if name.strip().lower() == b"content-type":
            self._part.media_type = media_type(value)[0]

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part.content.tell() + end - start > self._most_bytes:
            raise TooMuchError(f"a part of more than {self._most_bytes} bytes")
        self._part.content.write(memoryview(data)[start:end])

    def _end_part(self) -> None:
        self._part.content.seek(0)
        self._finished.append(self._part)

    def _end(self) -> None:
        self.ended = True


def media_type(header: bytes | str) -> tuple[str, dict[str, bytes]]:
    """A Content-Type header's type, in lower case, and its parameters."""
    told, parameters = parse_options_header(header)
    return (
        told.decode("latin-1").strip().lower(),
        {name.decode("latin-1").lower(): value for name, value in parameters.items()},
    )
