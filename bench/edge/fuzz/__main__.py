"""The long run, and the short one of CI.

    python -m orthokernels.bench.edge.fuzz --count 100000 --out bench/results/edge

Each kind of input is run in a process of its own, which is started again after an input that ends it. Findings are kept
as files, to be put into the corpus (``tests/edge/fuzz/corpus/KIND/``) once they are dealt with. Exit code 1: there are.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from orthokernels.bench.edge.fuzz import TARGETS
from orthokernels.bench.edge.fuzz.run import corpus, make
from orthokernels.bench.record import circumstances, heading

from orthokernels.errors import InputError

_SILENT_SECONDS = 60.0
_MOST_FINDINGS = 100


def main(
    count: Annotated[int, typer.Option(min=0, help="Mutations of each kind.")] = 1000,
    target: Annotated[str, typer.Option(help="Kinds of input, separated by commas.")] = ",".join(TARGETS),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    again: Annotated[Path | None, typer.Option(help="Corpus that is replayed first.")] = None,
    findings: Annotated[Path, typer.Option(help="Folder for what something went wrong with.")] = Path("findings"),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for fuzz.json and fuzz.md.")] = None,
) -> None:
    """Fuzz, print what became of the inputs, and keep those that something went wrong with."""
    kinds = target.split(",")
    for kind in kinds:
        if kind not in TARGETS:
            raise InputError(f"there is no kind of input {kind!r}; choose from {', '.join(TARGETS)}.")
    facts = {
        **circumstances(f"python -m orthokernels.bench.edge.fuzz --count {count} --target {target} --seed {seed}"),
        "rows": [fuzzed(kind, seed, count, again, findings) for kind in kinds],
    }
    print(table(facts))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "fuzz.json").write_text(json.dumps(facts, indent=1) + "\n")
        (out / "fuzz.md").write_text(table(facts))
    if any(row["findings"] for row in facts["rows"]):
        raise typer.Exit(1)


def fuzzed(kind: str, seed: int, count: int, again: Path | None, findings: Path) -> dict[str, Any]:
    """Run all of one kind; what became of the inputs, and the findings with their reasons."""
    started, first, found = time.perf_counter(), 0, []
    old = 0 if again is None else len(corpus(again, kind))
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder, "marker")
        while first < count or (again is not None and first == 0):
            marker.write_bytes(struct.pack("<q", first))
            told, ended = _process(kind, seed, first, count - first, again if first == 0 else None, marker)
            for line in told:
                outcomes.update(line.get("done", {}))
                if "finding" in line:
                    found.append((line["finding"], line["why"]))
            if ended is None:
                break
            at = struct.unpack("<q", marker.read_bytes())[0]
            found.append((at, ended))
            outcomes["finding"] += 1
            first, again = max(at + 1, 0), None if at >= 0 else again
            if len(found) > _MOST_FINDINGS or at < 0:
                break
        for index, why in found:
            _keep(kind, seed, index, findings, Path(folder))
            print(f"{kind} {index}: {why.strip()}", file=sys.stderr)
    return {
        "kind": kind,
        "corpus": old,
        "mutations": count,
        "seconds": round(time.perf_counter() - started, 1),
        "outcomes": dict(outcomes),
        "findings": [{"index": index, "why": why.strip().splitlines()[-1]} for index, why in found],
    }


def _process(
    kind: str, seed: int, first: int, count: int, again: Path | None, marker: Path
) -> tuple[list[dict[str, Any]], str | None]:
    """What a process told, and how it ended if not well."""
    command = [sys.executable, "-m", "orthokernels.bench.edge.fuzz.run", kind, str(seed), str(first), str(count)]
    process = subprocess.Popen(
        [*command, str(again or ""), str(marker)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True)
    reader.start()
    at, since, ended = marker.read_bytes(), time.monotonic(), None
    while process.poll() is None:
        time.sleep(0.1)
        if (now := marker.read_bytes()) != at:
            at, since = now, time.monotonic()
        elif time.monotonic() - since > _SILENT_SECONDS:
            process.kill()
            ended = f"took more than {_SILENT_SECONDS:g} seconds"
            break
    status = process.wait()
    reader.join()
    process.stdout.close()
    told = [json.loads(line) for line in lines]
    if ended is None and (status or not any("done" in line for line in told)):
        ended = f"ended the process with status {status}"
    return told, ended


def _keep(kind: str, seed: int, index: int, findings: Path, folder: Path) -> None:
    if index < 0:
        return  # it is in the corpus
    findings.mkdir(parents=True, exist_ok=True)
    (findings / f"{kind}-{seed}-{index}.bin").write_bytes(make(kind, folder, seed, index))


def table(facts: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        *heading(facts),
        "| input | from the corpus | mutations | taken | refused | findings | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in facts["rows"]:
        outcomes = row["outcomes"]
        lines.append(
            f"| {row['kind']} | {row['corpus']} | {row['mutations']} | {outcomes.get('taken', 0)} "
            f"| {outcomes.get('refused', 0)} | {len(row['findings'])} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
