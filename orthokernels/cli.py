"""The commands. Each imports what it needs when it runs, so that ``--help`` is instant and an extra can be missing."""

from __future__ import annotations

import gc
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from orthokernels import __version__, tasks
from orthokernels.bench.commands import app as bench_app
from orthokernels.bundle.commands import Key
from orthokernels.bundle.commands import app as bundle_app
from orthokernels.edge.commands import app as edge_app
from orthokernels.errors import InputError, need
from orthokernels.export.commands import app as export_app
from orthokernels.progress import progress
from orthokernels.training.commands import app as train_app

if TYPE_CHECKING:
    from orthokernels.result import StudyResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"3D diffusion models for joint MRI. {tasks.RESEARCH_NOTICE}",
)
weights_app = typer.Typer(no_args_is_help=True, help="Convert and fetch weights.")
app.add_typer(weights_app, name="weights")
app.add_typer(bundle_app, name="bundle")
app.add_typer(export_app, name="export")
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")
app.add_typer(edge_app, name="edge")

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


def main() -> None:
    """Entry point: errors in the input end with one sentence and exit code 2; SIGTERM leaves nothing half-made."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except InputError as error:
        console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
        console.print(f"[bold red]orthokernels:[/] {_plain(str(error))}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def _importing() -> Iterator[None]:
    """What modules make stays to the end: nobody looks through it for garbage. It was a twentieth of a short run."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _plain(text: str) -> str:
    """Text from outside, maybe of several lines, with rich's markup and a terminal's commands switched off."""
    from rich.markup import escape

    return escape("".join(own if own.isprintable() or own == "\n" else f"\\x{ord(own):02x}" for own in text))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


