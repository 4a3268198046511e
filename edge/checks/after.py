"""Checks after inference: could these label maps be a joint, and the one that the headers name?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from orthokernels.edge.checks.check import Check, Verdict, within
from orthokernels.edge.checks.measures import StructureMeasures, lateral_offset, measure
from orthokernels.edge.checks.ranges import StructureRange, read_ranges, widened

from orthokernels.bundle.novelty_tables import DOUBTFUL_ABOVE
from orthokernels.novelty import Novelty
from orthokernels.pipeline import StudyRun

# Patients vary more than phantoms: in 27 healthy men cartilage of the knee took 16.6 to 31.4 ml (Eckstein et al. 2001,
# PubMed 11237657), almost 1 : 2. A volume may be half the smallest phantom's or twice the largest's, a share half.
MARGIN = 2.0

# Every knee has these, in every plane. Ligaments and menisci may be torn off or taken out, cartilage worn away, and
# patella and fibula may lie outside the slices: without them a result is doubtful, not impossible.
_ALWAYS = frozenset({"femur", "tibia"})

# Menisci lie 40 mm apart, side by side. Nearer than this along the patient's width they do not tell the side.
_SIDE_BY_SIDE_MM = 10.0

# So many times as far from the known studies as the farthest of these, a study is of another kind: not this joint, not
# this contrast, or not an image that the model was made for.
_FAR = 10.0


def check_result(run: StudyRun) -> list[Check]:
    """Check the label maps of a knee: volumes, connected components, neighbours, and the side.

    Other joints have no label maps; for them nothing is checked.
    """
    checks: list[Check] = []
    for plane, (labels, affine) in run.label_maps.items():
        names = run.arrays[plane].names
        measured = measure(labels, affine, names)
        for name, usual in read_ranges().structures[plane].items():
            if name in measured:
                checks += _structure(plane, name, measured[name], usual)
        checks.append(_side(plane, lateral_offset(labels, affine, names), run.result.laterality))
    return checks


def check_novelty(
    run: StudyRun, known: Mapping[str, Novelty], *, doubtful_above: float = DOUBTFUL_ABOVE
) -> list[Check]:
    """Check how unlike the known studies each plane's pooled features are.

    Args:
        run: with the planes' vectors.
        known: what is known of each plane, from the bundle; other planes are not checked.
        doubtful_above: percentile; of studies like the known ones, 100 minus this many percent are doubted (or, where
            fewer than 100 calibrated, one in as many as did).
    """
    return [
        _likeness(plane, known[plane], vector, doubtful_above)
        for plane, vector in run.vectors.items()
        if plane in known
    ]


def _likeness(plane: str, known: Novelty, vector: np.ndarray, doubtful_above: float) -> Check:
    score, times = known.score(vector), known.times_farthest(vector)
    verdict: Verdict = "failed" if times > _FAR else "doubtful" if score > doubtful_above else "passed"
    reason = f"{plane}: more unlike the known studies than {score:.0f} % of these are"
    if verdict == "failed":
        reason = f"{plane}: {times:.0f} times as unlike the known studies as the most unlike of these"
    return Check(
        "likeness to known studies", verdict, reason, plane, measured=score, allowed=(0.0, doubtful_above)
    )  # fmt: skip


def _structure(plane: str, name: str, found: StructureMeasures, usual: StructureRange) -> Iterator[Check]:
    severe: Verdict = "failed" if name in _ALWAYS else "doubtful"
    yield within("volume", found.ml, widened(usual.ml, MARGIN), " ml", otherwise=severe, plane=plane, structure=name)
    if found.ml == 0:
        return
    for what, share, least in (
        ("share in one piece", found.largest_share, usual.largest_share),
        ("share that touches its neighbour", found.touching_share, usual.touching_share),
    ):
        if share is not None and least is not None:
            yield within(what, share, (least / MARGIN, 1.0), "", otherwise=severe, plane=plane, structure=name)


def _side(plane: str, offset: float | None, header: str | None) -> Check:
    """Which knee the menisci show, against what the header says."""
    if offset is None or abs(offset) < _SIDE_BY_SIDE_MM:
        return Check("left and right", "doubtful", f"{plane}: the menisci do not show which knee it is", plane)
    shown = "R" if offset > 0 else "L"
    where = f"{plane}: the lateral meniscus lies {abs(offset):.0f} mm to the patient's "
    where += (
        f"{'right' if offset > 0 else 'left'} of the medial one, as in a {'right' if shown == 'R' else 'left'} knee"
    )
    if header not in ("L", "R"):
        return Check("left and right", "passed", f"{where}; the headers do not say", plane, measured=offset)
    verdict: Verdict = "passed" if shown == header else "failed"
    return Check("left and right", verdict, f"{where}; the headers say {header}", plane, measured=offset)
