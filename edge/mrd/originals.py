"""The scanner's own images, kept until they go back to it to the byte."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import numpy as np
from ismrmrd import ImageHeader
from orthokernels.edge.config import Disk
from orthokernels.edge.mrd.messages import IMAGE, TYPES, Image, Stream
from orthokernels.edge.receive.intake import no_room


class Originals:
    """Images in a file without a name, which goes with the process whichever way that ends.

    The file is opened for the first image, so that a disk that can't be written is found where that costs nothing. It
    is not buffered: what could not be written would be tried again before each read, and fail that too.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder, self._disk = folder, disk
        self._file: FileIO | None = None
        self.headers: list[ImageHeader] = []
        self._places: list[tuple[int, int, int]] = []  # where a message begins, where its pixels do, and where it ends

    def __enter__(self) -> Originals:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def keep(self, image: Image) -> None:
        """Keep an image.

        Raises:
            OSError: there is no room, or the disk can't be written.
        """
        if told := no_room(self._folder, self._disk, len(image.message)):
            raise OSError(errno.ENOSPC, told)
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - closed by exit
        assert self._file is not None
        start = self._places[-1][2] if self._places else 0
        self._file.seek(start)
        rest = memoryview(image.message)
        while rest:
            rest = rest[self._file.write(rest) :]
        self.headers.append(image.header)
        self._places.append((start, start + image.pixels_at, start + len(image.message)))

    def pixels(self, number: int) -> np.ndarray:
        """One image's pixels, axes (channel, z, y, x)."""
        header = self.headers[number]
        _, start, stop = self._places[number]
        x, y, z = header.matrix_size
        return np.frombuffer(self._read(start, stop), TYPES[header.data_type]).reshape(header.channels, z, y, x)

    def send(self, stream: Stream) -> None:
        """Send all of them back, in the order in which they came.

        Raises:
            OSError: the scanner takes nothing.
        """
        for message in self._messages():
            stream.send(IMAGE, message)

    def _messages(self) -> Iterator[bytes]:
        for start, _, stop in self._places:
            yield self._read(start, stop)

    def _read(self, start: int, stop: int) -> bytes:
        assert self._file is not None
        self._file.seek(start)
        return self._file.read(stop - start)
