"""Samplers whose step is one kernel, with diffusers' interface: ``set_timesteps``, ``step``, ``add_noise``.

    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(50, device=x.device)
    for timestep in scheduler.timesteps:
        x = scheduler.step(model(x, timestep), timestep, x).prev_sample

Names and defaults of arguments are diffusers'; an option that is not implemented may be given the value that is. A step
is a row of seven numbers (``ops.denoise_step``), computed in float64 when the timesteps are set. A run may be broken
off and begun again, a step repeated, and two volumes may be taken in turn, except by DPM-Solver++, whose steps read the
one before. Fresh noise comes from inside the kernel, from ``seed`` and the number of the step. It is not diffusers'
noise, and does not depend on the device; ``generator`` and ``variance_noise`` don't exist.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from orthokernels.models.orthodiffusion.diffusion import cosine_schedule
from orthokernels.ops.denoise_step import Coefficients, denoise_step

Prediction = Literal["epsilon", "sample", "v_prediction"]


@dataclass
class SchedulerOutput:
    """A step's volumes: the next, and the clean one that it steers to (None where it was not asked for)."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


def make_betas(schedule: str, steps: int, start: float, end: float) -> np.ndarray:
    """Betas by diffusers' names, float64 [steps]; "orthodiffusion" is what the published weights were trained with.

    Raises:
        ValueError: an unknown name.
    """
    if schedule == "linear":
        return np.linspace(start, end, steps)
    if schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, steps) ** 2
    if schedule == "squaredcos_cap_v2":
        points = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - points[1:] / points[:-1], 0.999)
    if schedule == "orthodiffusion":
        return cosine_schedule(steps).numpy()
    names = "linear, scaled_linear, squaredcos_cap_v2, orthodiffusion"
    raise ValueError(f"beta_schedule: {schedule!r}; there are {names}.")


def _only(kind: str, given: dict[str, Any], implemented: dict[str, Any]) -> None:
    """Options of diffusers' that are not computed here, of which each has the one value that is."""
    for name, value in given.items():
        if name not in implemented:
            raise TypeError(f"{kind} has no option {name!r}.")
        own = implemented[name]
        same = value is own or (np.ndim(value) == 0 and (value == own or not (value or own)))  # None asks for False
        if not same:
            raise ValueError(f"{kind}: {name}={value!r} is not implemented; only {own!r} is.")


def _steps(given: Any, at_most: int | None) -> int:
    """A number of steps, as it was given.

    Raises:
        ValueError: no whole number, or one out of range.
    """
    try:
        steps = operator.index(given)
    except TypeError:
        steps = 0
    if steps < 1 or (at_most is not None and steps > at_most):
        allowed = "1 or more" if at_most is None else f"1 to {at_most}"
        raise ValueError(f"num_inference_steps: {given!r}; must be {allowed}, a whole number.")
    return steps


