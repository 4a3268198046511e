"""A whole study from a bundle on every engine and form, folder to report: ``python -m orthokernels.bench.runtime``.

    orthokernels phantom --out STUDY --seed 3
    orthokernels export bundle --weights random:0 --forms fp32 --out BUNDLE    # the published size, 16 x 256 x 256
    python -m orthokernels.bench.runtime --bundle BUNDLE --study STUDY --out bench/results/runtime --name full

The weights of ``orthokernels.bench.fitted`` in place of random:0 label that study somewhat like a joint, not as noise.

Each run is a process of its own that never sees PyTorch, one engine after the other, round by round. With ``--python``
it is that of an environment as an edge box has it (``pip install '.[openvino,onnxruntime]'`` of the same commit): there
pydicom and others find fewer packages to load. "Networks" is what
``run`` counts as features and heads, an engine's opening of its graphs and the packing of weights included; "outside"
is the rest of the process's time, Python's start and end included. One run before the first round is not counted: it
fills the caches of files and of what was verified.

Each engine has two rows. "A command" is ``orthokernels run``. "The next one" is what a study takes in a process that
has the model and has run a study already, as the appliance's workers do: from the study's folder to its report, and
nothing else. What is held to a share outside the networks is this one. A command starts Python and reads the whole
bundle through besides, which has a limit of its own, in seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from orthokernels.bench.record import circumstances, heading

from orthokernels.bundle.verify import verify
from orthokernels.errors import InputError

NETWORKS = ("features", "heads")
# As ``run`` tells them, in the order of a study's way; "start" is what it can not see: Python, imports, the end.
STAGES = ("start", "read", "weights", "prepare", *NETWORKS, "restore", "findings", "report")
MOST_OUTSIDE, MOST_SECONDS_TO_FIRST, MOST_MB = 0.15, 6.0, 2500.0

# Each one's last word on standard error is the most memory it ever had, in MB.
_START = """
import atexit, sys
sys.modules["torch"] = None
from orthokernels.system import peak_memory_mb
atexit.register(lambda: print(peak_memory_mb(), file=sys.stderr))
"""
_COMMAND = f"""{_START}
from orthokernels.cli import main
main()
"""
_NEXT = f"""{_START}
import json, time
from orthokernels.pipeline import load_model, run
study, bundle, engine, form, out = sys.argv[1:]
model = load_model(bundle=bundle, engine=engine, form=form)
run(study, out + "/first", model=model)
started = time.perf_counter()
result = run(study, out + "/next", model=model).result
print(json.dumps({{**result.model_dump(mode="json"), "whole": time.perf_counter() - started}}))
"""
A_COMMAND, THE_NEXT = "a command", "the next one"
Contender = tuple[str, str, str]  # engine, form, and which study


def measure(
    run: Callable[[str, str, str], dict[str, Any]], contenders: Sequence[Contender], rounds: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Seconds, shares and memory of each contender, medians over the rounds; and the versions that ran.

    Raises:
        InputError: a contender can not run the study.
    """
    found: dict[Contender, list[dict[str, float]]] = {own: [] for own in contenders}
    versions = run(*contenders[0])["versions"]
    for _ in range(rounds):
        for own in contenders:
            found[own].append(_figures(run(*own)))
    rows = [
        {
            **{"engine": engine, "form": form, "study": study},
            **{key: statistics.median(own[key] for own in runs) for key in runs[0]},
        }
        for (engine, form, study), runs in found.items()
    ]
    return rows, versions


