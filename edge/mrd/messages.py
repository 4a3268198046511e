"""MRD on the wire: each message is a 16-bit number and what follows it, lengths taken from the other side.

Headers' layouts are the ``ismrmrd`` package's. Its own readers are not used: they allocate what a length claims, wait
without end, and read 32-bit integers as 64-bit ones.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ismrmrd import AcquisitionHeader, ImageHeader, WaveformHeader
from orthokernels.edge.config import MrdLimits

CONFIG_FILE, CONFIG_TEXT, HEADER, CLOSE, TEXT = 1, 2, 3, 4, 5
ACQUISITION, IMAGE, WAVEFORM = 1008, 1022, 1026

_CONFIG_FILE_BYTES = 1024
_SKIPPED_AT_ONCE = 2**16

# Numbers of types in an image's header, as numpy reads them; 7 and 8 are complex.
TYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u2"), 2: np.dtype("<i2"), 3: np.dtype("<u4"), 4: np.dtype("<i4"),
    5: np.dtype("<f4"), 6: np.dtype("<f8"), 7: np.dtype("<c8"), 8: np.dtype("<c16"),
}  # fmt: skip


class MrdError(Exception):
    """The connection can't be read any further; the message says why, as a sentence without its full stop."""


@dataclass(frozen=True)
class Image:
    """An image as it came: ``message`` is all of it, ``pixels_at`` where in it the pixels begin."""

    header: ImageHeader
    message: bytes
    pixels_at: int


@dataclass(frozen=True)
class Message:
    """Any other message. Readouts and waveforms are passed over, and their ``content`` is empty."""

    number: int
    content: bytes = b""


class Stream:
    """One connection, read and written message by message, within limits."""

    def __init__(self, connection: socket.socket, limits: MrdLimits) -> None:
        self._connection = connection
        self._limits = limits
        self._received = self._messages = 0

    def receive(self) -> Image | Message | None:
        """The next message; None once the other side has closed.

        Raises:
            MrdError: what comes is no message, goes beyond a limit, or does not come in time.
        """
        first = self._fill(bytearray(2), time.monotonic() + self._limits.idle_seconds, may_close=True)
        if not first:
            return None
        self._messages += 1
        if self._messages > self._limits.messages_per_connection:
            raise MrdError(f"more than {self._limits.messages_per_connection} messages came")
        (number,) = struct.unpack("<H", first)
        return self._rest(number, time.monotonic() + self._limits.message_seconds)

    def _rest(self, number: int, until: float) -> Image | Message:
        if number == CLOSE:
            return Message(number)
        if number == CONFIG_FILE:
            return Message(number, self._read(_CONFIG_FILE_BYTES, until).split(b"\0")[0])
        if number in (CONFIG_TEXT, HEADER, TEXT):
            (length,) = struct.unpack("<I", self._read(4, until))
            self._check(length, self._limits.bytes_per_text, "a text")
            return Message(number, self._read(length, until))
        if number == IMAGE:
            return self._image(until)
        if number == ACQUISITION:
            readout = AcquisitionHeader.from_buffer_copy(self._read(ctypes.sizeof(AcquisitionHeader), until))
            values = 4 * readout.trajectory_dimensions + 8 * readout.active_channels
            return self._skip(number, values * readout.number_of_samples, until)
        if number == WAVEFORM:
            wave = WaveformHeader.from_buffer_copy(self._read(ctypes.sizeof(WaveformHeader), until))
            return self._skip(number, 4 * wave.channels * wave.number_of_samples, until)
        raise MrdError(f"message {number} came, whose length is not known here")

    def _image(self, until: float) -> Image:
        head = self._read(ctypes.sizeof(ImageHeader), until)
        header = ImageHeader.from_buffer_copy(head)
        if header.data_type not in TYPES:
            raise MrdError(f"an image of data type {header.data_type} came, which MRD does not know")
        pixels = header.channels * TYPES[header.data_type].itemsize
        for side in header.matrix_size:
            pixels *= side
        self._check(pixels, self._limits.bytes_per_message, "an image")
        length = self._read(8, until)
        (attributes,) = struct.unpack("<Q", length)
        self._check(attributes, self._limits.bytes_per_text, "attributes")
        before = head + length + self._read(attributes, until)
        return Image(header, before + self._read(pixels, until), len(before))

    def _check(self, length: int, most: int, what: str) -> None:
        if length > most:
            raise MrdError(f"{what} of {length} bytes came; {most} are allowed")

    def _skip(self, number: int, length: int, until: float) -> Message:
        self._check(length, self._limits.bytes_per_message, "raw data")
        for start in range(0, length, _SKIPPED_AT_ONCE):
            self._read(min(_SKIPPED_AT_ONCE, length - start), until)
        return Message(number)

    def _read(self, length: int, until: float) -> bytes:
        return self._fill(bytearray(length), until)

    def _fill(self, buffer: bytearray, until: float, *, may_close: bool = False) -> bytes:
        self._received += len(buffer)
        if self._received > self._limits.bytes_per_connection:
            raise MrdError(f"more than {self._limits.bytes_per_connection} bytes came")
        view, filled = memoryview(buffer), 0
        try:
            while filled < len(view):
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._connection.settimeout(left)
                got = self._connection.recv_into(view[filled:])
                if got == 0 and may_close and filled == 0:
                    return b""
                if got == 0:
                    raise MrdError("the connection ended within a message")
                filled += got
        except TimeoutError as error:
            raise MrdError("nothing more came in time") from error
        except OSError as error:
            raise MrdError("the connection broke") from error
        return bytes(buffer)

    def send(self, number: int, *parts: bytes | memoryview) -> None:
        """Send a message.

        Raises:
            OSError: the other side is gone, or takes nothing.
        """
        self._connection.settimeout(self._limits.message_seconds)
        for part in (struct.pack("<H", number), *parts):
            self._connection.sendall(part)

    def send_text(self, text: str) -> None:
        """Send a line for the scanner's log."""
        encoded = text.encode()
        self.send(TEXT, struct.pack("<I", len(encoded)), encoded)

    def finish(self, seconds: float) -> None:
        """Say that no more comes, and read on until the other side closes too: closing with data unread would reset
        the connection, and what was sent last be lost."""
        self._connection.shutdown(socket.SHUT_WR)
        until = time.monotonic() + seconds
        self._connection.settimeout(seconds)
        while time.monotonic() < until and self._connection.recv(_SKIPPED_AT_ONCE):
            pass


def encode_image(header: ImageHeader, attributes: str, pixels: np.ndarray) -> Sequence[bytes | memoryview]:
    """An image message's parts. ``pixels`` has axes (z, y, x), or (y, x), and one channel."""
    encoded = attributes.encode()
    header.attribute_string_len = len(encoded)
    header.channels = 1
    header.matrix_size = (*pixels.shape[::-1], 1)[:3]
    header.data_type = next(number for number, kind in TYPES.items() if kind == pixels.dtype)
    return bytes(header), struct.pack("<Q", len(encoded)), encoded, np.ascontiguousarray(pixels).data.cast("B")
