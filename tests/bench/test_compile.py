"""Every kernel compiles for GPUs that are not there, with nothing spilled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

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
    # The bias gradient is the same for heads of several sizes: compiled once for those that 16 divides, and others.
    own = Counter((row["types"], row["target"]) for row in rows if row["kernel"] == "bias_gradients")
    assert set(own.values()) == {2}


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


_STEPS = """
from importlib import import_module
from triton.backends.compiler import BaseBackend
from triton.runtime.jit import native_specialize_impl

def kinds(parameter, values):
    # As a launch looks at an argument (triton.runtime.jit.create_function_from_signature).
    special, aligned = not parameter.do_not_specialize, not parameter.do_not_specialize_on_alignment
    return {native_specialize_impl(BaseBackend, value, False, special, aligned) for value in values}

for op in ("denoise_step", "add_noise", "diffusion_loss"):
    module = import_module(f"orthokernels.backends.triton.{op}")
    for own in module.configurations():
        by_name = {parameter.name: parameter for parameter in own.kernel.params}
        steps = [module.counted(step) for step in (0, 1, 7, 16, 49, 2**31 + 3, 2**32)]
        assert len(kinds(by_name["step"], steps)) == 1, op
        for name in by_name.keys() & {"p_coefficients", "p_threshold", "p_shares", "p_target", "p_weight", "p_seed"}:
            rows = torch.zeros(4, 7)  # the address of every second one, and so on, is no multiple of 16
            assert len(kinds(by_name[name], rows)) == 1, (op, name)
        for step in (1, 16):
            other = dataclasses.replace(own, arguments={**own.arguments, "step": step})
            for told in ("signature", "constants", "divisible"):
                assert getattr(other, told)() == getattr(own, told)(), (op, told)
"""


def test_a_sampler_s_steps_run_one_variant_of_a_kernel():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = "import dataclasses, torch\n" + _STEPS
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