class _Scheduler:
    """What all share: the table of a run's steps, its way to the device, and the step itself."""

    init_noise_sigma = 1.0
    order = 1

    clip: float | None = None
    # What diffusers has besides, with the value that is implemented here.
    only: ClassVar[dict[str, Any]] = {}
    of_a_run: ClassVar[dict[str, Any]] = {}

    def __init__(self, num_train_timesteps: int, seed: int) -> None:
        self.num_train_timesteps, self.seed = num_train_timesteps, seed
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._restart([], self.timesteps.device)

    def __len__(self) -> int:
        return self.num_train_timesteps

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample: these samplers scale nothing."""
        return sample

    def _restart(
        self,
        rows: Sequence[Coefficients],
        device: torch.device | str | None,
        alone: Sequence[Coefficients] | None = None,
    ) -> None:
        """Begin a run of these steps; ``alone`` are those of a sampler with a history, where there is none."""
        self._table = torch.tensor(rows, dtype=torch.float32, device=device)
        self._alone = self._table if alone is None else torch.tensor(alone, dtype=torch.float32, device=device)
        self._run, self._values = self.timesteps, self.timesteps.float().tolist()
        self._noisy = [row.next_noise != 0 for row in rows]
        self._seed = torch.tensor([self.seed], device=device)
        self._index: int | None = None
        self._previous: Tensor | None = None

    def _place(self, timestep: int | float | Tensor) -> int:
        """Which step it is: the next one, or, where the timestep is known to be another's, that one without a history.

        Nothing is read back from a device but before the first step: from then on a timestep there is known where it is
        one of ``timesteps``, by its place in memory; with any other the steps are counted on.
        """
        if self.num_inference_steps is None:
            raise ValueError("timesteps: none are set; call set_timesteps first.")
        found = self._found(timestep)
        place = self._index if found is None else found
        if place is None or place >= len(self._values):
            raise ValueError("timestep: the run's last step was taken; call set_timesteps for another run.")
        if place != self._index:
            self._previous = None
        return place

    def _found(self, timestep: int | float | Tensor) -> int | None:
        """The place of a timestep in the run, the next one's if it is there twice; None where it is not known."""
        following = self._index
        if isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            own, run = (tensor.untyped_storage().data_ptr() for tensor in (timestep, self._run))
            if own == run and timestep.numel() == 1:
                return int(timestep.storage_offset() - self._run.storage_offset())
            if following is not None:
                return None
        value = float(np.float32(float(timestep)))
        if following is not None and value in self._values[following : following + 1]:
            return following
        if value not in self._values:
            raise ValueError(f"timestep: {float(timestep):g} is none of this run's.")
        return self._values.index(value)

    def _move(
        self, sample: Tensor, output: Tensor, place: int, *, keep_x0: bool, threshold: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if sample.device != self._table.device:
            raise ValueError(f"sample: lies on {sample.device}; the timesteps were set for {self._table.device}.")
        table = self._alone if self._previous is None else self._table
        found = denoise_step(
            sample, output, table[place], previous=self._previous, keep_x0=keep_x0, threshold=threshold,
            clip=self.clip if threshold is None else None, seed=self._seed if self._noisy[place] else None, step=place,
        )  # fmt: skip
        self._index = place + 1
        return found


class _Gaussian(_Scheduler):
    """A variance-preserving process: x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise."""

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | np.ndarray | None = None,
        *,  # from here on diffusers' samplers each have an order of their own
        prediction_type: Prediction = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        seed: int = 0,
        **others: Any,
    ) -> None:
        _only(type(self).__name__, others, self.only)
        if prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(f"prediction_type: {prediction_type!r}; there are epsilon, sample, v_prediction.")
        betas = make_betas(beta_schedule, num_train_timesteps, beta_start, beta_end)
        self.betas = np.asarray(betas if trained_betas is None else trained_betas, np.float64)
        super().__init__(len(self.betas), seed)
        self.alphas_cumprod = np.cumprod(1 - self.betas)
        self.prediction_type = prediction_type
        self.thresholding = thresholding
        self.dynamic_thresholding_ratio, self.sample_max_value = dynamic_thresholding_ratio, sample_max_value

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x of clean volumes [N, C, *voxels], unit noise and timesteps [N] (DDPM, eq. 4)."""
        alpha_bar = torch.from_numpy(self.alphas_cumprod).to(original_samples.device)[timesteps.long()]
        alpha_bar = alpha_bar.view(-1, *[1] * (original_samples.ndim - 1))
        return alpha_bar.sqrt().to(original_samples) * original_samples + (1 - alpha_bar).sqrt().to(noise) * noise

    def _clean(self, alpha: float, sigma: float) -> tuple[float, float]:
        """x0 as so much of x and so much of the output, where x = alpha x0 + sigma noise."""
        return {
            "epsilon": (1 / alpha, -sigma / alpha), "sample": (0.0, 1.0), "v_prediction": (alpha, -sigma),
        }[self.prediction_type]  # fmt: skip

    def _noise(self, alpha: float, sigma: float) -> tuple[float, float]:
        """The noise as so much of x and so much of the output."""
        return {
            "epsilon": (0.0, 1.0), "sample": (1 / sigma, -alpha / sigma), "v_prediction": (sigma, alpha),
        }[self.prediction_type]  # fmt: skip

    def _threshold(self, sample: Tensor, output: Tensor, place: int) -> Tensor | None:
        """s of dynamic thresholding (Saharia et al., arXiv 2205.11487, section 2.3), float32 [N]."""
        if not self.thresholding:
            return None
        from_x, from_output = self._table[place, 0], self._table[place, 1]
        size = (from_x * sample.float() + from_output * output.float()).abs().flatten(1)
        # torch.quantile takes at most 2^24 numbers; the value between the two neighbours is the same.
        where = self.dynamic_thresholding_ratio * (size.shape[1] - 1)
        low = int(where)
        smaller = size.kthvalue(low + 1, dim=1).values
        larger = size.kthvalue(min(low + 2, size.shape[1]), dim=1).values
        return (smaller + (where - low) * (larger - smaller)).clamp(1.0, self.sample_max_value)


class _Strided(_Gaussian, ABC):
    """Samplers whose timesteps lie a stride apart, and whose x0 is clipped."""

    only: ClassVar[dict[str, Any]] = {"rescale_betas_zero_snr": False}

    def __init__(
        self,
        *args: Any,
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.clip = clip_sample_range if clip_sample and not self.thresholding else None
        self.timestep_spacing, self.steps_offset = timestep_spacing, steps_offset

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: torch.device | str | None = None, **others: Any
    ) -> None:
        """Choose the timesteps of a run, and compute its steps.

        Raises:
            ValueError: a number of steps, a spacing or an offset that gives no run, or an option that is not
                implemented.
        """
        _only(f"{type(self).__name__}.set_timesteps", others, self.of_a_run)
        steps = _steps(num_inference_steps, len(self))
        chosen = _inside(spaced(len(self), steps, self.timestep_spacing, self.steps_offset), len(self))
        rows = [self._row(t, before) for t, before in zip(chosen.tolist(), self._before(chosen), strict=True)]
        self.num_inference_steps = steps
        self.timesteps = torch.from_numpy(chosen).to(device)
        self._restart(rows, device)

    @abstractmethod
    def _before(self, chosen: np.ndarray) -> list[int]:
        """The timesteps that a run's steps go to."""

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, *, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor, Tensor | None]:
        """One step; ``pred_original_sample`` is written with it."""
        place = self._place(timestep)
        threshold = self._threshold(sample, model_output, place)
        found, clean = self._move(sample, model_output, place, keep_x0=True, threshold=threshold)
        return SchedulerOutput(found, clean) if return_dict else (found, clean)

    @abstractmethod
    def _row(self, t: int, before: int) -> Coefficients:
        """The step from a timestep to an earlier one; a negative one is the clean volume."""


