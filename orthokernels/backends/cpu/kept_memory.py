"""Memory of large results, kept for the next one.

The C library takes what is above 32 MiB from the system as a rule, and gives it back as soon as nobody holds it. Memory
that a process never had comes a page at a time: 256 MiB can take longer than the op that fills them (bench/NOTES.md,
Fresh memory). So results of that size lie in memory of our own: the last tensor that holds it returns it, and the next
result of the same size gets it. At most ORTHOKERNELS_KEPT_MB are kept, 1,024 unless the environment says otherwise; 0
keeps nothing.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orthokernels.errors import InputError

Buffer = npt.NDArray[np.uint8]

LEAST_BYTES = 2**25  # glibc's malloc keeps smaller results by itself, once it has seen a few
_LARGE_PAGE = 2**21


class KeptMemory:
    """Buffers that are free, the one that came last at the end.

    Tensors may die in any thread and at any moment, also while this very thread looks for a buffer: what comes back
    then is not kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.begin()

    def begin(self) -> None:
        """With nothing free; what is lent comes back here all the same."""
        self._free: list[Buffer] = []
        self._lock = threading.Lock()

    def takes(self, x: Tensor, bytes_of_result: int) -> bool:
        """Whether a result beside x is to lie here; a traced or wrapped tensor has no memory."""
        return type(x) is Tensor and x.device.type == "cpu" and LEAST_BYTES <= bytes_of_result <= self.most_bytes

    def empty(self, shape: Sequence[int], dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
        """A tensor that is no view, with anything in it.

        Raises:
            MemoryError: there is none.
        """
        size = _LARGE_PAGE * math.ceil(math.prod(shape) * dtype.itemsize / _LARGE_PAGE)
        buffer = self._take(size)
        if buffer is None:
            buffer = self._new(size)
        lent = buffer[:]  # an object of its own: it ends with the tensors that share it
        weakref.finalize(lent, self._take_back, buffer).atexit = False
        storage = torch.from_numpy(lent).untyped_storage()
        stride = torch.empty(shape, device="meta", memory_format=memory_format).stride()
        return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, torch.Size(shape), stride)

    @property
    def bytes(self) -> int:
        """How much is free."""
        return sum(buffer.size for buffer in self._free)

    def clear(self) -> None:
        """Give back all that is free."""
        with self._lock:
            self._free.clear()

    def _take(self, size: int) -> Buffer | None:
        with self._lock:
            for place in range(len(self._free) - 1, -1, -1):
                if self._free[place].size == size:
                    return self._free.pop(place)
        return None

    def _new(self, size: int) -> Buffer:
        """Whole large pages, which native code asks for before it writes."""
        try:
            room = np.empty(size + _LARGE_PAGE, np.uint8)
        except MemoryError:
            self.clear()
            room = np.empty(size + _LARGE_PAGE, np.uint8)
        first = -room.ctypes.data % _LARGE_PAGE
        return room[first : first + size]

    def _take_back(self, buffer: Buffer) -> None:
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._free.append(buffer)
            while self.bytes > self.most_bytes:
                self._free.pop(0)
        finally:
            self._lock.release()


def megabytes_told(variable: str) -> int:
    """A limit that the environment tells in megabytes, in bytes; 1,024 of them where it does not.

    Raises:
        InputError: it is no number.
    """
    told = os.environ.get(variable, "1024")
    if not told.isdecimal():
        raise InputError(f"{variable}: {told!r} is no number of megabytes. Set one, or 0 to keep nothing.")
    return 2**20 * int(told)


KEPT = KeptMemory(megabytes_told("ORTHOKERNELS_KEPT_MB"))
if hasattr(os, "register_at_fork"):  # another thread may hold the lock then, and is not in the child
    os.register_at_fork(after_in_child=KEPT.begin)
