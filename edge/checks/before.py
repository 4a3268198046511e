"""Checks before inference, on headers alone: is this the joint, seen as the model was taught to see it?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from orthokernels.edge.checks.check import Check, Verdict, within
from orthokernels.edge.checks.ranges import Range, read_ranges, widened

from orthokernels import tasks
from orthokernels.data.contrast import contrast_name, fluid_sensitive
from orthokernels.data.geometry import plane_of, slice_axis, spacing
from orthokernels.data.study import Stack, Study

# What ranges.json holds is how phantoms are acquired. Clinics vary more: the Osteoarthritis Initiative, for one, takes
# 140 to 160 mm of field of view and slices 0.7 to 3 mm apart (PMC5871621, table 1).
ACQUISITION_MARGIN = 1.5

# DICOM's terms (PS3.16 annex L) for parts that a joint is sometimes filed under.
_WIDER_PARTS = {
    "knee": {"LEG", "EXTREMITY", "LOWEREXTREMITY", "LOWERLIMB", "PATELLA"},
    "ankle": {"LEG", "FOOT", "EXTREMITY", "LOWEREXTREMITY", "LOWERLIMB", "ANKLEJOINT"},
    "shoulder": {"ARM", "EXTREMITY", "UPPEREXTREMITY", "UPPERLIMB", "HUMERUS", "SCAPULA", "ACJOINT"},
}


def check_study(study: Study, joint: str) -> list[Check]:
    """Check the volume that would stand for each plane.

    Args:
        study: what ``read_study`` found; nothing is decoded.
        joint: "knee", "ankle" or "shoulder".
    """
    chosen = {plane: stacks[0] for plane, stacks in study.stacks.items() if stacks}
    return [
        *_planes(chosen),
        *(_body_part(plane, stack, joint) for plane, stack in chosen.items()),
        _laterality(list(chosen.values()), study.elsewhere),
        *(check for plane, stack in chosen.items() for check in _acquisition(plane, stack, joint)),
    ]


def _planes(chosen: dict[str, Stack]) -> Iterator[Check]:
    for plane in tasks.PLANES:
        if plane in chosen:
            yield Check("plane", "passed", f"{plane}: there is a volume", plane)
        else:
            # Which planes a study must have is for the model to say: findings then rest on those that are there.
            yield Check("plane", "doubtful" if chosen else "failed", f"{plane}: there is no volume", plane)


def _body_part(plane: str, stack: Stack, joint: str) -> Check:
    part = stack.source.body_part
    term = "".join(c for c in (part or "").upper() if c.isalpha())
    if not term:
        return Check("body part", "doubtful", f"{plane}: the header names no body part", plane)
    if joint.upper() in term:
        return Check("body part", "passed", f"{plane}: the header says {part}", plane)
    if term in _WIDER_PARTS[joint]:
        return Check("body part", "doubtful", f"{plane}: the header says {part}, which may be a {joint} or not", plane)
    return Check("body part", "failed", f"{plane}: the header says {part}, not {joint}", plane)


def _laterality(chosen: list[Stack], elsewhere: list[Stack]) -> Check:
    named = {stack.source.laterality for stack in (*chosen, *elsewhere)}
    sides = [side for side in ("L", "R") if side in named]
    if len(sides) > 1:
        return Check("laterality", "failed", "the headers name both sides, so they show two joints or one is wrong")
    if len({plane_of(stack.affine, stack.source.kind)[0] for stack in elsewhere}) >= len(chosen):
        # Which of them to read would be chance.
        return Check("laterality", "failed", "the volumes lie too far apart to show one joint")
    if elsewhere:
        return Check("laterality", "doubtful", f"volumes that lie too far off to show this joint: {len(elsewhere)}")
    if not sides:
        return Check("laterality", "doubtful", "the headers do not say which side it is")
    return Check("laterality", "passed", f"the headers say {sides[0]}")


def _acquisition(plane: str, stack: Stack, joint: str) -> Iterator[Check]:
    """Contrast and extent. Stacks of fewer than 16 slices are no volumes, and ``read_study`` leaves them out."""
    source = stack.source
    bright: Verdict = "passed" if fluid_sensitive(source) else "doubtful"
    yield Check("contrast", bright, f"{plane}: {source.description} is {contrast_name(source)}", plane)
    axis = slice_axis(stack.affine, source.kind)
    sizes = spacing(stack.affine)
    usual = read_ranges().acquisition[joint][plane]
    across = [n * mm for a, (n, mm) in enumerate(zip(stack.shape, sizes, strict=True)) if a != axis]
    extents: tuple[tuple[str, float, Range, Verdict], ...] = (
        ("slice distance", sizes[axis], usual.slice_distance, "doubtful"),
        ("smallest side of a slice", min(across), (usual.field_of_view[0], np.inf), "failed"),
        # Beyond this both legs lie in one picture.
        ("largest side of a slice", max(across), (0.0, usual.field_of_view[1]), "failed"),
        ("depth of the stack", stack.shape[axis] * sizes[axis], (usual.depth[0], np.inf), "failed"),
    )
    for name, measured, allowed, otherwise in extents:
        yield within(name, measured, widened(allowed, ACQUISITION_MARGIN), " mm", otherwise=otherwise, plane=plane)
