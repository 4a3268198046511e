"""One version of one study: how far it is, what was found, why not, and where it went."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Any

from orthokernels.edge import audit, viewing
from orthokernels.edge.corrections import LONGEST_NAME, LONGEST_TEXT, Corrections, every_label, labels
from orthokernels.edge.service import Service
from orthokernels.edge.store import Job
from orthokernels.edge.web.access import VIEWER_POLICY
from orthokernels.edge.web.identity import identity, view_folder
from orthokernels.edge.web.rendering import Renderer
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FIELDS = ("what", "plane", "text", "who")  # of a correction
_VERDICTS = ("failed", "doubtful", "passed")


class StudyPages:
    """Pages of studies, by their jobs' numbers."""

    def __init__(self, service: Service, render: Renderer) -> None:
        self._service = service
        self._render = render

    def routes(self) -> list[Route]:
        return [Route("/study/{job:int}", self._page)]

    def _page(self, request: Request) -> Response:
        job = self._service.store.find(request.path_params["job"])
        if job is None:
            raise HTTPException(404, "there is no such study")
        return self.show(request, job)

    def show(
        self,
        request: Request,
        job: Job,
        *,
        status: int = 200,
        wrong: str | None = None,
        given: dict[str, str] | None = None,
    ) -> Response:
        """The page; ``wrong`` is a sentence about the correction in ``given``, which was not kept."""
        response = self._render.page(
            "study.html",
            request,
            status,
            **self._facts(job),
            wrong=wrong,
            given=dict.fromkeys(_FIELDS, "") | (given or {}),
        )
        response.headers.update(VIEWER_POLICY)
        return response

    def _facts(self, job: Job) -> dict[str, Any]:
        config, store = self._service.config, self._service.store
        folder, joint = view_folder(config, job.name), config.results.joint
        checks = viewing.read_json(folder / viewing.CHECKS) or []
        return {
            "job": job,
            "images": len(store.files(job.id)),
            "set_aside": store.set_aside_of(job.study_uid),
            "senders": store.sources(job.id),
            "versions": store.versions(job.study_uid),
            "identity": identity(config, job.name),
            "result": viewing.read_result(folder),
            "checks": sorted(checks, key=lambda check: _VERDICTS.index(check["verdict"])),
            "pictures": viewing.pictures(folder),
            "rejected_days": config.retention.rejected_days,
            "deliveries": self._service.deliveries.of(job.id),
            "gone": self._service.deliveries.gone(job.id),
            "retriable": self._service.deliveries.retriable(job.id, job.state),
            "history": _history(self._service, job),
            "corrections": Corrections(store, joint).of(job),
            "wrong_labels": {kind: labels(kind, joint) for kind in ("structure", "finding")},
            "wrong_names": {kind: every_label(kind) for kind in ("structure", "finding")},
            "longest": {"text": LONGEST_TEXT, "who": LONGEST_NAME},
        }


def _history(service: Service, job: Job) -> list[dict[str, Any]]:
    """The audit log's entries of a job, with seconds since 1970 and until the next."""
    entries: list[dict[str, Any]] = [
        {**entry, "at": datetime.fromisoformat(entry["at"]).timestamp()}
        for entry in audit.of_subject(service.store.database, job.name)
    ]
    for entry, following in pairwise(entries):
        entry["lasted"] = following["at"] - entry["at"]
    return entries
