"""A scanner that speaks MRD, made of the ``ismrmrd`` package's own structures and serializers, over a real socket."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pydicom
from ismrmrd.serialization import ConfigFile, ProtocolDeserializer, ProtocolSerializer

DIRECTIONS = {
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "axial": ((1, 0, 0), (0, 1, 0)),
}


def header_xml(protocol: str = "pd_tse_fs", body_part: str = "KNEE", echo_times: Sequence[float] = (35.0,)) -> str:
    echoes = "".join(f"<TE>{time}</TE>" for time in echo_times)
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        f"<studyInformation><bodyPartExamined>{body_part}</bodyPartExamined></studyInformation>"
        f"<measurementInformation><protocolName>{protocol}</protocolName></measurementInformation>"
        f"<sequenceParameters><TR>3000</TR>{echoes}<sequence_type>TurboSpinEcho</sequence_type></sequenceParameters>"
        "</ismrmrdHeader>"
    )


def slices(
    pixels: np.ndarray,
    plane: str = "sagittal",
    *,
    spacing: tuple[float, float, float] = (0.7, 0.5, 4.0),
    corner: tuple[float, float, float] = (-40.0, -60.0, 50.0),
    series: int = 1,
    rotate: np.ndarray | None = None,
    **fields: Any,
) -> list[ismrmrd.Image]:
    """One image for each of ``pixels`` (slice, row, column), stepping along the normal.

    ``spacing`` in mm between columns, rows and slices; ``corner`` the centre of the first voxel, LPS.
    """
    rotate = np.eye(3) if rotate is None else rotate
    read, phase = (rotate @ np.array(vector, float) for vector in DIRECTIONS[plane])
    normal = np.cross(read, phase)
    rows, columns = pixels.shape[1:]
    made = []
    for number, own in enumerate(pixels):
        image = ismrmrd.Image.from_array(np.ascontiguousarray(own), transpose=False)
        first = np.array(corner) + number * spacing[2] * normal
        centre = first + (columns - 1) / 2 * spacing[0] * read + (rows - 1) / 2 * spacing[1] * phase
        image.position, image.read_dir, image.phase_dir, image.slice_dir = map(tuple, (centre, read, phase, normal))
        image.field_of_view = (spacing[0] * columns, spacing[1] * rows, spacing[2])
        image.image_series_index, image.image_index, image.slice = series, number + 1, number
        image.image_type = ismrmrd.IMTYPE_MAGNITUDE
        image.meta = {"SequenceDescription": "original", "Patient": "Secret^Name"}
        for name, value in fields.items():
            setattr(image, name, value)
        made.append(image)
    return made


def block(images: Sequence[ismrmrd.Image]) -> ismrmrd.Image:
    """The same slices as one image of three dimensions: placed by its centre, as thick as all of them."""
    whole = ismrmrd.Image.from_array(np.concatenate([image.data[0] for image in images]), transpose=False)
    for name in ("read_dir", "phase_dir", "slice_dir", "image_type", "image_series_index", "image_index"):
        setattr(whole, name, getattr(images[0], name))
    whole.position = tuple(np.mean([list(image.position) for image in images], axis=0))
    x, y, thickness = images[0].field_of_view
    whole.field_of_view = (x, y, thickness * len(images))
    return whole


def of_dicom(paths: Sequence[Path]) -> list[ismrmrd.Image]:
    """A series of DICOM files as the images that a scanner would send of it, placed by their centres."""
    made = []
    for number, path in enumerate(paths):
        header = pydicom.dcmread(path)
        image = ismrmrd.Image.from_array(header.pixel_array, transpose=False)
        read, phase = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = header.PixelSpacing
        halves = (header.Columns - 1) / 2 * between_columns, (header.Rows - 1) / 2 * between_rows
        image.position = tuple(np.array(header.ImagePositionPatient, float) + halves[0] * read + halves[1] * phase)
        image.read_dir, image.phase_dir, image.slice_dir = map(tuple, (read, phase, np.cross(read, phase)))
        image.field_of_view = (between_columns * header.Columns, between_rows * header.Rows, header.SliceThickness)
        image.image_series_index, image.image_index, image.slice = 1, number + 1, number
        image.image_type = ismrmrd.IMTYPE_MAGNITUDE
        made.append(image)
    return made


class Scanner:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)

    def __enter__(self) -> Scanner:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *objects: Any) -> None:
        with self.socket.makefile("wb") as file:
            serializer = ProtocolSerializer(file)
            for one in objects:
                serializer.serialize(one)

    def send_bytes(self, content: bytes) -> None:
        self.socket.sendall(content)

    def send_header(self, xml: str) -> None:
        self.send_bytes(struct.pack("<HI", 3, len(xml.encode())) + xml.encode())

    def close(self) -> None:
        self.send_bytes(struct.pack("<H", 4))

    def answers(self) -> Iterator[Any]:
        """What comes back, up to the closing message, after which the connection must end too."""
        with self.socket.makefile("rb") as file:
            yield from ProtocolDeserializer(file).deserialize()
            assert file.read(1) == b""

    def scan(self, images: Sequence[Any], config: str = "orthokernels", xml: str | None = None) -> tuple[list, list]:
        """A whole measurement: images and texts that came back."""
        self.send(ConfigFile(config))
        self.send_header(xml or header_xml())
        self.send(*images)
        self.close()
        return self.sorted_answers()

    def sorted_answers(self) -> tuple[list, list]:
        images: list[ismrmrd.Image] = []
        texts: list[str] = []
        for one in self.answers():
            (images if isinstance(one, ismrmrd.Image) else texts).append(one)
        return images, texts
