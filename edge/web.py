"""Probes and the page, over HTTP: ``/healthz``, ``/readyz``, ``/metrics``, and the queue at ``/``.

It listens on loopback unless a token is set; probes need none. Nothing here changes anything.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Iterator
from typing import Any

import jinja2
import uvicorn
from orthokernels.edge import metrics
from orthokernels.edge.service import Service
from orthokernels.edge.status import recent, summary
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from orthokernels import tasks
from orthokernels.errors import InputError

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Page:
    """Serves one appliance."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._config = service.config
        self._token = _token(service)
        loader = jinja2.PackageLoader("orthokernels.edge", "templates")
        self._template = jinja2.Environment(loader=loader, autoescape=True).get_template("queue.html")
        self._gauges = CollectorRegistry()
        self._gauges.register(_Gauges(service))

    def start(self) -> None:
        """Serve in a thread of its own, until the process ends."""
        routes = [
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/metrics", self._metrics),
            Route("/", self._queue),
        ]
        page = self._config.page
        settings = uvicorn.Config(
            Starlette(routes=routes), host=page.host, port=page.port, log_config=None, access_log=False,
            server_header=False,
        )  # fmt: skip
        threading.Thread(target=uvicorn.Server(settings).run, name="page", daemon=True).start()

    def _healthz(self, request: Request) -> Response:
        alive = self._service.alive()
        return PlainTextResponse("ok\n" if alive else "a thread has ended\n", 200 if alive else 503, _HEADERS)

    def _readyz(self, request: Request) -> Response:
        reasons = list(self.not_ready())
        checked = [worker.verified for worker in self._service.workers if worker.verified]
        told = {"ready": not reasons, "reasons": reasons, "golden_case": checked}
        return JSONResponse(told, 503 if reasons else 200, _HEADERS)

    def not_ready(self) -> Iterator[str]:
        """Why studies should not be sent here now; nothing, where they may."""
        if not self._service.alive():
            yield "a thread has ended"
        if refuses := summary(self._config, self._service.store.database)["refuses_because"]:
            yield refuses
        for worker in self._service.workers:
            if worker.unusable:
                yield worker.unusable
            elif not worker.loaded:
                yield "the model is being loaded and tried on its golden case"
            elif worker.verified is None:
                yield "the bundle carries no golden case to try the model on; export it again"
        yield from self._service.self_check.reasons

    def _metrics(self, request: Request) -> Response:
        told = generate_latest(metrics.REGISTRY) + generate_latest(self._gauges)
        return Response(told, 200, _HEADERS, CONTENT_TYPE_LATEST)

    def _queue(self, request: Request) -> Response:
        if self._token and not hmac.compare_digest(_bearer(request).encode(), self._token.encode()):
            return PlainTextResponse("a token is needed\n", 401, {**_HEADERS, "WWW-Authenticate": "Basic"})
        facts: dict[str, Any] = {
            "title": self._config.appliance.ae_title,
            "notice": tasks.RESEARCH_NOTICE,
            "summary": summary(self._config, self._service.store.database),
            "jobs": recent(self._service.store),
            "now": time.time(),
        }
        return HTMLResponse(self._template.render(facts), 200, _HEADERS)


class _Gauges(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[GaugeMetricFamily]:
        facts = summary(self._service.config, self._service.store.database)
        jobs = GaugeMetricFamily("orthokernels_jobs", "Jobs by state.", labels=["state"])
        for state, count in facts["jobs"].items():
            jobs.add_metric([state], count)
        yield jobs
        owed = GaugeMetricFamily("orthokernels_deliveries", "Deliveries by state.", labels=["destination", "state"])
        for destination, states in facts["destinations"].items():
            for state, count in states.items():
                owed.add_metric([destination, state], count)
        yield owed
        yield GaugeMetricFamily(
            "orthokernels_oldest_waiting_seconds", "Age of the oldest study that was not evaluated yet.",
            facts["oldest_waiting_seconds"],
        )  # fmt: skip
        yield GaugeMetricFamily("orthokernels_disk_free_bytes", "Free bytes.", facts["disk_free_bytes"])


def _token(service: Service) -> str | None:
    path = service.config.page.token_file
    if path is None:
        return None
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"page.token_file: {path}: can't be read ({error}).") from error
    if len(token) < 16:
        raise InputError(f"page.token_file: {path}: holds fewer than 16 characters. Put a longer token into it.")
    return token


def _bearer(request: Request) -> str:
    """The token, as a bearer's or as the password that a browser asks for."""
    import base64
    import binascii

    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return given
    try:
        return base64.b64decode(given).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""
