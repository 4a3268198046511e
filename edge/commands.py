"""``orthokernels edge``: heavy imports are inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orthokernels.errors import InputError, need

if TYPE_CHECKING:
    from orthokernels.edge.deliveries import Deliveries
    from orthokernels.edge.doctor.look import Look
    from orthokernels.edge.store import Job

app = typer.Typer(no_args_is_help=True, help="The appliance beside the scanner: receive, infer, deliver.")

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]
DEFAULT = Path("appliance.toml")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = DEFAULT,
    data: Annotated[Path, typer.Option(help="Folder for images, results and the database.")] = Path(
        "/var/lib/orthokernels"
    ),
) -> None:
    """Write a commented configuration with safe defaults: it listens on loopback, and nobody may send."""
    from orthokernels.edge.config import write_template

    write_template(path, data)
    print(f"{path}: is written. Say in it what the model is (work.bundle), where to listen (receive.host) and to whom")
    print("([[receive.peers]]), and where results go ([[destinations]]). Then, each with this file:")
    for command, what in (
        ("check-config", "finds mistakes in it"),
        ("doctor", "tries all of it"),
        ("serve", "runs it"),
    ):
        print(f"  orthokernels edge {command} --config {path}   {what}")


@app.command("check-config")
def check_config(config: ConfigFile = DEFAULT) -> None:
    """Check a configuration; one sentence for each mistake, exit code 2."""
    from orthokernels.edge.config import load

    found = load(config)
    print(f"{config}: is in order. Files, ports and destinations that it names: orthokernels edge doctor")
    if not found.receive.peers:
        print("Note: no peer is listed, so nobody may send over DICOM.")
    if found.receive.unreached:
        print(f"Note: receive.host is {found.receive.host}, so no other machine reaches it, whatever the peers say.")
    if found.stow is not None and not found.stow.peers:
        print("Note: no peer is listed for DICOMweb, so whoever is on this machine may post.")
    if found.page.in_clear:
        print("Note: the page has no [page.tls], so its token and all that it shows cross the network unencrypted.")
    served = {"receive": found.receive.tls, "stow": found.stow and found.stow.tls, "page": found.page.tls}
    for section, tls in served.items():
        if tls is not None and tls.authority is not None and not tls.mutual:
            told = "has an authority without mutual = true, so nobody is asked for a certificate"
            print(f"Note: {section}.tls {told}.")
    if not found.destinations:
        print("Note: no destination is listed, so results stay here.")
    if found.work.bundle is None:
        print("Note: no bundle is named, so there is no model.")


@app.command()
def serve(config: ConfigFile = DEFAULT) -> None:
    """Receive, infer and deliver until stopped (SIGTERM or Ctrl-C)."""
    need("orthokernels edge serve", "pynetdicom", "edge")
    from orthokernels.edge.config import load
    from orthokernels.edge.service import serve as run

    found = load(config)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    run(found)


@app.command()
def status(config: ConfigFile = DEFAULT, as_json: Json = False) -> None:
    """Print the queue, what is owed to destinations, and the disk."""
    need("orthokernels edge status", "pynetdicom", "edge")
    from orthokernels.edge.config import load
    from orthokernels.edge.status import open_store, recent, summary

    found = load(config)
    store = open_store(found)
    facts = summary(found, store.database)
    jobs = recent(store, 30)
    if as_json:
        print(json.dumps({**facts, "recent": jobs}))
        return
    print("  ".join(f"{state} {count}" for state, count in facts["jobs"].items() if count) or "no study has come yet")
    for job in jobs:
        told = ": ".join(filter(None, (job["state"], job["progress"], job["reason"])))
        print(f"{job['id']:>6}  {job['study']}  {job['images']:>5} images  {told}")
    for name, states in facts["destinations"].items():
        told = ", ".join(f"{state} {count}" for state, count in states.items()) or "nothing yet"
        forms = ", ".join(f"{form} {count}" for form, count in facts["segmentations"].get(name, {}).items())
        print(f"{name}: {told}" + f"; segmentations: {forms}" * bool(forms))
    print(f"disk: {facts['disk_used']:.0%} used")
    if facts["refuses_because"]:
        print(f"images are refused: {facts['refuses_because']}")


@app.command()
def demo(
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for all of it; an earlier demo there is removed.")],
    keep: Annotated[
        bool | None, typer.Option("--keep/--stop", help="Go on until Ctrl-C; by default at a terminal.")
    ] = None,
) -> None:
    """Start the appliance on loopback, push a phantom with dcmtk's storescu, and show what came out and where."""
    need("orthokernels edge demo", "pynetdicom", "edge")
    from orthokernels.edge.demo import show

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what it started ends with it
    show(bundle, out, keep=sys.stdin.isatty() if keep is None else keep)


@app.command()
def probe(config: ConfigFile = DEFAULT) -> None:
    """Ask the running appliance whether it is well (its page's /healthz); exit 1 if it is not. For health checks."""
    need("orthokernels edge probe", "pynetdicom", "edge")
    from orthokernels.edge.config import load
    from orthokernels.edge.doctor.checkup import ask_page

    status, told = ask_page(load(config), "healthz")
    print(told)
    if status != 200:
        raise typer.Exit(1)


