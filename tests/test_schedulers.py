"""Whole sampling loops beside diffusers', step by step, with the same noise."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from orthokernels import schedulers
from orthokernels.backends.torch.philox import normal

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

SHAPE = (2, 1, 4, 6, 5)
# Coefficients are rounded to float32, here once from float64, there from a float32 product of a thousand alphas, which
# is off by up to 1000 * 2^-24 = 6e-5; values stay below 4.
TOLERANCE = 3e-4


def network(x: Tensor, timestep: Tensor) -> Tensor:
    """Anything smooth that depends on both."""
    return torch.tanh(0.8 * x + 0.3 * torch.roll(x, 1, -1) - float(timestep) / 1000)


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def noise_of(place: int) -> Tensor:
    return normal(int(np.prod(SHAPE)), torch.tensor([0]), place).view(SHAPE)


def loop(scheduler, steps: int, **options) -> list[Tensor]:
    scheduler.set_timesteps(steps)
    x, seen = start(), []
    for place, timestep in enumerate(scheduler.timesteps):
        given = {name: value(place) if callable(value) else value for name, value in options.items()}
        x = scheduler.step(network(x, timestep), timestep, x, **given).prev_sample
        seen.append(x)
    return seen


def assert_same_loop(ours, theirs, steps: int, **options) -> None:
    found, want = loop(ours, steps), loop(theirs, steps, **options)
    assert ours.timesteps.tolist() == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)
    for own, other in zip(found, want, strict=True):
        torch.testing.assert_close(own, other, rtol=TOLERANCE, atol=TOLERANCE)


PREDICTIONS = ["epsilon", "sample", "v_prediction"]
KINDS = ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"]
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [7, 50])
def test_ddim(schedule, prediction, steps):
    options = {"beta_schedule": schedule, "prediction_type": prediction}
    assert_same_loop(schedulers.DDIMScheduler(**options), diffusers.DDIMScheduler(**options), steps)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("clipped", [True, False])
def test_ddim_with_noise_and_every_spacing(spacing, clipped):
    options = {"timestep_spacing": spacing, "set_alpha_to_one": False, "steps_offset": 1}
    ours = schedulers.DDIMScheduler(eta=0.7, use_clipped_model_output=clipped, **options)
    theirs = diffusers.DDIMScheduler(**options)
    assert_same_loop(ours, theirs, 20, eta=0.7, use_clipped_model_output=clipped, variance_noise=noise_of)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm(variance, prediction, monkeypatch):
    places = iter(range(1000))
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *_, **__: noise_of(next(places)))
    options = {"variance_type": variance, "prediction_type": prediction, "beta_schedule": "squaredcos_cap_v2"}
    assert_same_loop(schedulers.DDPMScheduler(**options), diffusers.DDPMScheduler(**options), 25)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("steps", [50, 600])
def test_ddpm_goes_to_the_next_timestep_in_every_spacing(spacing, offset, steps, monkeypatch):
    options = {"timestep_spacing": spacing, "steps_offset": offset}
    ours, theirs = schedulers.DDPMScheduler(**options), diffusers.DDPMScheduler(**options)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda shape, **_: torch.zeros(shape))
    row = ours._row
    monkeypatch.setattr(ours, "_row", lambda t, before: row(t, before)._replace(next_noise=0.0))
    assert_same_loop(ours, theirs, steps)


@pytest.mark.parametrize("largest", [0.5, 1.0, 1.5])  # below 1 diffusers divides by it all the same
@pytest.mark.parametrize("kind", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_dynamic_thresholding(kind, largest):
    options = {"thresholding": True, "sample_max_value": largest, "dynamic_thresholding_ratio": 0.9}
    assert_same_loop(getattr(schedulers, kind)(**options), getattr(diffusers, kind)(**options), 20)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"solver_order": 1}, {"final_sigmas_type": "sigma_min"}, {"timestep_spacing": "trailing"},
        {"timestep_spacing": "leading", "steps_offset": 1}, {"lower_order_final": False, "euler_at_final": True},
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    ],
    ids=str,
)  # fmt: skip
def test_dpm_solver(prediction, steps, options):
    options = {**options, "prediction_type": prediction}
    ours, theirs = (getattr(m, "DPMSolverMultistepScheduler")(**options) for m in (schedulers, diffusers))  # noqa: B009
    assert_same_loop(ours, theirs, steps)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_rectified_flow(shift):
    ours, theirs = (m.FlowMatchEulerDiscreteScheduler(shift=shift) for m in (schedulers, diffusers))
    assert_same_loop(ours, theirs, 20)


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_noise_is_added_as_diffusers_adds_it(kind):
    made = [getattr(module, kind)() for module in (schedulers, diffusers)]
    for scheduler in made:
        scheduler.set_timesteps(20)
    found = [own.add_noise(start(), noise_of(0), made[0].timesteps[[3, 15]]) for own in made]
    torch.testing.assert_close(*found, rtol=TOLERANCE, atol=TOLERANCE)


def test_flow_adds_noise_as_diffusers_does():
    ours, theirs = (m.FlowMatchEulerDiscreteScheduler() for m in (schedulers, diffusers))
    timesteps = theirs.timesteps[[3, 700]]
    torch.testing.assert_close(
        ours.scale_noise(start(), timesteps, noise_of(0)), theirs.scale_noise(start(), timesteps, noise_of(0))
    )


def test_the_published_schedule_is_this_project_s():
    from orthokernels.models.orthodiffusion.diffusion import GaussianDiffusion

    scheduler = schedulers.DDIMScheduler(beta_schedule="orthodiffusion", use_clipped_model_output=True)
    diffusion, x = GaussianDiffusion(), start()
    scheduler.set_timesteps(10)
    for timestep, target in zip(scheduler.timesteps.tolist(), [*scheduler.timesteps.tolist()[1:], -1], strict=True):
        output = network(x, torch.tensor(timestep))
        want = diffusion.ddim_step(x, timestep, target, output, torch.zeros_like(x))
        x = scheduler.step(output, timestep, x).prev_sample
        torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-4)  # coefficients in float32 there and here


def test_seed_alone_decides_the_noise():
    runs = [loop(schedulers.DDPMScheduler(seed=seed), 10)[-1] for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])


@pytest.mark.parametrize(
    ("use", "told"),
    [
        (lambda: schedulers.DDPMScheduler(beta_schedule="cosine"), "beta_schedule: 'cosine'"),
        (lambda: schedulers.DDIMScheduler(prediction_type="noise"), "prediction_type: 'noise'"),
        (lambda: schedulers.DDIMScheduler().set_timesteps(0), "num_inference_steps: 0; must be 1 to 1000"),
        (lambda: schedulers.DDIMScheduler(timestep_spacing="even").set_timesteps(5), "timestep_spacing: 'even'"),
        (lambda: schedulers.DPMSolverMultistepScheduler(solver_order=3), "solver_order: 3"),
        (lambda: schedulers.DDIMScheduler().step(start(), 999, start()), "call set_timesteps first"),
        (lambda: schedulers.DPMSolverMultistepScheduler(final_sigmas_type="foo"), "final_sigmas_type: 'foo'"),
        (
            lambda: schedulers.DPMSolverMultistepScheduler(timestep_spacing="leading").set_timesteps(1000),
            "num_inference_steps: 1000; with leading spacing at most 999",
        ),
        (lambda: schedulers.DDIMScheduler(steps_offset=1).set_timesteps(1000), "steps_offset: the run would go from"),
    ],
)
def test_bad_use_is_named(use, told):
    with pytest.raises(ValueError, match=told):
        use()


@pytest.mark.parametrize("steps", [0, -3, 1001, 20.0, None])
@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_a_number_of_steps_that_gives_no_run_is_refused(kind, steps):
    with pytest.raises(
        ValueError, match=re.escape(f"num_inference_steps: {steps!r}; must be 1 to 1000, a whole number")
    ):
        getattr(schedulers, kind)().set_timesteps(steps)


@pytest.mark.parametrize("steps", [0, -3, 20.0, None])
def test_a_flow_refuses_a_number_of_steps_that_gives_no_run(steps):
    with pytest.raises(ValueError, match=re.escape(f"num_inference_steps: {steps!r}; must be 1 or more, a whole")):
        schedulers.FlowMatchEulerDiscreteScheduler().set_timesteps(steps)


def test_numpy_s_whole_numbers_are_numbers_of_steps():
    scheduler = schedulers.DDIMScheduler()
    scheduler.set_timesteps(np.int64(20))
    assert len(scheduler.timesteps) == 20


@pytest.mark.parametrize(
    ("kind", "option", "implemented", "other"),
    [
        ("DDIMScheduler", "rescale_betas_zero_snr", False, True),
        ("DDPMScheduler", "rescale_betas_zero_snr", False, True),
        ("DPMSolverMultistepScheduler", "use_karras_sigmas", None, True),
        ("DPMSolverMultistepScheduler", "algorithm_type", "dpmsolver++", "sde-dpmsolver++"),
        ("DPMSolverMultistepScheduler", "solver_type", "midpoint", "heun"),
        ("FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting", False, True),
    ],
)
def test_an_option_takes_what_is_implemented_and_refuses_the_rest(kind, option, implemented, other):
    made = getattr(schedulers, kind)
    made(**{option: implemented})
    with pytest.raises(ValueError, match=re.escape(f"{kind}: {option}={other!r} is not implemented; only ")):
        made(**{option: other})
    with pytest.raises(TypeError, match=f"{kind} has no option 'colour'"):
        made(colour=1)


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_timesteps_of_one_s_own_are_refused(kind):
    scheduler = getattr(schedulers, kind)()
    scheduler.set_timesteps(10, timesteps=None)
    with pytest.raises(ValueError, match=re.escape(f"{kind}.set_timesteps: timesteps=[999, 3] is not implemented")):
        scheduler.set_timesteps(timesteps=[999, 3])
    with pytest.raises(ValueError, match=re.escape(f"{kind}.set_timesteps: timesteps=array([999,   3]) is not")):
        scheduler.set_timesteps(timesteps=np.array([999, 3]))


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_the_sample_is_given_by_name(kind):
    scheduler = getattr(schedulers, kind)()
    scheduler.set_timesteps(10)
    with pytest.raises(TypeError):
        scheduler.step(start(), scheduler.timesteps[0], start(), 0.0)


def test_a_timestep_that_is_there_twice_is_no_step():
    """Linearly spaced, 1000 steps of DPM-Solver++ meet one timestep twice; diffusers' volumes are NaN from there on."""
    ours, theirs = schedulers.DPMSolverMultistepScheduler(), diffusers.DPMSolverMultistepScheduler()
    found, want = loop(ours, 1000), loop(theirs, 1000)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    (twice,) = [n for n in range(1, 1000) if ours.timesteps[n] == ours.timesteps[n - 1]]
    torch.testing.assert_close(found[twice - 1], want[twice - 1], rtol=TOLERANCE, atol=TOLERANCE)
    assert torch.equal(found[twice - 1], found[twice - 2])
    assert not want[-1].isfinite().all()
    torch.testing.assert_close(found[-1], loop(ours, 999)[-1], rtol=0.02, atol=0.02)  # steps 0.1% apart


