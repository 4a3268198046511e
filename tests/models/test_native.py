"""The native engine's U-Net against the reference in float64, and its plan's properties."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("orthokernels._native")

from orthokernels.backends.cpu import algorithm  # noqa: E402
from orthokernels.models.native import UNetPlan  # noqa: E402
from orthokernels.models.native.sampling import ddim_sample  # noqa: E402
from orthokernels.models.orthodiffusion import GaussianDiffusion, UNet, features  # noqa: E402
from orthokernels.models.orthodiffusion.native import NativeUNet  # noqa: E402

NAMES = ("in_0", "in_3", "mid_0", "mid_1", "mid_2", "out_2", "final")
NETWORKS = {
    "three levels": (
        {"base_channels": 32, "channel_mults": (1, 2, 2), "groups": 8, "attention_rates": (4,)},
        (8, 16, 24),
    ),
    "odd sides": (
        {"base_channels": 32, "channel_mults": (1, 2, 2), "groups": 8, "attention_rates": (2, 4)},
        (5, 13, 22),
    ),
    "patches": ({"base_channels": 16, "channel_mults": (1, 2, 2), "groups": 8, "patch": (1, 2, 2)}, (16, 32, 24)),
    "two heads": ({"base_channels": 32, "channel_mults": (1, 2), "groups": 8, "heads": 2}, (4, 8, 12)),
    "heads of 16": ({"base_channels": 32, "channel_mults": (1, 2), "groups": 8, "head_channels": 16}, (4, 8, 12)),
    "narrow": ({"base_channels": 12, "channel_mults": (1, 2), "groups": 4}, (4, 6, 10)),
    "one slice": ({"base_channels": 16, "channel_mults": (1, 2), "groups": 4}, (1, 16, 16)),
}


def network(arguments) -> UNet:
    """With weights that keep the signal's size, zero-initialised layers included."""
    torch.manual_seed(0)
    unet = UNet(**arguments).eval()
    for parameter in unet.parameters():
        if parameter.ndim < 2:
            torch.nn.init.normal_(parameter, std=0.1)
        else:
            torch.nn.init.kaiming_normal_(parameter)
    return unet


def relative(found, expected) -> float:
    found, expected = (torch.as_tensor(value).double() for value in (found, expected))
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_features_are_the_reference_s(kind, exact):
    arguments, sides = NETWORKS[kind]
    unet = network(arguments)
    names = [name for name in NAMES if name in unet.feature_names]
    x, timesteps = torch.randn(2, 1, *sides), torch.tensor([100, 37])
    with torch.no_grad():
        found = NativeUNet(unet, exact=exact).features(x, timesteps, names)
        expected = unet.double().features(x.double(), timesteps, names)
    assert list(found) == names
    for name in names:
        assert found[name].shape == expected[name].shape
        # F(4,4,4) has an error of 2e-6 a layer, all else a tenth of it; some twenty layers, independent of each other.
        assert relative(found[name], expected[name]) < 1e-5, name


def test_noisy_passes_are_the_reference_s():
    arguments, sides = NETWORKS["three levels"]
    unet = network(arguments)
    x0 = torch.rand(1, 1, *sides) * 2 - 1
    given = {"timestep": 50, "seed": 3, "draws": 2, "first_sample": 16}
    with torch.no_grad():
        expected = features(unet, GaussianDiffusion(), x0, ("mid_2",), **given)
        found = features(NativeUNet(unet), GaussianDiffusion(), x0, ("mid_2",), **given)
    assert relative(found["mid_2"], expected["mid_2"]) < 1e-5


def test_threads_runs_and_timesteps_in_between_change_no_byte():
    arguments, sides = NETWORKS["odd sides"]
    state = {name: value.numpy() for name, value in network(arguments).state_dict().items()}
    x = np.random.default_rng(0).standard_normal((1, *sides), dtype=np.float32)
    plan = UNetPlan(state, sides=sides, names=("final",), timestep=100, groups=8)
    made = {plan.run(x, threads=threads)["final"].tobytes() for threads in (1, 2, 3, 1)}
    plan.set_timestep(7)
    assert plan.run(x)["final"].tobytes() not in made
    plan.set_timestep(100)
    made.add(plan.run(x)["final"].tobytes())
    assert len(made) == 1