class DDPMScheduler(_Strided):
    """Ancestral sampling (Ho et al., arXiv 2006.11239). Arguments as in diffusers, and ``seed`` of the noise."""

    of_a_run: ClassVar[dict[str, Any]] = {"timesteps": None}

    def __init__(
        self, *args: Any, variance_type: Literal["fixed_small", "fixed_large"] = "fixed_small", **kwargs: Any
    ) -> None:
        if variance_type not in ("fixed_small", "fixed_large"):
            raise ValueError(f"variance_type: {variance_type!r}; there are fixed_small, fixed_large.")
        super().__init__(*args, **kwargs)
        self.variance_type = variance_type

    def _before(self, chosen: np.ndarray) -> list[int]:
        """The run's next timestep; from its last, the clean volume."""
        return [*chosen[1:].tolist(), -1]

    def _row(self, t: int, before: int) -> Coefficients:
        alpha_bar = self.alphas_cumprod[t]
        alpha_bar_before = self.alphas_cumprod[before] if before >= 0 else 1.0
        alpha = alpha_bar / alpha_bar_before  # of the whole stride
        # 1. predicted clean volume
        from_x, from_output = self._clean(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))
        # 2. posterior mean (eq. 7)
        of_x0 = math.sqrt(alpha_bar_before) * (1 - alpha) / (1 - alpha_bar)
        of_x = math.sqrt(alpha) * (1 - alpha_bar_before) / (1 - alpha_bar)
        # 3. posterior variance (eq. 7), or its upper bound; the last step adds none
        small = max((1 - alpha_bar_before) / (1 - alpha_bar) * (1 - alpha), 1e-20)
        variance = 0.0 if t == 0 else small if self.variance_type == "fixed_small" else 1 - alpha
        return Coefficients(from_x, from_output, next_x=of_x, next_x0=of_x0, next_noise=math.sqrt(variance))


