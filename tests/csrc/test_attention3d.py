"""The native attention over a grid: threads, and what bad input gets; values: tests/ops and fuzz.py."""

from __future__ import annotations

import numpy as np
import pytest

native = pytest.importorskip("orthokernels._native")

GRID, HEADS, D = (3, 5, 7), 4, 20


def made() -> dict:
    """Arguments, what is written poisoned."""
    rng, tokens = np.random.default_rng(0), int(np.prod(GRID))
    given = {name: rng.standard_normal((HEADS, tokens, D), dtype=np.float32) for name in "qkv"}
    bias = rng.standard_normal((2, *(2 * side - 1 for side in GRID)), dtype=np.float32)
    written = {"out": np.full((HEADS, tokens, D), np.nan, np.float32)}
    written["log_sum"] = np.full((HEADS, tokens), np.nan, np.float32)
    return {**given, **written, "grid": GRID, "window": (2, 5, 3), "scale": 0.3, "bias": bias}


def test_any_number_of_threads_gives_the_same_bytes():
    found = set()
    for threads in (1, 2, 3, 7):
        arguments = made()
        native.attention3d(**arguments, threads=threads)
        found.add(arguments["out"].tobytes() + arguments["log_sum"].tobytes())
    assert len(found) == 1


def test_a_query_whose_every_score_is_minus_infinity_sees_nothing_beyond_its_window():
    given = made()
    given["bias"][0] = -np.inf  # of every second head
    native.attention3d(**given, threads=2)
    assert np.isnan(given["out"][::2]).all()  # a softmax of nothing, as in plain PyTorch
    assert np.isfinite(given["out"][1::2]).all()


def test_bad_input_gets_a_sentence():
    given = made()
    for changes, told in [
        ({"q": given["q"][0]}, r"q: shape \(105, 20\); must be \(any, any, any\)."),
        ({"k": given["k"][:, 1:].copy()}, r"k: shape \(4, 104, 20\); must be \(4, 105, 20\)."),
        ({"v": given["v"].astype(np.float64)}, "v: type float64"),
        ({"grid": (3, 5, 8)}, r"grid: \(3, 5, 8\); q has 105 tokens."),
        ({"window": (2, 6, 3)}, r"window: \(2, 6, 3\); must be from 1 to the grid's \(3, 5, 7\)."),
        ({"window": (2, 0, 3)}, r"window: \(2, 0, 3\)"),
        ({"window": (2, 3)}, "window: .*must be three numbers"),
        ({"bias": given["bias"][..., 1:].copy()}, r"bias: shape \(2, 5, 9, 12\); must be \(any, 5, 9, 13\)."),
        ({"bias": given["bias"].repeat(2, axis=0)[:3].copy()}, "bias: its heads do not divide q's"),
        ({"scale": np.nan}, "scale: nan"),
        ({"out": given["q"]}, "out: overlaps q, which is read."),
        ({"threads": 0}, "threads: 0"),
    ]:
        with pytest.raises(ValueError, match=told):
            native.attention3d(**{**given, **changes})
    assert np.isnan(given["out"]).all()
