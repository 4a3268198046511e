"""One step of DDPM, DDIM and DPM-Solver++(2M) beside the same arithmetic in plain PyTorch, as diffusers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from orthokernels.bench.gpu.case import Case
from orthokernels.bench.gpu.passes import compile_modes, normal, passing
from orthokernels.bench.gpu.setting import Setting
from orthokernels.bench.gpu.timing import Contender
from torch import Tensor

from orthokernels.ops.denoise_step import bytes_moved, denoise_step
from orthokernels.schedulers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

STEPS, PLACE = 50, 20  # a step in the middle of a run: noise, extrapolation and clipping are all at work
SCHEDULERS: dict[str, type[Any]] = {
    "DDPM": DDPMScheduler, "DDIM": DDIMScheduler, "DPM-Solver++": DPMSolverMultistepScheduler,
}  # fmt: skip


def sampler_cases(setting: Setting) -> list[Case]:
    """A volume of the published size, float32 as samplers keep it."""
    shape = (1, 1, 2, 3, 4) if setting.tiny else (1, 1, 16, 256, 256)
    return [_case(setting, name, shape) for name in SCHEDULERS]


def _case(setting: Setting, name: str, shape: tuple[int, ...]) -> Case:
    second = name == "DPM-Solver++"
    x = torch.empty(shape, device="meta")
    moved = bytes_moved(x, x, previous=second, keep_x0=second)
    told = "x".join(map(str, shape))
    return Case(f"denoise_step {name}, {told} f32", moved, 0, "float32", lambda: _contenders(setting, name, shape))


def _contenders(setting: Setting, name: str, shape: tuple[int, ...]) -> Sequence[Contender]:
    scheduler = SCHEDULERS[name](beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(STEPS, device=setting.device)
    second = name == "DPM-Solver++"
    coefficients, seed = scheduler._table[PLACE], torch.tensor([1], device=setting.device)
    tensors = tuple(normal(setting, *shape, dtype=torch.float32) for _ in range(3 if second else 2))

    def ours(x: Tensor, output: Tensor, previous: Tensor | None = None) -> Any:
        return denoise_step(
            x, output, coefficients, previous=previous, clip=None if second else 1.0, step=PLACE, keep_x0=second,
            seed=seed if name == "DDPM" else None, backend=setting.backend,
        )  # fmt: skip

    plain = _PLAIN[name](scheduler)
    found = [
        Contender("orthokernels", passing(ours, tensors, "forward")),
        Contender("plain PyTorch, as diffusers", passing(plain, tensors, "forward")),
    ]
    found += [Contender(told, build) for told, build in compile_modes(plain, tensors, "forward", setting)]
    return found


def _alphas(scheduler: Any) -> tuple[float, float]:
    """alpha_bar at the step's timestep and at the next one's."""
    here, there = (int(scheduler.timesteps[PLACE + n]) for n in range(2))
    return float(scheduler.alphas_cumprod[here]), float(scheduler.alphas_cumprod[there])


def _plain_ddpm(scheduler: Any) -> Any:
    alpha_bar, before = _alphas(scheduler)
    alpha = alpha_bar / before

    def step(sample: Tensor, output: Tensor) -> Tensor:
        # 1. predicted clean volume, clipped
        x0 = (sample - (1 - alpha_bar) ** 0.5 * output) / alpha_bar**0.5
        x0 = x0.clamp(-1.0, 1.0)
        # 2. posterior mean (Ho et al., eq. 7)
        of_x0, of_x = before**0.5 * (1 - alpha) / (1 - alpha_bar), alpha**0.5 * (1 - before) / (1 - alpha_bar)
        mean = of_x0 * x0 + of_x * sample
        # 3. posterior variance
        deviation = ((1 - before) / (1 - alpha_bar) * (1 - alpha)) ** 0.5
        return mean + deviation * torch.randn_like(output)

    return step


def _plain_ddim(scheduler: Any) -> Any:
    alpha_bar, before = _alphas(scheduler)

    def step(sample: Tensor, output: Tensor) -> Tensor:
        # 1. predicted clean volume, clipped (Song et al., eq. 9)
        x0 = (sample - (1 - alpha_bar) ** 0.5 * output) / alpha_bar**0.5
        x0 = x0.clamp(-1.0, 1.0)
        # 2. direction back to x, and the step (eq. 12)
        direction = (1 - before) ** 0.5 * output
        return before**0.5 * x0 + direction

    return step


def _plain_dpm(scheduler: Any) -> Any:
    ratios = [
        ((1 - a) / a) ** 0.5
        for a in (float(scheduler.alphas_cumprod[int(scheduler.timesteps[PLACE + n])]) for n in (-1, 0, 1))
    ]
    lambdas = [-math.log(ratio) for ratio in ratios]
    alphas = [1 / math.sqrt(1 + ratio**2) for ratio in ratios]
    sigmas = [alpha * ratio for alpha, ratio in zip(alphas, ratios, strict=True)]
    h, r = lambdas[2] - lambdas[1], (lambdas[1] - lambdas[0]) / (lambdas[2] - lambdas[1])

    def step(sample: Tensor, output: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        # 1. predicted clean volume
        x0 = (sample - sigmas[1] * output) / alphas[1]
        # 2. its change since the step before (Lu et al., algorithm 2)
        change = (1 / r) * (x0 - previous)
        # 3. the step
        pull = alphas[2] * (math.exp(-h) - 1.0)
        return (sigmas[2] / sigmas[1]) * sample - pull * x0 - 0.5 * pull * change, x0

    return step


_PLAIN = {"DDPM": _plain_ddpm, "DDIM": _plain_ddim, "DPM-Solver++": _plain_dpm}
