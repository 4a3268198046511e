"""A suite's ratios as a picture: a row for each case, a point for each contender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MARKS = "osD^vP"


def draw(facts: dict[str, Any], path: Path) -> None:
    """Write the picture of what ``run_suite`` returned."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    cases = facts.get("cases", [facts])
    figure = Figure(figsize=(9, 1.6 + 0.22 * len(cases)), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    names = [name for name in cases[0]["ratios"] if name != "orthokernels"]
    for mark, name in zip(MARKS, names, strict=False):
        places = [place for place, case in enumerate(cases) if name in case["ratios"]]
        panel.plot([cases[place]["ratios"][name] for place in places], places, mark, markersize=5, label=name)
    panel.axvline(1, color="black", linewidth=1)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_yticks(range(len(cases)), [case["name"] for case in cases], fontsize=7)
    panel.set_ylim(len(cases) - 0.5, -0.5)
    panel.grid(axis="x", alpha=0.3)
    panel.set_xlabel("their time / ours")
    panel.set_title(f"{facts['processor']['name']}, {facts['threads']} threads, {facts['instruction_set']}", fontsize=9)
    if names:
        figure.legend(loc="outside upper right", fontsize=7, ncols=2)
    figure.savefig(path, dpi=110)