@pytest.mark.parametrize("steps", [61, 103])
def test_trailing_timesteps_are_as_many_as_asked_for(steps):
    scheduler = schedulers.DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps
    assert scheduler.timesteps.min() >= 0


def test_steps_that_are_none_of_the_run_s_are_refused():
    scheduler = schedulers.DDIMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="timestep: 899 is none of this run's"):
        scheduler.step(start(), 899, start())
    loop(scheduler, 10)
    with pytest.raises(ValueError, match="timestep: 899 is none of this run's"):
        scheduler.step(start(), 899, start())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [float, lambda timestep: timestep], ids=["number", "tensor"])
def test_a_run_may_be_broken_off_and_begun_again(kind, given):
    scheduler = getattr(schedulers, kind)()
    want = loop(scheduler, 20)
    scheduler.set_timesteps(20)
    for steps in (3, 1, 20, 20):
        x = start()
        for timestep in scheduler.timesteps[:steps]:
            x = scheduler.step(network(x, timestep), given(timestep), x).prev_sample
        assert torch.equal(x, want[steps - 1])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "Multistep" not in kind])
def test_two_volumes_may_be_taken_in_turn(kind):
    scheduler = getattr(schedulers, kind)()
    want = loop(scheduler, 10)
    scheduler.set_timesteps(10)
    volumes = [start(), start()]
    for place, timestep in enumerate(scheduler.timesteps):
        volumes = [scheduler.step(network(x, timestep), timestep, x).prev_sample for x in volumes]
        assert all(torch.equal(x, want[place]) for x in volumes)


