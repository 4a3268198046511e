"""The whole visit, in the order in which one thing rests on another."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from orthokernels.edge.config import Config
from orthokernels.edge.doctor.look import Look
from orthokernels.edge.doctor.loop import address, doctors_peer, through_own, through_running
from orthokernels.edge.doctor.peers import look_at_destinations
from orthokernels.edge.doctor.site import (
    is_running,
    look_at_bundle,
    look_at_clock,
    look_at_disk,
    look_at_files,
    look_at_ports,
    look_at_watched_folder,
)
from orthokernels.edge.service import quiet_libraries
from orthokernels.edge.tls import own_context

from orthokernels.bundle.golden import golden_study
from orthokernels.bundle.verify import verify
from orthokernels.errors import InputError

_PROBE_SECONDS = 5.0
_PEER = 'Add [[receive.peers]] with ae_title = "DOCTOR", hosts = ["{}"], deliver = false, and restart it.'


def checkup(file: Path, config: Config, seconds: float) -> Iterator[Look]:
    """Look at everything; each look comes when it is done.

    Args:
        file: the configuration, which was read.
        config: what it says.
        seconds: how long to wait for the study.
    """
    quiet_libraries()
    yield Look("settings", "ok", f"{file}: every setting is known and in range")
    yield from look_at_files(file, config)
    yield from look_at_disk(config)
    yield from look_at_watched_folder(config)
    yield look_at_clock(config)
    running = is_running(config)
    if running:
        yield Look("service", "ok", "an appliance runs on this data folder")
        yield from look_at_page(config)
    else:
        yield Look("service", "note", "no appliance runs on this data folder", "Start it: orthokernels edge serve")
        yield from look_at_ports(config)
    yield from look_at_bundle(config)
    yield from look_at_destinations(config)
    yield from _loop(config, running, seconds)


def look_at_page(config: Config) -> Iterator[Look]:
    """What the running appliance's own probes say."""
    for what in ("healthz", "readyz"):
        status, told = ask_page(config, what)
        if what == "readyz" and status in (200, 503):
            answer = json.loads(told)
            told = "; ".join(answer["reasons"]) or "; ".join(["ready", *answer.get("golden_case", ())])
        yield Look(f"/{what}", "ok" if status == 200 else "failed", told, "Put that right; the log says more.")


def ask_page(config: Config, what: str) -> tuple[int, str]:
    """Status and text of one of the page's probes; 0 where nobody answers."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.page.host, config.page.host)
    host = f"[{host}]" if ":" in host else host
    try:
        context = own_context(config.page.tls) if config.page.tls else None
        url = f"{'https' if context else 'http'}://{host}:{config.page.port}/{what}"
        # No proxy of the environment's: it would be asked for a page of its own machine's.
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with direct.open(url, timeout=_PROBE_SECONDS) as answer:
            return answer.status, answer.read(65536).decode().strip()
    except urllib.error.HTTPError as error:
        return error.code, error.read(65536).decode().strip()
    except OSError as error:
        return 0, f"{host}:{config.page.port} does not answer ({getattr(error, 'reason', error)})"


def _loop(config: Config, running: bool, seconds: float) -> Iterator[Look]:
    images: list[Path] = []
    if config.work.bundle is not None:
        with suppress(InputError):  # said above
            images = golden_study(verify(config.work.bundle, key=config.work.bundle_key), config.results.joint)
    if not images:
        yield Look("whole loop", "failed", "there is no golden study to send", "Put the bundle right first.")
    elif running and doctors_peer(config) is not None:
        yield from through_running(config, images, seconds)
    else:
        if running:
            told = "no peer with deliver = false lets the doctor in, so the running appliance gets no study"
            yield Look("whole loop", "note", f"{told}; one of its own is tried instead", _PEER.format(address(config)))
        yield from through_own(config, images, seconds)
