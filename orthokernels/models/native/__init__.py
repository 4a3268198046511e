"""The networks on the native CPU engine: NumPy arrays in and out, no PyTorch in the process."""

from orthokernels.models.native.unet import UNetPlan

__all__ = ["UNetPlan"]
