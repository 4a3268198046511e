"""The model card of trained weights: what they are, what they were made from, how good they are and where they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orthokernels.models.orthodiffusion.weights import Weights
from orthokernels.tasks import LABELS, PLANES, RESEARCH_NOTICE, STRUCTURES


def model_card(
    weights: Mapping[str, Weights],
    evaluations: Mapping[str, Mapping[str, Any]],
    *,
    title: str,
    about: Sequence[str],
    facts: Mapping[str, str],
    remarks: str = "",
) -> str:
    """The card as Markdown.

    Args:
        weights: the same folder loaded for each joint.
        evaluations: what ``evaluate`` gives, by joint.
        title: of the page.
        about: paragraphs that say what the weights are.
        facts: rows of the table of settings: data, command, time, versions.
        remarks: Markdown from people who looked at the results.
    """
    parts = [f"# {title}", *about, f"**{RESEARCH_NOTICE}**", _facts(weights, facts)]
    knee = evaluations.get("knee", {})
    if "mean_dice" in knee:
        parts += ["## Segmentation", _dice_table(knee)]
    for joint, found in evaluations.items():
        if "macro_auroc" in found:
            parts += [f"## Findings of the {joint}", _findings_table(joint, found)]
    if remarks:
        parts.append(remarks.strip())
    return "\n\n".join(parts) + "\n"


def write_card(path: Path, text: str) -> None:
    """Write the card in one piece."""
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _facts(weights: Mapping[str, Weights], facts: Mapping[str, str]) -> str:
    digests = {f"digest, {joint}": f"`{own.digest()}`" for joint, own in weights.items()}
    parameters = sum(p.numel() for m in next(iter(weights.values())).modules().values() for p in m.parameters())
    rows = {**facts, "parameters, knee": f"{parameters:,}", **digests}
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _dice_table(found: Mapping[str, Any]) -> str:
    """Dice by structure and plane with intervals, the mean last."""
    planes = [plane for plane in PLANES if plane in found["dice"]]
    lines = ["Dice on the native grid, mean over test series that show the structure, with its 95 % interval.", ""]
    lines += [f"| structure | {' | '.join(planes)} |", "|---|" + "---|" * len(planes)]
    intervals = found.get("intervals", {})
    for structure in STRUCTURES:
        cells = [
            _cell(found["dice"][plane].get(structure.key), intervals.get("dice", {}).get(plane, {}).get(structure.key))
            for plane in planes
        ]
        lines.append(f"| {structure.name} | {' | '.join(cells)} |")
    means = [
        _cell(found["mean_dice_by_plane"].get(plane), intervals.get("mean_dice_by_plane", {}).get(plane))
        for plane in planes
    ]
    return "\n".join([*lines, f"| **mean** | {' | '.join(means)} |"])


def _findings_table(joint: str, found: Mapping[str, Any]) -> str:
    """AUROC by label with intervals, the mean last, and what single planes reach."""
    intervals = found.get("intervals", {})
    lines = [
        "Area under the ROC curve of the fused planes, with its 95 % interval.",
        "",
        "| finding | AUROC |",
        "|---|---|",
    ]
    for label in LABELS[joint]:
        lines.append(
            f"| {label.name} | {_cell(found['auroc'].get(label.key), intervals.get('auroc', {}).get(label.key))} |"
        )
    lines.append(f"| **mean** | {_cell(found['macro_auroc'], intervals.get('macro_auroc'))} |")
    for plane, area in found.get("single_plane", {}).items():
        lines.append(f"| mean, {plane} plane alone | {_cell(area, intervals.get('single_plane', {}).get(plane))} |")
    return "\n".join(lines)


def _cell(value: float | None, interval: Sequence[float | None] | None) -> str:
    if value is None:
        return "not in the test set"
    if not interval or interval[0] is None or interval[1] is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
