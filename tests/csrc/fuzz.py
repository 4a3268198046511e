"""Calls every function of a native module with random shapes, then with something wrong in one argument.

    python fuzz.py FOLDER SECONDS SEED        FOLDER holds the module, built with sanitizers

Right calls give the definition's numbers; wrong ones raise ValueError or TypeError. Run by test_sanitizers.py, where a
read or write beyond an array, or undefined behaviour, ends the process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Case = tuple[Callable[..., Any], dict[str, Any], Callable[[dict[str, Any]], None]]


class Cases:
    """Right calls: a function, its arguments by name, and what is checked after it ran."""

    def __init__(self, native: Any, rng: np.random.Generator) -> None:
        self.native, self.rng = native, rng

    def side(self, most: int) -> int:
        return int(self.rng.integers(1, most + 1))

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def maybe(self, value: Any) -> Any:
        return value if self.rng.random() < 0.5 else None

    def group_norm(self) -> Iterator[Case]:
        last, groups, wide = bool(self.rng.random() < 0.5), self.side(4), int(self.rng.choice([1, 5, 16, 40]))
        behind = self.side(groups * wide) - 1
        samples, voxels, width = self.side(3), int(self.rng.choice([1, 7, 300, 9000 // wide])), groups * wide

        def volume(channels: int) -> np.ndarray:
            return self.normal(*((samples, voxels, channels) if last else (samples, channels, voxels)))

        small = {
            "weight": self.maybe(self.normal(width)), "bias": self.maybe(self.normal(width)),
            "shift": self.maybe(self.normal(samples, width)),
            "scale_shift": self.maybe(self.normal(samples, 2 * width)),
        }  # fmt: skip
        given = {
            "x": volume(width - behind), "skip": volume(behind) if behind else None, "groups": groups, **small,
            "silu": bool(self.rng.random() < 0.5), "channels_last": last, "threads": self.side(3),
        }  # fmt: skip
        moments = {"mean": nan(samples, groups), "rstd": nan(samples, groups)}
        forward = {**given, **moments, "y": nan(*volume(width).shape)}
        yield self.native.group_norm_silu, forward, lambda done: close(done["y"], normalised(done), 1e-3)
        written = {name: nan(samples, width) for name in ("dweight", "dbias", "dshift")}
        written |= {"dx": nan(*given["x"].shape), "dscale_shift": nan(samples, 2 * width)}
        written["dskip"] = nan(*given["skip"].shape) if behind else None
        backward = {**given, **moments, **written, "dy": volume(width)}
        yield self.native.group_norm_silu_backward, backward, lambda done: finite(done, written)

    def doubling(self) -> Iterator[Case]:
        shape = (self.side(2), self.side(4), self.side(5), self.side(9), int(self.rng.choice([1, 3, 16, 37])))
        large = (shape[0], *(2 * side for side in shape[1:4]), shape[4])
        threads = self.side(3)
        forward = {"x": self.normal(*shape), "y": nan(*large), "threads": threads}
        yield self.native.upsample2x_trilinear, forward, lambda done: close(done["y"], doubled(done["x"]), 1e-5)
        backward = {"dy": self.normal(*large), "dx": nan(*shape), "threads": threads}
        yield self.native.upsample2x_trilinear_backward, backward, lambda done: finite(done, ["dx"])

    def sampling(self) -> Iterator[Case]:
        shape, threads = (self.side(4), self.side(700)), self.side(3)
        step, seed = int(self.rng.integers(0, 2**32)), int(self.rng.integers(-(2**63), 2**63 - 1))
        bound = [{}, {"clip": 0.7}, {"threshold": np.abs(self.normal(shape[0])) + 1}][self.side(3) - 1]
        one = {
            "x": self.normal(*shape), "output": self.normal(*shape), "coefficients": self.normal(7),
            "found": nan(*shape), "x0": nan(*shape), "previous": self.maybe(self.normal(*shape)),
            "seed": self.maybe(seed), "step": step, "threads": threads, **bound,
        }  # fmt: skip
        yield self.native.denoise_step, one, check_step
        own = {"noise": self.normal(*shape)} if self.rng.random() < 0.5 else {"seed": seed}
        shares = self.normal(shape[0], 2)
        noising = {"x0": self.normal(*shape), "shares": shares, "noisy": nan(*shape), "step": step, **own}
        yield self.native.add_noise, {**noising, "threads": threads}, check_noised

    def pooling(self) -> Iterator[Case]:
        heads, tokens, d = self.side(4), int(self.rng.choice([1, 6, 65, 200])), self.side(40)
        given = {name: self.normal(heads, tokens, d) for name in "qkv"}
        written = {"out": nan(heads, d), "looked_at": nan(heads, tokens), "log_sum": nan(heads, tokens)}
        yield self.native.attention_pool, {**given, **written, "scale": 0.3, "threads": self.side(3)}, check_pooled

    def attention(self) -> Iterator[Case]:
        grid, d = [self.side(3), self.side(4), self.side(9)], self.side(40)
        bias_heads, tokens = self.side(2), int(np.prod(grid))
        heads = bias_heads * self.side(2)
        given = {name: self.normal(heads, tokens, d) for name in "qkv"}
        table = self.normal(bias_heads, *(2 * side - 1 for side in grid))
        yield self.native.attention3d, {
            **given, "grid": grid, "window": [self.side(side) for side in grid], "scale": 0.3,
            "out": nan(heads, tokens, d), "log_sum": nan(heads, tokens), "bias": self.maybe(table),
            "threads": self.side(3),
        }, check_attended  # fmt: skip

    def fusion(self) -> Iterator[Case]:
        samples, groups, last = self.side(2), self.side(3), bool(self.rng.random() < 0.5)
        channels, sides = groups * self.side(20), [self.side(4) for _ in range(3)]

        def volume(*own: int) -> np.ndarray:
            return self.normal(*((samples, *own, channels) if last else (samples, channels, *own)))

        planes = [volume(self.side(4), self.side(5), self.side(6)), self.maybe(volume(2, 3, 4)), None]
        gates = self.normal(samples, 3, groups, *sides)
        written = {"out": nan(*volume(*sides).shape), "weights": nan(*gates.shape)}
        yield self.native.plane_fusion, {
            "volumes": planes, "gates": gates, "to_plane": self.rng.standard_normal((3, 3, 4)).tolist(), **written,
            "channels_last": last, "threads": self.side(3),
        }, lambda done: finite(done, written)  # fmt: skip

    def convolution(self) -> Iterator[Case]:
        sides = [self.side(5), self.side(7), self.side(9)]
        out, channels = (int(self.rng.choice([1, 3, 16, 32, 48])) for _ in range(2))
        kernel, stride = int(self.rng.choice([1, 3])), self.side(2)
        weight = self.normal(out, channels, kernel, kernel, kernel)
        for algorithm in self.native.conv3d_algorithms(out, channels, kernel, stride, sides):
            made = {"weight": weight, "stride": stride, "sides": sides, "algorithm": algorithm, "tiles": self.side(20)}
            yield self.native.Conv3d, made, lambda done: None
            conv = self.native.Conv3d(**made)
            given = {
                "x": self.normal(*sides, channels), "y": nan(*conv.out_sides, out), "threads": self.side(3),
                "bias": self.maybe(self.normal(out)), "moments": self.maybe(nan(conv.moment_blocks, 3, out)),
                "residual": self.maybe(self.normal(*conv.out_sides, out)), "skip": None,
            }  # fmt: skip
            if algorithm != "direct" and self.rng.random() < 0.5:
                given |= {"scale": self.normal(channels), "shift": self.normal(channels)}
            yield conv.run, given, lambda done: check_convolved(done, weight, stride)
            if algorithm != "direct":
                yield self.native.conv3d_weight_gradient, {
                    "x": given["x"], "dy": self.normal(*conv.out_sides, out), "dw": nan(*weight.shape),
                    "stride": stride, "algorithm": algorithm, "threads": self.side(3),
                }, check_learnt  # fmt: skip

    def plan(self) -> Iterator[Case]:
        sides, channels, out = [self.side(4), self.side(6), self.side(9)], *map(int, self.rng.choice([8, 16, 32], 2))
        first, second = self.normal(*sides, channels), self.normal(*sides, out)

        def norm(width: int) -> tuple[Any, ...]:
            return 4, self.normal(width), self.normal(width), 1e-5

        def block(*, volumes: Any, threads: Any, stride: Any, **given: Any) -> None:
            """A convolution of both inputs, one of stride 2 or 1, and both brought to the input's size."""
            made = self.native.Plan()
            x, skip = made.add_input(sides, channels), made.add_input(sides, out)
            y = made.add_conv("first", x, skip=skip, residual=skip, **given)
            small = made.add_conv("second", y, self.normal(3, out, 1, 1, 1), self.normal(3), stride)
            made.finish([made.add_resize("third", small, sides), y])
            made.run(volumes, threads)

        memory = self.native.PlanMemory()

        def decode(*, memory: Any, volumes: Any, threads: Any, relu: Any, activation: Any, **given: Any) -> None:
            """A doubling, and a normalisation with a residual, in memory that plans share."""
            made = self.native.Plan(memory)
            x, other = made.add_input(sides, channels), made.add_input(sides, out)
            y = made.add_conv_transpose("up", x, given["up"], given["up_bias"], relu=relu)
            z = made.add_conv("beside", x, given["beside"], given["bias"], norm=given["norm"], activation=activation)
            y = made.add_norm("behind", y, norm=given["behind"], activation=activation)
            made.finish([y, made.add_norm("last", z, norm=given["last"], activation="relu", residual=other), x])
            made.run(volumes, threads)

        yield decode, {
            "memory": memory, "volumes": [first, second], "threads": self.side(3), "relu": bool(self.side(2) - 1),
            "activation": str(self.rng.choice(["none", "silu", "relu"])), "up": self.normal(channels, 12, 4, 4, 4),
            "up_bias": self.normal(12), "beside": self.normal(out, channels, 3, 3, 3), "bias": self.normal(out),
            "norm": norm(channels), "behind": norm(12), "last": norm(out),
        }, lambda done: None  # fmt: skip

        for algorithm in self.native.conv3d_algorithms(out, channels + out, 3, 1, sides):
            given = {
                "weight": self.normal(out, channels + out, 3, 3, 3), "bias": self.normal(out), "algorithm": algorithm,
                "norm": norm(channels + out), "tiles": self.side(20), "volumes": [first, second],
                "threads": self.side(3), "stride": self.side(2),
            }  # fmt: skip
            yield block, given, lambda done: None

        def attend(*, threads: Any, **given: Any) -> None:
            made = self.native.Plan()
            made.finish([made.add_attention("attention", made.add_input(sides, channels), **given)])
            made.run([first], threads)

        attention = {
            "norm": norm(channels), "qkv_weight": self.normal(3 * channels, channels),
            "qkv_bias": self.normal(3 * channels), "out_weight": self.normal(channels, channels),
            "out_bias": self.normal(channels), "heads": 2, "heads_first": True, "threads": self.side(3),
        }  # fmt: skip
        yield attend, attention, lambda done: None

    def __iter__(self) -> Iterator[Case]:
        ops = (self.group_norm, self.doubling, self.sampling, self.pooling, self.attention, self.fusion)
        for kind in (*ops, self.convolution, self.plan):
            yield from kind()


