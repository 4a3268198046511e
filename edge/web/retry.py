"""The buttons that take up again what was rejected, put aside, or not delivered; or give up on it."""

from __future__ import annotations

from collections.abc import Callable

from orthokernels.edge.health import destinations_health
from orthokernels.edge.service import Service
from orthokernels.edge.store import Job
from orthokernels.edge.web.access import Forms
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

_ACTOR = "page"


class RetryForms:
    """Retries a study, or all that a destination did not take; or gives up on a study."""

    def __init__(self, service: Service, forms: Forms) -> None:
        self._service = service
        self._forms = forms

    def routes(self) -> list[Route]:
        return [
            Route("/study/{job:int}/retry", self._study, methods=["POST"]),
            Route("/study/{job:int}/discard", self._discarded, methods=["POST"]),
            Route("/destination/{name}/retry", self._destination, methods=["POST"]),
        ]

    async def _study(self, request: Request) -> Response:
        await self._forms.read(request)
        return await run_in_threadpool(self._decide, request.path_params["job"], self._service.deliveries.retry)

    async def _discarded(self, request: Request) -> Response:
        await self._forms.read(request)
        return await run_in_threadpool(self._decide, request.path_params["job"], self._service.deliveries.discard)

    def _decide(self, number: int, decision: Callable[[Job, str], Job]) -> Response:
        job = self._service.store.find(number)
        if job is None:
            raise HTTPException(404, "there is no such study")
        return RedirectResponse(f"/study/{decision(job, _ACTOR).id}", 303)

    async def _destination(self, request: Request) -> Response:
        await self._forms.read(request)
        return await run_in_threadpool(self._retry_destination, request.path_params["name"])

    def _retry_destination(self, name: str) -> Response:
        store, destinations = self._service.store, self._service.config.destinations
        if name not in {destination.name for destination in destinations}:
            raise HTTPException(404, "there is no such destination")
        (health,) = (own for own in destinations_health(store.database, destinations) if own.name == name)
        for number in health.dead:
            self._service.deliveries.retry(store.job(number), _ACTOR)
        return RedirectResponse("/", 303)
