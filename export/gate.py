"""What a form of the graphs may lose against fp32, and how much of that it uses up: infinitely much where what it gives
is not finite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from orthokernels.bundle.golden import worst

LEAST_MEAN_DICE = 0.999  # of fp32's mean Dice, as MLPerf's stricter class asks
LARGEST_STRUCTURE_LOSS = 0.005  # of Dice, of any structure
LARGEST_AUROC_LOSS = 0.005  # of any finding
LEAST_STUDIES = 100  # on which the gate is judged

# A few studies can not tell an AUROC. There, the error of a finding's logit is held against its spread over studies.
# On 100 studies, 30 of them positive, with classes that overlap at a density of about 0.25, an error of e spreads
# moves the AUROC by 0.25 e sqrt(1/30 + 1/70) = 0.055 e to either side: by 0.005 for a tenth of the spread.
LARGEST_LOGIT_ERROR = 0.1


def dice_used(dice: Sequence[float | None], fp32: Sequence[float | None]) -> float:
    """The share of what Dice may lose that is lost; above 1 the gate does not hold.

    Args:
        dice, fp32: of each structure; None where it is nowhere.
    """
    pairs = [(own, of) for own, of in zip(dice, fp32, strict=True) if own is not None and of is not None]
    if not pairs:
        return 0.0
    own, of = np.array(pairs).T
    mean = (1 - own.mean() / of.mean()) / (1 - LEAST_MEAN_DICE) if of.mean() > 0 else 0.0
    return worst((float(mean), *(float(loss) / LARGEST_STRUCTURE_LOSS for loss in of - own)))


def auroc_used(auroc: Mapping[str, float | None], fp32: Mapping[str, float | None]) -> float:
    """The same of AUROC, by finding; what fp32 scores and the form can not is lost wholly."""
    lost = float("inf")
    losses = [lost if (own := auroc[key]) is None else of - own for key, of in fp32.items() if of is not None]
    return worst(losses) / LARGEST_AUROC_LOSS


def logits_used(logits: np.ndarray, fp32: np.ndarray, usual: np.ndarray | None = None) -> float:
    """The same of logits [studies, labels]: root mean square error over fp32's spread, in the worst label.

    Args:
        usual: fp32's logits of more studies, which tell the spread better; those of ``fp32`` tell it where it is None.
    """
    error = np.sqrt(np.square(logits.astype(np.float64) - fp32).mean(axis=0))
    spread = np.maximum((fp32 if usual is None else usual).astype(np.float64).std(axis=0), 1e-6)
    return worst((error / spread).tolist()) / LARGEST_LOGIT_ERROR