def test_threads_with_timesteps_of_their_own_share_a_network():
    arguments, sides = NETWORKS["odd sides"]
    native, x = NativeUNet(network(arguments)), torch.randn(1, 1, *sides)

    def often(timestep, times=8):
        made = (native.features(x, torch.tensor([timestep]), ("final",))["final"] for _ in range(times))
        return {own.numpy().tobytes() for own in made}

    alone = [often(timestep, 1) for timestep in (7, 100)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(often, (7, 100))) == alone


def test_a_plan_runs_without_pytorch_in_the_process(tmp_path):
    arguments, sides = NETWORKS["three levels"]
    unet = network(arguments)
    x = torch.randn(1, *sides)
    with torch.no_grad():
        expected = unet.features(x[None], torch.tensor([100]), ("mid_2",))["mid_2"][0]
    np.savez(tmp_path / "state.npz", **{name: value.numpy() for name, value in unet.state_dict().items()})
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys, numpy as np\n"
        "sys.modules['torch'] = None\n"
        "from orthokernels.models.native import UNetPlan\n"
        f"plan = UNetPlan(np.load('state.npz'), sides={sides}, names=('mid_2',), timestep=100, groups=8)\n"
        "np.save('found.npy', plan.run(np.load('x.npy'))['mid_2'])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert relative(np.load(tmp_path / "found.npy"), expected) < 1e-5


def test_a_plan_tells_its_layers():
    arguments, sides = NETWORKS["three levels"]
    state = {name: value.numpy() for name, value in network(arguments).state_dict().items()}
    plan = UNetPlan(state, sides=sides, names=("mid_2",), timestep=100, groups=8)
    plan.run(np.zeros((1, *sides), np.float32))
    layers = {row["name"]: row for row in plan.describe()}
    first = layers["input_blocks.1.0.in_layers.2"]
    assert first["operations"] == 2 * 27 * 32 * 32 * np.prod(sides)
    assert first["algorithm"] == "F(4,4,4)"
    assert first["multiplied"] == 2 * 216 * 32 * 32 * (2 * 4 * 6)
    assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in layers.values())
    assert layers["input_blocks.2.0.op"]["algorithm"] == "direct"
    assert plan.memory_bytes > sum(value.nbytes for name, value in state.items() if name.startswith("input_blocks"))


def test_the_arena_holds_a_feature_pass_in_two_volumes():
    """The widest level's input and output, and nothing else of their size: the rest of the encoder is smaller."""
    arguments, sides = NETWORKS["three levels"]
    state = {name: value.numpy() for name, value in network(arguments).state_dict().items()}
    plan = UNetPlan(state, sides=sides, names=("mid_2",), timestep=100, groups=8)
    volume = 32 * int(np.prod(sides)) * 4
    assert plan._plan.arena_bytes <= 2 * volume + 4 * int(np.prod(sides))


