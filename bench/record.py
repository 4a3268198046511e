"""A measurement as a row, and rows as the JSON and Markdown that are committed: machine, versions, command, commit."""

from __future__ import annotations

import json
import statistics
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orthokernels.system import processor, versions


@dataclass(frozen=True)
class Row:
    """One figure: all its repetitions, and what it is held to.

    ``ratio`` is this row's time over the first row's of its suite, the median over the rounds; ``limit`` the most that
    the median may be.
    """

    suite: str
    name: str
    unit: str
    values: list[float]
    ratio: float | None = None
    limit: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def circumstances(command: str) -> dict[str, Any]:
    """Everything a reader needs to repeat a measurement: date, command, commit, machine and versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "commit": _commit(),
        "processor": processor(),
        "versions": versions(),
    }


def record(rows: list[Row], command: str) -> dict[str, Any]:
    """Rows with their circumstances."""
    return {**circumstances(command), "rows": [{**asdict(row), "median": row.median} for row in rows]}


def heading(facts: dict[str, Any]) -> list[str]:
    """A result's first lines: command, commit and date, then machine and versions."""
    machine = facts["processor"]
    return [
        f"`{facts['command']}` at {facts['commit']}, {facts['date']}",
        "",
        f"{machine['name']}, {machine['cores']} cores ({', '.join(machine['features'])}); "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "",
    ]


def markdown(facts: dict[str, Any]) -> str:
    """A table with medians, the 20th and 80th percentiles, ratios and limits."""
    lines = [
        *heading(facts),
        "| suite | what | median | 20 % | 80 % | ratio | limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in facts["rows"]:
        low, high = percentiles(row["values"])
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        limit = "" if row["limit"] is None else f"{row['limit']:g} {row['unit']}"
        lines.append(
            f"| {row['suite']} | {row['name']} | {row['median']:.3g} {row['unit']} | {low:.3g} | {high:.3g} "
            f"| {ratio} | {limit} |"
        )
    return "\n".join(lines) + "\n"


def write(facts: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """Write ``name.json`` and ``name.md``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    paths[0].write_text(json.dumps(facts, indent=1) + "\n")
    paths[1].write_text(markdown(facts))
    return paths


def percentiles(values: list[float]) -> tuple[float, float]:
    """The 20th and the 80th percentile."""
    if len(values) < 2:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return cuts[0], cuts[3]


def _commit() -> str:
    """The checkout's commit, marked where files differ from it; "unknown" outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
