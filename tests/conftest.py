"""Where tests find the real images, which are not in the repository; and how kernels run in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Kernels are interpreted, on the CPU. Triton reads this when it is first imported, and torch imports it too, so it
# stands before everything else.
os.environ["TRITON_INTERPRET"] = "1"

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real MR images and odd files; tests that need it skip where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real MR images (../shared/data beside the checkout) are absent")
    return REAL_DATA
