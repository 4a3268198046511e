"""The native doubling: its bytes at any number of threads, and what bad input gets; values: tests/ops."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

native = pytest.importorskip("orthokernels._native")

SHAPES = [(2, 3, 5, 7, 24), (6, 4, 1, 33, 1), (1, 1, 1, 1, 3)]


def made(shape) -> tuple[np.ndarray, np.ndarray]:
    """A small volume [samples, depth, height, width, channels], and a large one, poisoned."""
    samples, *sides, channels = shape
    large = np.full((samples, *(2 * side for side in sides), channels), np.nan, np.float32)
    return np.random.default_rng(shape).standard_normal(shape, dtype=np.float32), large


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_number_of_threads_gives_the_same_bytes(shape):
    found = set()
    for threads in (1, 2, 3, 7):
        x, y = made(shape)
        native.upsample2x_trilinear(x, y, threads=threads)
        dx = np.full_like(x, np.nan)
        native.upsample2x_trilinear_backward(y, dx, threads=threads)
        assert np.isfinite(dx).all()
        found.add(y.tobytes() + dx.tobytes())
    assert len(found) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_starts_threads_of_its_own():
    code = (
        "import numpy as np, os, signal\nfrom orthokernels import _native\n"
        "x, y = np.ones((1, 4, 4, 4, 8), np.float32), np.empty((1, 8, 8, 8, 8), np.float32)\n"
        "_native.upsample2x_trilinear(x, y, threads=2)\n"
        "child = os.fork()\n"
        "signal.alarm(20)\n"  # ends a process that waits for threads it does not have
        "y.fill(0)\n_native.upsample2x_trilinear(x, y, threads=2)\nassert (y == 1).all()\n"
        "if child: raise SystemExit(os.waitpid(child, 0)[1])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_backward_is_the_transpose_of_forward():
    x, y = made(SHAPES[0])
    native.upsample2x_trilinear(x, y)
    upstream = np.random.default_rng(1).standard_normal(y.shape, dtype=np.float32)
    dx = np.full_like(x, np.nan)
    native.upsample2x_trilinear_backward(upstream, dx)
    left, right = np.vdot(y.astype(np.float64), upstream), np.vdot(x.astype(np.float64), dx)
    # Each number is off by a dozen roundings of sums below 8; so many of them agree as their norms' product.
    assert abs(left - right) <= 12 * 2**-24 * np.linalg.norm(y) * np.linalg.norm(upstream)


def test_bad_input_gets_a_sentence():
    x, y = made(SHAPES[0])
    for arguments, told in [
        ((x[..., 0], y), r"x: shape \(2, 3, 5, 7\); must be"),
        ((x.astype(np.float16), y), "x: type float16; must be float32."),
        ((x[:, :, ::-1], y), "x: is not contiguous"),
        ((x, y[:, 1:].copy()), r"y: shape \(2, 5, 10, 14, 24\); must be \(2, 6, 10, 14, 24\)."),
        ((x, x), "y: shape"),
    ]:
        with pytest.raises(ValueError, match=told):
            native.upsample2x_trilinear(*arguments)
    shared = np.zeros(9 * x.size, np.float32)
    with pytest.raises(ValueError, match=r"y: overlaps x, which is read\."):
        native.upsample2x_trilinear(shared[: x.size].reshape(x.shape), shared[: y.size].reshape(y.shape))
    with pytest.raises(ValueError, match=r"threads: 2000; allowed are 1 to 1024\."):
        native.upsample2x_trilinear(x, y, threads=2000)
    with pytest.raises(ValueError, match=r"dy: shape \(2, 3, 5, 7, 24\); must be \(2, 6, 10, 14, 24\)\."):
        native.upsample2x_trilinear_backward(x, np.empty_like(x))
    assert np.isnan(y).all()