def nan(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def finite(done: dict[str, Any], names: Any) -> None:
    assert all(np.isfinite(done[name]).all() for name in names if done[name] is not None)


def close(found: np.ndarray, want: np.ndarray, error: float) -> None:
    assert np.abs(found - want).max() <= error * max(1, np.abs(want).max()), np.abs(found - want).max()


def silu(z: np.ndarray) -> np.ndarray:
    return z / (1 + np.exp(-z))


def normalised(given: dict[str, Any]) -> np.ndarray:
    parts = [part.astype(np.float64) for part in (given["x"], given["skip"]) if part is not None]
    h = np.concatenate([part if given["channels_last"] else part.swapaxes(1, 2) for part in parts], axis=2)
    samples, voxels, width = h.shape
    if given["shift"] is not None:
        h = h + given["shift"][:, None]
    grouped = h.reshape(samples, voxels, given["groups"], -1)
    centred = grouped - grouped.mean(axis=(1, 3), keepdims=True)
    z = (centred / np.sqrt((centred**2).mean(axis=(1, 3), keepdims=True) + 1e-5)).reshape(h.shape)
    z = z * (1 if given["weight"] is None else given["weight"]) + (0 if given["bias"] is None else given["bias"])
    if given["scale_shift"] is not None:
        z = z * (1 + given["scale_shift"][:, None, :width]) + given["scale_shift"][:, None, width:]
    z = silu(z) if given["silu"] else z
    return z if given["channels_last"] else z.swapaxes(1, 2)


def doubled(x: np.ndarray) -> np.ndarray:
    for axis in (1, 2, 3):
        side = x.shape[axis]
        before, after = (np.take(x, np.clip(np.arange(side) + by, 0, side - 1), axis) for by in (-1, 1))
        both = np.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1)
        x = both.reshape(*x.shape[:axis], 2 * side, *x.shape[axis + 1 :])
    return x


