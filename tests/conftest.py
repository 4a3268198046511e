"""Where tests find the real images, which are not in the repository; and how kernels run in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Kernels are interpreted, on the CPU. Triton reads this when it is first imported, and torch imports it too, so it
# stands before everything else.
os.environ["TRITON_INTERPRET"] = "1"

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"

# Files of minutes, about the longest first. They are begun first, so that at the end no process waits for another.
LONG = (
    "csrc/test_sanitizers.py", "bench/test_compile.py", "runtime/test_fresh_environment.py", "ops/test_attention3d.py",
    "export/test_make.py", "ops/test_plane_fusion.py", "ops/test_group_norm_silu.py", "runtime/test_bundle_run.py",
    "export/test_graphs.py", "bench/test_gpu_suites.py", "test_pipeline.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = {item.path: item.path.as_posix() for item in items}
    items.sort(key=lambda item: next((n for n, own in enumerate(LONG) if names[item.path].endswith(own)), len(LONG)))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real MR images and odd files; tests that need it skip where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real MR images (../shared/data beside the checkout) are absent")
    return REAL_DATA
