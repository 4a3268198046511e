"""What this process tells of itself."""

import subprocess
import sys

import numpy as np
import pytest

from orthokernels.system import peak_memory_mb

_TELL = "from orthokernels.system import peak_memory_mb; print(peak_memory_mb())"


def test_the_peak_holds_what_was_let_go():
    before = peak_memory_mb()
    np.ones(1 << 27)  # a gibibyte
    assert peak_memory_mb() >= before
    held = np.ones(1 << 26)
    assert peak_memory_mb() > held.nbytes / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a started program's peak is not told apart")
def test_a_started_program_s_peak_is_its_own():
    held = np.ones(1 << 27)
    told = float(subprocess.run([sys.executable, "-c", _TELL], capture_output=True, text=True, check=True).stdout)
    assert 5 < told < 0.5 * held.nbytes / 1e6
