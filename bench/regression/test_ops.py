"""Whether an op has become slower than it was, with pytest-benchmark; no part of the tests.

    pytest bench/regression --benchmark-autosave
    pytest bench/regression --benchmark-compare --benchmark-compare-fail=median:10%

On a CPU: the plain backend at small shapes. On a GPU: the kernels at the published network's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from orthokernels.bench.gpu.case import Case
from orthokernels.bench.gpu.ops_suite import cases
from orthokernels.bench.gpu.setting import Setting

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (pip install 'orthokernels[bench]')")

ON_GPU = torch.cuda.is_available()
SETTING = Setting(torch.device("cuda" if ON_GPU else "cpu"), tiny=not ON_GPU)


@pytest.mark.parametrize("case", cases(SETTING), ids=lambda case: case.name)
def test_op(case: Case, benchmark: Any) -> None:
    torch.manual_seed(0)
    call = case.contenders()[0].build()
    call()  # compiles

    def finished() -> None:
        call()
        if ON_GPU:
            torch.cuda.synchronize()

    benchmark.group = case.name
    benchmark(finished)
