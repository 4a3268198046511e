"""What the viewer in the browser loads: volumes, label maps and pictures of one job.

A request names a job by its number and a plane or picture by a name that is looked up; no part of it becomes a path.
"""

from __future__ import annotations

from pathlib import Path

from orthokernels.edge import viewing
from orthokernels.edge.service import Service
from orthokernels.edge.web.identity import view_folder
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from orthokernels import tasks
from orthokernels.montage_layout import colour
from orthokernels.result import PlaneResult

_GONE = "there is no such file; results are removed when their time is over"


class ViewerFiles:
    """Files of results' views."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        return [
            Route("/study/{job:int}/viewer.json", self._viewer),
            Route("/study/{job:int}/findings.json", self._findings),
            Route("/study/{job:int}/volume/{plane}.nii.gz", self._volume),
            Route("/study/{job:int}/labels/{plane}.nii.gz", self._labels),
            Route("/study/{job:int}/picture/{name}.png", self._picture),
        ]

    def _folder(self, request: Request) -> Path:
        job = self._service.store.find(request.path_params["job"])
        if job is None:
            raise HTTPException(404, "there is no such study")
        return view_folder(self._service.config, job.name)

    def _viewer(self, request: Request) -> Response:
        folder, number = self._folder(request), request.path_params["job"]
        result = viewing.read_result(folder)
        shown = (
            [plane for plane in result.planes if viewing.volume_file(folder, plane.plane).is_file()] if result else []
        )
        return JSONResponse({"planes": [_plane(plane, folder, number) for plane in shown]})

    def _findings(self, request: Request) -> Response:
        return _file(self._folder(request) / viewing.FINDINGS, "application/json")

    def _volume(self, request: Request) -> Response:
        return _file(viewing.volume_file(self._folder(request), _known_plane(request)), "application/gzip")

    def _labels(self, request: Request) -> Response:
        return _file(viewing.labels_file(self._folder(request), _known_plane(request)), "application/gzip")

    def _picture(self, request: Request) -> Response:
        folder, name = self._folder(request), request.path_params["name"]
        if name not in viewing.pictures(folder):
            raise HTTPException(404, _GONE)
        return _file(folder / f"{name}.png", "image/png")


def _known_plane(request: Request) -> str:
    plane = request.path_params["plane"]
    if plane not in tasks.PLANES:
        raise HTTPException(404, "there is no such plane")
    return str(plane)


def _file(path: Path, kind: str) -> Response:
    if not path.is_file():
        raise HTTPException(404, _GONE)
    return FileResponse(path, media_type=kind)


def _plane(plane: PlaneResult, folder: Path, job: int) -> dict[str, object]:
    labelled = viewing.labels_file(folder, plane.plane).is_file()
    return {
        "plane": plane.plane,
        "volume": f"/study/{job}/volume/{plane.plane}.nii.gz",
        "labels": f"/study/{job}/labels/{plane.plane}.nii.gz" if labelled else None,
        "structures": [
            {"index": own.index, "name": own.name, "colour": colour(own.key, own.index), "voxels": own.voxels}
            for own in plane.structures
        ],
    }
