"""``orthokernels export``: weights to a bundle, and a bundle beside its reference."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orthokernels.bundle.manifest import FORMS, Form
from orthokernels.errors import InputError, need
from orthokernels.progress import progress

if TYPE_CHECKING:
    from orthokernels.export.make import Made

app = typer.Typer(no_args_is_help=True, help="Export weights as a verified bundle that runs without PyTorch.")

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]
Report = Annotated[
    Path | None,
    typer.Option(help="Folder for what judged the forms: parity.json, parity.md and the page parity.html."),
]


@app.command()
def bundle(
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the bundle.")],
    weights: Annotated[str, typer.Option(help="'demo', 'published', random:SEED, or a weights folder.")] = "demo",
    forms: Annotated[
        str,
        typer.Option(
            help="Forms of the graphs, separated by commas; fp32 is always there. OpenVINO runs fp16 and int8, ONNX "
            "Runtime int8_qdq and int8_weights, whose weights alone are INT8."
        ),
    ] = ",".join(FORMS),
    studies: Annotated[
        int,
        typer.Option(min=1, help="Phantoms of each joint that judge the forms; below 100 only fp32 stays."),
    ] = 100,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder with a study of your own to calibrate INT8 with, else phantoms do; may be repeated. Of the "
            "slabs of 16 slices that a graph is given, the first 24 count."
        ),
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Private key (PEM, Ed25519) to sign with.")] = None,
    report: Report = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export every graph in every form, judge the forms on phantoms, and keep those that lose little enough."""
    wanted = _forms(forms)
    _check_place("--report", report, out)
    _need_packages()
    from orthokernels.export.make import Options, make_bundle

    options = Options(forms=wanted, studies=studies, calibration=tuple(calibrate or ()), key=key)
    with progress(quiet or as_json) as tell:
        made = make_bundle(weights, out, options, tell, _writer(report))
    if made.parity is not None:
        _writer(report)(made.parity)
    if as_json:
        print(json.dumps(_record(made, out)))
    elif not quiet:
        _print_made(made, out)
        if report is not None and made.parity is None:
            print(f"No --report: untrained weights have nothing to judge. Errors: orthokernels export check {out}")


def _writer(report: Path | None) -> Callable[[dict[str, Any]], None]:
    """What writes a parity check into ``report``, where it is wanted."""

    def write(parity: dict[str, Any]) -> None:
        if report is not None:
            from orthokernels.export.parity_page import write_parity

            write_parity(parity, report, "--report")

    return write


def _check_place(option: str, folder: Path | None, bundle: Path) -> None:
    """Refuse a folder that can't be written, before anything is computed for it; nothing is made there yet.

    So is one in the bundle, which is only one with no file but its own.
    """
    if folder is None:
        return
    if folder.resolve().is_relative_to(bundle.resolve()):
        raise InputError(f"{option} {folder}: is in the bundle {bundle}, which holds its own files only. Name another.")
    there = next(own for own in (folder.absolute(), *folder.absolute().parents) if own.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{option} {folder}: can't be written; {there} is no folder to write into.")


def _forms(names: str) -> tuple[Form, ...]:
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in FORMS:
            raise InputError(f"there is no form {name!r}; choose from {', '.join(FORMS)}.")
    return tuple(form for form in FORMS if form in wanted)


def _need_packages() -> None:
    for module in ("torch", "onnxscript", "onnxruntime", "openvino", "nncf"):
        need("orthokernels export", module, "export")


def _record(made: Made, out: Path) -> dict[str, Any]:
    manifest = made.bundle.manifest
    return {
        "out": str(out),
        "digest": made.bundle.digest,
        "signer": made.bundle.signer,
        "forms": _counts(made),
        "refused": [own.model_dump() for own in manifest.refused],
        "metrics": [own.model_dump() for own in manifest.metrics],
        "quantised": [own.model_dump() for own in manifest.quantised],
    }


def _counts(made: Made) -> dict[str, int]:
    """How many graphs there are in each form."""
    graphs = made.bundle.manifest.graphs.values()
    return {form: count for form in FORMS if (count := sum(form in graph.forms for graph in graphs))}


def _print_made(made: Made, out: Path) -> None:
    from orthokernels.export.parity import sizes_of
    from orthokernels.export.parity_page import in_float, size_rows
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, manifest = Console(highlight=False, emoji=False), made.bundle.manifest
    table = Table(title="What each form reaches on phantoms, beside fp32 in PyTorch", title_justify="left")
    for column in ("Joint", "Metric", "Form"):
        table.add_column(column)
    for column in ("Value", "fp32", "Studies"):
        table.add_column(column, justify="right")
    for own in manifest.metrics:
        table.add_row(own.task, own.metric, own.form, f"{own.value:.4f}", f"{own.fp32:.4f}", str(own.studies))
    if manifest.metrics:
        console.print(table)
    found = {"quantised": [own.model_dump() for own in manifest.quantised], "sizes": sizes_of(made.bundle)}
    for name, told in in_float(found).items():
        console.print(escape(f"{name}: {told}"))
    sizes = Table(title="Graphs on disk", title_justify="left")
    for number, row in enumerate(size_rows(found)):
        for column in row if number == 0 else ():
            sizes.add_column(column[0].upper() + column[1:], justify="left" if column == "form" else "right")
        sizes.add_row(*row.values())
    console.print(sizes)
    for refusal in manifest.refused:
        console.print(f"[yellow]Left out:[/] {escape(f'{refusal.form}: {refusal.reason}')}")
    forms = ", ".join(f"{form} ({count} graphs)" for form, count in _counts(made).items())
    console.print(escape(f"Bundle: {out}, {forms}"), soft_wrap=True)
    console.print(escape(f"Try it: orthokernels run STUDY --bundle {out} --out RESULT"), soft_wrap=True)


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for parity.json, parity.md and parity.html.")],
    studies: Annotated[
        int, typer.Option(min=1, help="Phantoms of each joint; no form but fp32 is admitted on fewer than 100.")
    ] = 100,
    joints: Annotated[str | None, typer.Option(help="Joints, separated by commas; all by default.")] = None,
    slabs: Annotated[
        int | None, typer.Option(min=1, help="Slabs of each series, for errors alone; all of them by default.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the reference in PyTorch and every form of a bundle over the same phantoms; write table, JSON and page."""
    _check_place("--out", out, bundle)
    _need_packages()
    from orthokernels.export.make import Options, judged_records
    from orthokernels.export.parity import check as compare
    from orthokernels.export.parity_page import finite, markdown, write_parity

    from orthokernels.bundle.verify import verify

    found = verify(bundle)
    wanted = [joint.strip() for joint in (joints or "").split(",") if joint.strip()] or list(found.manifest.joints)
    for joint in wanted:
        if joint not in found.manifest.joints:
            raise InputError(f"{bundle}: has nothing for the {joint}; it has {', '.join(found.manifest.joints)}.")
    options = Options(studies=studies)
    with progress(quiet or as_json) as tell:
        records = judged_records(wanted, found.manifest.size, options, tell)
        result = compare(found, records, slabs=slabs, workers=options.workers, tell=tell).result
    write_parity(result, out)
    if as_json:
        print(json.dumps(finite(result)))
    elif not quiet:
        print(markdown(result))
        print(f"Page: {out / 'parity.html'}")
