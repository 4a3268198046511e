"""Weights as the native convolutions read them, kept for the next call with the same ones.

At most ORTHOKERNELS_PACKED_MB are kept, 1,024 unless the environment says otherwise; 0 keeps none. Transformed weights
are up to eight times as large as they were. A network calls its convolutions in turn, so that of weights just beyond
the limit the one used longest ago would always be the next one needed: where there is no room, newcomers are not kept,
unless something was not used for many calls. ``PACKED.clear()`` lets go of all.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orthokernels.backends.cpu.kept_memory import megabytes_told

# Calls after which what was not used gives way: more than a pass through three planes' networks has.
_MANY_CALLS = 512


@dataclass
class _Packed:
    weight: Tensor  # a copy: whether the weights are still these is asked of their values
    convolution: Any
    bytes: int
    used: int  # the call that used it last


class PackedWeights:
    """Packed convolutions by a key, the one used last at the end."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._packed: OrderedDict[Hashable, _Packed] = OrderedDict()
        self._calls = 0
        self.begin()

    def begin(self) -> None:
        """With nobody looking."""
        self._lock = threading.Lock()

    def find(self, key: Hashable, weight: Tensor) -> Any | None:
        """What was packed of these very weights, or None."""
        with self._lock:
            self._calls += 1
            found = self._packed.get(key)
            if found is None or not torch.equal(found.weight, weight):
                return None
            found.used = self._calls
            self._packed.move_to_end(key)
            return found.convolution

    def add(self, key: Hashable, weight: Tensor, convolution: Any) -> None:
        """Keep what was packed of weights, in place of others with their key, if there is room."""
        size = convolution.weight_bytes + weight.numel() * weight.element_size()
        with self._lock:
            self._packed.pop(key, None)
            while self._packed and self.bytes + size > self.most_bytes:
                oldest = next(iter(self._packed))
                if self._packed[oldest].used > self._calls - _MANY_CALLS:
                    return
                del self._packed[oldest]
            if size <= self.most_bytes:
                own = weight.detach().clone(memory_format=torch.contiguous_format)
                self._packed[key] = _Packed(own, convolution, size, self._calls)

    @property
    def bytes(self) -> int:
        """How much is kept."""
        return sum(kept.bytes for kept in self._packed.values())

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._packed.clear()


PACKED = PackedWeights(megabytes_told("ORTHOKERNELS_PACKED_MB"))
if hasattr(os, "register_at_fork"):  # another thread may hold the lock then, and is not in the child
    os.register_at_fork(after_in_child=PACKED.begin)
