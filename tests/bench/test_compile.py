"""Every kernel compiles for GPUs that are not there, with nothing spilled."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from orthokernels.bench.compile import SHARED, Compiled

from orthokernels.backends.registry import ops_of

pytest.importorskip("triton", reason="Triton is not installed")


def bench_compile(*arguments: str, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    # A process of its own: tests of the ops interpret kernels, and that is decided once.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    command = [sys.executable, "-m", "orthokernels.cli", "bench", "compile", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_every_kernel_compiles_for_every_target_and_spills_nothing():
    done = bench_compile("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    assert {row["op"] for row in rows} == set(ops_of("triton"))
    assert {row["target"] for row in rows} == set(SHARED)
    assert all(row["registers"] > 0 and row["spilled"] == 0 and row["fault"] is None for row in rows)
    own = [(row["kernel"], row["types"], row["constants"], row["target"]) for row in rows if row["op"] == "attention3d"]
    assert len(own) == len(set(own))  # its bias gradient is the same for heads of several sizes, and compiled once


@pytest.mark.parametrize(
    ("needs", "told"),
    [({"spilled": 8}, "8 bytes are spilled"), ({"shared": 300_000}, "sm_90 has 232448"), ({}, None)],
)
def test_a_kernel_that_would_not_do_is_named(needs, told):
    row = Compiled("op", "kernel", "fp32", "", 90, **{"registers": 32, "spilled": 0, "shared": 0, **needs})
    assert (row.fault or "").endswith(told or "")
    assert (row.fault is None) == (told is None)


def test_what_can_not_be_compiled_is_said_in_a_sentence():
    done = bench_compile("--targets", "90,75")
    assert (done.returncode, done.stderr) == (2, "orthokernels: --targets 75: there are 80, 90, 100.\n")
    done = bench_compile(interpret=True)
    assert done.returncode == 2
    assert "Unset it." in done.stderr
