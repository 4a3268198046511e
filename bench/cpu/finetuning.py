"""One step of fine-tuning a diagnosis head with the encoder and middle behind it, accelerated and plain.

A step is forward to the findings' loss, backward and Adam; the encoder learns at a twentieth of the head's rate, as the
study has it. Weights change with every step, so that what the native convolution packs of them it packs anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from orthokernels.bench.cpu.peers import Call
from orthokernels.bench.cpu.subjects import SIDES, TIMESTEP, TINY, Diagnosis, Subject, network, varied
from torch import Tensor, nn

from orthokernels.acceleration import accelerate
from orthokernels.models.orthodiffusion import UNet
from orthokernels.training.segmentation_task import FeatureNetwork

BLOCK, RATE, ENCODER_SHARE = "mid_2", 1e-4, 0.05


class FineTuned(nn.Module):
    """A denoiser up to its bottleneck, a pooling and a head; what lies behind the bottleneck learns nothing."""

    def __init__(self, unet: UNet, width: int, heads: int) -> None:
        super().__init__()
        self.features = FeatureNetwork(unet, (BLOCK,), trainable=True)
        self.diagnosis = varied(Diagnosis(width, heads))

    def forward(self, x: Tensor) -> Tensor:
        timesteps = torch.full((1,), TIMESTEP, dtype=torch.int64)
        return self.diagnosis(self.features(x, timesteps)[BLOCK])


def finetuning(threads: int, tiny: bool) -> Subject:
    """The suite's case; each contender's call is a step and returns its loss."""
    torch.manual_seed(0)
    module = FineTuned(network(tiny), *((64, 4) if tiny else (256, 16)))
    x = torch.randn(1, 1, *(TINY if tiny else SIDES))
    return Subject(
        "fine-tuning step", _step(module, x, torch.channels_last_3d, threads, accelerated=True), module, (x.numpy(),),
        exact=False,
        peers={
            "torch_eager": _step(module, x, torch.contiguous_format, threads),
            "torch_channels_last": _step(module, x, torch.channels_last_3d, threads),
        },
    )  # fmt: skip


def _step(
    module: FineTuned, x: Tensor, layout: torch.memory_format, threads: int, *, accelerated: bool = False
) -> Call:
    own, volume = copy.deepcopy(module).to(memory_format=layout), x.contiguous(memory_format=layout)  # type: ignore[call-overload]
    if accelerated:
        accelerate(own, memory_format=layout)
    encoder = {"params": own.features.parameters_that_learn(), "lr": RATE * ENCODER_SHARE}
    optimiser = torch.optim.Adam([{"params": own.diagnosis.parameters()}, encoder], lr=RATE)
    findings = torch.tensor([[1.0, 0.0] * 4])

    return training_step(lambda: F.binary_cross_entropy_with_logits(own(volume), findings), optimiser, threads)


def training_step(forward: Callable[[], Tensor], optimiser: torch.optim.Optimizer, threads: int) -> Call:
    """A call that is forward to a loss, backward and the optimiser's step, and returns the loss, [1]."""

    def step() -> np.ndarray:
        torch.set_num_threads(threads)
        loss = forward()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return np.asarray(loss.detach().numpy())[None]

    return step
