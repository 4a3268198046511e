"""The networks and heads on the native CPU engine: NumPy arrays in and out, no PyTorch in the process."""

from orthokernels.models.native.load import load_native
from orthokernels.models.native.model import NativeModel
from orthokernels.models.native.unet import UNetPlan

__all__ = ["NativeModel", "UNetPlan", "load_native"]
