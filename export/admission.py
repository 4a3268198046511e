"""Which forms stay in a bundle, and which of its graphs in each: what loses too much on the judged studies goes back.

A form that does not hold the gate is tried again with graphs in fp32, those first that lose most where they were looked
at: the diagnosis features, whose maxima and percentiles feel single voxels; then heads and fusion; then what segments.
Where a plane's own head alone loses too much, that plane's go back, and the others' only if that is not enough.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product
from typing import Any

from orthokernels.export.bundle import Draft, finish
from orthokernels.export.gate import LEAST_STUDIES
from orthokernels.export.parity import Checked, check, refusals_of, verdict

from orthokernels.bundle.manifest import FORMS, Form, PlaneGraphs, Refusal
from orthokernels.bundle.verify import verify
from orthokernels.errors import InputError
from orthokernels.progress import Progress
from orthokernels.tasks import PLANES
from orthokernels.training.records import Record

# A plane's graphs in the order in which they go back; a joint's fusions go with its heads.
_ORDER = (("diagnosis_features", "pooling"), ("head",), ("segmentation_features",), ("segmentation",))

Records = Mapping[str, Sequence[Record]]


def admit(
    made: Draft, records: Records, *, workers: int, tell: Progress,
    judged: Callable[[dict[str, Any]], None] = lambda found: None,
) -> tuple[Checked, list[Refusal]]:  # fmt: skip
    """Check every form, and take back or drop what loses too much.

    Args:
        made: finished once; what is dropped is gone from it, and its manifest is of before.
        records: series by joint that decide.
        judged: called with the check of all forms, before any goes back.

    Returns:
        The check, with the figures of what is left; and the forms that were dropped.

    Raises:
        InputError: fp32 itself does not agree with the reference.
    """
    checked = check(verify(made.folder), records, workers=workers, tell=tell)
    found = checked.result
    judged(found)
    for form in FORMS:
        if form != "fp32" and form in found["forms"] and not found["forms"][form]["admitted"]:
            _take_back(made, found, form, records, workers, tell)
    refused = refusals_of(found)
    for own in refused:
        if own.form != "fp32":
            made.drop(own.form)
        elif not _too_few(found):
            raise InputError(f"the exported graphs do not agree with the reference: {own.reason}. Nothing was kept.")
    return checked, [own for own in refused if own.form != "fp32"]


def _too_few(found: Mapping[str, Any]) -> bool:
    return min(own["reference"]["studies"] for own in found["joints"].values()) < LEAST_STUDIES


def _take_back(made: Draft, found: dict[str, Any], form: Form, records: Records, workers: int, tell: Progress) -> None:
    """Drop a form's graphs group by group until it holds the gate, or nothing of it is left to judge."""
    for all_planes, kinds in product((False, True), _ORDER):
        failing = _failing(found, form)
        if _too_few(found) or not failing:
            return
        graphs = {
            name
            for joint, planes in failing.items()
            for name in _graphs(made, joint, kinds, PLANES if all_planes else planes)
        }
        taken = made.drop(form, graphs)
        if not taken:
            continue
        made.note(form, taken, f"with it in {form}, {'; '.join(found['forms'][form]['reasons'])}")
        finish(made)
        concerned = {joint: own for joint, own in records.items() if _uses(made, joint, taken)}
        again = check(verify(made.folder), concerned, forms=(form,), workers=workers, tell=tell).result
        _put_in(found, again, form)


def _failing(found: Mapping[str, Any], form: Form) -> dict[str, set[str]]:
    """Joints in which the form loses too much, and of which planes: of the one whose own head does, else of all."""
    failing: dict[str, set[str]] = {}
    for what, share in found["forms"][form]["used"].items():
        if share > 1:
            joint, plane = what.partition(",")[0], what.rpartition(" by ")[2].removesuffix(" head")
            failing.setdefault(joint, set()).update({plane} if plane in PLANES else PLANES)
    return failing


def _graphs(made: Draft, joint: str, kinds: Sequence[str], planes: Collection[str] = PLANES) -> set[str]:
    own: Mapping[str, PlaneGraphs] = made.plan.planes[joint]
    found = {name for plane in own.keys() & planes for kind in kinds if (name := getattr(own[plane], kind)) is not None}
    fusions = {one[joint] for one in (made.plan.fusion, made.plan.late_fusion) if joint in one}
    return found | fusions if "head" in kinds and set(PLANES) <= set(planes) else found


def _uses(made: Draft, joint: str, graphs: Sequence[str]) -> bool:
    return any(_graphs(made, joint, kinds) & set(graphs) for kinds in _ORDER)


def _put_in(found: dict[str, Any], again: Mapping[str, Any], form: Form) -> None:
    """Replace a form's figures by those of a second check of some joints, and judge it anew."""
    for joint, contenders in again["joints"].items():
        found["joints"][joint] |= {name: own for name, own in contenders.items() if name.split()[0] == form}
    found["forms"][form] = verdict(form, found["joints"])
