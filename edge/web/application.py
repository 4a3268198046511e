"""Everything that is served over HTTP, from one address.

It listens on loopback unless a token is set. Probes need no token. Only three forms change anything: a retry, a
discard, and a correction.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from orthokernels.edge.receive.http_connection import Door, limited_protocol, serve_http
from orthokernels.edge.receive.listening import listen
from orthokernels.edge.service import Service
from orthokernels.edge.tls import server_context
from orthokernels.edge.web.access import Access, Forms, read_token
from orthokernels.edge.web.corrections import CorrectionPages
from orthokernels.edge.web.model_card import ModelPage
from orthokernels.edge.web.probes import PROBES, Probes
from orthokernels.edge.web.queue import QueuePages
from orthokernels.edge.web.rendering import Renderer
from orthokernels.edge.web.retry import RetryForms
from orthokernels.edge.web.study import StudyPages
from orthokernels.edge.web.viewer import ViewerFiles
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

_STATIC = Path(__file__).with_name("static")
_CONNECTIONS = 100  # at one time; a browser opens six
_HEADER_SECONDS = 10.0


class Page:
    """Serves one appliance.

    Raises:
        InputError: the token or the certificate can't be read, or the port can't be had.
    """

    def __init__(self, service: Service) -> None:
        self._config = service.config
        self._service = service
        self._probes = Probes(service)
        forms = Forms()
        render = Renderer(service, forms)
        study = StudyPages(service, render)
        self.routes = [
            *self._probes.routes(),
            *QueuePages(service, render).routes(),
            *study.routes(),
            *ViewerFiles(service).routes(),
            *CorrectionPages(service, forms, study).routes(),
            *RetryForms(service, forms).routes(),
            *ModelPage(service, render).routes(),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ]
        self._access = Middleware(
            Access, names=self._config.page.names, token=read_token(self._config.page.token_file), open_to_all=PROBES
        )
        self._tls = server_context(self._config.page.tls) if self._config.page.tls else None
        self._socket = listen("page", self._config.page.host, self._config.page.port)

    def start(self) -> None:
        """Serve in a thread of the service's, until that is stopped."""
        self._service.run(self._serve, "page")

    def _serve(self, stop: threading.Event) -> None:
        application = Starlette(routes=self.routes, middleware=[self._access])
        door = Door(self._socket, lambda host: True, _CONNECTIONS)
        serve_http(application, door, limited_protocol(door, _CONNECTIONS, _HEADER_SECONDS), stop, self._tls)

    def not_ready(self) -> Iterator[str]:
        """Why studies should not be sent here now; nothing, where they may."""
        return self._probes.not_ready()