@app.command()
def doctor(
    config: ConfigFile = DEFAULT,
    wait: Annotated[float, typer.Option(min=1, help="Seconds within which the study must come out.")] = 600.0,
    as_json: Json = False,
) -> None:
    """Look at configuration, files, disk, clock, ports, bundle and destinations; then send a study through it all.

    The study is the bundle's golden phantom. It goes through the running appliance if a peer with deliver = false lets
    it in, else through one that is started for it; no destination gets it. Exit 1 if something failed.
    """
    need("orthokernels edge doctor", "pynetdicom", "edge")
    from orthokernels.edge.config import load
    from orthokernels.edge.doctor.checkup import checkup

    looks = []
    for look in checkup(config, load(config), wait):
        looks.append(look)
        if not as_json:
            _print_look(look)
    failed = [look.what for look in looks if look.verdict == "failed"]
    if as_json:
        print(json.dumps({"ok": not failed, "looks": [asdict(look) for look in looks]}))
    else:
        print(f"Failed: {', '.join(failed)}." if failed else "All is in order.")
    if failed:
        raise typer.Exit(1)


def _print_look(look: Look) -> None:
    """A line when it is known: the loop takes its time, and who waits sees how far it is."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, emoji=False)
    colour = {"ok": "green", "note": "yellow", "failed": "bold red"}[look.verdict]
    console.print(f"[{colour}]{look.verdict:<8}[/]{escape(f'{look.what}: {look.seen}')}", soft_wrap=True)
    if look.remedy and look.verdict != "ok":
        console.print(escape(f"        {look.remedy}"), soft_wrap=True)


Jobs = Annotated[list[int], typer.Argument(help="Numbers of jobs, as 'status' shows them.")]


@app.command()
def retry(jobs: Jobs, config: ConfigFile = DEFAULT) -> None:
    """Take up jobs again that were rejected, put aside, or not delivered."""
    need("orthokernels edge retry", "pynetdicom", "edge")
    from orthokernels.edge.deliveries import Deliveries

    _decide(jobs, config, Deliveries.retry)


@app.command()
def discard(jobs: Jobs, config: ConfigFile = DEFAULT) -> None:
    """Give up on jobs that were put aside or not delivered: they are removed after retention.rejected_days."""
    need("orthokernels edge discard", "pynetdicom", "edge")
    from orthokernels.edge.deliveries import Deliveries

    _decide(jobs, config, Deliveries.discard)


def _decide(jobs: list[int], config: Path, decision: Callable[[Deliveries, Job, str], Job]) -> None:
    """A person's decision on jobs that came to nothing; none is touched where a number is wrong."""
    import sqlite3

    from orthokernels.edge.config import load
    from orthokernels.edge.database import unwritable
    from orthokernels.edge.deliveries import Deliveries
    from orthokernels.edge.status import open_store

    found = load(config)
    store = open_store(found)
    known = {job.id: job for job in store.jobs(limit=10**6)}
    for number in jobs:
        if number not in known:
            raise InputError(f"there is no job {number}; 'orthokernels edge status' lists them.")
    deliveries = Deliveries(store, found.destinations)
    for number in jobs:
        try:
            decided = decision(deliveries, known[number], "console")
        except sqlite3.OperationalError as error:
            raise unwritable(found.appliance.data, error) from error
        gone = deliveries.gone(decided.id)
        told = f"; {', '.join(gone)}: no longer configured. Discard it, or configure that destination again." * bool(
            gone
        )
        print(f"{decided.id}: {decided.state}{told}")


@app.command("openrecon-label")
def openrecon_label(
    out: Annotated[Path, typer.Option("--out", "-o", help="The JSON file to write.")],
    config: ConfigFile = DEFAULT,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the MRD server, inside the container.")] = 9002,
    vendor: Annotated[str, typer.Option(help="Who packages it: letters, digits and hyphens.")] = "orthokernels",
    address: Annotated[str, typer.Option(help="The packager's address, for the regulatory part.")] = "",
) -> None:
    """Write the label that makes a container image of the appliance a Siemens OpenRecon module, checked."""
    need("orthokernels edge openrecon-label", "jsonschema", "edge")
    from orthokernels.edge.config import load
    from orthokernels.edge.durable import write_durably
    from orthokernels.edge.openrecon.label import IMAGE_LABEL, openrecon_label

    label = openrecon_label(load(config), port=port, vendor=vendor, address=address)
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: {out.parent} is no folder. Make it, or name another place.")
    try:
        write_durably(out, (json.dumps(label, indent=2).encode() + b"\n",))
    except OSError as error:
        raise InputError(f"--out {out}: can't be written ({error.strerror}). Name another place.") from error
    print(f"{out}: {len(label['parameters'])} parameters. In an image it is the label {IMAGE_LABEL}, as base 64.")


@app.command("export-audit")
def export_audit(config: ConfigFile = DEFAULT) -> None:
    """Print the audit log, one JSON object per line. Exit 1 if an entry or its link to the one before was changed."""
    need("orthokernels edge export-audit", "pynetdicom", "edge")
    from orthokernels.edge import audit
    from orthokernels.edge.config import load
    from orthokernels.edge.status import open_store

    intact = True
    for entry in audit.entries(open_store(load(config)).database):
        intact = intact and bool(entry["intact"])
        print(json.dumps(entry))
    if not intact:
        print("orthokernels: the audit log was changed after it was written.", file=sys.stderr)
        raise typer.Exit(1)


@app.command("export-corrections")
def export_corrections(config: ConfigFile = DEFAULT) -> None:
    """Print what readers marked as wrong on the page, one JSON object per line."""
    need("orthokernels edge export-corrections", "pynetdicom", "edge")
    from orthokernels.edge.config import load
    from orthokernels.edge.corrections import Corrections
    from orthokernels.edge.status import open_store

    found = load(config)
    for correction in Corrections(open_store(found), found.results.joint).export():
        print(json.dumps(correction))
