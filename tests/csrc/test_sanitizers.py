"""The native module under AddressSanitizer and UndefinedBehaviorSanitizer, called as ``fuzz.py`` does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

native = pytest.importorskip("orthokernels._native")
pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")

ROOT = Path(__file__).parents[2]
SECONDS = 5  # of calls on each instruction set


def program(name: str) -> str:
    """Where a program is, this environment's first."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def library(name: str) -> str:
    """The compiler's own, which a process that was not built with sanitizers loads first."""
    place = subprocess.run([program("g++"), f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    if not Path(place.stdout.strip()).is_absolute():
        pytest.skip(f"the compiler has no {name}")
    return place.stdout.strip()


@pytest.fixture(scope="module")
def preloaded() -> str:
    # AddressSanitizer looks for the throw of exceptions when it starts, so that the C++ library comes with it.
    return f"{library('libasan.so')} {library('libstdc++.so.6')}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, preloaded: str) -> Path:
    """A folder with the module, built with both sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    options = {
        "ORTHOKERNELS_SANITIZE": "address,undefined", "CMAKE_CXX_COMPILER": program("g++"), "CMAKE_BUILD_TYPE": "None",
        "CMAKE_INTERPROCEDURAL_OPTIMIZATION": "OFF", "pybind11_DIR": pybind11.get_cmake_dir(),
        "Python_EXECUTABLE": sys.executable,
        "ORTHOKERNELS_AVX512": "ON" if "avx512" in instruction_sets() else "OFF",  # what can't run is not built
    }  # fmt: skip
    defined = [f"-D{name}={value}" for name, value in options.items()]
    succeed([program("cmake"), "-S", str(ROOT), "-B", str(folder), *defined])
    succeed([program("cmake"), "--build", str(folder), "--target", "_native", "--parallel", "2"])
    return folder


def succeed(command: list[str], **environment: str) -> str:
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[:8000]
    return done.stdout


def instruction_sets() -> list[str]:
    every = {"avx512": ("avx512", "avx2", "portable"), "avx2": ("avx2", "portable"), "portable": ("portable",)}
    return list(every[native.instruction_set()])


@pytest.mark.parametrize("isa", instruction_sets())
def test_no_call_reads_or_writes_beyond_its_arrays(built, preloaded, isa):
    told = succeed(
        [sys.executable, str(Path(__file__).with_name("fuzz.py")), str(built), str(SECONDS), "0"],
        LD_PRELOAD=preloaded, ASAN_OPTIONS="detect_leaks=0", ORTHOKERNELS_ISA=isa,
    )  # fmt: skip
    assert told.split()[0] == isa
    counts = dict(zip(told.split()[1::2], map(int, told.split()[2::2]), strict=True))
    assert min(counts["right"], counts["refused"]) > 10
