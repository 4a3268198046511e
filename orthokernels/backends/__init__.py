"""Who can compute an op, and why one can not. A backend is imported only when it is first asked for."""

from __future__ import annotations

from orthokernels.backends.registry import Backend, backends

__all__ = ["Backend", "backends"]
