"""DICOM files to frames (headers), frames to stacks (geometry), stacks to volumes (pixels).

Headers are read first, and pixels only of the stack that was chosen.
"""

from orthokernels.data.dicom.frame import Frame, read_frames
from orthokernels.data.dicom.pixels import decode
from orthokernels.data.dicom.stack import DicomStack, stacks_of

__all__ = ["DicomStack", "Frame", "decode", "read_frames", "stacks_of"]