@app.command()
def run(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders with one study: DICOM, NIfTI, or both.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; it must be new or empty.")],
    weights: Annotated[
        str,
        typer.Option(
            help="'demo' (in the package, trained on digital joints), 'published' (fetched before), a weights folder, "
            "or random:SEED (untrained)."
        ),
    ] = "demo",
    bundle: Annotated[
        Path | None,
        typer.Option(help="Run a bundle, as 'export bundle' makes it, instead of weights; needs no PyTorch."),
    ] = None,
    key: Key = None,
    planes: Annotated[str, typer.Option(help="Planes to run, separated by commas.")] = ",".join(tasks.PLANES),
    preparation: Annotated[
        str | None,
        typer.Option(
            help="'full' covers every slice; 'published' the centre 16, as the publication does. By default what the "
            "model's heads were trained on, or full."
        ),
    ] = None,
    joint: Annotated[str, typer.Option(help="knee, ankle or shoulder: which findings are scored.")] = "knee",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise that features are computed with.")] = 0,
    draws: Annotated[int, typer.Option(min=1, help="Noise draws that features are averaged over.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="What computes the networks. For weights: torch, or native, the package's own C++ on the CPU. For a "
            "bundle: openvino, onnxruntime or native. auto: torch, and for a bundle what 'bundle tune' chose."
        ),
    ] = "auto",
    form: Annotated[
        str | None,
        typer.Option(help="Of a bundle's graphs, such as int8; by default what 'bundle tune' chose."),
    ] = None,
    patient: Annotated[
        Path | None,
        typer.Option(
            help='JSON file with what is known of the patient: {"age": 41, "height": 178, "weight": 80, "sex": 1, '
            '"patient_type": 0, "event": "fall"}, any of them, in the units and codes that the weights were trained '
            "with. Findings are then fused with it."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in --out.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Segment one study and score its findings; write label maps, findings.json, pictures and report.html."""
    if bundle is None and (engine != "native" or weights.startswith("random:")):  # random numbers are PyTorch's
        need("orthokernels run with weights", "torch", "torch")
    elif bundle is not None and weights != "demo":
        raise InputError("--weights and --bundle are two models; pass one of them.")
    if key is not None and bundle is None:
        raise InputError("--key says who must have signed a bundle, and weights are not signed. Pass --bundle with it.")
    if preparation not in (None, "full", "published"):
        raise InputError(f"there is no preparation {preparation!r}; choose full or published.")
    verification = None
    if bundle is not None:
        from orthokernels.bundle.verify import Verification

        verification = Verification(bundle, key=key)  # files are read through while Python imports the rest
    with _importing():
        import orthokernels.writing  # noqa: F401 - the pipeline asks for it when it runs
        from orthokernels.pipeline import run as run_study

    with progress(quiet or as_json) as tell:
        made = run_study(
            paths,
            out,
            weights=weights,
            bundle=verification,
            planes=[plane.strip() for plane in planes.split(",") if plane.strip()],
            preparation=preparation,  # type: ignore[arg-type]  # checked above
            joint=joint,
            seed=seed,
            draws=draws,
            device=device,
            engine=engine,  # type: ignore[arg-type]  # checked there
            form=form,  # type: ignore[arg-type]
            patient=patient,
            overwrite=overwrite,
            progress=tell,
        )
    if as_json:
        print(json.dumps({**made.result.model_dump(mode="json"), "out": str(out)}))
    elif not quiet:
        _print_result(made.result, out)


def _print_result(result: StudyResult, out: Path) -> None:
    from rich.table import Table

    console = Console(highlight=False, emoji=False)
    table = Table(title=f"Findings, {result.joint}", title_justify="left")
    table.add_column("Label")
    table.add_column("Finding")
    table.add_column("Probability", justify="right")
    table.add_column("Status")
    for finding in result.findings:
        table.add_row(finding.label, finding.name, finding.shown[0], finding.status)
    console.print(table)
    for plane in result.planes:
        labelled = plane.segmentation or f"no label map: {plane.segmentation_reason}"
        console.print(_plain(f"{plane.plane}: {plane.description}; {labelled}"))
    for warning in (*result.warnings, *(f"{p.plane}: {w}" for p in result.planes for w in p.warnings)):
        console.print(f"[yellow]Note:[/] {_plain(warning)}")
    if result.left_out:
        count = len(result.left_out)
        what = "file or volume was" if count == 1 else "files or volumes were"
        console.print(f"{count} {what} left out; the report says why.")
    if result.untrained:
        console.print(f"[bold yellow]{result.untrained}[/]")
    if result.model.notice:
        console.print(f"[bold yellow]{_plain(result.model.notice)}[/]")
    console.print(tasks.RESEARCH_NOTICE)
    console.print(_plain(f"Report: {out / 'report.html'}"), soft_wrap=True)


@app.command()
def phantom(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="New or empty folder, or one that an interrupted run of the same left."),
    ],
    joint: Annotated[str, typer.Option(help="knee, ankle or shoulder.")] = "knee",
    count: Annotated[int, typer.Option(min=1, help="How many studies; one is written straight into --out.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first study; the next has the next seed.")] = 0,
    side: Annotated[str | None, typer.Option(help="right or left; by default the seed decides.")] = None,
    contrast: Annotated[str, typer.Option(help="pd_fs, pd, t1 or t2 (fat-suppressed).")] = "pd_fs",
    findings: Annotated[
        str | None, typer.Option(help="Labels to be present, separated by commas, or none; by default drawn.")
    ] = None,
    prevalence: Annotated[float, typer.Option(min=0, max=1, help="How often each finding is drawn.")] = 0.3,
    matrix: Annotated[int, typer.Option(min=32, max=1024, help="Pixels along each side of a slice.")] = 256,
    nifti: Annotated[bool, typer.Option("--nifti", help="Write NIfTI with label maps instead of DICOM.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write procedural three-plane MRI studies with their findings in studies.csv.

    Studies that an earlier run completed with the same options are kept. Several studies in DICOM have their label
    maps under labels/.
    """
    if joint not in tasks.LABELS:
        raise InputError(f"there is no phantom of the {joint}; use --joint {', '.join(tasks.LABELS)}.")
    if side not in (None, "right", "left"):
        raise InputError(f"--side is right or left, not {side!r}.")
    need("orthokernels phantom", "scipy", "phantom")
    from orthokernels.data.phantom.dataset import Recipe, name_of, write_single, write_studies

    wanted: Literal["right", "left"] | None = "right" if side == "right" else "left" if side == "left" else None
    recipe = Recipe(joint, wanted, matrix, _forced_findings(joint, findings), prevalence, contrast, nifti)
    if count == 1:
        write_single(out, seed, recipe)
    else:
        done = 0
        with progress(quiet or not sys.stderr.isatty()) as tell:

            def told(name: str) -> None:
                nonlocal done
                done += 1
                tell("Studies", done - 1, count)

            tell("Studies", 0, count)
            write_studies(out, range(seed, seed + count), recipe, workers=workers or _cores(), done=told)
    if not quiet:
        for number in range(seed, seed + count):
            print(out if count == 1 else out / name_of(number))


def _forced_findings(joint: str, asked: str | None) -> dict[str, bool] | None:
    """``--findings`` as keys of the joint's labels, in whatever case they were typed."""
    if asked is None:
        return None
    keys = {label.key.lower(): label.key for label in tasks.LABELS[joint]}
    names = [name.strip() for name in asked.split(",") if name.strip() and name.strip().lower() != "none"]
    for name in names:
        if name.lower() not in keys:
            raise InputError(f"the {joint} has no finding {name!r}; choose from {', '.join(keys.values())}, or none.")
    chosen = {keys[name.lower()] for name in names}
    return {key: key in chosen for key in keys.values()}


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@app.command()
def info(
    as_json: Json = False,
    ops: Annotated[bool, typer.Option("--ops", help="What each op takes, gives and promises.")] = False,
) -> None:
    """Print versions, processor, devices, and each backend with the reason where it is unavailable."""
    from orthokernels.system import describe

    if ops:
        _print_ops(as_json)
        return

    facts = describe()
    if as_json:
        print(json.dumps(facts))
        return
    _print_info(facts)


def _print_ops(as_json: bool) -> None:
    need("orthokernels info --ops", "torch", "torch")
    from dataclasses import asdict

    from rich.table import Table

    from orthokernels.ops.capabilities import CAPABILITIES, backends_of

    if as_json:
        print(json.dumps([{**asdict(row), "backends": backends_of(row.op)} for row in CAPABILITIES]))
        return
    for row in CAPABILITIES:
        where = "\n".join(f"{name}: {_plain(why) if why else 'available'}" for name, why in backends_of(row.op).items())
        table = Table(title=f"{row.op}: {row.computes}", title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column()
        for name, told in (
            ("shapes", row.shapes), ("memory", row.memory), ("dtypes", ", ".join(row.dtypes)),
            ("gradients", row.gradients), ("contract", row.contract),
            ("backends", where),
        ):  # fmt: skip
            table.add_row(name, told)
        Console(highlight=False).print(table)


def _print_info(facts: dict[str, Any]) -> None:
    from rich.table import Table

    console = Console(highlight=False)
    processor = facts["processor"]
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for package, version in facts["versions"].items():
        table.add_row(package, version)
    table.add_row("platform", facts["platform"])
    features = ", ".join(processor["features"]) or "no vector extensions known"
    table.add_row("processor", f"{processor['name']}, {processor['cores']} cores: {features}")
    table.add_row("GPUs", "\n".join(facts["devices"]) or "none that PyTorch sees")
    console.print(table)
    backends = Table(title="Backends", title_justify="left")
    for heading in ("Name", "What", "State", "Ops"):
        backends.add_column(heading)
    for backend in facts["backends"]:
        state = "available" if backend["available"] else f"unavailable: {_plain(backend['reason'])}"
        backends.add_row(backend["name"], backend["what"], state, ", ".join(backend["ops"]) or "none yet")
    console.print(backends)


@weights_app.command("convert")
def weights_convert(
    checkpoint: Annotated[Path, typer.Argument(help="A published checkpoint, *_model.pt.")],
    out: Annotated[Path, typer.Argument(help="A .safetensors file, or a weights folder.")],
    plane: Annotated[str | None, typer.Option(help="Its plane, where the file name does not say.")] = None,
) -> None:
    """Turn a published checkpoint into safetensors with a JSON card, every name and shape checked."""
    need("orthokernels weights convert", "torch", "torch")
    if plane is not None and plane not in tasks.PLANES:
        raise InputError(f"there is no plane {plane!r}; choose from {', '.join(tasks.PLANES)}.")
    from orthokernels.models.orthodiffusion.published import convert_checkpoint

    written, card = convert_checkpoint(checkpoint, out, plane=plane)
    print(f"{written}: {len(card.shapes)} tensors, digest {card.digest}")


@weights_app.command("fetch")
def weights_fetch(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder instead of the cache.")] = None,
    planes: Annotated[str, typer.Option(help="Planes to fetch, separated by commas.")] = ",".join(tasks.PLANES),
) -> None:
    """Download the published weights (1.66 GB) from the Hugging Face hub, resumed if cut off, and convert them."""
    need("orthokernels weights fetch", "torch", "torch")
    from orthokernels.models.orthodiffusion.published import fetch_published

    asked = tuple(plane.strip() for plane in planes.split(","))
    for plane in asked:
        if plane not in tasks.PLANES:
            raise InputError(f"there is no plane {plane!r}; choose from {', '.join(tasks.PLANES)}.")
    for card in fetch_published(out, asked):
        print(f"{card.plane}: {len(card.shapes)} tensors, digest {card.digest}")


if __name__ == "__main__":
    main()
