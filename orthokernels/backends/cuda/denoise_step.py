"""A sampler's step in CUDA C++: ``csrc/cuda/denoise_step.cu``."""

from __future__ import annotations

import math
from typing import Any

from orthokernels.backends.cuda.launch import THREADS, TYPES, launch, pointer, type_of, wrong_type


def forward(
    x: Any,
    output: Any,
    coefficients: Any,
    previous: Any | None,
    threshold: Any | None,
    seed: Any | None,
    step: int,
    clip: float | None,
    found: Any,
    x0: Any | None,
) -> None:
    """Write the next volume, and x0 where it is wanted; all volumes share one layout."""
    if type_of(output) not in TYPES:
        output = output.float()
    size, types = math.prod(x.shape), (type_of(x), type_of(output))
    volumes = [pointer(volume) for volume in (x, output, previous, found, x0)]
    vectors = all(address % 16 == 0 for address in volumes)
    run = 4 if types == ("float32", "float32") else 8  # a thread's voxels: 16 bytes of the narrower type
    launch(
        "denoise_step", "_".join(types), (-(-size // (run * THREADS)),),
        [*volumes, *map(pointer, (coefficients, threshold, seed)), size, math.prod(x.shape[1:]), step & 0xFFFFFFFF,
         int(vectors), float(clip or 0.0)],
        x,
    )  # fmt: skip


def can_run(x: Any) -> str | None:
    """Why the kernel can not take a volume, or None."""
    return wrong_type(x)
