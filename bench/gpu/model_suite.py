"""Whole networks: the feature pass, the full denoiser, and sampling in 50 steps; this U-Net and MONAI's.

All contenders of a case have the same weights, in bfloat16 with the normalisation's sums in float32; the published
forward pass is there in float32 too (convolutions in TF32), as it was published. Noise is made beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from orthokernels.bench.gpu.case import Bar, Case, Corner
from orthokernels.bench.gpu.floors import Count, count, meta
from orthokernels.bench.gpu.networks import CONTIGUOUS, LAST, Kind, kinds, network, unfused, volumes
from orthokernels.bench.gpu.passes import compiled
from orthokernels.bench.gpu.sampler_cases import SCHEDULERS
from orthokernels.bench.gpu.setting import Setting
from orthokernels.bench.gpu.timing import Call, Contender, Effort
from orthokernels.bench.reference import Eager, eager_pass
from torch import Tensor, nn

NAME = "model"
TIMESTEP, BLOCK = 100, "mid_2"
PUBLISHED, PUBLISHED_LAST = "published forward pass, contiguous", "published forward pass, channels-last"
MAX_AUTOTUNE = "torch.compile max-autotune, channels-last"
Pass = Callable[[Any, Tensor, Tensor], Tensor]


def cases(setting: Setting) -> list[Case]:
    """All cases, the most important first: time may end before the last."""
    own, large = kinds(setting), 8
    if setting.tiny:
        return [
            _features(setting, own["unet"], 1),
            _sampling(setting, own["unet"]),
            _denoiser(setting, own["monai"], 1),
        ]
    return [
        _features(setting, own["unet"], 1), _features(setting, own["unet"], large), _denoiser(setting, own["unet"], 1),
        _sampling(setting, own["unet"]), _denoiser(setting, own["monai"], 1), _denoiser(setting, own["unet"], large),
    ]  # fmt: skip


def _features(setting: Setting, kind: Kind, batch: int) -> Case:
    bars = (Bar("faster", 1.3, MAX_AUTOTUNE), Bar("faster", 3.0, PUBLISHED))
    published: Pass = lambda unet, x, t: eager_pass(unet, x, t)  # noqa: E731
    return _case(setting, kind, batch, f"feature pass to {BLOCK}", _feature_pass, published, bars)


def _denoiser(setting: Setting, kind: Kind, batch: int) -> Case:
    published: Pass | None = (lambda unet, x, t: Eager(unet)(x, t)) if kind.name == "U-Net" else None
    return _case(setting, kind, batch, "full denoiser", lambda unet, x, t: unet(x, t), published, ())


def _feature_pass(unet: Any, x: Tensor, timesteps: Tensor) -> Tensor:
    found: Tensor = unet.features(x, timesteps, (BLOCK,))[BLOCK]
    return found


def _case(
    setting: Setting, kind: Kind, batch: int, what: str, run: Pass, published: Pass | None, bars: tuple[Bar, ...]
) -> Case:
    def build(
        layout: torch.memory_format, own: Pass, *, kernels: bool = False, dtype: torch.dtype = torch.bfloat16,
        mode: str | None = None, apart: bool = False,
    ) -> Callable[[], Call]:  # fmt: skip
        """What builds one forward pass: ``mode`` of torch.compile, ``apart`` for unfused kernels."""

        def made() -> Call:
            unet = network(kind, setting, layout=layout, dtype=dtype, kernels=kernels).eval()
            x, timesteps = volumes(kind, setting, batch, layout, dtype), _timesteps(setting, batch)
            forward = own if mode is None else compiled(own, setting, mode)

            def call() -> Tensor:
                with torch.no_grad():
                    return forward(unet, x, timesteps)

            return _apart(call) if apart else call

        return made

    def contenders() -> Sequence[Contender]:
        found = [
            Contender(Corner.KERNELS_LAST, build(LAST, run, kernels=True)),
            Contender(Corner.PLAIN_CONTIGUOUS, build(CONTIGUOUS, run)),
            Contender(Corner.PLAIN_LAST, build(LAST, run)),
            Contender(Corner.KERNELS_CONTIGUOUS, build(CONTIGUOUS, run, kernels=True)),
            Contender(Corner.UNFUSED_CONTIGUOUS, build(CONTIGUOUS, run, kernels=True, apart=True)),
        ]
        if published is not None:
            found += [
                Contender(PUBLISHED, build(CONTIGUOUS, published)),
                Contender(PUBLISHED_LAST, build(LAST, published)),
                Contender(f"{PUBLISHED}, float32", build(CONTIGUOUS, published, dtype=torch.float32)),
            ]
        return [
            *found,
            Contender("torch.compile default, channels-last", build(LAST, run, mode="default")),
            Contender(MAX_AUTOTUNE, build(LAST, run, mode="max-autotune")),
            Contender(f"{Corner.KERNELS_LAST}, torch.compile default", build(LAST, run, kernels=True, mode="default")),
        ]

    name = f"{kind.name}, {what}, {batch}x{'x'.join(map(str, kind.shape))} bf16"
    counted = _counted(setting, kind, batch, run)
    effort = Effort(seconds=0.2, least=2, most=2) if setting.tiny else Effort(seconds=4.0, least=5, most=30)
    return Case(name, counted.moved, counted.operations, "bfloat16", contenders, bars, effort)


def _sampling(setting: Setting, kind: Kind) -> Case:
    """DDIM in 50 steps: the network's calls and the sampler's, as a user's loop makes them."""
    steps = 2 if setting.tiny else 50

    def build(
        layout: torch.memory_format, *, kernels: bool, step: bool, mode: str | None = None
    ) -> Callable[[], Call]:  # fmt: skip
        def made() -> Call:
            unet: Any = network(kind, setting, layout=layout, kernels=kernels).eval()
            x = volumes(kind, setting, 1, layout, torch.bfloat16)
            forward = unet if mode is None else compiled(unet, setting, mode)
            return lambda: _sample(forward, x, steps, setting, ours=step)

        return made

    def contenders() -> Sequence[Contender]:
        return [
            Contender(Corner.KERNELS_LAST, build(LAST, kernels=True, step=True)),
            Contender(Corner.PLAIN_CONTIGUOUS, build(CONTIGUOUS, kernels=False, step=False)),
            Contender(Corner.PLAIN_LAST, build(LAST, kernels=False, step=False)),
            Contender(Corner.KERNELS_CONTIGUOUS, build(CONTIGUOUS, kernels=True, step=True)),
            Contender("torch.compile default, channels-last", build(LAST, kernels=False, step=False, mode="default")),
        ]

    one = _counted(setting, kind, 1, lambda unet, x, t: unet(x, t))
    name = f"{kind.name}, DDIM in {steps} steps, 1x{'x'.join(map(str, kind.shape))} bf16"
    effort = Effort(seconds=0.2, least=2, most=2) if setting.tiny else Effort(seconds=10.0, least=3, most=5)
    return Case(name, steps * one.moved, steps * one.operations, "bfloat16", contenders, (), effort)


