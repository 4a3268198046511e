"""The form "This is wrong", and ``/corrections.json``, all that was said in it."""

from __future__ import annotations

from orthokernels.edge import viewing
from orthokernels.edge.corrections import Correction, Corrections
from orthokernels.edge.service import Service
from orthokernels.edge.store import Job
from orthokernels.edge.web.access import Forms
from orthokernels.edge.web.identity import view_folder
from orthokernels.edge.web.study import StudyPages
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from orthokernels.errors import InputError


class CorrectionPages:
    """Takes corrections, and gives them out."""

    def __init__(self, service: Service, forms: Forms, study: StudyPages) -> None:
        self._service = service
        self._forms = forms
        self._study = study
        self._corrections = Corrections(service.store, service.config.results.joint)

    def routes(self) -> list[Route]:
        return [
            Route("/study/{job:int}/corrections", self._add, methods=["POST"]),
            Route("/corrections.json", self._export),
        ]

    async def _add(self, request: Request) -> Response:
        fields = await self._forms.read(request)
        return await run_in_threadpool(self._keep, request, fields)

    def _keep(self, request: Request, fields: dict[str, str]) -> Response:
        job = self._service.store.find(request.path_params["job"])
        if job is None:
            raise HTTPException(404, "there is no such study")
        try:
            self._corrections.add(self._correction(job, fields))
        except InputError as error:
            return self._study.show(request, job, status=422, wrong=str(error), given=fields)
        return RedirectResponse(f"/study/{job.id}#corrections", 303)

    def _correction(self, job: Job, fields: dict[str, str]) -> Correction:
        kind, _, label = fields.get("what", "").partition(":")
        result = viewing.read_result(view_folder(self._service.config, job.name))
        return Correction(
            job=job.id,
            kind=kind,  # held against the list before it is kept
            label=label or None,
            plane=fields.get("plane") or None,
            text=fields.get("text", "").replace("\r\n", "\n").strip(),
            who=fields.get("who", "").strip(),
            model=result.model.digest if result else None,
        )

    def _export(self, request: Request) -> Response:
        return JSONResponse(self._corrections.export())
