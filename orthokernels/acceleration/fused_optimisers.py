"""What a fused optimiser keeps beside a parameter, brought into the parameter's memory format before each step.

PyTorch's fused optimisers for processors (2.13: Adam, AdamW, SGD, Adagrad) go through a parameter, its gradient and
their own moments place by place in memory, and do not ask whether these lie in one order. Where a parameter was brought
channels last after the optimiser's first step, or a state is loaded that was saved before, every weight would be moved
by another one's moments, without a word.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook


@functools.cache
def keep_in_order() -> None:
    """From now on, of every optimiser of the process: most are made after their model, some before."""
    register_optimizer_step_pre_hook(_lay)


def _lay(optimiser: torch.optim.Optimizer, *_: Any) -> None:
    fused = (own for group in optimiser.param_groups if group.get("fused") for own in group["params"])
    for parameter in fused:
        for name, kept in optimiser.state.get(parameter, {}).items():
            if isinstance(kept, Tensor) and kept.shape == parameter.shape and kept.stride() != parameter.stride():
                optimiser.state[parameter][name] = torch.empty_like(parameter, dtype=kept.dtype).copy_(kept)
