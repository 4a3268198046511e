"""The loop alone, on a network of one layer: stopping, going on, and what a step is made of."""

from __future__ import annotations

import math
import os
import signal

import pytest
import torch
from torch import nn

from orthokernels.errors import InputError
from orthokernels.training.checkpoint import Checkpoints
from orthokernels.training.config import EmaConfig, LoopConfig, OptimiserConfig
from orthokernels.training.distributed import Processes
from orthokernels.training.ema import Ema
from orthokernels.training.loop import Run, TrainingStoppedError, steps_of, train
from orthokernels.training.optimiser import make_optimiser, set_rate

CPU = torch.device("cpu")


class Numbered:
    """Sample n is a vector drawn from n; some are not numbers."""

    def __init__(self, bad: int | None = None) -> None:
        self.bad = bad

    def __getitem__(self, number):
        x = torch.randn(4, generator=torch.Generator().manual_seed(number))
        return {"x": x * math.nan if number == self.bad else x, "number": number, "file": f"file_{number}.nii.gz"}


class Regression:
    """Fit the sum of each vector; with dropout, so that the global generator matters too."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.validations = 0

    def loss(self, module, batch):
        error = (module(batch["x"])[:, 0] - batch["x"].sum(dim=1)).square().mean()
        return error, {"mean": batch["x"].mean()}

    def validate(self, module):
        self.validations += 1
        assert not module.training
        return {"error": abs(self.validations - 3.0)}  # best at the third


class Volumes(Regression):
    """The same from a volume of constants, through a convolution and a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv3d(8, 1, 1))
        self.kinds: set[str] = set()

    def loss(self, module, batch):
        self.kinds.add(type(module[0]).__name__)
        volume = batch["x"][:, :, None, None, None].expand(-1, -1, 2, 6, 6)
        return (module(volume).mean((1, 2, 3, 4)) - batch["x"].sum(dim=1)).square().mean(), {}


def run(
    out,
    samples=None,
    identity=None,
    ema=None,
    best=None,
    resume=True,
    rate=0.01,
    tell=None,
    groups=None,
    betas=(0.9, 0.999),
    **loop,
):
    given = {"steps": 12, "batch": 4, "log_every": 1, "save_every": 5, "validate_every": 4, **loop}
    return Run(
        out=out,
        samples=samples or Numbered(),
        config=LoopConfig(**given),
        optimiser=OptimiserConfig(rate=rate, warmup=3, betas=betas),
        groups=groups,
        identity=identity or {"network": "one"},
        ema=ema,
        best=best,
        resume=resume,
        tell=tell or (lambda done, steps, figures: None),
    )


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def stop_at(step, number=signal.SIGTERM):
    """A ``tell`` that has the process signalled at a step."""

    def tell(done, steps, figures):
        if done == step:
            os.kill(os.getpid(), number)

    return tell