def check_step(done: dict[str, Any]) -> None:
    c = done["coefficients"].astype(np.float64)
    x0 = c[0] * done["x"] + c[1] * done["output"]
    if done.get("clip") is not None:
        x0 = np.clip(x0, -done["clip"], done["clip"])
    if done.get("threshold") is not None:
        s = done["threshold"][:, None]
        x0 = np.clip(x0, -s, s) / s
    close(done["x0"], x0, 1e-5)
    want = c[2] * done["x"] + c[3] * done["output"] + c[4] * x0
    if done["previous"] is not None:
        want = want + c[5] * done["previous"]
    # The noise is at most 5.7, its radius where the first number is at its bound of 1e-7.
    close(done["found"], want, 1e-5 if done["seed"] is None else 6 * abs(c[6]) + 1e-5)


def check_noised(done: dict[str, Any]) -> None:
    signal, share = done["shares"][:, :1].astype(np.float64), done["shares"][:, 1:]
    if "noise" in done:
        close(done["noisy"], signal * done["x0"] + share * done["noise"], 1e-5)
    assert np.all(np.abs(done["noisy"] - signal * done["x0"]) <= 6 * np.abs(share) + 1e-4)


def check_pooled(done: dict[str, Any]) -> None:
    q, k, v = (done[name].astype(np.float64) for name in "qkv")
    e = np.exp(done["scale"] * q @ k.swapaxes(1, 2))
    looked_at = (e / e.sum(axis=2, keepdims=True)).mean(axis=1)
    close(done["looked_at"], looked_at, 1e-5)
    close(done["log_sum"], np.log(e.sum(axis=2)), 1e-5)
    close(done["out"], (looked_at[:, None] @ v)[:, 0], 1e-5)


