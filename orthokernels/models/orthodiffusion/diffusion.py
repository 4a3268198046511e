"""The Gaussian diffusion around the denoiser: schedule, noising, loss, and sampling.

Equations are numbered as in Ho et al. (DDPM, arXiv 2006.11239) and Song et al. (DDIM, arXiv 2010.02502). Throughout,
``x0`` is a clean volume in [-1, 1], ``x`` its noisy version, axes [batch, channel, depth, height, width].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# Predicts the noise in x at timesteps [batch]: the U-Net, or anything with its signature.
Denoiser = Callable[[Tensor, Tensor], Tensor]


def cosine_schedule(steps: int = 1000, offset: float = 0.008) -> Tensor:
    """Betas of the cosine schedule (Nichol & Dhariwal, arXiv 2102.09672, eq. 17), float64 [steps].

    This is its old form, which the published weights were trained with: ``steps + 1`` points are spread from 0 to
    ``steps + 1``, not to ``steps``. Betas are clipped to [0, 0.999].
    """
    points = torch.linspace(0, steps + 1, steps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((points / (steps + 1) + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(0, 0.999)


class GaussianDiffusion:
    """The forward process q and what follows from it. Coefficients are kept in float64 and cast where they are used.

    Args:
        betas: [timesteps], float64; the published cosine schedule by default.
    """

    def __init__(self, betas: Tensor | None = None) -> None:
        self.betas = cosine_schedule() if betas is None else betas.double()
        self.alpha_bar = torch.cumprod(1 - self.betas, dim=0)
        self.timesteps = len(self.betas)
        self._copies: dict[torch.device, Tensor] = {}  # of alpha_bar, one per device

    def add_noise(self, x0: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Sample q(x_t | x_0) with the given unit noise (DDPM eq. 4).

        Args:
            x0: clean volumes [batch, channel, depth, height, width].
            timesteps: [batch], integer, 0 to ``self.timesteps`` - 1.
            noise: like ``x0``.

        Raises:
            ValueError: noise of another shape, or a timestep out of range. The range is looked at on the CPU alone:
                reading it back from another device would wait for all work before it, and indexing there checks it too.
        """
        if noise.shape != x0.shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, the volumes {tuple(x0.shape)}")
        on_cpu = timesteps.device.type == "cpu"
        if on_cpu and (int(timesteps.min()) < 0 or int(timesteps.max()) >= self.timesteps):
            raise ValueError(f"timesteps must lie in 0 to {self.timesteps - 1}, not {timesteps.tolist()}")
        alpha_bar = self._at(timesteps)
        return alpha_bar.sqrt().to(x0) * x0 + (1 - alpha_bar).sqrt().to(x0) * noise

    def predict_x0(self, x: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """The clean volume that ``noise`` would have turned into ``x`` (DDIM eq. 9); not clipped."""
        alpha_bar = self._at(timesteps)
        return (1 / alpha_bar).sqrt().to(x) * x - (1 / alpha_bar - 1).sqrt().to(x) * noise

    def loss(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        kind: Literal["l1", "l2"] = "l2",
        *,
        min_snr_gamma: float | None = None,
    ) -> Tensor:
        """Mean error of the predicted noise over all voxels (DDPM eq. 14), a scalar. The published training uses l2.

        ``min_snr_gamma`` weighs each sample by min(snr, gamma) / snr of its timestep (Hang et al., arXiv 2303.09556,
        eq. 8, for a prediction of the noise), where snr = alpha_bar / (1 - alpha_bar).
        """
        if kind not in ("l1", "l2"):
            raise ValueError(f"the loss is 'l1' or 'l2', not {kind!r}")
        predicted = denoiser(self.add_noise(x0, timesteps, noise), timesteps)
        if min_snr_gamma is None:
            return F.l1_loss(predicted, noise) if kind == "l1" else F.mse_loss(predicted, noise)
        error = F.l1_loss if kind == "l1" else F.mse_loss
        alpha_bar = self._at(timesteps).flatten()
        weight = (min_snr_gamma * (1 - alpha_bar) / alpha_bar).clamp(max=1)  # [batch]
        return (error(predicted, noise, reduction="none").flatten(1).mean(dim=1) * weight).mean().to(noise.dtype)

    @torch.no_grad()
    def ddpm_step(self, x: Tensor, timestep: int, noise: Tensor, fresh: Tensor, *, clip: bool = True) -> Tensor:
        """One ancestral step from ``timestep`` to the one before it.

        Args:
            x: noisy volumes at ``timestep``.
            noise: the denoiser's prediction for ``x``.
            fresh: unit noise for this step; ignored at timestep 0.
            clip: clip the predicted clean volume to [-1, 1], as the published sampler does.
        """
        t = torch.tensor([timestep])
        # 1. predicted clean volume (DDIM eq. 9)
        x0 = self.predict_x0(x, t, noise)
        if clip:
            x0 = x0.clamp(-1, 1)
        # 2. posterior mean (DDPM eq. 7)
        beta = float(self.betas[timestep])
        alpha_bar = float(self.alpha_bar[timestep])
        before = float(self.alpha_bar[timestep - 1]) if timestep > 0 else 1.0
        mean = math.sqrt(before) * beta / (1 - alpha_bar) * x0
        mean = mean + math.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar) * x
        # 3. posterior variance (DDPM eq. 7); it is zero at the last step
        variance = beta * (1 - before) / (1 - alpha_bar)
        return mean + math.sqrt(variance) * fresh if timestep > 0 else mean

    @torch.no_grad()
    def ddim_step(
        self,
        x: Tensor,
        timestep: int,
        target: int,
        noise: Tensor,
        fresh: Tensor,
        *,
        eta: float = 0.0,
        clip: bool = True,
    ) -> Tensor:
        """One step from ``timestep`` to the earlier ``target`` (-1 for the clean volume).

        ``eta`` is 0 for the deterministic sampler and 1 for the variance of DDPM's. Other arguments as in
        ``ddpm_step``.
        """
        t = torch.tensor([timestep])
        alpha_bar = float(self.alpha_bar[timestep])
        before = float(self.alpha_bar[target]) if target >= 0 else 1.0
        # 1. predicted clean volume (eq. 9), and the noise that fits it once it is clipped
        x0 = self.predict_x0(x, t, noise)
        if clip:
            x0 = x0.clamp(-1, 1)
            noise = (x - math.sqrt(alpha_bar) * x0) / math.sqrt(1 - alpha_bar)
        # 2. standard deviation of the fresh noise (eq. 16)
        sigma = eta * math.sqrt((1 - before) / (1 - alpha_bar) * (1 - alpha_bar / before))
        # 3. the step (eq. 12); max() keeps rounding from making the radicand negative at eta = 1
        direction = math.sqrt(max(0.0, 1 - before - sigma**2)) * noise
        return math.sqrt(before) * x0 + direction + sigma * fresh

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        shape: tuple[int, ...],
        *,
        seed: int,
        steps: int | None = None,
        eta: float | None = None,
        clip: bool = True,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw volumes from noise.

        Args:
            shape: [batch, channel, depth, height, width].
            seed: of all noise; the same seed gives the same noise on every device.
            steps: timesteps to visit, spread evenly; all of them by default.
            eta: None for ancestral sampling (DDPM, all timesteps); a number for DDIM.

        Raises:
            ValueError: fewer steps than timesteps asked of DDPM, or a number out of range.
        """
        steps = self.timesteps if steps is None else steps
        if eta is None and steps != self.timesteps:
            raise ValueError(f"DDPM visits all {self.timesteps} timesteps; give eta=0 for DDIM with {steps}")
        if not 1 <= steps <= self.timesteps:
            raise ValueError(f"steps must lie in 1 to {self.timesteps}, not {steps}")
        generator = torch.Generator().manual_seed(seed)

        def unit_noise() -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype).to(device)

        x = unit_noise()
        visited = torch.linspace(self.timesteps - 1, 0, steps).round().long().tolist()
        for timestep, target in zip(visited, [*visited[1:], -1], strict=True):
            noise = denoiser(x, torch.full((shape[0],), timestep, device=device))
            if eta is None:
                x = self.ddpm_step(x, timestep, noise, unit_noise(), clip=clip)
            else:
                x = self.ddim_step(x, timestep, target, noise, unit_noise(), eta=eta, clip=clip)
        return x

    def _at(self, timesteps: Tensor) -> Tensor:
        """alpha_bar at ``timesteps``, float64 [batch, 1, 1, 1, 1]."""
        if timesteps.device not in self._copies:
            self._copies[timesteps.device] = self.alpha_bar.to(timesteps.device)
        return self._copies[timesteps.device][timesteps.long()].view(-1, 1, 1, 1, 1)