def _once(python: str, bundle: Path, study: Path, threads: int, engine: str, form: str, which: str) -> dict[str, Any]:
    """What one run tells of itself, with its ``whole`` seconds and its process's ``peak_mb``."""
    with tempfile.TemporaryDirectory() as folder:
        if which == A_COMMAND:
            arguments = [_COMMAND, "run", str(study), "--bundle", str(bundle), "--engine", engine]
            arguments += ["--form", form, "--out", f"{folder}/out", "--json"]
        else:
            arguments = [_NEXT, str(study), str(bundle), engine, form, folder]
        started = time.perf_counter()
        done = subprocess.run(
            [python, "-P", "-c", *arguments],
            capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        seconds = time.perf_counter() - started
    if done.returncode:
        raise InputError(f"{engine} in {form}: {' '.join(done.stderr.strip().splitlines()[:-1][-1:])}")
    return {"whole": seconds, **json.loads(done.stdout), "peak_mb": float(done.stderr.split()[-1])}


def _figures(told: dict[str, Any]) -> dict[str, float]:
    seconds = told["whole"]
    stages = {"start": seconds - sum(told["seconds"].values()), **told["seconds"]}
    networks = sum(stages.get(stage, 0.0) for stage in NETWORKS)
    return {
        "seconds": seconds,
        "networks": networks,
        "outside": 1 - networks / seconds,
        **{stage: stages.get(stage, 0.0) for stage in STAGES},
        "peak_mb": told["peak_mb"],
    }


def table(facts: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        *heading(facts),
        f"{facts['study']}; bundle of {facts['weights']}, {facts['bundle_mb']:.0f} MB; {facts['threads']} threads, "
        f"medians of {facts['rounds']} rounds. Held to: at most {MOST_OUTSIDE:.0%} outside the networks from folder to "
        f"report, which is what the next study takes; {MOST_SECONDS_TO_FIRST:g} s from a command to its first study; "
        f"{MOST_MB:g} MB.",
        "",
        "| engine | form | study | whole, s | networks, s | outside | outside, s | peak memory, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for own in facts["rows"]:
        name = f"{own['engine']} | {own['form']} | {own['study']}"
        lines.append(
            f"| {name} | {own['seconds']:.2f} | {own['networks']:.2f} | {own['outside']:.0%} "
            f"| {own['seconds'] - own['networks']:.2f} | {own['peak_mb']:.0f} |"
        )
    lines += [
        "",
        "Where the time goes, in seconds (weights: waiting for the bundle's verification, and reading the weights):",
        "",
        f"| engine | form | study | {' | '.join(STAGES)} |",
        f"|---|---|---|{'---|' * len(STAGES)}",
    ]
    for own in facts["rows"]:
        seconds = " | ".join(f"{own[stage]:.2f}" for stage in STAGES)
        lines.append(f"| {own['engine']} | {own['form']} | {own['study']} | {seconds} |")
    return "\n".join(lines) + "\n"


def plot(facts: dict[str, Any], path: Path) -> None:
    """Bars of seconds, stage beside stage, and of memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.5 * len(facts["rows"]) + 1.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [f"{own['engine']}, {own['form']}, {own['study']}" for own in facts["rows"]]
    done = [0.0] * len(names)
    for label, (stages, colour) in _BARS.items():
        seconds = [sum(own[stage] for stage in stages) for own in facts["rows"]]
        left.barh(names, seconds, left=done, color=colour, label=label)
        done = [before + own for before, own in zip(done, seconds, strict=True)]
    left.set_xlabel("seconds a study")
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    left.invert_yaxis()
    right.barh(names, [own["peak_mb"] for own in facts["rows"]], color="#56b4e9")
    right.set_xlabel("peak resident memory, MB")
    figure.savefig(path, dpi=120)


# Stages that one bar stands for, and its colour.
_BARS: dict[str, tuple[tuple[str, ...], str]] = {
    "networks": (NETWORKS, "#0072b2"),
    "start": (("start",), "#e69f00"),
    "read, verify": (("read", "weights"), "#009e73"),
    "prepare, restore": (("prepare", "restore", "findings"), "#cc79a7"),
    "report": (("report",), "#d55e00"),
}


def main(
    bundle: Annotated[Path, typer.Option(help="Folder of a bundle.")],
    study: Annotated[Path, typer.Option(help="Folder with a three-plane study.")],
    out: Annotated[Path, typer.Option(help="Folder for runtime.json, runtime.md and runtime.png.")],
    forms: Annotated[str, typer.Option(help="ENGINE:FORM, separated by commas.")] = (
        "native:fp32,openvino:fp32,onnxruntime:fp32"
    ),
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    name: Annotated[str, typer.Option(help="Of the files.")] = "runtime",
    what: Annotated[str, typer.Option(help="What the study is, for the table.")] = "A three-plane study",
    python: Annotated[str, typer.Option(help="Interpreter of the environment that runs it.")] = sys.executable,
) -> None:
    """Measure whole studies from a bundle, engine beside engine."""
    manifest = verify(bundle).manifest
    pairs = [(own.partition(":")[0], own.partition(":")[2]) for own in forms.split(",")]
    contenders = [(*own, which) for own in pairs for which in (A_COMMAND, THE_NEXT)]
    rows, versions = measure(partial(_once, python, bundle, study, threads), contenders, rounds)
    command = f"python -m orthokernels.bench.runtime --forms {forms} --rounds {rounds} --threads {threads}"
    facts = {
        **circumstances(command + " --python PYTHON" * (python != sys.executable)),
        "versions": versions,
        "weights": manifest.name,
        "bundle_mb": sum(file.bytes for file in manifest.files.values()) / 1e6,
        "study": what,
        "rounds": rounds,
        "threads": threads,
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / f"{name}.md").write_text(table(facts))
    plot(facts, out / f"{name}.png")
    print(table(facts))


if __name__ == "__main__":
    typer.run(main)