def test_what_does_not_fit_is_told():
    arguments, sides = NETWORKS["patches"]
    unet = network(arguments)
    state = {name: value.numpy() for name, value in unet.state_dict().items()}
    given = {"sides": sides, "names": ("mid_2",), "timestep": 100, "groups": 8, "patch": (1, 2, 2)}
    for changed, told in [
        ({"sides": (16, 31, 24)}, r"patch: \(1, 2, 2\) does not divide a volume of \(16, 31, 24\)\."),
        ({"names": ("mid_7",)}, "no feature called 'mid_7'; this network has in_0, in_1"),
        ({"names": ()}, "no feature was asked for"),
        ({"patch": (1, 1, 1)}, r"input: shape \(16, 32, 24, 1\)"),
    ]:
        with pytest.raises(ValueError, match=told):
            UNetPlan(state, **{**given, **changed}).run(np.zeros((1, 16, 32, 24), np.float32))
    for wrong in ((16, 32, 24), (1, 1, 16, 32, 24), (1, 16, 32, 22)):
        with pytest.raises(ValueError, match=r"x: shape .*; must be \(channels, 16, 32, 24\), one volume at a time"):
            UNetPlan(state, **given).run(np.zeros(wrong, np.float32))
    with pytest.raises(ValueError, match="x: float64; must be float32"):
        UNetPlan(state, **given).run(np.zeros((1, *sides)))
    del state["middle_block.0.in_layers.2.bias"]
    with pytest.raises(ValueError, match=r"state: there is no middle_block\.0\.in_layers\.2\.bias"):
        UNetPlan(state, **given)
    with pytest.raises(ValueError, match="float32 on the CPU"):
        NativeUNet(unet).features(torch.zeros(1, 1, *sides).double(), torch.tensor([1]), ("mid_2",))


def test_the_fastest_algorithm_is_kept_where_tuning_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("ORTHOKERNELS_CACHE", str(tmp_path))
    shape = 32, 32, 3, 1, (4, 8, 8)
    by_count = algorithm.choose(*shape)
    assert not list(tmp_path.rglob("*.json"))
    monkeypatch.setenv("ORTHOKERNELS_TUNE", "1")
    measured = algorithm.choose(*shape)
    assert measured in ("direct", "F(2,2,2)", "F(2,4,4)", "F(4,4,4)")
    monkeypatch.delenv("ORTHOKERNELS_TUNE")
    (file,) = tmp_path.rglob("*.json")
    assert algorithm.choose(*shape) == measured
    file.write_text(file.read_text().replace(measured, "F(9,9,9)"))
    algorithm.read_table.cache_clear()
    assert algorithm.choose(*shape) == by_count  # not an algorithm that an other version knew
    assert algorithm.choose(*shape, exact=True) == "direct"


def test_what_was_measured_for_one_stride_is_not_taken_for_the_other(tmp_path, monkeypatch):
    monkeypatch.setenv("ORTHOKERNELS_CACHE", str(tmp_path))
    monkeypatch.setenv("ORTHOKERNELS_TUNE", "1")
    assert algorithm.choose(32, 32, 3, 1, (4, 8, 8)) != "F(2,2,2)/2"
    assert algorithm.choose(32, 32, 3, 2, (4, 8, 8)) in ("direct", "F(2,2,2)/2")
    (file,) = tmp_path.rglob("*.json")
    assert len(algorithm.read_table(file)) == 2


def test_wide_layers_of_stride_2_go_by_fewer_products_and_narrow_ones_do_not():
    assert algorithm.choose(64, 64, 3, 2, (16, 256, 256)) == "F(2,2,2)/2"
    assert algorithm.choose(8, 8, 3, 2, (16, 256, 256)) == "direct"


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_sample_is_the_reference_s(steps):
    arguments, sides = NETWORKS["three levels"]
    unet = network(arguments)
    state = {name: value.numpy() for name, value in unet.state_dict().items()}
    plan = UNetPlan(state, sides=sides, names=("final",), timestep=0, groups=8)
    noise = torch.randn(1, 1, *sides, generator=torch.Generator().manual_seed(4))
    found = ddim_sample(plan, noise[0].numpy(), steps=steps, threads=2)

    def denoise(x, timesteps):
        with torch.no_grad():
            return unet(x, timesteps)

    expected = GaussianDiffusion().sample(denoise, (1, 1, *sides), seed=4, steps=steps, eta=0)[0]
    # The first step divides by a signal of 5e-3 of the noise, and clips what that makes of an error of 1e-6.
    assert relative(found, expected) < 1e-4
    with pytest.raises(ValueError, match="steps must lie in 1 to 1000, not 0"):
        ddim_sample(plan, noise[0].numpy(), steps=0)
