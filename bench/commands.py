"""``orthokernels bench``: heavy imports are inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from orthokernels.errors import InputError, need

app = typer.Typer(help="Measure. Without a command: the reference path.")

Suite = Literal["ops", "model", "training"]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    series: Annotated[
        Path | None, typer.Option(help="A folder with one large series, for the reading suite; skipped without.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for reference.json and reference.md.")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Counted repetitions, after one that warms up.")] = 7,
    as_json: Json = False,
) -> None:
    """Measure the reference path: feature pass against eager PyTorch, a study's memory, reading a series."""
    if context.invoked_subcommand is not None:
        return
    need("orthokernels bench", "torch", "bench")
    from orthokernels.bench.record import markdown, record, write
    from orthokernels.bench.reference import bench_features, bench_read, bench_study

    rows = bench_features(rounds) + bench_study()
    if series is not None:
        rows += bench_read(series, rounds)
    facts = record(rows, f"orthokernels bench --rounds {rounds}" + (" --series DIR" if series else ""))
    if out is not None:
        write(facts, out, "reference")
    print(json.dumps(facts) if as_json else markdown(facts))


@app.command("compile")
def compile_kernels(
    targets: Annotated[str, typer.Option(help="Compute capabilities times ten, separated by commas.")] = "80,90,100",
    as_json: Json = False,
) -> None:
    """Compile every kernel, without a GPU: registers, spilled bytes, shared memory. Exit 1 if one won't do."""
    need("orthokernels bench compile", "triton", "gpu")
    from orthokernels.bench.compile import compile_all, table, wanted_targets

    found = list(compile_all(wanted_targets(targets)))
    if as_json:
        print(json.dumps([{**vars(row), "fault": row.fault} for row in found]))
    else:
        Console(width=160).print(table(found))
    if any(row.fault for row in found):
        raise typer.Exit(1)


@app.command("cpu")
def cpu(
    suite: Annotated[
        str, typer.Option(help="features, layer, denoiser, sampling, finetuning, heads, others or sweep.")
    ] = "features",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the suite's JSON, Markdown and plot.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of ours and of every peer.")] = 2,
    rounds: Annotated[
        int,
        typer.Option(min=1, help="Counted, after one that warms up; three times as many of calls under 0.1 s."),
    ] = 5,
    tiny: Annotated[bool, typer.Option("--tiny", help="A small network and volume: tries the machinery.")] = False,
    peers: Annotated[
        str, typer.Option(help="Whom to measure beside it, separated by commas, as torch_eager; by default all.")
    ] = "",
    cases: Annotated[str, typer.Option(help="Of the sweep, those whose names hold this, as 'norm, 16 channels'.")] = "",
    as_json: Json = False,
) -> None:
    """Measure the native CPU engine beside PyTorch, ONNX Runtime and OpenVINO, interleaved."""
    need("orthokernels bench cpu", "torch", "bench")
    from orthokernels.bench.cpu.peers import PEERS
    from orthokernels.bench.cpu.plots import draw
    from orthokernels.bench.cpu.suite import SUITES, markdown, run_suite

    if suite not in SUITES:
        raise InputError(f"--suite {suite}: there are {', '.join(SUITES)}.")
    asked = tuple(name.strip() for name in peers.split(",") if name.strip())
    for name in asked:
        if name not in PEERS:
            raise InputError(f"--peers {name}: there are {', '.join(PEERS)}.")
    if cases and suite != "sweep":
        raise InputError(f"--cases {cases}: only the sweep's can be chosen. Leave it out, or pass --suite sweep.")
    facts = run_suite(suite, threads=threads, rounds=rounds, tiny=tiny, peers=asked, cases=cases)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{suite}.json").write_text(json.dumps(facts, indent=1) + "\n")
        (out / f"{suite}.md").write_text(markdown(facts))
        draw(facts, out / f"{suite}.png")
    print(json.dumps(facts) if as_json else markdown(facts))


def _suite(suite: Suite, what: str, device_help: str = "cuda[:N], or cpu with --tiny, to try the machinery.") -> None:
    """Add the command of a GPU suite."""

    @app.command(suite, help=what)
    def command(
        out: Annotated[
            Path | None, typer.Option("--out", "-o", help="Folder for the suite's JSON, CSV, Markdown and pictures.")
        ] = None,
        device: str = typer.Option("cuda", help=device_help),  # an annotation could not see the suite's own help
        tiny: Annotated[
            bool, typer.Option("--tiny", help="Small shapes, which say nothing about the kernels.")
        ] = False,
        minutes: Annotated[
            float | None, typer.Option(min=0.0, help="After which no other case begins; by default 3, 2.5 and 2.")
        ] = None,
        as_json: Json = False,
    ) -> None:
        need(f"orthokernels bench {suite}", "torch", "bench")
        if suite == "training" and device == "cpu" and not tiny:
            from orthokernels.bench.training import main as measure_on_cpu

            measure_on_cpu(out)
        else:
            _run_suite(suite, out, device, tiny, minutes, as_json)


_suite("ops", "Measure the ops on a GPU, beside PyTorch, torch.compile and other people's kernels.")
_suite("model", "Measure networks on a GPU: feature pass, full denoiser and sampling, this U-Net and MONAI's.")
_suite(
    "training",
    "Measure training steps on a GPU, their time and memory; with --device cpu those of a CPU, and the loader.",
    "cuda[:N]; cpu measures step, memory and loader there; cpu --tiny tries the machinery.",
)


def _run_suite(
    suite: str, out: Path | None, device: str, tiny: bool, minutes: float | None, as_json: bool
) -> None:  # fmt: skip
    from orthokernels.bench.gpu.start import measure

    console = Console(width=200, highlight=False, emoji=False, markup=False, quiet=as_json)
    facts = measure(suite, out, device, tiny, minutes, console.print)
    if as_json:
        print(json.dumps(facts))
