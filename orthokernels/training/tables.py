"""Figures on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from orthokernels.tasks import PLANES
from orthokernels.training.labels import HELD_OUT, PERHAPS_SEEN

# Figures of each finding, and what their means are called.
_OF_FINDINGS = (
    ("auroc", "macro_auroc"), ("average_precision", "map"), ("accuracy", "mean_accuracy"), ("f1", "CF1"),
    ("calibration_error", "ece"),
)  # fmt: skip


def print_evaluation(result: Mapping[str, Any]) -> None:
    """Dice by structure and plane, findings by label, and the means, each with its interval."""
    console = Console(highlight=False, emoji=False)
    intervals = result["intervals"]
    trained = "" if result["trained"] else ", UNTRAINED"
    console.print(
        f"{result['weights']}{trained}: {result['studies']} studies of {result['patients']} patients, "
        f"{100 * intervals['level']:g} % intervals from {intervals['draws']} draws of patients"
    )
    if "dice" in result:
        planes = [plane for plane in PLANES if plane in result["dice"]]
        table = Table("Dice", *planes, title_justify="left")
        for structure in result["dice"][planes[0]]:
            cells = [figure(result["dice"][p].get(structure), intervals["dice"][p].get(structure)) for p in planes]
            table.add_row(structure.replace("_", " "), *cells)
        table.add_section()
        by_plane = result["mean_dice_by_plane"], intervals["mean_dice_by_plane"]
        table.add_row("mean", *(figure(by_plane[0][plane], by_plane[1][plane]) for plane in planes))
        console.print(table)
    if "auroc" in result:
        # Two tables, since figures with their intervals are too wide for one on a plain terminal.
        for part in (_OF_FINDINGS[:2], _OF_FINDINGS[2:]):
            table = Table("Finding", *(name.replace("_", " ") for name, _ in part))
            for label in result["auroc"]:
                table.add_row(label, *(figure(result[name][label], intervals[name][label]) for name, _ in part))
            table.add_section()
            table.add_row("all", *(figure(result[name], intervals[name]) for _, name in part))
            console.print(table)
        for plane, area in result.get("single_plane", {}).items():
            console.print(f"{plane} alone: macro AUROC {figure(area, intervals['single_plane'][plane])}")
    for name in ("mean_dice", "macro_auroc", "fusion_gain"):
        if name in result:
            console.print(f"{name.replace('_', ' ')}: {figure(result[name], intervals[name])}")


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same columns."""
    if not rows:
        return
    table = Table(*(str(name).replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else "" if v is None else str(v) for v in row.values()))
    Console(highlight=False, emoji=False).print(table)


def print_labels(rows: Sequence[Mapping[str, Any]], metric: str, baseline: str) -> None:
    """A label-efficiency comparison: a row for each share of the labels, a column for each method.

    Below a method's value stands by how much it beats the method ``baseline``, where that is compared.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    table = Table("labels", *methods)
    for share in sorted({row["share"] for row in rows}):
        own = {row["method"]: row for row in rows if row["share"] == share}
        cells = [_with_gain(own[method], baseline) for method in methods]
        table.add_row(f"{100 * share:g} % ({own[methods[0]]['patients']})", *cells)
    console = Console(highlight=False, emoji=False)
    console.print(f"{rows[0]['task']}, {rows[0]['plane']}: {spelled(metric)} on the test patients")
    console.print(table)
    told = {
        HELD_OUT: "the denoiser was pre-trained without them",
        PERHAPS_SEEN: "the denoiser may have seen them in pre-training (its card does not say that it was trained on "
        "this split's training patients alone)",
    }
    gains = f"; + or -, against {baseline}" if baseline in methods else ""
    console.print(f"labels: share of the training patients (how many); means over seeds, 95 % intervals{gains}")
    console.print(f"test patients: {told[rows[0]['test_patients']]}")


def _with_gain(row: Mapping[str, Any], baseline: str) -> str:
    told = figure(row["value"], (row["low"], row["high"]))
    if "gain" not in row or row["method"] == baseline:
        return told
    return f"{told}\n{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})"


def spelled(metric: str) -> str:
    """A metric's column name as it is written in words: macro_auroc is macro AUROC."""
    return metric.replace("_", " ").replace("auroc", "AUROC").replace("dice", "Dice")


def figure(value: float | None, bounds: Sequence[float] | None) -> str:
    """A figure with its interval in words."""
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({bounds[0]:.3f}-{bounds[1]:.3f})" if bounds is not None else "")