class DDIMScheduler(_Strided):
    """Implicit sampling (Song et al., arXiv 2010.02502). Arguments as in diffusers, and ``seed`` of the noise.

    ``eta`` and ``use_clipped_model_output`` are given here, once for the run, not with every step.
    """

    def __init__(
        self,
        *args: Any,
        set_alpha_to_one: bool = True,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.set_alpha_to_one, self.eta, self.use_clipped_model_output = set_alpha_to_one, eta, use_clipped_model_output

    def _before(self, chosen: np.ndarray) -> list[int]:
        """A stride back, wherever the run's next timestep lies."""
        return [t - len(self) // len(chosen) for t in chosen.tolist()]

    def _row(self, t: int, before: int) -> Coefficients:
        alpha_bar = self.alphas_cumprod[t]
        final = 1.0 if self.set_alpha_to_one else self.alphas_cumprod[0]
        alpha_bar_before = self.alphas_cumprod[before] if before >= 0 else final
        alpha, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        # 1. predicted clean volume (eq. 9)
        from_x, from_output = self._clean(alpha, sigma)
        # 2. deviation of the fresh noise (eq. 16)
        deviation = self.eta * math.sqrt(
            max(0.0, (1 - alpha_bar_before) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_before))
        )
        # 3. direction back to x (eq. 12), of the network's noise or of the noise that fits the clipped x0
        direction = math.sqrt(max(0.0, 1 - alpha_bar_before - deviation**2))
        of_x, of_output, of_x0 = (*self._noise(alpha, sigma), 0.0)
        if self.use_clipped_model_output:
            of_x, of_output, of_x0 = 1 / sigma, 0.0, -alpha / sigma
        return Coefficients(
            from_x, from_output, next_x=direction * of_x, next_output=direction * of_output,
            next_x0=math.sqrt(alpha_bar_before) + direction * of_x0, next_noise=deviation,
        )  # fmt: skip


class DPMSolverMultistepScheduler(_Gaussian):
    """DPM-Solver++(2M), midpoint (Lu et al., arXiv 2211.01095, algorithm 2). Arguments as in diffusers.

    ``solver_order`` is 1 or 2.
    """

    only: ClassVar[dict[str, Any]] = {
        "rescale_betas_zero_snr": False, "algorithm_type": "dpmsolver++", "solver_type": "midpoint",
        "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_lu_lambdas": False,
        "use_flow_sigmas": False, "flow_shift": 1.0, "variance_type": None, "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    }  # fmt: skip
    of_a_run: ClassVar[dict[str, Any]] = {"timesteps": None, "mu": None}

    def __init__(
        self,
        *args: Any,
        solver_order: int = 2,
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        final_sigmas_type: Literal["zero", "sigma_min"] = "zero",
        lambda_min_clipped: float = -math.inf,
        **kwargs: Any,
    ) -> None:
        if solver_order not in (1, 2):
            raise ValueError(f"solver_order: {solver_order}; there are 1 and 2.")
        if final_sigmas_type not in ("zero", "sigma_min"):
            raise ValueError(f"final_sigmas_type: {final_sigmas_type!r}; there are zero, sigma_min.")
        super().__init__(*args, **kwargs)
        self.solver_order, self.lower_order_final, self.euler_at_final = solver_order, lower_order_final, euler_at_final
        self.timestep_spacing, self.steps_offset = timestep_spacing, steps_offset
        self.final_sigmas_type, self.lambda_min_clipped = final_sigmas_type, lambda_min_clipped

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: torch.device | str | None = None, **others: Any
    ) -> None:
        """Choose the timesteps of a run, and compute its steps.

        Raises:
            ValueError: a number of steps, a spacing or an offset that gives no run, or an option that is not
                implemented.
        """
        _only(f"{type(self).__name__}.set_timesteps", others, self.of_a_run)
        chosen = _inside(self._spaced(_steps(num_inference_steps, len(self))), len(self))
        self.num_inference_steps = len(chosen)
        self.timesteps = torch.from_numpy(chosen).to(device)
        ratios = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)  # sigma / alpha
        last = 0.0 if self.final_sigmas_type == "zero" else ratios[0]
        rows = [self._rows([*ratios[chosen], last], order) for order in (self.solver_order, 1)]
        self._restart(rows[0], device, alone=rows[1])

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, *, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step. The next reads this one's x0; one that does not follow the last is of first order."""
        place = self._place(timestep)
        threshold = self._threshold(sample, model_output, place)
        found, self._previous = self._move(sample, model_output, place, keep_x0=True, threshold=threshold)
        return SchedulerOutput(found, self._previous) if return_dict else (found,)

    def _spaced(self, steps: int) -> np.ndarray:
        # Where the signal-to-noise ratio of a cosine schedule falls off a cliff, the first timesteps are left out.
        with np.errstate(divide="ignore"):
            half_log_ratio = 0.5 * (np.log(self.alphas_cumprod) - np.log(1 - self.alphas_cumprod))
        last = len(self) - int(np.searchsorted(half_log_ratio[::-1], self.lambda_min_clipped))
        if self.timestep_spacing == "linspace":
            return np.linspace(0, last - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
        if self.timestep_spacing == "leading":
            if steps >= last:
                raise ValueError(f"num_inference_steps: {steps}; with leading spacing at most {last - 1}.")
            return (np.arange(steps + 1) * (last // (steps + 1)))[::-1][:-1].astype(np.int64) + self.steps_offset
        return spaced(last, steps, self.timestep_spacing, self.steps_offset, stride=len(self) / steps)

    def _rows(self, ratios: Sequence[float], order: int) -> list[Coefficients]:
        """Of the ratios sigma / alpha at the timesteps and at the end."""
        alphas = [1 / math.sqrt(1 + ratio**2) for ratio in ratios]
        lambdas = [math.inf if ratio == 0 else -math.log(ratio) for ratio in ratios]
        count, rows = len(ratios) - 1, []
        for n in range(count):
            alpha, sigma = alphas[n], alphas[n] * ratios[n]
            h = lambdas[n + 1] - lambdas[n]
            # 1. first order (eq. 4.1): x' = (sigma' / sigma) x - alpha' (exp(-h) - 1) x0
            pull = -alphas[n + 1] * math.expm1(-h)
            row = Coefficients(*self._clean(alpha, sigma), next_x=alphas[n + 1] * ratios[n + 1] / sigma, next_x0=pull)
            # 2. second order: x0 is extrapolated to the middle from the step before
            short = count < 15 and self.lower_order_final
            final = n == count - 1 and (self.euler_at_final or short or ratios[-1] == 0)
            # A timestep that is there twice (all of them, linearly spaced) is no step, and gives no slope.
            if order == 2 and n > 0 and not final and lambdas[n] != lambdas[n - 1]:
                half = h / (2 * (lambdas[n] - lambdas[n - 1]))  # 1 / (2 r)
                row = row._replace(next_x0=pull * (1 + half), next_previous=-pull * half)
            rows.append(row)
        return rows


class FlowMatchEulerDiscreteScheduler(_Scheduler):
    """Rectified flow, Euler's method (Liu et al., arXiv 2209.03003): x = (1 - sigma) x0 + sigma noise.

    The network predicts noise - x0. ``shift`` moves timesteps towards the noise (Esser et al., arXiv 2403.03206).
    """

    only: ClassVar[dict[str, Any]] = {
        "use_dynamic_shifting": False, "invert_sigmas": False, "shift_terminal": None, "use_karras_sigmas": False,
        "use_exponential_sigmas": False, "use_beta_sigmas": False, "stochastic_sampling": False, "base_shift": 0.5,
        "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096, "time_shift_type": "exponential",
    }  # fmt: skip
    of_a_run: ClassVar[dict[str, Any]] = {"timesteps": None, "sigmas": None, "mu": None}

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0, *, seed: int = 0, **others: Any) -> None:
        _only(type(self).__name__, others, self.only)
        super().__init__(num_train_timesteps, seed)
        self.shift = shift
        self.timesteps = torch.from_numpy(self._shifted(np.arange(num_train_timesteps, 0, -1) / num_train_timesteps))
        self.timesteps = (self.timesteps * num_train_timesteps).float()

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: torch.device | str | None = None, **others: Any
    ) -> None:
        """Choose the timesteps of a run, and compute its steps. They are real numbers, as many as wanted.

        Raises:
            ValueError: a number of steps that gives no run, or an option that is not implemented.
        """
        _only(f"{type(self).__name__}.set_timesteps", others, self.of_a_run)
        steps = _steps(num_inference_steps, None)
        # Shifted twice, as diffusers does: the ends of the range first, then every point between them.
        low = float(self._shifted(np.array([1 / len(self)]))[0])
        sigmas = self._shifted(np.linspace(1.0, low, steps))
        self.num_inference_steps = steps
        self.timesteps = torch.from_numpy(sigmas * len(self)).float().to(device)
        rows = [
            Coefficients(1.0, -here, next_x=1.0, next_output=there - here)
            for here, there in zip(sigmas, [*sigmas[1:], 0.0], strict=True)
        ]
        self._restart(rows, device)

    def step(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, *, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step."""
        found, _ = self._move(sample, model_output, self._place(timestep), keep_x0=False)
        return SchedulerOutput(found) if return_dict else (found,)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """x of clean volumes [N, C, *voxels], unit noise and timesteps [N]."""
        sigma = (timestep / len(self)).to(sample).view(-1, *[1] * (sample.ndim - 1))
        return (1 - sigma) * sample + sigma * noise

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``scale_noise`` with the arguments in the others' order."""
        return self.scale_noise(original_samples, timesteps, noise)

    def _shifted(self, sigmas: np.ndarray) -> np.ndarray:
        return self.shift * sigmas / (1 + (self.shift - 1) * sigmas)


def spaced(train: int, steps: int, spacing: str, offset: int, stride: float | None = None) -> np.ndarray:
    """Timesteps of a run in falling order, int64 [steps] (Lin et al., arXiv 2305.08891, table 2).

    Raises:
        ValueError: more steps than there are, or an unknown spacing.
    """
    steps = _steps(steps, train)
    if spacing == "linspace":
        return np.linspace(0, train - 1, steps).round()[::-1].astype(np.int64)
    if spacing == "leading":
        return (np.arange(steps) * (train // steps))[::-1].astype(np.int64) + offset
    if spacing == "trailing":
        chosen = np.round(np.arange(train, 0, -(stride or train / steps))).astype(np.int64) - 1
        return chosen[chosen >= 0]  # at 61 steps of 1000 and others rounding adds a -1, which diffusers steps to
    raise ValueError(f"timestep_spacing: {spacing!r}; there are leading, linspace, trailing.")


def _inside(chosen: np.ndarray, train: int) -> np.ndarray:
    """Timesteps of a run, where all of them were trained."""
    if chosen.max() >= train or chosen.min() < 0:
        first, last = chosen.max(), chosen.min()
        raise ValueError(f"steps_offset: the run would go from timestep {first} to {last}; there are 0 to {train - 1}.")
    return chosen
