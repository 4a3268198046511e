"""DICOM SEG of one plane. Where it lies comes from the source images' positions and orientations, from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from orthokernels.edge.forms import Form
from orthokernels.edge.objects import codes as our_codes
from orthokernels.edge.objects.setting import NOTICE, Setting
from orthokernels.edge.objects.sources import tell_loss
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import MRImageStorage
from pydicom.valuerep import DSfloat

from orthokernels.data.dicom import Frame
from orthokernels.errors import InputError
from orthokernels.montage_layout import colour
from orthokernels.result import PlaneResult, StructureVolume

_TYPES: dict[Form, SegmentationTypeValues] = {
    "binary": SegmentationTypeValues.BINARY,
    "label map": SegmentationTypeValues.LABELMAP,
}
_LPS_OF_RAS = np.array([-1.0, -1.0, 1.0])


def segmentation(
    setting: Setting,
    plane: PlaneResult,
    labels: np.ndarray,
    frames: Sequence[Frame],
    *,
    form: Form,
) -> Segmentation:
    """The label map of one plane as a SEG, one segment per structure, its number the structure's label value.

    Args:
        setting: the study.
        plane: what was made of the plane; its structures become the segments.
        labels: uint8 label map with axes (i, j, k) on the scanner's grid: i the column, j the row counted from below.
        frames: the source image of each slice k, on whose grid the label map lies; see ``check_grid``.
        form: a binary segmentation, or a Label Map Segmentation (Supplement 243).
    """
    images = [_single_frame(setting, frame, frames) for frame in frames]
    made = Segmentation(
        source_images=images,
        pixel_array=np.ascontiguousarray(labels[:, ::-1].transpose(2, 1, 0)),
        segmentation_type=_TYPES[form],
        segment_descriptions=[_segment(setting, plane.plane, structure) for structure in plane.structures],
        content_label="STRUCTURES",
        content_description=f"Structures, {plane.plane} - {NOTICE}",
        **setting.object(
            f"segmentation {plane.plane} {form}",
            plane.plane,
            description=f"{plane.plane.capitalize()} structures",
            form=form,
        ),
    )
    if _is_multi_frame(setting, frames[0]):
        _refer_to_frames(made, setting, dict(zip((image.SOPInstanceUID for image in images), frames, strict=True)))
    organization = setting.uid("dimensions", plane.plane)
    for item in (*made.DimensionIndexSequence, *made.DimensionOrganizationSequence):
        item.DimensionOrganizationUID = organization
    made.BodyPartExamined = setting.body_part
    if setting.side:
        # Of a multi-frame image: the series' own Laterality (0020,0060) is for images that can't say it themselves.
        made.ImageLaterality = setting.side
    tell_loss(made, images)
    setting.settle_moment(made)
    return made


def check_grid(plane: str, shape: tuple[int, ...], affine: np.ndarray, frames: Sequence[Frame]) -> None:
    """Each slice's first pixel must lie where the affine says: to half a pixel, as stacks are checked on reading.

    Args:
        plane: for the message.
        shape: of the label map, axes (i, j, k).
        affine: (4, 4) float64, (i, j, k) to RAS mm.
        frames: the source image of each slice k.

    Raises:
        InputError: the label map does not lie on the frames' grid.
    """
    first = frames[0]
    if shape != (first.columns, first.rows, len(frames)):
        raise InputError(
            f"{plane}: the label map has {shape} voxels, the source images {first.columns, first.rows, len(frames)}. "
            "Pass the images that the label map was made from."
        )
    corners = [(affine @ [0.0, first.rows - 1.0, k, 1.0])[:3] * _LPS_OF_RAS for k in range(len(frames))]
    worst = float(np.abs(np.array(corners) - np.array([frame.position for frame in frames])).max())
    if worst > 0.5 * min(first.pixel_spacing):
        raise InputError(
            f"{plane}: the label map lies {worst:.1f} mm off the source images. "
            "Pass the images that the label map was made from."
        )


def _segment(setting: Setting, plane: str, structure: StructureVolume) -> SegmentDescription:
    made = SegmentDescription(
        segment_number=structure.index,
        segment_label=structure.name,
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=our_codes.structure(structure.key, structure.name),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=setting.algorithm(),
        tracking_uid=setting.uid("structure", plane, structure.key),
        tracking_id=tracking_id(plane, structure),
        anatomic_regions=our_codes.structure_regions(structure.key) or None,
        display_color=CIELabColor.from_rgb(*colour(structure.key, structure.index)),
    )
    if setting.side:
        kind = made.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept.from_code(our_codes.SIDES[setting.side])]
    return made


def tracking_id(plane: str, structure: StructureVolume) -> str:
    """Names a segment and the measurements of it."""
    return f"{structure.name}, {plane}"


def _is_multi_frame(setting: Setting, frame: Frame) -> bool:
    return setting.sources[frame.path].SOPClassUID != MRImageStorage


def _single_frame(setting: Setting, frame: Frame, stack: Sequence[Frame]) -> Dataset:
    """A slice and its place as a single-frame image; a frame of a multi-frame image gets a stand-in identifier.

    The orientation is the stack's first: headers of one series differ in the last digits that they round to.
    """
    header = setting.sources[frame.path]
    step = DSfloat(abs(stack[-1].distance - stack[0].distance) / (len(stack) - 1), auto_format=True)
    own: dict[str, Any] = {
        "Rows": frame.rows,
        "Columns": frame.columns,
        "ImagePositionPatient": _decimals(frame.position),
        "ImageOrientationPatient": _decimals(stack[0].orientation),
        "PixelSpacing": _decimals(stack[0].pixel_spacing),
        "SpacingBetweenSlices": step,
    }
    if _is_multi_frame(setting, frame):
        own["SOPClassUID"] = MRImageStorage
        own["SOPInstanceUID"] = setting.uid("stand-in", header.SOPInstanceUID, str(frame.index))
    if "FrameOfReferenceUID" not in header:
        own["FrameOfReferenceUID"] = setting.uid("frame of reference", header.SeriesInstanceUID)
    if not header.get("SliceThickness"):  # missing or 0
        own["SliceThickness"] = step
    image = header[:]  # shares its elements with the header: a twentieth of a deep copy's time
    for keyword, value in own.items():
        if keyword in image:
            delattr(image, keyword)  # or the shared element would be changed
        setattr(image, keyword, value)
    return image


def _decimals(values: Sequence[float]) -> list[DSfloat]:
    """As many digits as DICOM's decimal strings hold: 16 characters."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def _refer_to_frames(made: Segmentation, setting: Setting, stand_ins: Mapping[str, Frame]) -> None:
    """Replace references to stand-ins by references to the multi-frame images and the frames in them."""
    for group in made.PerFrameFunctionalGroupsSequence:
        for derivation in group.DerivationImageSequence:
            for reference in derivation.SourceImageSequence:
                frame = stand_ins.get(reference.ReferencedSOPInstanceUID)
                if frame is not None:  # segments of one slice share the reference, so it may be replaced already
                    _name(reference, setting.sources[frame.path])
                    reference.ReferencedFrameNumber = frame.index + 1
    files = [setting.sources[path] for path in dict.fromkeys(frame.path for frame in stand_ins.values())]
    made.SourceImageSequence = [_name(Dataset(), source) for source in files]
    made.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [_name(Dataset(), source) for source in files]


def _name(reference: Dataset, source: Dataset) -> Dataset:
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return reference
