"""``orthokernels edge``: heavy imports are inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from orthokernels.errors import InputError, need

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
    print(f"{path}: add who may send ([[receive.peers]]) and where results go ([[destinations]]), then check it.")


@app.command("check-config")
def check_config(config: ConfigFile = DEFAULT) -> None:
    """Check a configuration; one sentence for each mistake, exit code 2."""
    from orthokernels.edge.config import load

    found = load(config)
    print(f"{config}: is in order.")
    if not found.receive.peers:
        print("Note: no peer is listed, so nobody may send over DICOM.")
    if found.stow is not None and not found.stow.peers:
        print("Note: no peer is listed for DICOMweb, so whoever is on this machine may post.")
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
        print(f"{name}: " + (", ".join(f"{state} {count}" for state, count in states.items()) or "nothing yet"))
    print(f"disk: {facts['disk_used']:.0%} used" + (f"; {facts['refuses_because']}" * bool(facts["refuses_because"])))


@app.command()
def retry(
    jobs: Annotated[list[int], typer.Argument(help="Numbers of jobs, as 'status' shows them.")],
    config: ConfigFile = DEFAULT,
) -> None:
    """Take up jobs again that were rejected, put aside, or not delivered."""
    need("orthokernels edge retry", "pynetdicom", "edge")
    from orthokernels.edge.config import load
    from orthokernels.edge.deliveries import Deliveries
    from orthokernels.edge.status import open_store

    found = load(config)
    store = open_store(found)
    known = {job.id: job for job in store.jobs(limit=10**6)}
    for number in jobs:
        if number not in known:
            raise InputError(f"there is no job {number}; 'orthokernels edge status' lists them.")
    for number in jobs:
        again = Deliveries(store, found.destinations).retry(known[number], "console")
        print(f"{again.id}: {again.state}")


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
