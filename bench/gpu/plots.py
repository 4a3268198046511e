"""A suite's rows as pictures: one panel for each case, a bar for each contender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PANELS = 6  # cases on one picture


def draw(facts: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``SUITE-N.png``; returns their paths, none without matplotlib or without a figure."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return []
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in facts["rows"]:
        if row["median_us"] is not None:
            cases.setdefault(row["case"], []).append(row)
    found = []
    names = list(cases)
    for number, start in enumerate(range(0, len(names), PANELS), start=1):
        own = names[start : start + PANELS]
        heights = [1.0 + 0.3 * len(cases[name]) for name in own]
        figure = Figure(figsize=(11, sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(own), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
        for panel, name in zip(panels[:, 0], own, strict=True):
            _panel(panel, name, cases[name])
        device = facts["device"]["name"]
        figure.suptitle(f"{facts['suite']}, {device}" + (", tiny: to try the machinery" if facts["tiny"] else ""))
        path = folder / f"{facts['suite']}-{number}.png"
        figure.savefig(path, dpi=110)
        found.append(path)
    return found


def _panel(panel: Any, name: str, rows: list[dict[str, Any]]) -> None:
    medians = [row["median_us"] for row in rows]
    spread = [
        [row["median_us"] - row["p20_us"] for row in rows],
        [row["p80_us"] - row["median_us"] for row in rows],
    ]
    colours = ["#1f5f8b" if row["contender"].startswith("orthokernels") else "#b0b0b0" for row in rows]
    panel.barh(range(len(rows)), medians, xerr=spread, color=colours, error_kw={"lw": 1})
    panel.set_yticks(range(len(rows)), [row["contender"] for row in rows], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlim(left=0)
    panel.set_xlabel("us, median with 20th and 80th percentile", fontsize=8)
    panel.set_title(name, fontsize=9, loc="left")