def test_a_step_without_a_history_is_of_first_order():
    made = [
        getattr(module, "DPMSolverMultistepScheduler")(solver_order=order)  # noqa: B009
        for module, order in ((schedulers, 2), (schedulers, 1), (diffusers, 2))
    ]
    found = []
    for scheduler in made:
        scheduler.set_timesteps(20)
        timestep = scheduler.timesteps[7]
        found.append(scheduler.step(network(start(), timestep), timestep, start()).prev_sample)
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_flow_s_timestep_in_double_precision_is_known():
    scheduler = schedulers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    want = loop(scheduler, 7)[0]
    scheduler.set_timesteps(7)
    sigma = 3.0 / (1 + 2.0)
    for _ in range(2):
        found = scheduler.step(network(start(), scheduler.timesteps[0]), sigma * 1000 * (1 + 1e-12), start())
        assert torch.equal(found.prev_sample, want)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA device is missing")
def test_timesteps_on_a_device_are_known_by_their_place():
    scheduler = schedulers.DDIMScheduler()
    scheduler.set_timesteps(20, device="cuda")
    x, seen = start().cuda(), []
    for timestep in (*scheduler.timesteps[:3], *scheduler.timesteps):
        torch.cuda.set_sync_debug_mode("error")
        scheduler.step(0.1 * x, timestep, x)
        torch.cuda.set_sync_debug_mode("default")
        seen.append(scheduler._index)
    assert seen == [1, 2, 3, *range(1, 21)]
    with pytest.raises(ValueError, match="the run's last step was taken"):
        scheduler.step(x, scheduler.timesteps[0].clone(), x)
