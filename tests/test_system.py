"""What this process tells of itself."""

import subprocess
import sys

import numpy as np
import pytest

from orthokernels.errors import InputError
from orthokernels.system import MOST_THREADS, peak_memory_mb, threads

_TELL = "from orthokernels.system import peak_memory_mb; print(peak_memory_mb())"
_LET_GO = f"import numpy; numpy.ones(1 << 26); {_TELL}"


def told_by(program: str) -> float:
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def test_the_peak_counts_what_is_held():
    held = np.ones(1 << 26)
    assert peak_memory_mb() > held.nbytes / 1e6


def test_the_peak_stays_when_memory_is_let_go():
    assert told_by(_LET_GO) > (8 << 26) / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a started program's peak is not told apart")
def test_a_started_program_s_peak_is_its_own():
    held = np.ones(1 << 27)
    assert 5 < told_by(_TELL) < 0.5 * held.nbytes / 1e6


@pytest.mark.parametrize(
    ("given", "expected"), [("1", 1), ("1024", 1024), (" 3 ", 3), ("4,2", 4), ("0008", 8), ("2, 1", 2)]
)
def test_threads_are_what_the_environment_asks_for(monkeypatch, given, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads() == expected


def test_threads_are_the_cores_that_the_native_engine_can_use(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 1 <= threads() <= MOST_THREADS
    monkeypatch.setattr("orthokernels.system._cores", lambda: 4096)
    assert threads() == MOST_THREADS


@pytest.mark.parametrize(
    "given", ["0", "-1", "1025", "1" * 5000, "abc", "1,abc", "1,", ",2", "2,1025", "1.5", "+1", "\u0661", "1_0"]
)
def test_threads_that_there_can_not_be_are_refused(monkeypatch, given):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    with pytest.raises(InputError, match=r"^OMP_NUM_THREADS is '.{1,40}'; give a number of threads from 1 to 1024\.$"):
        threads()
