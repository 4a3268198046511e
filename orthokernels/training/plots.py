"""Plots of an evaluation, a sweep and a label-efficiency curve, as PNG files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from orthokernels.training.metrics import CALIBRATION_BINS, auroc, average_precision
from orthokernels.training.predictions import SeriesOutput
from orthokernels.training.tables import spelled


@contextmanager
def _figure(path: Path, width: float = 7, height: float = 5) -> Iterator[Axes]:
    """Axes of a new picture, written to ``path`` at the end. No global state of matplotlib is touched."""
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure.add_subplot()
    figure.savefig(path, dpi=120)


def finding_plots(truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], out: Path) -> None:
    """roc.png, precision_recall.png and calibration.png of findings [studies, labels]."""
    scored = [n for n in range(len(labels)) if len(np.unique(truth[:, n])) == 2]
    with _figure(out / "roc.png") as axes:
        for n in scored:
            false, true, _ = roc_curve(truth[:, n], probability[:, n])
            axes.plot(false, true, label=f"{labels[n]} {auroc(truth[:, n], probability[:, n]):.3f}")
        axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
        _name(axes, "1 - specificity", "sensitivity", "ROC curves (area)")
    with _figure(out / "precision_recall.png") as axes:
        for n in scored:
            precision, recall, _ = precision_recall_curve(truth[:, n], probability[:, n])
            area = average_precision(truth[:, n], probability[:, n])
            axes.plot(recall, precision, drawstyle="steps-post", label=f"{labels[n]} {area:.3f}")
        _name(axes, "recall", "precision", "Precision and recall (average precision)")
    with _figure(out / "calibration.png") as axes:
        bins = np.clip((probability * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
        filled = [b for b in range(CALIBRATION_BINS) if (bins == b).any()]
        mean = [probability[bins == b].mean() for b in filled]
        share = [truth[bins == b].mean() for b in filled]
        axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
        axes.scatter(mean, share, s=[10 + 200 * (bins == b).mean() for b in filled], label="all labels")
        _name(axes, "probability", "share present", "Calibration")


def dice_boxes(outputs: Sequence[SeriesOutput], names: Mapping[str, Sequence[str]], out: Path) -> None:
    """dice.png: a box per structure and plane, over series."""
    planes = [plane for plane in names if any(o.record.plane == plane for o in outputs)]
    with _figure(out / "dice.png", width=11) as axes:
        for place, plane in enumerate(planes):
            scores = [o.dice for o in outputs if o.record.plane == plane and o.dice is not None]
            columns: Any = [[s[n] for s in scores if s[n] is not None] for n in range(len(names[plane]))]
            positions = np.arange(len(columns)) + (place - (len(planes) - 1) / 2) * 0.27
            boxes: Any = axes.boxplot(
                columns, positions=positions, widths=0.22, patch_artist=True, manage_ticks=False,
                flierprops={"markersize": 2}, medianprops={"color": "black"},
            )  # fmt: skip
            for box in boxes["boxes"]:
                box.set_facecolor(f"C{place}")
            axes.scatter([], [], color=f"C{place}", marker="s", label=plane)
        longest = max((names[plane] for plane in planes), key=len)
        axes.set_xticks(range(len(longest)), [n.replace("_", " ") for n in longest], rotation=30, ha="right")
        axes.set_ylim(-0.02, 1.02)
        _name(axes, "", "Dice", "Dice per structure and plane")


def sweep_curves(rows: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """A curve over timesteps for each block; ``rows`` have "block", "timestep" and the metric."""
    with _figure(path) as axes:
        for block in dict.fromkeys(row["block"] for row in rows):
            own = sorted((row["timestep"], row[metric]) for row in rows if row["block"] == block)
            axes.plot(*zip(*own, strict=True), marker="o", label=block)
        _name(axes, "timestep", metric.replace("_", " "), path.stem.replace("_", " "))


def efficiency_curves(rows: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """A curve over the share of labels for each method with its interval; rows as ``labels`` writes them."""
    with _figure(path) as axes:
        for place, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            own = sorted((r["share"], r["value"], r["low"], r["high"]) for r in rows if r["method"] == method)
            share, value, low, high = (np.array(column, float) for column in zip(*own, strict=True))
            axes.plot(100 * share, value, marker="o", color=f"C{place}", label=method)
            axes.fill_between(100 * share, low, high, color=f"C{place}", alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        shares = sorted({100 * row["share"] for row in rows})
        axes.set_xticks(shares, [f"{share:g}" for share in shares])
        axes.minorticks_off()
        _name(axes, "labels used (%)", spelled(metric), path.stem.replace("_", " "))


def _name(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
