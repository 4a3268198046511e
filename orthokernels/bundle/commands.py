"""``orthokernels bundle``: look at a bundle, and find out what runs it fastest here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orthokernels import tasks
from orthokernels.errors import InputError

if TYPE_CHECKING:
    from orthokernels.bundle.verify import Bundle
    from orthokernels.runtime.tuning import Timing

app = typer.Typer(no_args_is_help=True, help="Verify and tune bundles, which run without PyTorch.")

Folder = Annotated[Path, typer.Argument(help="Folder of the bundle.")]
Key = Annotated[Path | None, typer.Option("--key", help="Public key (PEM) that must have signed the bundle.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


@app.command()
def verify(bundle: Folder, key: Key = None, as_json: Json = False) -> None:
    """Check every file of a bundle against its manifest, its signature, and what its graphs may do."""
    from orthokernels.bundle.verify import verify as check

    found = check(bundle, key=key)
    if as_json:
        manifest = found.manifest.model_dump(mode="json", exclude={"files", "graphs"})
        print(json.dumps({"digest": found.digest, "signer": found.signer, "manifest": manifest}))
    else:
        _print_bundle(found, expected=key is not None)


def _print_bundle(found: Bundle, *, expected: bool) -> None:
    from rich.console import Console
    from rich.markup import escape

    manifest, console = found.manifest, Console(highlight=False, emoji=False)
    size = sum(file.bytes for file in manifest.files.values())
    console.print(f"[bold green]Verified:[/] {len(manifest.files)} files, {size / 1e6:.1f} MB, as the manifest says.")
    console.print(escape(f"{manifest.name}, for {', '.join(manifest.joints)}; forms {', '.join(manifest.forms)}"))
    console.print(f"Digest: {found.digest}", soft_wrap=True)
    if found.signer is None:
        console.print("Not signed: nothing says who made it.")
    else:
        console.print(f"Signed by {found.signer}" + ("" if expected else ", a key that was not checked; pass --key."))
    if manifest.notice:
        console.print(f"[bold yellow]{escape(manifest.notice)}[/]")
    console.print(escape(manifest.intended_use))


@app.command()
def tune(
    bundle: Folder,
    joint: Annotated[str, typer.Option(help="knee, ankle or shoulder; each is timed by itself.")] = "knee",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over all contenders; medians count.")] = 3,
    key: Key = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Time every engine and form on this machine and remember the fastest for 'run --bundle'."""
    from orthokernels.bundle.verify import verify as check
    from orthokernels.progress import progress
    from orthokernels.runtime.tuning import choices_file, tuned
    from orthokernels.runtime.tuning import tune as time_all

    found = check(bundle, key=key)
    if joint not in found.manifest.joints:
        raise InputError(f"{bundle}: has nothing for the {joint}; it has {', '.join(found.manifest.joints)}.")
    planes = [plane for plane in tasks.PLANES if plane in found.manifest.joints[joint].planes]
    with progress(quiet or as_json) as tell:
        timings = time_all(found, joint, planes, rounds=rounds, tell=tell)
    if as_json:
        print(json.dumps({"bundle": found.digest, "joint": joint, "timings": [asdict(own) for own in timings]}))
    elif not quiet:
        _print_timings(timings)
    fastest = timings[0]
    kept = tuned(found.digest, joint)
    if kept is None or (kept.engine, kept.form) != (fastest.engine, fastest.form):
        raise InputError(
            f"{choices_file()}: can't be written, so that 'orthokernels run --bundle' will not know of "
            f"{fastest.engine} in {fastest.form}. Name a folder that can be written with ORTHOKERNELS_CACHE and tune "
            f"again, or run with --engine {fastest.engine} --form {fastest.form}."
        )
    if not (quiet or as_json):
        told = f"{fastest.engine} in {fastest.form}"
        print(f"'orthokernels run --bundle' now uses {told} on this machine, for the {joint}.")


def _print_timings(timings: list[Timing]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, emoji=False)
    table = Table(title="One slab of every plane, features and heads", title_justify="left")
    for column in ("Engine", "Form"):
        table.add_column(column)
    for column in ("Seconds", "Of the fastest"):
        table.add_column(column, justify="right")
    best = timings[0].seconds or 1.0
    for own in timings:
        if own.seconds is None:
            table.add_row(own.engine, own.form, "-", escape(own.reason or ""))
        else:
            table.add_row(own.engine, own.form, f"{own.seconds:.3f}", f"{own.seconds / best:.2f} x")
    console.print(table)


@app.command()
def keygen(
    private: Annotated[Path, typer.Argument(help="Where the private key goes; keep it to yourself.")],
    public: Annotated[Path, typer.Argument(help="Where the public key goes; give it to those who verify.")],
) -> None:
    """Make a pair of Ed25519 keys to sign bundles with."""
    from orthokernels.bundle.signature import make_keys

    print(f"Public key: {make_keys(private, public)}")
    print(f"Sign with it: orthokernels export bundle --key {private} --out BUNDLE")
    print(f"Ask for it: orthokernels bundle verify BUNDLE --key {public}; run and bundle tune take --key, too.")
