"""Where the CUDA C++ sources are, and their text."""

from __future__ import annotations

import functools
import re
from pathlib import Path

_INSTALLED = Path(__file__).parents[2] / "csrc" / "cuda"
_CHECKOUT = Path(__file__).parents[3] / "csrc" / "cuda"

# What NVRTC and nvcc are told alike.
OPTIONS = ("-std=c++17",)


def folder() -> Path:
    """The folder of the sources: of the installed package, or of the checkout that is installed as editable."""
    for found in (_INSTALLED, _CHECKOUT):
        if (found / "denoise_step.cu").is_file():
            return found
    raise FileNotFoundError(f"The CUDA sources are neither in {_INSTALLED} nor in {_CHECKOUT}. Install anew.")


@functools.cache
def text(op: str) -> str:
    """An op's source with its own headers put in, each once.

    CuPy's cache of compiled kernels goes by the text it is given: a header that it did not see could change unnoticed.
    """
    return _with_headers(f"{op}.cu", set())


def _with_headers(name: str, seen: set[str]) -> str:
    if name in seen:
        return ""
    seen.add(name)
    own = (folder() / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
    return re.sub(r'^#include "(.+)"$', lambda found: _with_headers(found[1], seen), own, flags=re.MULTILINE)
