"""A shoulder to scan: its anatomy with findings, and how a clinic plans the three series."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from orthokernels.data.phantom.shoulder_anatomy import healthy_shoulder
from orthokernels.data.phantom.shoulder_findings import add_findings, confound
from orthokernels.data.phantom.solids import Scene

FIELD_OF_VIEW = 160.0

# Where each series is aimed in the scapula's frame, and its slices: number, distance and thickness in mm.
AIMS = {"sagittal": (-10.0, 0.0, -4.0), "coronal": (-12.0, 0.0, -4.0), "axial": (-12.0, 2.0, 2.0)}
SLICES = {"sagittal": (26, 3.8, 3.4), "coronal": (24, 3.6, 3.2), "axial": (26, 3.8, 3.4)}


def draw_shoulder(rng: np.random.Generator, findings: Mapping[str, bool] | None = None) -> Scene:
    """A shoulder of its own size and shape, with findings.

    Args:
        rng: draws the shoulder. Findings have generators of their own, so that the shoulder is the same without them.
        findings: of the keys of ``tasks.LABELS["shoulder"]``; those left out are absent.

    Raises:
        KeyError: for a finding that a shoulder cannot have.
    """
    for_joint, for_scene, for_confounders, for_findings = rng.spawn(4)
    blueprint, variation = healthy_shoulder(for_joint)
    confound(blueprint, variation, for_confounders)
    add_findings(blueprint, variation, findings or {}, for_findings)
    return blueprint.scene(for_scene)
