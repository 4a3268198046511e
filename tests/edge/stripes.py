"""The threshold worker with a result that the page can show: structures are stripes of the image's brighter half."""

from __future__ import annotations

import numpy as np
from orthokernels.edge.checks.check import Check
from orthokernels.edge.runner import Request, serve
from orthokernels.edge.viewing import keep_abstention, keep_images, keep_result

from tests.edge.results import NAMES, true_run
from tests.edge.threshold import Threshold

CHECKS = (
    Check("body part", "passed", "the header says KNEE"),
    Check("contrast", "doubtful", "sagittal: it may be <b>anything</b>"),
)


class Stripes(Threshold):
    def evaluate(self, request: Request, tell, writing) -> None:
        super().evaluate(request, tell, writing)
        run = true_run(list(request.sources), stripes)
        objects = sorted(request.out.glob("*.dcm"))
        keep_images(run.arrays, objects, request.out, untrained=bool(run.result.untrained))
        keep_result(run.result, CHECKS, objects, request.out)

    def abstain(self, request: Request) -> None:
        super().abstain(request)
        keep_abstention(sorted(request.out.glob("*.dcm")), request.out)


def stripes(volume) -> np.ndarray:
    voxels = volume.voxels
    number = 1 + np.arange(voxels.shape[0]) * (len(NAMES) - 1) // voxels.shape[0]
    return np.where(voxels > np.median(voxels), number[:, None, None], 0).astype(np.uint8)


if __name__ == "__main__":
    serve(Stripes)
