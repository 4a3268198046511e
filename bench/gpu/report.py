"""A suite's record as a table on the terminal, JSON, CSV, Markdown and pictures; and the short table of a folder."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orthokernels.bench.tables import Table

COLUMNS = (
    "suite", "case", "contender", "state", "median_us", "p20_us", "p80_us", "gb_s", "tflop_s", "bandwidth_percent",
    "rate_percent", "floor_percent", "memory_mb", "ratio", "note",
)  # fmt: skip
_HEADINGS = (
    ("contender", "contender"), ("median_us", "us"), ("p20_us", "20 %"), ("p80_us", "80 %"), ("gb_s", "GB/s"),
    ("tflop_s", "TFLOP/s"), ("bandwidth_percent", "% of copy"), ("rate_percent", "% of matrix rate"),
    ("floor_percent", "% of floor"), ("memory_mb", "MB"), ("ratio", "time / first"), ("note", "note"),
)  # fmt: skip
_FACTORS = ("total", "parallelism", "fusion", "kernels", "layout", "layout_alone")
_EXPLAINED = (
    "Medians, with the 20th and 80th percentile. GB/s and TFLOP/s are of the bytes and operations that the case needs "
    "at least, counted, so they are comparable between contenders; the floor is those over the measured ceilings. "
    "'time / first' is a contender's median over the first one's: above 1 it is slower."
)


def write(facts: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``SUITE.json``, ``SUITE.csv`` and ``SUITE.md``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"json": json.dumps(facts, indent=1) + "\n", "csv": table_csv(facts), "md": markdown(facts)}
    found = []
    for ending, text in texts.items():
        path = folder / f"{facts['suite']}.{ending}"
        beside = path.with_suffix(f".{ending}.part")
        beside.write_text(text)
        beside.rename(path)  # an end from outside leaves the last whole file
        found.append(path)
    return found


def table_csv(facts: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(facts["rows"])
    return text.getvalue()


def markdown(facts: dict[str, Any]) -> str:
    """Everything but the single repetitions."""
    parts = [*_heading(facts), "", _EXPLAINED, ""]
    for case, rows in _by_case(facts["rows"]):
        parts += [f"## {case}", "", "| " + " | ".join(told for _, told in _HEADINGS) + " |"]
        parts += ["|" + "---|" * len(_HEADINGS)]
        parts += ["| " + " | ".join(_cell(row, name) for name, _ in _HEADINGS) + " |" for row in rows] + [""]
    if facts["decompositions"]:
        parts += ["## Where the speed-up comes from", "", _FACTORS_EXPLAINED, ""]
        parts += ["| case | " + " | ".join(_FACTORS) + " |", "|" + "---|" * (len(_FACTORS) + 1)]
        for each in facts["decompositions"]:
            parts.append(f"| {each['case']} | " + " | ".join(_times(each[name]) for name in _FACTORS) + " |")
        parts += ["", *_squares(facts["decompositions"])]
    if facts["bars"]:
        parts += ["## Bars", "", "| case | bar | found | |", "|---|---|---|---|"]
        parts += [f"| {bar['case']} | {bar['bar']} | {_found(bar)} | {verdict(bar)} |" for bar in facts["bars"]] + [""]
    parts += ["## Peers", ""]
    parts += [f"- {peer['name']} ({peer['what']}): {peer['version'] or peer['reason']}" for peer in facts["peers"]]
    if facts["left_out"]:
        parts += ["", "## Left out", "", *(f"- {case}" for case in facts["left_out"])]
    return "\n".join(parts) + "\n"


_FACTORS_EXPLAINED = (
    "total = parallelism x fusion x layout, from plain contiguous PyTorch to the fused kernels, channels-last. "
    "parallelism: the same ops one by one in these kernels; fusion: in one kernel; kernels: both of them, and all that "
    "is known where nothing unfused was measured; layout: from contiguous to channels-last with the kernels; "
    "layout alone: without them."
)


def _squares(decompositions: Sequence[dict[str, Any]]) -> list[str]:
    """The 2 x 2 of layout and kernels, in microseconds."""
    lines = ["| case, us | plain, contiguous | plain, channels-last | kernels, contiguous | kernels, channels-last |"]
    lines.append("|---|---|---|---|---|")
    names = (
        "plain PyTorch, contiguous", "plain PyTorch, channels-last", "orthokernels, contiguous",
        "orthokernels, channels-last",
    )  # fmt: skip
    for each in decompositions:
        times = each["microseconds"]
        lines.append(f"| {each['case']} | " + " | ".join(_number(times.get(name)) for name in names) + " |")
    return [*lines, ""]


def ceilings_told(facts: dict[str, Any]) -> str:
    """The measured ceilings in a sentence."""
    own = facts["ceilings"]
    rates = ", ".join(f"{name} {rate / 1e12:.4g}" for name, rate in own["rates"].items())
    return f"Measured: copy {own['bandwidth'] / 1e12:.3g} TB/s; matrix products {rates} TFLOP/s (float32 in TF32)."


def device_told(facts: dict[str, Any]) -> str:
    own = facts["device"]
    if "driver" not in own:
        return str(own["name"])
    return (
        f"{own['name']}, driver {own['driver']}, CUDA {own['cuda']}, cuDNN {own['cudnn']}, "
        f"{own['multiprocessors']} multiprocessors, {own['l2_bytes'] / 2**20:.0f} MiB L2, "
        f"{own['memory_bytes'] / 2**30:.0f} GiB"
    )


def _heading(facts: dict[str, Any]) -> list[str]:
    machine = facts["processor"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [f"# {facts['suite']}", "", f"`{facts['command']}` at {facts['commit']}, {facts['date']}", ""]
    if facts["tiny"]:
        lines += ["**Tiny shapes, to try the machinery: these figures say nothing about the kernels.**", ""]
    return [
        *lines, f"{device_told(facts)}; {machine['name']}, {machine['cores']} cores; {versions}", "",
        ceilings_told(facts),
    ]  # fmt: skip


def case_table(case: str, rows: Sequence[dict[str, Any]]) -> Table:
    """A case's rows for the terminal, those that lose among them."""
    figures = [told for name, told in _HEADINGS if name not in ("contender", "note")]
    made = Table([told for _, told in _HEADINGS], title=case, right=figures)
    for row in rows:
        made.add_row(*(_cell(row, name) for name, _ in _HEADINGS), style=None if row["state"] == "measured" else "dim")
    return made


