"""MRD images to volumes, as NIfTI files that the pipeline reads; label maps back to images on the same slices.

Geometry is that of the images' headers alone, in mm in DICOM's LPS frame (MRD documentation, Image Data): ``position``
is the centre of the image, ``read_dir`` and ``phase_dir`` run along its rows and columns, and ``field_of_view`` is its
extent. Which images make a volume is decided as for DICOM.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from ismrmrd import IMTYPE_MAGNITUDE, IMTYPE_PHASE, ImageHeader, Meta
from orthokernels.edge.mrd.originals import Originals
from orthokernels.edge.mrd.scan import Scan

from orthokernels.data.dicom import DicomStack, Frame, stacks_of
from orthokernels.data.dicom.stack import assemble
from orthokernels.data.volume import Source, check_size
from orthokernels.errors import InputError
from orthokernels.tasks import RESEARCH_NOTICE

# As of DICOM's direction cosines: rounded vectors still describe a right angle to within a degree or so.
_ROUNDING = 0.02


# Slices are compared with one of each kind, so these are bounded; a scan has as many as it has series.
_MOST_KINDS = 200


@dataclass(frozen=True)
class VolumeFile:
    """A stack of images and the NIfTI file that holds it. Frames are named by their image's number."""

    stack: DicomStack
    path: Path


def write_volumes(originals: Originals, scan: Scan, folder: Path, most_slices: int) -> list[VolumeFile]:
    """Write each stack that the images make.

    Raises:
        InputError: no image has a usable place, or none is a magnitude image of one channel; there are more slices or
            kinds of them than a scan has.
    """
    if sum(header.matrix_size[2] for header in originals.headers) > most_slices:
        raise InputError(f"the images have more than {most_slices} slices.")
    series: dict[tuple[int, int, int], list[Frame]] = {}
    reasons: list[str] = []
    for number, header in enumerate(originals.headers):
        try:
            frames = list(_frames(number, header, scan))
        except InputError as error:
            reasons.append(str(error))
            continue
        key = (header.image_series_index, header.contrast, header.image_type)
        series.setdefault(key, []).extend(frames)
    every = [frame for frames in series.values() for frame in frames]
    if len({(f.rows, f.columns, np.round(f.orientation, 2).tobytes(), f.pixel_spacing) for f in every}) > _MOST_KINDS:
        raise InputError(f"the images have more than {_MOST_KINDS} different sizes and orientations.")
    stacks: list[DicomStack] = []
    for frames in series.values():
        found, unfit = stacks_of(frames)
        stacks += found
        reasons += [f"{name}: {reason}" for name, reason in unfit]
    if not stacks:
        raise InputError(f"no volume can be made of the images: {'; '.join(dict.fromkeys(reasons))[:300]}.")
    for stack in stacks:
        check_size(stack.shape, Path(stack.source.description))
    return [_write(stack, originals, scan, folder / f"{number}.nii") for number, stack in enumerate(stacks)]


def _frames(number: int, header: ImageHeader, scan: Scan) -> Iterator[Frame]:
    """The slices of one image, checked."""
    image = Path(str(number))
    x, y, z = header.matrix_size
    check_size((x, y, z), Path("MRD image"))
    if header.channels != 1 or header.data_type > 6 or header.image_type > IMTYPE_PHASE:
        raise InputError("an image is complex or has several channels; send magnitude images")
    if header.image_type == IMTYPE_PHASE:
        raise InputError("phase images are not evaluated")
    read, phase = (np.array(vector, np.float64) for vector in (header.read_dir, header.phase_dir))
    normal, centre = (np.array(vector, np.float64) for vector in (header.slice_dir, header.position))
    extent = np.array(header.field_of_view, np.float64)
    if z == 1:  # a slice by itself may leave them out
        normal, extent[2] = np.cross(read, phase), max(extent[2], 1.0)
    right = np.isfinite([read, phase, normal, centre, extent]).all() and (extent > 0).all()
    units = [read, phase, normal]
    if not right or any(abs(np.linalg.norm(u) - 1) > _ROUNDING for u in units) or abs(read @ phase) > _ROUNDING:
        raise InputError("an image's position, directions or field of view are no valid geometry")
    dx, dy, dz = extent / (x, y, z)
    corner = centre - (x - 1) / 2 * dx * read - (y - 1) / 2 * dy * phase
    for index in range(z):
        yield Frame(
            path=image,
            index=index,
            rows=y,
            columns=x,
            position=tuple((corner + (index - (z - 1) / 2) * dz * normal).tolist()),
            orientation=(*read.tolist(), *phase.tolist()),
            pixel_spacing=(float(dy), float(dx)),
            slope=1.0,
            intercept=0.0,
            instance_uid=str(number),
            image_type=(str(header.image_type),),
            time_order=tuple(map(float, (header.repetition, header.phase, header.set, header.average, number))),
            source=_source(header, scan, image),
        )


