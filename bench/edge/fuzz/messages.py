"""What is sent to the MRD port: damaged measurements, and whether the scanner's own images come back all the same."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from ismrmrd import IMTYPE_COMPLEX, IMTYPE_MAGNITUDE, AcquisitionHeader, ImageHeader, WaveformHeader
from orthokernels.bench.edge.fuzz.watch import Served, settled
from orthokernels.bench.edge.wire import exchange, free_port
from orthokernels.edge.config import Config
from orthokernels.edge.database import Database
from orthokernels.edge.mrd.messages import (
    ACQUISITION,
    CLOSE,
    CONFIG_FILE,
    CONFIG_TEXT,
    HEADER,
    IMAGE,
    TEXT,
    TYPES,
    WAVEFORM,
)
from orthokernels.edge.mrd.model import InlineModel, NoLabelsError
from orthokernels.edge.mrd.server import FOLDER, MrdServer

from orthokernels.data.study import read_study
from orthokernels.errors import InputError
from orthokernels.tasks import PLANES, RESEARCH_NOTICE

_SLICES, _ROWS, _COLUMNS = 16, 6, 8
_CONFIG_FILE_BYTES = 1024
_MOST_IMAGES = 32  # less than a seed has, so that this limit is met as well

_CLOSE = struct.pack("<H", CLOSE)


def text(number: int, content: bytes) -> bytes:
    return struct.pack("<HI", number, len(content)) + content


def config_file(name: str) -> bytes:
    return struct.pack("<H", CONFIG_FILE) + name.encode().ljust(_CONFIG_FILE_BYTES, b"\0")


def image(pixels: np.ndarray, place: float = 0.0, attributes: bytes = b"", **fields: Any) -> bytes:
    """An image message of ``pixels``, axes (z, y, x), at ``place`` mm along the patient's width, seen from the side."""
    header = ImageHeader()
    header.data_type = next(number for number, kind in TYPES.items() if kind == pixels.dtype)
    header.matrix_size, header.channels = pixels.shape[::-1], 1
    header.read_dir, header.phase_dir, header.slice_dir = (0, 1, 0), (0, 0, -1), (-1, 0, 0)
    header.position, header.field_of_view = (-place, 0, 0), (0.7 * _COLUMNS, 0.5 * _ROWS, 4.0 * pixels.shape[0])
    header.image_type, header.image_series_index = IMTYPE_MAGNITUDE, 1
    header.attribute_string_len = len(attributes)
    for name, value in fields.items():
        setattr(header, name, value)
    head = struct.pack("<H", IMAGE) + bytes(header) + struct.pack("<Q", len(attributes))
    return head + attributes + pixels.tobytes()


_DTD = b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a><protocolName>&b;</protocolName></a>'


class Messages(Served):
    """All that a scanner sends on one connection, before it says that nothing more comes."""

    fragments = (
        _CLOSE,
        config_file("findings")[:40],
        text(CONFIG_TEXT, b'{"parameters": {"config": "originals"}}'),
        text(HEADER, _DTD),
        text(TEXT, b"a word"),
        *(struct.pack("<HI", number, 2**32 - 1) for number in (CONFIG_TEXT, HEADER, TEXT)),
        image(np.ones((1, 1, 1), "<u2")),
        struct.pack("<HH", IMAGE, 1),
        struct.pack("<H", ACQUISITION) + bytes(AcquisitionHeader(number_of_samples=65535, active_channels=65535)),
        struct.pack("<H", WAVEFORM) + bytes(WaveformHeader(number_of_samples=2, channels=1)) + bytes(8),
        struct.pack("<3H", 65535, 65535, 65535),
        struct.pack("<3f", float("nan"), float("inf"), -3e38),
        struct.pack("<3f", 1e-38, 3e38, 0.0),
        struct.pack("<3f", 0.0, 1.0, 0.0),
        b'<?xml version="1.0" encoding="utf-7"?>',
        b"<TE>1e999</TE><TE>nan</TE><TE></TE>",
        b"[" * 2000,
    )

    def __init__(self, folder: Path) -> None:
        self.seeds = list(_measurements())
        self._data = folder / "data"

    def __enter__(self) -> Self:
        limits = {
            "connections": 100, "images_per_connection": _MOST_IMAGES, "idle_seconds": 5.0, "message_seconds": 5.0,
        }  # fmt: skip
        config = Config.model_validate(
            {
                "appliance": {"data": self._data},
                "mrd": {"port": free_port(), "limits": limits},
                "disk": {"keep_free_bytes": 0, "refuse_above": 1.0},
            }
        )
        assert config.mrd is not None
        self._port = config.mrd.port
        server = MrdServer(config, config.mrd, _Threshold(config), Database(self._data))
        self.serve(server.run, "orthokernels")
        self._threads = threading.active_count()
        return self

    def take(self, content: bytes) -> str:
        """It is answered, by its own whole images first and to the byte, then by ours, words on them, and the end."""
        answer = list(messages(exchange(self._port, content, then_end=True)))
        numbers = [number for number, _ in answer]
        images = [message for number, message in answer if number == IMAGE]
        texts = [message[6:].decode() for number, message in answer if number == TEXT]
        assert numbers == [IMAGE] * len(images) + [TEXT] * len(texts) + [CLOSE], f"it was answered by {numbers}"
        sent = [message for number, message in messages(content) if number == IMAGE]
        made = images[len(sent) :]
        assert images[: len(sent)] == sent, f"{len(sent)} images came, and did not come back first, to the byte"
        assert all(RESEARCH_NOTICE.encode() in message for message in made), "more images went back than came"
        refused = [told for told in texts if told.startswith("orthokernels: No result: ")]
        assert not refused or (len(texts) == 1 and not made), f"beside {refused} there was an answer"
        assert "fault of the appliance" not in " ".join(refused), refused
        return "refused" if refused else "taken"

    def check(self) -> None:
        """No thread of ours ended by an exception, none is left, nothing lies about, and a good scan is labelled."""
        assert settled(lambda: threading.active_count() <= self._threads), f"are left: {threading.enumerate()}"
        assert not list((self._data / FOLDER).iterdir()), "something of a connection that has ended is left"
        self._watch.check()
        assert self.take(self.seeds[0]) == "taken", "a good measurement was refused"


