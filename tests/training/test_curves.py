"""Progress where there is no terminal."""

from __future__ import annotations

import pytest

from orthokernels.training import curves


@pytest.fixture
def minutes(monkeypatch):
    """A clock that goes on by a minute each time it is read."""
    passed = iter(range(0, 6000, 60))
    monkeypatch.setattr(curves.time, "monotonic", lambda: next(passed))


def _told(capsys, calls, every):
    with curves.progress("Training", every) as tell:
        for done, steps, figures in calls:
            tell(done, steps, figures)
    return capsys.readouterr().err.splitlines()


def test_the_beginning_is_told_before_any_step_is_done_and_then_what_is_left(capsys, minutes):
    calls = [(0, 6, {}), *((done, 6, {"loss": 1 / done}) for done in range(1, 7))]
    assert _told(capsys, calls, 2) == [
        "Training 0/6",
        "Training 2/6  loss 0.5  0:02:00 left",  # two steps in one reading of the clock
        "Training 4/6  loss 0.25  0:01:00 left",
        "Training 6/6  loss 0.1667",
    ]


def test_a_run_that_is_taken_up_counts_its_own_steps_alone(capsys, minutes):
    assert _told(capsys, [(7, 20, {}), (10, 20, {}), (20, 20, {})], 10) == [
        "Training 7/20",
        "Training 10/20  0:03:20 left",
        "Training 20/20",
    ]


def test_a_second_pass_begins_anew(capsys, minutes):
    calls = [(1, 3, {}), (2, 3, {}), (3, 3, {}), (1, 2, {}), (2, 2, {})]
    assert _told(capsys, calls, 1) == [
        "Training 1/3", "Training 2/3  0:01:00 left", "Training 3/3", "Training 1/2", "Training 2/2",
    ]  # fmt: skip


def test_nothing_is_told_where_nothing_is_wanted(capsys):
    with curves.progress("Training", 1, silent=True) as tell:
        tell(0, 2, {})
    assert capsys.readouterr().err == ""
