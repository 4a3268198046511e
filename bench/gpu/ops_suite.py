"""The ops, each beside PyTorch, torch.compile and whoever else computes it, at the sizes of the published network."""

from __future__ import annotations

from orthokernels.bench.gpu.attention_cases import bias_cases, block_cases, dense_cases, pool_cases, window_cases
from orthokernels.bench.gpu.case import Case
from orthokernels.bench.gpu.norm_cases import norm_cases
from orthokernels.bench.gpu.sampler_cases import sampler_cases
from orthokernels.bench.gpu.setting import Setting
from orthokernels.bench.gpu.volume_cases import plane_fusion_cases, upsample_cases

NAME = "ops"


def cases(setting: Setting) -> list[Case]:
    """All cases, the most important first: time may end before the last."""
    norms, doublings = norm_cases(setting), upsample_cases(setting)
    bias, fused, samplers = bias_cases(setting), plane_fusion_cases(setting), sampler_cases(setting)
    windows = window_cases(setting)
    return [
        *norms, *bias, *doublings[:2], *fused, *samplers[:1], *windows[:1], *dense_cases(setting), *pool_cases(setting),
        *block_cases(setting), *samplers[1:], *doublings[2:], *windows[1:],
    ]  # fmt: skip
