"""Results as DICOM objects: SEG, SR and secondary captures that belong to the study they were made from."""

from orthokernels.edge.objects.setting import NOTICE
from orthokernels.edge.objects.writer import write_abstention, write_objects

__all__ = ["NOTICE", "write_abstention", "write_objects"]