def test_training_lowers_the_loss_and_logs_it(tmp_path):
    first = train(Regression(), run(tmp_path / "a", steps=1))
    last = train(Regression(), run(tmp_path / "b", steps=150, validate_every=0))
    assert last.figures["loss"] < first.figures["loss"] / 2
    assert {"gradient_norm", "rate", "step_seconds", "waiting_share", "mean"} <= last.figures.keys()
    assert list((tmp_path / "b" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("step", [1, 6, 11])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_the_rest_is_as_if_it_never_came(tmp_path, step, number):
    ema = EmaConfig(start=4, every=3, decay=0.9)
    whole = train(Regression(), run(tmp_path / "whole", ema=ema))
    task = Regression()
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        train(task, run(tmp_path / "cut", ema=ema, tell=stop_at(step, number)))
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert Checkpoints(tmp_path / "cut" / "checkpoints").steps()[-1] == step + 1
    torch.rand(7)  # the process draws something else in between
    other = Regression(seed=9)
    rest = train(other, run(tmp_path / "cut", ema=ema))
    assert torch.equal(weights(rest.module), weights(whole.module))
    assert rest.figures["loss"] == whole.figures["loss"]


def test_resuming_a_finished_run_trains_no_further(tmp_path):
    whole = train(Regression(), run(tmp_path))
    again = train(Regression(seed=5), run(tmp_path))
    assert torch.equal(weights(again.module), weights(whole.module))


def test_a_finished_run_can_be_made_longer(tmp_path):
    train(Regression(), run(tmp_path / "a", steps=7))
    longer = train(Regression(), run(tmp_path / "a", steps=12))
    whole = train(Regression(), run(tmp_path / "b", steps=12))
    assert torch.equal(weights(longer.module), weights(whole.module))
    with pytest.raises(InputError, match=r"is 12 steps in; loop\.steps is 8"):
        train(Regression(), run(tmp_path / "a", steps=8))


def test_fresh_starts_again(tmp_path):
    train(Regression(), run(tmp_path, rate=0.1))
    fresh = train(Regression(), run(tmp_path, resume=False))
    assert torch.equal(weights(fresh.module), weights(train(Regression(), run(tmp_path / "other")).module))


def test_a_damaged_newest_checkpoint_costs_only_its_steps(tmp_path):
    whole = train(Regression(), run(tmp_path / "whole"))
    with pytest.raises(SystemExit):
        train(Regression(), run(tmp_path / "cut", tell=stop_at(7)))
    newest = Checkpoints(tmp_path / "cut" / "checkpoints").path(8)
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(UserWarning, match="cut short or damaged"):
        rest = train(Regression(), run(tmp_path / "cut"))
    assert torch.equal(weights(rest.module), weights(whole.module))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"identity": {"network": "two"}}, "network was one, is two"),
        ({"batch": 2}, "samples per step was 4, is 2"),
        ({"seed": 1}, r"loop\.seed was 0, is 1"),
        ({"clip_norm": 1.0}, r"loop\.clip_norm was None, is 1\.0"),
        ({"precision": "bf16"}, r"loop\.precision was fp32, is bf16"),
        ({"betas": (0.5, 0.999)}, r"optimiser\.betas was \[0\.9, 0\.999\], is \[0\.5, 0\.999\]"),
    ],
)
def test_another_run_is_not_taken_up(tmp_path, changed, message):
    train(Regression(), run(tmp_path))
    with pytest.raises(InputError, match=message):
        train(Regression(), run(tmp_path, **changed))


def test_a_group_s_share_of_the_rate_is_the_run_s_and_the_rate_may_change(tmp_path):
    def trained(scale, **changes):
        task = Regression()
        groups = [{"params": list(task.module[0].parameters())}, {"params": list(task.module[3].parameters())}]
        groups[1]["scale"] = scale
        return train(task, run(tmp_path, groups=groups, **changes))

    trained(0.5, steps=4)
    with pytest.raises(InputError, match=r"shares of the rate was \[1\.0, 0\.5\], is \[1\.0, 0\.1\]"):
        trained(0.1)
    assert trained(0.5, rate=0.001).figures["rate"] == 0.001


