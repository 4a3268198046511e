"""The native normalisation: its bytes at any number of threads, and what bad input gets; values: tests/ops."""

from __future__ import annotations

import numpy as np
import pytest

native = pytest.importorskip("orthokernels._native")

# (samples, channels, of the skip, voxels, groups): several blocks, partial vectors, more channels than a block has.
SHAPES = [(2, 24, 12, 3000, 6), (1, 3, 0, 40000, 3), (3, 5, 2, 7, 1), (1, 40000, 8, 3, 8)]


def made(shape, *, channels_last: bool) -> tuple[dict, dict]:
    """What forward is given, by name, and what it writes, poisoned."""
    samples, channels, behind, voxels, groups = shape
    rng, width = np.random.default_rng(shape), channels + behind

    def volume(count: int) -> np.ndarray:
        sides = (samples, voxels, count) if channels_last else (samples, count, voxels)
        return rng.standard_normal(sides, dtype=np.float32)

    given = {
        "x": volume(channels), "skip": volume(behind) if behind else None, "groups": groups,
        "weight": rng.standard_normal(width, dtype=np.float32), "bias": rng.standard_normal(width, dtype=np.float32),
        "shift": rng.standard_normal((samples, width), dtype=np.float32),
        "scale_shift": rng.standard_normal((samples, 2 * width), dtype=np.float32), "channels_last": channels_last,
    }  # fmt: skip
    written = {"y": volume(width), "mean": np.empty((samples, groups), np.float32)}
    written["rstd"] = written["mean"].copy()
    return given, poisoned(written)


def poisoned(written: dict) -> dict:
    for array in written.values():
        if array is not None:
            array.fill(np.nan)
    return written


def gradients(given: dict, written: dict) -> dict:
    width, (samples, _) = given["weight"].size, written["mean"].shape
    found = {
        "dx": np.empty_like(given["x"]), "dskip": None if given["skip"] is None else np.empty_like(given["skip"]),
        "dscale_shift": np.empty((samples, 2 * width), np.float32),
    }  # fmt: skip
    return poisoned(found | {name: np.empty((samples, width), np.float32) for name in ("dweight", "dbias", "dshift")})


def ran(shape, *, channels_last: bool, threads: int) -> list[bytes]:
    given, written = made(shape, channels_last=channels_last)
    native.group_norm_silu(**given, **written, threads=threads)
    upstream = np.random.default_rng(1).standard_normal(written["y"].shape, dtype=np.float32)
    found, moments = gradients(given, written), {name: written[name] for name in ("mean", "rstd")}
    native.group_norm_silu_backward(dy=upstream, **moments, **given, **found, threads=threads)
    arrays = [array for array in (*written.values(), *found.values()) if array is not None]
    assert all(np.isfinite(array).all() for array in arrays)
    return [array.tobytes() for array in arrays]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_number_of_threads_gives_the_same_bytes(shape, channels_last):
    alone = ran(shape, channels_last=channels_last, threads=1)
    assert all(ran(shape, channels_last=channels_last, threads=threads) == alone for threads in (2, 3, 7))


@pytest.mark.parametrize("channels_last", [False, True])
def test_moments_over_many_blocks_are_those_of_double_precision(channels_last):
    given, written = made((1, 2, 0, 70000, 1), channels_last=channels_last)
    given["x"] += 1000
    given["shift"][:] = 0
    native.group_norm_silu(**given, **written)
    exact = given["x"].astype(np.float64)
    assert abs(written["mean"][0, 0] - exact.mean()) <= 1000 * 2**-24
    # Distances to a block's mean are rounded to 2^-24 of themselves, their squares' sums in runs of 256.
    assert written["rstd"][0, 0] == pytest.approx(1 / np.sqrt(exact.var() + 1e-5), rel=2e-6)


def test_bad_input_gets_a_sentence():
    given, written = made(SHAPES[0], channels_last=True)
    x, y, skip = given["x"], written["y"], given["skip"]
    frozen = written["mean"].copy()
    frozen.setflags(write=False)
    for changes, told in [
        ({"x": x.astype(np.float64)}, "x: type float64; must be float32."),
        ({"x": x[0]}, r"x: shape \(3000, 24\); must be \(any, any, any\)."),
        ({"x": x[:, ::2]}, "x: is not contiguous"),
        ({"x": x[:, :0]}, r"x: shape \(2, 0, 24\)"),
        ({"skip": skip[:, :-1].copy()}, r"skip: shape \(2, 2999, 12\); must be \(2, 3000, any\)."),
        ({"skip": "none"}, "skip: must be a NumPy array or None."),
        ({"groups": 5}, "groups: 5 does not divide 36 channels."),
        ({"groups": 0}, "groups: 0 does not divide"),
        ({"weight": given["weight"][1:]}, r"weight: shape \(35\); must be \(36\)."),
        ({"shift": given["shift"][:1]}, r"shift: shape \(1, 36\)"),
        ({"y": y[..., 1:].copy()}, "y: shape"),
        ({"mean": frozen}, "mean: is read-only."),
        ({"y": written["mean"]}, "y: shape"),
        ({"rstd": written["mean"]}, "mean: overlaps rstd, which is written too."),
        ({"x": y[..., :24].copy(), "skip": None, "y": y}, "groups|weight|y: shape"),
        ({"eps": -1.0}, "eps: -1"),
        ({"eps": np.nan}, "eps: nan"),
        ({"threads": 0}, "threads: 0; allowed are 1 to 1024."),
    ]:
        with pytest.raises(ValueError, match=told):
            native.group_norm_silu(**{**given, **written, **changes})
    assert all(np.isnan(array).all() for array in written.values())  # nothing was written
    found = gradients(given, written)
    moments = {name: written[name] for name in ("mean", "rstd")}
    for changes, told in [
        ({"dskip": None}, "dskip: skip and dskip go together."),
        ({"dy": y[:1]}, "dy: shape"),
        ({"dx": x}, "dx: overlaps x, which is read."),
        ({"dbias": found["dweight"]}, "dweight: overlaps dbias, which is written too."),
    ]:
        with pytest.raises(ValueError, match=told):
            native.group_norm_silu_backward(**{"dy": y, **moments, **given, **found, **changes})
    assert all(np.isnan(array).all() for array in found.values())
