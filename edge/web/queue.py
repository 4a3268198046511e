"""The queue at ``/``, and ``/queue.json``, the part of it that a script on the page asks for every other second."""

from __future__ import annotations

from typing import Any

from orthokernels.edge.health import destinations_health
from orthokernels.edge.service import Service
from orthokernels.edge.status import recent, summary
from orthokernels.edge.web.identity import identity
from orthokernels.edge.web.rendering import Renderer
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


class QueuePages:
    """Studies, destinations and disk."""

    def __init__(self, service: Service, render: Renderer) -> None:
        self._service = service
        self._render = render

    def routes(self) -> list[Route]:
        return [Route("/", self._page), Route("/queue.json", self._part)]

    def _page(self, request: Request) -> Response:
        return self._render.page("queue.html", request, **self._facts())

    def _part(self, request: Request) -> Response:
        """The same markup that the whole page holds, so that there is one place where it is made, and escaped."""
        facts = self._facts()
        working = facts["summary"]["jobs"]
        return JSONResponse(
            {"html": self._render.text("queue_part.html", request, **facts), "unfinished": _unfinished(working)}
        )

    def _facts(self) -> dict[str, Any]:
        config, store = self._service.config, self._service.store
        jobs = recent(store)
        return {
            "summary": summary(config, store.database),
            "notes": self._service.self_check.notes,
            "jobs": jobs,
            "identities": {job["id"]: identity(config, job["study"]) for job in jobs},
            "retriable": {job["id"] for job in jobs if self._service.deliveries.retriable(job["id"], job["state"])},
            "health": destinations_health(store.database, config.destinations),
        }


def _unfinished(jobs: dict[str, int]) -> int:
    return sum(jobs[state] for state in ("received", "settling", "checked", "inferring", "writing", "sending"))