def test_a_loss_that_is_no_number_stops_with_step_files_and_weights_from_before(tmp_path):
    task = Regression()
    kept = []
    tell = lambda done, steps, figures: kept.append(weights(task.module).clone())  # noqa: E731
    with pytest.raises(TrainingStoppedError) as stopped:
        train(task, run(tmp_path, samples=Numbered(bad=4 * 7 + 2), tell=tell))
    told = str(stopped.value)
    assert told.startswith(
        "step 8: the loss is nan. Its batch: file_28.nii.gz, file_29.nii.gz, file_30.nii.gz, file_31"
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert str(checkpoints.path(7)) in told
    step, state = checkpoints.newest()
    assert step == 7
    stored = torch.cat([tensor.flatten() for tensor in state["model"].values()])
    assert torch.equal(stored, kept[-1])
    assert stored.isfinite().all()


def test_a_gradient_that_is_no_number_stops_too(tmp_path):
    class Rooted(Regression):
        def loss(self, module, batch):
            return (module(batch["x"]) * 0).abs().sqrt().mean(), {}  # its slope at 0 is infinite

    with pytest.raises(TrainingStoppedError, match=r"step 1: the gradient's norm is (nan|inf)"):
        train(Rooted(), run(tmp_path))


def test_accumulated_passes_are_one_larger_batch(tmp_path):
    class Plain(Regression):
        def __init__(self):
            super().__init__()
            self.module[2] = nn.Identity()

    one = train(Plain(), run(tmp_path / "one", batch=4))
    two = train(Plain(), run(tmp_path / "two", batch=2, accumulate=2))
    # The same samples, added up in another order: float32 rounding, which Adam may raise to the order of its rate
    # where a gradient is near 0; over 12 steps at 0.01, 1e-5 is a thousandth of the way.
    torch.testing.assert_close(weights(one.module), weights(two.module), rtol=0, atol=1e-5)


def test_epochs_are_passes_over_the_data_by_all_processes_together():
    def steps(epochs, world=1, **loop):
        return steps_of(epochs, 24, LoopConfig(**loop), Processes(0, world, CPU))

    assert steps(2, batch=4) == 12
    assert steps(2, batch=4, accumulate=3) == 4
    assert steps(2, batch=4, accumulate=3, world=2) == 2
    assert steps(1, batch=7) == 4  # the last step goes beyond
    assert steps(0, batch=4) == 1


def test_the_best_validation_is_kept(tmp_path):
    train(Regression(), run(tmp_path, steps=20, validate_every=4, best=("error", "min")))
    assert Checkpoints(tmp_path / "checkpoints").best()["step"] == 12
    train(Regression(), run(tmp_path / "other", steps=20, validate_every=4, best=("error", "max")))
    assert Checkpoints(tmp_path / "other" / "checkpoints").best()["step"] == 4


def test_clipping_bounds_the_step_that_is_taken(tmp_path):
    def update(**loop):
        task = Regression()
        before = weights(task.module)
        optimiser = OptimiserConfig(rate=1.0)
        given = run(tmp_path / str(loop), steps=1, **loop)
        given.optimiser = optimiser
        # Adam's first step is gradient / (|gradient| + 1e-8): far below 1e-8 it is the gradient times 1e8.
        train(task, given)
        return (weights(task.module) - before).norm()

    assert update() > 1
    assert float(update(clip_norm=1e-10)) == pytest.approx(1e-2, rel=0.05)


def test_bf16_keeps_weights_in_float32(tmp_path):
    task = Regression()
    trained = train(task, run(tmp_path, precision="bf16"))
    assert weights(task.module).dtype == torch.float32
    exact = train(Regression(), run(tmp_path / "fp32"))
    # Twelve steps of 0.01 at most; bfloat16 gradients keep 8 bits, so each differs by a small part of its step.
    torch.testing.assert_close(weights(trained.module), weights(exact.module), rtol=0, atol=0.03)


def test_the_rate_warms_up_then_falls():
    module = nn.Linear(2, 2)
    settings = OptimiserConfig(rate=1.0, warmup=4, schedule="cosine", last_rate=0.1)
    groups = [{"params": [module.weight]}, {"params": [module.bias], "scale": 0.05}]
    optimiser = make_optimiser(module, settings, groups, CPU)
    rates = [set_rate(optimiser, settings, step, 104) for step in range(104)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[54] == pytest.approx(0.55)  # half way: the mean of 1 and 0.1
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert optimiser.param_groups[1]["lr"] == pytest.approx(0.05 * rates[-1])


def test_weight_decay_means_adamw():
    assert type(make_optimiser(nn.Linear(2, 2), OptimiserConfig(weight_decay=0.1), None, CPU)) is torch.optim.AdamW
    assert type(make_optimiser(nn.Linear(2, 2), OptimiserConfig(), None, CPU)) is torch.optim.Adam


def test_the_running_mean_copies_then_follows():
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    ema = Ema(module, EmaConfig(decay=0.9, start=4, every=2))
    kept = []
    for step in range(8):
        module.weight.data.fill_(step + 1.0)
        ema.update(module, step)
        kept.append(float(ema.module.weight))
    # Steps 0 and 2 copy; 4 and 6 move by a tenth; odd ones do nothing.
    assert kept == pytest.approx([1, 1, 3, 3, 3.2, 3.2, 3.58, 3.58], abs=1e-6)
    assert not any(p.requires_grad for p in ema.module.parameters())


@pytest.mark.parametrize(("settings", "during"), [({}, "AcceleratedConv3d"), ({"accelerate": False}, "Conv3d")])
def test_a_network_learns_on_the_native_ops_and_is_itself_again_afterwards(settings, during, tmp_path):
    task, ema = Volumes(), EmaConfig(decay=0.9, start=0, every=1)
    kept = train(task, run(tmp_path, ema=ema, **settings)).module
    assert task.kinds == {during}
    for module in (task.module, kept):
        assert [type(part) for part in module] == [nn.Conv3d, nn.GroupNorm, nn.SiLU, nn.Conv3d]
