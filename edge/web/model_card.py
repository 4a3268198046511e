"""The bundle's model card, as a page."""

from __future__ import annotations

from orthokernels.edge.service import Service
from orthokernels.edge.web.rendering import Renderer
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_CARD = "MODEL_CARD.md"
_LONGEST = 1 << 20  # bytes; a card has some thousands


class ModelPage:
    """Shows what the model is for."""

    def __init__(self, service: Service, render: Renderer) -> None:
        self._bundle = service.config.work.bundle
        self._render = render

    def routes(self) -> list[Route]:
        return [Route("/model", self._page)]

    def _page(self, request: Request) -> Response:
        return self._render.page("model.html", request, card=self._card())

    def _card(self) -> str | None:
        """The card as HTML. Its text is Markdown, in which HTML counts as text and links run no script."""
        from markdown_it import MarkdownIt

        if self._bundle is None:
            return None
        try:
            with (self._bundle / _CARD).open("rb") as file:
                text = file.read(_LONGEST).decode(errors="replace")
        except OSError:
            return None
        return MarkdownIt("commonmark", {"html": False}).enable("table").disable("image").render(text)
