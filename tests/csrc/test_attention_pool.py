"""The native attention with a mean over its queries: threads, and what bad input gets; values: tests/ops."""

from __future__ import annotations

import numpy as np
import pytest

native = pytest.importorskip("orthokernels._native")

SHAPES = [(3, 300, 20), (1, 1, 5), (2, 64, 64)]


def made(shape) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """q, k and v [heads, tokens, d], and what is written, poisoned."""
    rng, (heads, tokens, d) = np.random.default_rng(shape), shape
    sides = {"out": (heads, d), "looked_at": (heads, tokens), "log_sum": (heads, tokens)}
    given = {name: rng.standard_normal(shape, dtype=np.float32) for name in "qkv"}
    return given, {name: np.full(own, np.nan, np.float32) for name, own in sides.items()}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_number_of_threads_gives_the_same_bytes(shape):
    found = set()
    for threads in (1, 2, 3, 7):
        given, written = made(shape)
        native.attention_pool(**given, **written, scale=0.3, threads=threads)
        # Shares of one mean: 300 roundings of numbers that add up to 1.
        np.testing.assert_allclose(written["looked_at"].sum(axis=1), 1, rtol=0, atol=300 * 2**-24)
        found.add(b"".join(array.tobytes() for array in written.values()))
    assert len(found) == 1


def test_a_query_whose_every_score_is_minus_infinity_gives_no_number():
    given, written = made(SHAPES[0])
    given["q"], given["k"] = np.abs(given["q"]), np.abs(given["k"])
    given["k"][1, :, 3] = -np.inf
    native.attention_pool(**given, **written, scale=0.3, threads=2)
    for name in ("out", "looked_at"):
        assert np.isnan(written[name][1]).all()  # a softmax of nothing, as in plain PyTorch
        assert np.isfinite(written[name][[0, 2]]).all()


def test_bad_input_gets_a_sentence():
    given, written = made(SHAPES[0])
    for changes, told in [
        ({"q": given["q"][0]}, r"q: shape \(300, 20\); must be \(any, any, any\)."),
        ({"k": given["k"][:, 1:].copy()}, r"k: shape \(3, 299, 20\); must be \(3, 300, 20\)."),
        ({"v": given["v"].astype(np.float64)}, "v: type float64"),
        ({"v": given["v"][:, ::-1]}, "v: is not contiguous"),
        ({"scale": np.inf}, "scale: inf"),
        ({"log_sum": written["looked_at"]}, "looked_at: overlaps log_sum, which is written too."),
        ({"out": given["q"][:, 0]}, "out: is not contiguous"),
        ({"threads": 0}, "threads: 0"),
    ]:
        with pytest.raises(ValueError, match=told):
            native.attention_pool(**{**given, **written, "scale": 1.0, **changes})
    assert all(np.isnan(array).all() for array in written.values())
