"""The networks and heads on the native CPU engine: NumPy arrays in and out, no PyTorch in the process.

``load.load_native`` makes a study's model of a weights folder; ``UNetPlan`` is one network.
"""

from orthokernels.models.native.unet import UNetPlan

__all__ = ["UNetPlan"]
