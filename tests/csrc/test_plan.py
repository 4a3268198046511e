"""The native plan's own layers against the float64 definition; memory that plans share; what bad input gets."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
native = pytest.importorskip("orthokernels._native")

F = torch.nn.functional
SIDES = [(1, 1, 1), (1, 2, 7), (3, 5, 13), (2, 4, 6)]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape, dtype=np.float32)


def channels_first(x: np.ndarray):
    return torch.from_numpy(x).double().movedim(-1, 0)[None]


def last(y) -> np.ndarray:
    return y[0].movedim(0, -1).numpy()


def relative(found, expected) -> float:
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("out", "channels"), [(16, 8), (5, 3), (70, 20)])
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_a_transposed_convolution_is_its_definition(sides, out, channels, relu):
    x, weight, bias = normal(*sides, channels), normal(channels, out, 4, 4, 4), normal(out)
    plan = native.Plan()
    y = plan.add_conv_transpose("up", plan.add_input(sides, channels), weight, bias, relu=relu)
    plan.finish([y])
    runs = [plan.run([x], threads)[0] for threads in (1, 3)]
    expected = F.conv_transpose3d(
        channels_first(x), torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), stride=2, padding=1
    )
    # At most 160 products one after the other: sqrt(160 / 6) roundings of 6e-8.
    assert relative(runs[0], last(expected.relu() if relu else expected)) < 4e-7
    assert runs[0].tobytes() == runs[1].tobytes()
    (row,) = plan.describe()
    assert row["operations"] == 2 * 8 * channels * out * np.prod(runs[0].shape[:3])


@pytest.mark.parametrize("activation", ["none", "silu", "relu"])
@pytest.mark.parametrize("residual", [False, True])
def test_a_normalisation_alone_is_its_definition(activation, residual):
    sides, channels = (3, 5, 13), 24
    x, other, weight, bias = normal(*sides, channels), normal(*sides, channels) + 1, normal(channels), normal(channels)
    plan = native.Plan()
    first, second = plan.add_input(sides, channels), plan.add_input(sides, channels)
    norm = (4, weight, bias, 1e-5)
    given = {"residual": second} if residual else {}
    plan.finish([plan.add_norm("norm", first, norm=norm, activation=activation, **given)])
    expected = F.group_norm(channels_first(x), 4, *(torch.from_numpy(own).double() for own in (weight, bias)), 1e-5)
    expected = expected + channels_first(other) if residual else expected
    expected = {"none": lambda z: z, "silu": F.silu, "relu": F.relu}[activation](expected)
    assert relative(plan.run([x, other], 2)[0], last(expected)) < 4e-7
    assert np.array_equal(other, normal(*sides, channels) + 1)  # an input is never written over


@pytest.mark.parametrize("activation", ["none", "silu", "relu"])
@pytest.mark.parametrize("algorithm", ["direct", "F(2,2,2)"])
def test_a_convolution_reads_its_input_normalised(algorithm, activation):
    sides, x, weight, bias = (4, 6, 8), normal(4, 6, 8, 16), normal(32, 16, 3, 3, 3), normal(32)
    plan, norm = native.Plan(), (4, normal(16), np.ones(16, np.float32), 1e-5)
    made = plan.add_conv(
        "conv", plan.add_input(sides, 16), weight, bias, algorithm=algorithm, norm=norm, activation=activation
    )
    plan.finish([made])
    z = F.group_norm(channels_first(x), 4, *(torch.from_numpy(own).double() for own in norm[1:3]), 1e-5)
    z = {"none": lambda z: z, "silu": F.silu, "relu": F.relu}[activation](z)
    expected = F.conv3d(z, torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), padding=1)
    # 432 products, and F(2,2,2)'s 8e-7 (csrc/cpu/conv3d.h).
    assert relative(plan.run([x])[0], last(expected)) < 1.5e-6


def test_two_volumes_whose_channels_the_lanes_do_not_divide_are_refused_by_winograd_s_algorithms():
    sides, weight, bias = (2, 4, 4), normal(16, 16, 3, 3, 3), normal(16)
    plan = native.Plan()
    x, skip = (plan.add_input(sides, channels) for channels in (10, 6))
    assert "F(2,2,2)" in native.conv3d_algorithms(16, 16, 3, 1, sides)
    assert native.conv3d_algorithms(16, 16, 3, 1, sides, skip=6) == ["direct"]
    with pytest.raises(ValueError, match="the vectors' lanes do not divide the channels"):
        plan.add_conv("conv", x, weight, bias, algorithm="F(2,2,2)", skip=skip)
    # Where they are brought together first, there is one volume.
    norm = (2, normal(16), normal(16), 1e-5)
    y = plan.add_conv("conv", x, weight, bias, algorithm="F(2,2,2)", skip=skip, norm=norm, activation="relu")
    plan.finish([y])
    given = [normal(*sides, 10), normal(*sides, 6)]
    both = channels_first(np.concatenate(given, axis=-1))
    z = F.group_norm(both, 2, *(torch.from_numpy(own).double() for own in norm[1:3]), 1e-5).relu()
    expected = F.conv3d(z, torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), padding=1)
    assert relative(plan.run(given)[0], last(expected)) < 1.5e-6


def test_inputs_and_outputs_lie_outside_the_arena_and_may_be_the_same():
    sides, x = (2, 4, 4), normal(2, 4, 4, 8)
    plan = native.Plan()
    given = plan.add_input(sides, 8)
    middle = plan.add_conv("first", given, normal(8, 8, 1, 1, 1), normal(8))
    middle_bytes = 4 * x.size
    y = plan.add_conv("second", middle, normal(8, 8, 1, 1, 1), normal(8), residual=middle)
    plan.finish([y, given, y])
    assert plan.arena_bytes == middle_bytes
    first, same, again = plan.run([x])
    assert np.array_equal(same, x)
    assert np.array_equal(first, again)
    assert not np.shares_memory(first, again)
    expected = (lambda z: z + z @ normal(8, 8, 1, 1, 1)[..., 0, 0, 0].T + normal(8))(
        x @ normal(8, 8, 1, 1, 1)[..., 0, 0, 0].T.astype(np.float64) + normal(8)
    )
    assert relative(first, expected) < 4e-7


def test_plans_that_share_memory_disturb_nobody():
    memory = native.PlanMemory()

    def plan(channels: int, shared):
        made = native.Plan(shared)
        x = made.add_input((4, 8, 8), 8)
        for n in range(4):
            x = made.add_conv(f"{n}", x, normal(channels, made.shape(x)[3], 3, 3, 3), normal(channels))
        made.finish([x])
        return made

    x = normal(4, 8, 8, 8)
    alone = [plan(channels, None).run([x])[0].tobytes() for channels in (4, 20)]
    together = [plan(channels, memory) for channels in (4, 20)]
    found: list[set[bytes]] = [set(), set()]

    def often(n: int) -> None:
        for _ in range(20):
            found[n].add(together[n].run([x])[0].tobytes())

    workers = [threading.Thread(target=often, args=(n,)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [{alone[0]}, {alone[1]}]


def test_a_finished_plan_takes_nothing_more_and_runs_on():
    sides, x = (2, 4, 4), normal(2, 4, 4, 8)
    weight, bias, norm = normal(8, 8, 3, 3, 3), normal(8), (4, normal(8), normal(8), 1e-5)
    plan = native.Plan()
    given = plan.add_input(sides, 8)
    made = plan.add_conv("first", given, weight, bias)
    plan.finish([plan.add_conv("second", made, weight, bias)])
    want = plan.run([x])[0]
    for late in [
        lambda: plan.add_input(sides, 8),
        lambda: plan.add_norm("norm", given, norm=norm, activation="silu"),
        lambda: plan.add_norm("norm", made, norm=norm, activation="silu", residual=given),
        lambda: plan.add_conv("conv", made, weight, bias, norm=norm),
        lambda: plan.add_conv("conv", made, weight, bias, algorithm="F(2,2,2)", norm=norm),
        lambda: plan.add_conv("conv", made, weight, bias),
        lambda: plan.add_conv_transpose("up", made, normal(8, 8, 4, 4, 4), bias, relu=True),
        lambda: plan.add_resize("resize", made, sides),
        lambda: plan.finish([made]),
    ]:
        with pytest.raises(ValueError, match="plan: it is finished"):
            late()
        assert np.array_equal(plan.run([x])[0], want)


def test_volumes_that_no_memory_holds_are_refused():
    plan = native.Plan()
    with pytest.raises(ValueError, match="the plan's volumes are too large"):
        plan.add_input((2**13, 2**13, 2**14), 2**31 - 1)  # 2^71 numbers
    x = plan.add_input((1, 1, 1), 2**19)
    y = plan.add_resize("larger", x, (2**13, 2**13, 2**14))  # 2^59
    with pytest.raises(ValueError, match="the plan's volumes are too large"):
        plan.add_resize("again", y, (2**13, 2**13, 2**14))
    plan.finish([plan.add_resize("smaller", y, (1, 1, 1))])
    assert plan.arena_bytes == 2**61
    with pytest.raises(MemoryError, match=f"no memory for {2**61} bytes"):
        plan.run([normal(1, 1, 1, 2**19)])


def test_a_bias_that_waits_for_a_run_keeps_nobody_else_waiting():
    plan = native.Plan()
    x = plan.add_input((16, 96, 96), 32)
    for n in range(12):  # a few tenths of a second
        x = plan.add_conv(f"{n}", x, normal(32, 32, 3, 3, 3), normal(32))
    plan.finish([x])
    volume = normal(16, 96, 96, 32)
    running = threading.Thread(target=lambda: plan.run([volume]))
    setting = threading.Thread(target=lambda: plan.set_bias("0", normal(32)))
    running.start()
    time.sleep(0.05)
    setting.start()
    steps = 0
    while running.is_alive() and setting.is_alive():
        time.sleep(0.001)
        steps += 1
    running.join()
    setting.join()
    assert steps > 3


@pytest.mark.parametrize("transposed", [False, True])
def test_others_go_on_while_a_layer_s_weights_are_packed(transposed):
    channels, plan = 512, native.Plan()  # a tenth of a second, beside which a busy machine's pauses are short
    x, bias = plan.add_input((4, 4, 4), channels), normal(channels)
    weight = normal(channels, channels, *[4 if transposed else 3] * 3)

    def add() -> None:
        if transposed:
            plan.add_conv_transpose("up", x, weight, bias, relu=True)
        else:
            plan.add_conv("conv", x, weight, bias, algorithm="F(4,4,4)")

    adding = threading.Thread(target=add)
    started = time.perf_counter()
    adding.start()
    longest, last_seen = 0.0, started
    while adding.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        longest, last_seen = max(longest, now - last_seen), now
        assert plan.shape(x)[3] == channels  # the plan itself is there for others too
    whole = time.perf_counter() - started
    adding.join()
    assert longest < whole / 2, (longest, whole)


def test_a_layer_s_floor_is_what_its_operations_or_bytes_take():
    plan = native.Plan()
    plan.finish([plan.add_conv("c", plan.add_input((2, 4, 4), 8), normal(8, 8, 3, 3, 3), normal(8))])
    (row,) = plan.describe()
    assert "floor" not in row
    for operations, reached in ((1e9, 1e12), (1e12, 1e9)):
        (own,) = plan.describe(operations_per_second=operations, bytes_per_second=reached)
        assert own["floor"] == max(row["multiplied"] / operations, row["bytes"] / reached)
    with pytest.raises(ValueError, match="must be positive"):
        plan.describe(operations_per_second=0.0, bytes_per_second=1e9)


def test_operations_beyond_64_bits_are_told():
    plan = native.Plan(packs=False)
    weight = np.zeros((2**12, 2**11, 4, 4, 4), np.float32)  # nobody reads it: no page of it comes
    plan.add_conv_transpose("up", plan.add_input((2**12, 2**12, 2**13), 2**12), weight, normal(2**11), relu=False)
    (row,) = plan.describe()
    assert row["operations"] == 2.0 * 8 * 2**23 * 2**40


def test_a_plan_without_weights_tells_what_fits_and_can_not_be_run():
    plan, norm = native.Plan(packs=False), (4, normal(16), normal(16), 1e-5)
    x = plan.add_input((4, 6, 6), 16)
    y = plan.add_conv("conv", x, normal(32, 16, 3, 3, 3), normal(32), 1, "F(2,2,2)", norm=norm)
    y = plan.add_conv_transpose("up", y, normal(32, 8, 4, 4, 4), normal(8), relu=True)
    with pytest.raises(ValueError, match="weight: shape"):
        plan.add_conv("next", y, normal(32, 16, 3, 3, 3), normal(32))
    plan.finish([y])
    assert plan.shape(y) == [8, 12, 12, 8]
    assert plan.weight_bytes == 0
    with pytest.raises(ValueError, match="plan: it was made without weights"):
        plan.run([normal(4, 6, 6, 16)])


def test_bad_input_gets_a_sentence():
    plan = native.Plan()
    x, other = plan.add_input((2, 3, 4), 8), plan.add_input((2, 3, 5), 8)
    norm = (4, normal(8), normal(8), 1e-5)
    weight, bias = normal(8, 5, 4, 4, 4), normal(5)
    up, alone = plan.add_conv_transpose, plan.add_norm
    for call, told in [
        (lambda: up("up", 7, weight, bias, relu=True), "x: 7; the plan has no such volume"),
        (lambda: up("up", x, weight[:7].copy(), bias, relu=True), r"must be \(8, any, 4, 4, 4\)"),
        (lambda: up("up", x, weight[..., :3].copy(), bias, relu=True), r"weight: shape \(8, 5, 4, 4, 3\)"),
        (lambda: up("up", x, weight, normal(4), relu=True), r"bias: shape \(4\); must be \(5\)"),
        (lambda: up("up", x, weight.astype(np.float64), bias, relu=True), "weight: type float64"),
        (lambda: alone("norm", x, norm=None, activation="silu"), "norm: is missing"),
        (lambda: alone("norm", x, norm=norm, activation="gelu"), "activation: 'gelu'; there are none, silu, relu"),
        (lambda: alone("norm", x, norm=norm, activation="none", residual=other), "residual: is of another size"),
        (lambda: alone("norm", x, norm=(3, *norm[1:]), activation="none"), "groups do not divide"),
        (lambda: plan.add_conv("c", x, normal(4, 8, 1, 1, 1), normal(4), activation="x"), "activation: 'x'"),
    ]:
        with pytest.raises(ValueError, match=told):
            call()
    with pytest.raises(TypeError):
        native.Plan("memory")
    large = native.Plan()
    x = large.add_input((2**14, 2**12, 2**12), 1)
    with pytest.raises(ValueError, match="are too many"):
        large.add_conv_transpose("up", x, normal(1, 1, 4, 4, 4), normal(1), relu=False)