def check_attended(done: dict[str, Any]) -> None:
    q, k, v = (done[name].astype(np.float64) for name in "qkv")
    scores = done["scale"] * q @ k.swapaxes(1, 2)
    places = np.stack(np.unravel_index(np.arange(q.shape[1]), done["grid"]))  # [3, tokens]
    apart = places[:, :, None] - places[:, None] + np.array(done["grid"])[:, None, None] - 1
    if done["bias"] is not None:
        bias = done["bias"][(slice(None), *apart)]
        scores = scores + np.tile(bias, (len(q) // len(bias), 1, 1))
    for at, side, window in zip(places, done["grid"], done["window"], strict=True):
        first = np.clip(at - window // 2, 0, side - window)[:, None]
        scores[:, (at[None] < first) | (at[None] >= first + window)] = -np.inf
    e = np.exp(scores)
    close(done["log_sum"], np.log(e.sum(axis=2)), 1e-5)
    close(done["out"], e / e.sum(axis=2, keepdims=True) @ v, 1e-5)


def taps(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """What each output's taps see, [depth, height, width, channels, kernel, kernel, kernel]."""
    padded = np.pad(x, [(kernel // 2, kernel // 2)] * 3 + [(0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel,) * 3, axis=(0, 1, 2))
    return windows[::stride, ::stride, ::stride]


def check_learnt(done: dict[str, Any]) -> None:
    seen = taps(done["x"].astype(np.float64), 3, done["stride"])
    close(done["dw"], np.einsum("dhwcijk,dhwo->ocijk", seen, done["dy"], optimize=True), 1e-4)


def check_convolved(done: dict[str, Any], weight: np.ndarray, stride: int) -> None:
    x = done["x"].astype(np.float64)
    if done.get("scale") is not None:
        x = silu(x * done["scale"] + done["shift"])
    y = np.einsum("dhwcijk,ocijk->dhwo", taps(x, weight.shape[-1], stride), weight, optimize=True)
    y += 0 if done["bias"] is None else done["bias"]
    y += 0 if done["residual"] is None else done["residual"]
    close(done["y"], y, 1e-4)
    if done["moments"] is not None:
        assert done["moments"][:, 0, 0].sum() == np.prod(done["y"].shape[:3])


def wrong(arguments: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The arguments with one of them replaced by something that is seldom right."""
    name = str(rng.choice(list(arguments)))
    value = arguments[name]
    others: list[Any] = [None, "text", -1, 0, 2**40, -(2**70), float("nan"), [1, 2], np.float32(3), b"", nan(0), nan()]
    if isinstance(value, np.ndarray):
        unaligned = np.zeros(value.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(value.shape)
        frozen = value.copy()
        frozen.setflags(write=False)
        others += [value.astype(dtype) for dtype in (np.float64, np.float16, np.int32, np.complex64, object)]
        others += [value[None], value[..., 0], value[..., ::-1], value[1:], value[..., :-1], value.T, unaligned, frozen]
        others += [np.broadcast_to(value[..., :1], value.shape), np.zeros((1,) * value.ndim, np.float32)]
        others += [value.astype(">f4"), np.asfortranarray(value), value.repeat(2, axis=-1)]
        others += [other for other in arguments.values() if isinstance(other, np.ndarray)]  # overlaps
    return {**arguments, name: others[int(rng.integers(len(others)))]}


def main(folder: str, seconds: float, seed: int) -> None:
    sys.path.insert(0, folder)
    import _native

    np.seterr(over="ignore", invalid="ignore")  # as arrays are brought to types that do not hold their values
    rng, end = np.random.default_rng(seed), time.monotonic() + seconds
    counts = dict.fromkeys(("right", "refused", "taken"), 0)
    while time.monotonic() < end:
        for call, arguments, check in Cases(_native, rng):
            call(**arguments)
            check(arguments)
            counts["right"] += 1
            for _ in range(12):
                try:
                    call(**wrong(arguments, rng))
                    counts["taken"] += 1
                except (ValueError, TypeError):
                    counts["refused"] += 1
    print(_native.instruction_set(), *(f"{name} {count}" for name, count in counts.items()))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