def last_table(facts: dict[str, Any]) -> Table | None:
    """The rows of the case that was measured last."""
    cases = _by_case(facts["rows"])
    return case_table(*cases[-1]) if cases else None


def summary(records: Sequence[dict[str, Any]]) -> Table:
    """A line for each case: the first contender beside the quickest of the others, and what it was held to."""
    headings = ("case", "us", "% of floor", "quickest other", "its us", "speed-up", "bars")
    figures = ("us", "% of floor", "its us", "speed-up")
    made = Table(headings, title="Ours, and the quickest that is not ours", right=figures)
    for facts in records:
        for case, rows in _by_case(facts["rows"]):
            first = rows[0]
            others = [row for row in rows if row["median_us"] and not row["contender"].startswith("orthokernels")]
            best = min(others, key=lambda row: float(row["median_us"]), default=None)
            bars = "; ".join(f"{bar['bar']}: {verdict(bar)}" for bar in facts["bars"] if bar["case"] == case)
            speed = best["median_us"] / first["median_us"] if best and first["median_us"] else None
            made.add_row(
                case, _cell(first, "median_us") or first["note"], _cell(first, "floor_percent"),
                best["contender"] if best else "none", _cell(best, "median_us") if best else "", _times(speed), bars,
            )  # fmt: skip
    return made


def verdict(bar: dict[str, Any]) -> str:
    """Met, missed, or why it was not judged."""
    if bar["value"] is None:
        return "not measured"
    if bar["met"] is None:
        return f"{_found(bar)}, not judged: no H200"
    return f"{_found(bar)}, {'met' if bar['met'] else 'MISSED'}"


def _found(bar: dict[str, Any]) -> str:
    value = bar["value"]
    if value is None:
        return ""
    if bar["kind"] == "seconds":
        return f"{value * 1e6:.4g} us"
    return f"{100 * value:.3g} %" if bar["kind"] in ("bandwidth", "floor") else f"{value:.3g} x"


def _by_case(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["case"], []).append(row)
    return list(found.items())


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if name == "note" and row["state"] != "measured":
        return f"{row['state']}: {value}".replace("|", "/")
    if name in ("contender", "note"):
        return str(value).replace("|", "/")
    return _number(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the short table of all suites in a folder."""
    options = argparse.ArgumentParser(prog="python -m orthokernels.bench.gpu.report", description=main.__doc__)
    options.add_argument("folder", type=Path, help="A folder that suites were written into.")
    folder = options.parse_args(arguments).folder
    names = [folder / f"{suite}.json" for suite in ("ops", "model", "training")]
    records = [json.loads(path.read_text()) for path in names if path.is_file()]
    if not records:
        print(f"{folder} has no record of a suite.")
        return 1
    print(device_told(records[0]))
    print(ceilings_told(records[0]))
    print(summary(records))
    for facts in records:
        failed = sum(row["state"] != "measured" for row in facts["rows"])
        print(f"{facts['suite']}: {failed} of {len(facts['rows'])} rows have no figure, "
              f"{len(facts['left_out'])} cases were left out.")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