@torch.no_grad()
def _sample(
    forward: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int, setting: Setting, *, ours: bool
) -> Tensor:
    scheduler: Any = SCHEDULERS["DDIM"](beta_schedule="orthodiffusion")
    scheduler.set_timesteps(steps, device=setting.device)
    places = scheduler.timesteps.tolist()
    alphas = [float(scheduler.alphas_cumprod[t]) for t in places] + [1.0]
    for place, timestep in enumerate(scheduler.timesteps):
        noise = forward(x, timestep.expand(len(x)))
        if ours:
            x = scheduler.step(noise, timestep, x).prev_sample
        else:
            here, there = alphas[place], alphas[place + 1]
            x0 = ((x - (1 - here) ** 0.5 * noise) / here**0.5).clamp(-1.0, 1.0)
            x = there**0.5 * x0 + (1 - there) ** 0.5 * noise
    return x


def _apart(call: Call) -> Call:
    def called() -> object:
        with unfused():
            return call()

    return called


def _timesteps(setting: Setting, batch: int) -> Tensor:
    return torch.full((batch,), TIMESTEP, device=setting.device)


def _counted(setting: Setting, kind: Kind, batch: int, run: Pass) -> Count:
    """Of one forward pass; zeros where the network can not be made, or PyTorch can not count it."""
    try:
        made: nn.Module = kind.make(setting)
        x, timesteps = meta(batch, *kind.shape), meta(batch, dtype=torch.int64)
        return count(made, lambda unet: run(unet, x, timesteps), 2)
    except Exception:  # the case itself will tell why
        return Count(0, 0)
