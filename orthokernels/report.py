"""The HTML page and the JSON file of a study's result, and its pictures from :mod:`orthokernels.montage`.

Whatever a DICOM header says is text from outside: it is escaped in HTML and never names a path.
PyTorch is not needed here.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from orthokernels import tasks
from orthokernels.data.study import LeftOut
from orthokernels.montage import montage
from orthokernels.montage_layout import colour, volume_heading
from orthokernels.result import Finding, Plane, StudyResult

__all__ = ["findings_json", "html", "montage"]

_STATUS_ORDER = {"present": 0, "indeterminate": 1, "absent": 2, "not evaluated": 3}
_LONGEST_OPEN_LIST = 6  # files or volumes left out for one reason; a longer list is folded


def html(result: StudyResult, montages: Mapping[Plane, Path]) -> str:
    """One page that needs nothing beside it: no script, no address, pictures inside.

    Args:
        result: what to show.
        montages: PNG file of each plane that has one.

    Returns:
        The page, to be written as UTF-8.
    """
    return _template().render(
        result=result,
        untrained=None if result.model.trained and not result.untrained else result.untrained or tasks.UNTRAINED_NOTICE,
        findings=sorted(result.findings, key=lambda f: _STATUS_ORDER[f.status]),
        counts=_counts(result.findings),
        left_out=_by_reason(result.left_out),
        pictures={p: base64.b64encode(Path(path).read_bytes()).decode() for p, path in montages.items()},
        inferred=_inferred(result),
    )


@functools.cache  # a process that runs many studies compiles it once
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        colour=colour,
        volume_heading=volume_heading,
        research_notice=tasks.RESEARCH_NOTICE,
        plane_names=tasks.PLANES,
        longest_open_list=_LONGEST_OPEN_LIST,
    )
    return environment.get_template("report.html")


def _counts(findings: Sequence[Finding]) -> str:
    statuses = [f.status for f in findings]
    return ", ".join(f"{statuses.count(s)} {s}" for s in _STATUS_ORDER if s in statuses)


def _by_reason(left_out: Sequence[LeftOut]) -> dict[str, list[str]]:
    """What was left out, by reason, in the order in which the reasons first came up."""
    reasons: dict[str, list[str]] = {}
    for item in left_out:
        reasons.setdefault(item.reason, []).append(item.what)
    return reasons


def _inferred(result: StudyResult) -> bool:
    """Whether a name shown is our reading of a published abbreviation or class."""
    shown = {f.label for f in result.findings}
    labels = [x for x in tasks.LABELS.get(result.joint, ()) if x.key in shown]
    keys = {s.key for p in result.planes for s in p.structures}
    structures = [x for x in tasks.STRUCTURES if x.key in keys]
    return any(x.inferred for x in labels) or any(x.inferred for x in structures)


def findings_json(result: StudyResult) -> str:
    """The result as indented JSON, keys in the schema's order.

    Raises:
        ValueError: if a number is not finite, which JSON cannot say.
    """
    return json.dumps(result.model_dump(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
