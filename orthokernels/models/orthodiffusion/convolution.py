"""A 3D convolution that is as quick for one volume on a CPU as for several."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """``nn.Conv3d``, given to oneDNN also where PyTorch would not.

    For one volume of few channels PyTorch 2.13 chooses its own plain loop (batch x channels x depth x height of at most
    20,480; the rule was made for pictures), which took 5 to 6 times as long: 85 ms instead of 13 for 16 channels of
    16 x 64 x 64 on two cores. Only where no gradient is recorded, since the backward pass would choose the loop again.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if _would_loop(input, weight) and self.padding_mode == "zeros" and not isinstance(self.padding, str):
            return torch.mkldnn_convolution(
                input, weight, bias, self.padding, self.stride, self.dilation, self.groups
            )  # fmt: skip
        return super()._conv_forward(input, weight, bias)


def _would_loop(input: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling():  # asked first: whatever else is looked at would be fixed in an export
        return False
    if input.device.type != "cpu" or input.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if input.dim() != 5 or len(input) != 1 or not input.numel():
        return False
    if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
        return False
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled) and not torch.jit.is_tracing()
