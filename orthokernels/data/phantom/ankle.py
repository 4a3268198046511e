"""An ankle to scan: its anatomy with findings, and how a clinic plans the three series."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from orthokernels.data.phantom.ankle_anatomy import healthy_ankle
from orthokernels.data.phantom.ankle_findings import add_findings, confound
from orthokernels.data.phantom.solids import Scene

FIELD_OF_VIEW = 156.0

# Where each series is aimed in the ankle's frame, and its slices: number, distance and thickness in mm.
AIMS = {"sagittal": (1.0, 2.0, -18.0), "coronal": (0.0, -8.0, -18.0), "axial": (0.0, 0.0, -12.0)}
SLICES = {"sagittal": (24, 3.4, 3.0), "coronal": (28, 3.8, 3.4), "axial": (28, 3.8, 3.4)}


def draw_ankle(rng: np.random.Generator, findings: Mapping[str, bool] | None = None) -> Scene:
    """An ankle of its own size, shape and flexion, with findings.

    Args:
        rng: draws the ankle. Findings have generators of their own, so that the ankle is the same without them.
        findings: of the keys of ``tasks.LABELS["ankle"]``; those left out are absent.

    Raises:
        KeyError: for a finding that an ankle cannot have.
    """
    for_joint, for_scene, for_confounders, for_findings = rng.spawn(4)
    blueprint, foot = healthy_ankle(for_joint)
    confound(blueprint, foot, for_confounders)
    add_findings(blueprint, foot, findings or {}, for_findings)
    return blueprint.scene(for_scene)