def _source(header: ImageHeader, scan: Scan, image: Path) -> Source:
    def of_contrast(times: tuple[float, ...]) -> float | None:
        return times[min(header.contrast, len(times) - 1)] if times else None

    return Source(
        description=scan.description,
        series_hash="",
        study_hash="",
        kind="MRD",
        paths=(image,),
        sequence=scan.sequence,
        echo_time=of_contrast(scan.echo_times),
        repetition_time=scan.repetition_time,
        inversion_time=of_contrast(scan.inversion_times),
        body_part=scan.body_part,
    )


def _write(stack: DicomStack, originals: Originals, scan: Scan, path: Path) -> VolumeFile:
    pixels = {}
    for image in dict.fromkeys(frame.path for frame in stack.frames):
        for index, plane in enumerate(originals.pixels(int(image.name))[0]):
            pixels[image, index] = plane
    voxels = assemble(stack.frames, pixels)
    if voxels.dtype == np.int64:  # signed and unsigned images of 32 bits together; nibabel writes no such
        voxels = voxels.astype(np.float64)
    nibabel.save(nibabel.Nifti1Image(voxels, stack.affine), path)
    source = stack.source
    facts = {
        "SeriesDescription": source.description,
        "BodyPartExamined": source.body_part,
        "ScanningSequence": source.sequence,
        **{
            name: value / 1000
            for name, value in (
                ("EchoTime", source.echo_time),
                ("RepetitionTime", source.repetition_time),
                ("InversionTime", source.inversion_time),
            )
            if value is not None
        },
    }
    path.with_suffix(".json").write_text(json.dumps(facts))
    return VolumeFile(stack, path)


def label_images(
    volume: VolumeFile, labels: np.ndarray, headers: Sequence[ImageHeader], series_index: int, description: str
) -> Iterator[tuple[ImageHeader, str, np.ndarray]]:
    """An image for each of the volume's own, with the same place and size: header, attributes, pixels.

    Args:
        volume: what was labelled.
        labels: its label map, axes (i, j, k), uint8: well within the 12 bits that a scanner's DICOM images hold.
        headers: of every image that came.
        series_index: of the new series.
        description: what the scanner adds to the series' name.
    """
    if labels.shape != volume.stack.shape or labels.dtype != np.uint8:
        raise ValueError(f"{labels.dtype} labels of shape {labels.shape} for a volume of shape {volume.stack.shape}")
    planes = {(int(frame.path.name), frame.index): labels[:, ::-1, k].T for k, frame in enumerate(volume.stack.frames)}
    attributes = _attributes(description, int(labels.max(initial=0)))
    for index, number in enumerate(sorted({number for number, _ in planes}), start=1):
        x, y, z = headers[number].matrix_size
        pixels = np.zeros((z, y, x), "<u2")
        for slot in range(z):
            if (number, slot) in planes:
                pixels[slot] = planes[number, slot]
        header = ImageHeader.from_buffer_copy(headers[number])
        header.image_type = IMTYPE_MAGNITUDE
        header.image_series_index, header.image_index = series_index, index
        yield header, attributes, pixels


def _attributes(description: str, largest: int) -> str:
    """Attributes of a series of our own: none is copied, so that the scanner gives it identifiers of its own."""
    return str(
        Meta(
            {
                "DataRole": "Segmentation",
                "ImageProcessingHistory": ["ORTHOKERNELS"],
                "SequenceDescriptionAdditional": description,
                "ImageComment": RESEARCH_NOTICE,
                "Keep_image_geometry": 1,
                "WindowCenter": (largest + 1) // 2,
                "WindowWidth": max(largest, 1),
            }
        ).serialize()
    )


def free_series(headers: Sequence[ImageHeader]) -> Iterator[int]:
    """Series numbers that no image has: those above first."""
    taken = {header.image_series_index for header in headers}
    top = max(taken, default=0)
    yield from (number for number in (*range(top + 1, 2**16), *range(1, top)) if number not in taken)
