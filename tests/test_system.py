"""What this process tells of itself."""

import subprocess
import sys

import numpy as np
import pytest

from orthokernels.system import peak_memory_mb

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
