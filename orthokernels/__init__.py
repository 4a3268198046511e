"""orthokernels: OrthoDiffusion-class 3D diffusion models, made to run, and made to run fast.

``orthokernels.run(paths, out)`` takes a study and gives segmentations and findings; see ``orthokernels.pipeline``.
Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orthokernels.acceleration import accelerate, restore
    from orthokernels.errors import InputError
    from orthokernels.pipeline import run

try:
    __version__ = version("orthokernels")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

__all__ = ["InputError", "__version__", "accelerate", "restore", "run"]


def __getattr__(name: str) -> Any:
    if name == "run":
        from orthokernels.pipeline import run

        return run
    if name in ("accelerate", "restore"):
        from orthokernels import acceleration

        return getattr(acceleration, name)
    if name == "InputError":
        from orthokernels.errors import InputError

        return InputError
    raise AttributeError(f"module 'orthokernels' has no attribute {name!r}")
