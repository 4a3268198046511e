"""What native results ask of the kernel: large pages, since fresh memory otherwise comes 4 KiB at a time."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

native = pytest.importorskip("orthokernels._native")


def advised(address: int) -> bool:
    """Whether large pages were asked for where an address lies."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        span, _, _ = line.partition(" ")
        if span[-1] != ":":
            first, last = (int(bound, 16) for bound in span.split("-"))
            inside = first <= address < last
        elif inside and span == "VmFlags:":
            return "hg" in line.split()
    pytest.skip("this kernel does not tell what was asked of a mapping")


@pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked of Linux")
@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="this kernel has no transparent huge pages"
)
@pytest.mark.parametrize(("voxels", "expected"), [(2**18, True), (2**12, False)], ids=["8 MiB", "128 KiB"])
def test_a_large_result_lies_on_large_pages(voxels, expected):
    memory = mmap.mmap(-1, 32 * voxels, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    y = np.frombuffer(memory, np.float32).reshape(1, 2, 2, 2 * voxels, 1)
    middle = y.ctypes.data + y.nbytes // 2
    assert not advised(middle)
    native.upsample2x_trilinear(np.ones((1, 1, 1, voxels, 1), np.float32), y)
    assert advised(middle) is expected
    assert (y == 1).all()
