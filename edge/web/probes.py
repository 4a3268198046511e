"""What machines ask: ``/healthz``, ``/readyz`` and, for Prometheus, ``/metrics``. None of it names a study."""

from __future__ import annotations

from collections.abc import Iterator

from orthokernels.edge import metrics
from orthokernels.edge.service import Service
from orthokernels.edge.status import summary
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

# They come without a token, and under any host name.
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


class Probes:
    """Health, readiness and figures of one appliance."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._config = service.config
        self._gauges = CollectorRegistry()
        self._gauges.register(_Gauges(service))

    def routes(self) -> list[Route]:
        return [
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/metrics", self._metrics),
        ]

    def _healthz(self, request: Request) -> Response:
        alive = self._service.alive()
        return PlainTextResponse("ok\n" if alive else "a thread has ended\n", 200 if alive else 503)

    def _readyz(self, request: Request) -> Response:
        reasons = list(self.not_ready())
        checked = [worker.verified for worker in self._service.workers if worker.verified]
        notes = list(self._service.self_check.notes)
        told = {"ready": not reasons, "reasons": reasons, "notes": notes, "golden_case": checked}
        return JSONResponse(told, 503 if reasons else 200)

    def not_ready(self) -> Iterator[str]:
        """Why studies should not be sent here now; nothing, where they may."""
        if not self._service.alive():
            yield "a thread has ended"
        if refuses := summary(self._config, self._service.store.database)["refuses_because"]:
            yield refuses
        for model in self._service.models:
            if model.unusable:
                yield model.unusable
            elif not model.loaded:
                yield "the model is being loaded and tried on its golden case"
            elif model.verified is None:
                yield "the bundle carries no golden case to try the model on; export it again"
        yield from self._service.self_check.reasons

    def _metrics(self, request: Request) -> Response:
        told = generate_latest(metrics.REGISTRY) + generate_latest(self._gauges)
        return Response(told, 200, media_type=CONTENT_TYPE_LATEST)


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
