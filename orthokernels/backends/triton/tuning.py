"""Which of several settings of a kernel is fastest on a device: tried once, kept on disk.

Nothing is tried unless ORTHOKERNELS_TUNE=1: a first call then costs what later ones do, and a sum has the same order on
every device. With it, the first call of a new kind times every candidate and writes the best to
<cache>/tuning/<device>.json, by Triton's version; from then on every process uses it, with the variable or without.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import torch
import triton

from orthokernels.errors import InputError
from orthokernels.folders import add_to_table, cache_folder, read_table

Setting = dict[str, int]


def setting(
    op: str,
    kind: Sequence[Hashable],
    candidates: Sequence[Setting],
    device: torch.device,
    run: Callable[[Setting], object],
) -> Setting:
    """The candidate to run with: the fastest that was found on this device, or the first.

    Args:
        op: whose kernel it is.
        kind: all that the best candidate depends on besides the device: sizes, dtype, memory format.
        candidates: the default first.
        run: launches the kernel with a candidate; called only to time it. One that fails is no candidate.
    """
    if device.type != "cuda" or len(candidates) == 1:
        return candidates[0]
    # Looking it up costs more host time than a launch: once for each kind, and again where tuning is switched on.
    index = torch.cuda.current_device() if device.index is None else device.index
    key = (op, *kind, index, os.environ.get("ORTHOKERNELS_TUNE"))
    if key not in _chosen:
        file = _file(torch.cuda.get_device_name(index))
        _chosen[key] = candidates[0] if file is None else _found(op, kind, candidates, file, run)
    return _chosen[key]


_chosen: dict[tuple[Hashable, ...], Setting] = {}


def _found(
    op: str, kind: Sequence[Hashable], candidates: Sequence[Setting], file: Path, run: Callable[[Setting], object]
) -> Setting:
    name = " ".join(map(str, (triton.__version__, op, *kind)))
    known = read_table(file).get(name)
    if known is not None and known in candidates:  # not one that an earlier version of the package knew
        return known
    if os.environ.get("ORTHOKERNELS_TUNE") != "1":
        return candidates[0]
    times = {place: _milliseconds(run, candidate) for place, candidate in enumerate(candidates)}
    place = min(times, key=lambda place: times[place])
    if times[place] < float("inf"):  # where every one failed, a later process may do better
        add_to_table(file, name, candidates[place])
    return candidates[place]


def _milliseconds(run: Callable[[Setting], object], candidate: Setting) -> float:
    """Median time of a candidate; infinite where it does not compile or wants more than the device has."""
    try:
        return float(triton.testing.do_bench(lambda: run(candidate), return_mode="median"))
    except (RuntimeError, triton.runtime.errors.OutOfResources, triton.compiler.CompilationError):
        return float("inf")


def _file(device: str) -> Path | None:
    """A device's table; None where there is no folder for one."""
    try:
        return cache_folder() / "tuning" / f"{re.sub(r'[^A-Za-z0-9]+', '-', device)}.json"
    except InputError:
        return None
