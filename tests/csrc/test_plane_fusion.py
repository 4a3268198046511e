"""The native fusion of planes: threads, and what bad input gets; values: tests/ops."""

from __future__ import annotations

import numpy as np
import pytest

native = pytest.importorskip("orthokernels._native")


def made() -> dict:
    """Arguments, what is written poisoned."""
    rng = np.random.default_rng(0)
    volumes = [rng.standard_normal((2, *sides, 20), dtype=np.float32) for sides in ((4, 5, 6), (3, 3, 3))]
    gates = rng.standard_normal((2, 3, 4, 3, 5, 6), dtype=np.float32)
    to_plane = np.tile(np.eye(3, 4) * 0.8, (3, 1, 1)).tolist()
    written = {"out": np.full((2, 3, 5, 6, 20), np.nan, np.float32), "weights": np.full_like(gates, np.nan)}
    return {"volumes": [*volumes, None], "gates": gates, "to_plane": to_plane, "channels_last": True, **written}


def test_any_number_of_threads_gives_the_same_bytes():
    found = set()
    for threads in (1, 2, 3, 7):
        arguments = made()
        native.plane_fusion(**arguments, threads=threads)
        weights = arguments["weights"]
        assert not weights[:, 2].any()  # the plane that is missing
        # Two quotients, of a sum of two.
        np.testing.assert_allclose(weights.sum(axis=1)[..., 0, 0, 0], 1, rtol=0, atol=2**-22)
        found.add(arguments["out"].tobytes() + weights.tobytes())
    assert len(found) == 1


def test_bad_input_gets_a_sentence():
    given = made()
    first, second, _ = given["volumes"]
    for changes, told in [
        ({"volumes": [first, second]}, "volumes: 2 of them; must be 3."),
        ({"volumes": [None, None, None]}, "volumes: no plane is given."),
        ({"volumes": [first, second[:1].copy(), None]}, "volumes: differ in samples or channels."),
        ({"volumes": [first[0], second, None]}, r"volumes: shape \(4, 5, 6, 20\)"),
        ({"volumes": ["a", second, None]}, "volumes: must be NumPy arrays or None."),
        ({"gates": given["gates"][:, :2].copy()}, r"gates: shape .*must be \(2, 3, any, any, any, any\)."),
        ({"gates": given["gates"][:, :, :3].copy()}, "gates: their groups do not divide the channels."),
        ({"to_plane": given["to_plane"][:2]}, "to_plane: must be three matrices of 3 x 4."),
        ({"to_plane": [[[1.0, 2.0]] * 3] * 3}, "to_plane: must be three matrices of 3 x 4."),
        ({"out": given["out"][..., ::-1]}, "out: is not contiguous"),
        ({"weights": given["gates"]}, "weights: overlaps gates, which is read."),
        ({"threads": 0}, "threads: 0"),
    ]:
        with pytest.raises(ValueError, match=told):
            native.plane_fusion(**{**given, **changes})
    assert np.isnan(given["out"]).all()