class _Threshold(InlineModel):
    """Labels without a process: what is above the median, in volumes that are read as the process reads them."""

    def label(self, sources: Sequence[Path], out: Path, until: float) -> dict[str, Any]:
        planes = {}
        try:
            study = read_study(list(sources), PLANES)
            for plane in PLANES:
                volume = study.load(plane)
                if volume is not None:
                    np.save(out / f"{plane}.npy", (volume.voxels > np.median(volume.voxels)).astype(np.uint8))
                    planes[plane] = volume.source.paths[0].name
        except InputError as error:
            raise NoLabelsError(str(error)) from error
        if not planes:
            raise NoLabelsError("; ".join(left_out.reason for left_out in study.left_out))
        return {"planes": planes, "findings": ["Tear: absent"], "remarks": []}


def messages(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and bytes of whole messages, up to the closing one or to where no message begins: read by their lengths
    alone (MRD's documentation, Streaming Communication), so that the appliance's own reader is held against another."""
    at = 0
    while (length := _length(content, at)) is not None and at + length <= len(content):
        (number,) = struct.unpack_from("<H", content, at)
        yield number, content[at : at + length]
        if number == CLOSE:
            return
        at += length


def _length(content: bytes, at: int) -> int | None:
    try:
        (number,) = struct.unpack_from("<H", content, at)
        if number in (CLOSE, CONFIG_FILE):
            return 2 + _CONFIG_FILE_BYTES * (number == CONFIG_FILE)
        if number in (CONFIG_TEXT, HEADER, TEXT):
            return int(6 + struct.unpack_from("<I", content, at + 2)[0])
        if number == ACQUISITION:
            line = AcquisitionHeader.from_buffer_copy(content, at + 2)
            per_sample = 4 * line.trajectory_dimensions + 8 * line.active_channels
            return int(2 + ctypes.sizeof(line) + per_sample * line.number_of_samples)
        if number == WAVEFORM:
            wave = WaveformHeader.from_buffer_copy(content, at + 2)
            return int(2 + ctypes.sizeof(wave) + 4 * wave.channels * wave.number_of_samples)
        if number != IMAGE:
            return None
        header = ImageHeader.from_buffer_copy(content, at + 2)
        (attributes,) = struct.unpack_from("<Q", content, at + 2 + ctypes.sizeof(header))
    except (struct.error, ValueError):  # it ends before
        return None
    if header.data_type not in TYPES:
        return None
    x, y, z = header.matrix_size
    pixels = x * y * z * header.channels * TYPES[header.data_type].itemsize
    return int(2 + ctypes.sizeof(header) + 8 + attributes + pixels)


def _measurements() -> Iterator[bytes]:
    pixels = np.random.default_rng(0).integers(0, 4096, (_SLICES, _ROWS, _COLUMNS)).astype("<u2")
    attributes = (
        b'<?xml version="1.0"?><ismrmrdMeta><meta><name>ImageComment</name><value>a</value></meta></ismrmrdMeta>'
    )
    slices = b"".join(
        image(own[np.newaxis], 4.0 * number, attributes, slice=number, image_index=number + 1)
        for number, own in enumerate(pixels)
    )
    line = AcquisitionHeader(number_of_samples=4, active_channels=2, trajectory_dimensions=1)
    readout = struct.pack("<H", ACQUISITION) + bytes(line) + bytes(4 * (4 + 16))
    wave = struct.pack("<H", WAVEFORM) + bytes(WaveformHeader(number_of_samples=3, channels=2)) + bytes(24)
    parameters = text(CONFIG_TEXT, b'{"version": "1.1.0", "parameters": {"config": "segmentation"}}')
    yield config_file("orthokernels") + text(HEADER, _header()) + slices + _CLOSE
    yield config_file("openrecon") + parameters + image(pixels.astype("<f4")) + _CLOSE
    yield text(HEADER, _header()) + config_file("findings") + readout + image(pixels.astype("<i2")) + wave + _CLOSE
    two_types = image(pixels[:8].astype("<i4")) + image(pixels[8:].astype("<u4"), 32.0)
    yield parameters + two_types + text(HEADER, b'<?xml version="1.0" encoding="UTF-8"?>' + _header()) + _CLOSE
    yield config_file("originals") + image(pixels[:1, :1, :1]) * (_MOST_IMAGES + 3) + _CLOSE
    yield config_file("orthokernels") + image(pixels.astype("<c8"), image_type=IMTYPE_COMPLEX) + _CLOSE
    yield config_file("segmentation") + readout * 3 + _CLOSE
    yield image(pixels.astype("<f8"), attributes=attributes) + parameters + text(TEXT, b"a word") + _CLOSE


def _header() -> bytes:
    return (
        b'<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        b"<studyInformation><bodyPartExamined>KNEE</bodyPartExamined></studyInformation>"
        b"<measurementInformation><protocolName>pd_tse_fs</protocolName></measurementInformation>"
        b"<sequenceParameters><TR>3000</TR><TE>35.0</TE><TE>70</TE><TI>150</TI>"
        b"<sequence_type>TurboSpinEcho</sequence_type></sequenceParameters></ismrmrdHeader>"
    )
