"""Templates, and how times, sizes and colours are written in them. Whatever is put into one is escaped."""

from __future__ import annotations

import time
from typing import Any

import jinja2
from orthokernels.edge.deliveries import KEPT_HERE, NO_DESTINATION
from orthokernels.edge.service import Service
from orthokernels.edge.web.access import Forms
from starlette.requests import Request
from starlette.responses import HTMLResponse

from orthokernels import tasks
from orthokernels.montage_layout import colour


class Renderer:
    """Makes pages of one appliance."""

    def __init__(self, service: Service, forms: Forms) -> None:
        self._forms = forms
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("orthokernels.edge.web", "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(
            title=service.config.appliance.ae_title,
            notice=tasks.RESEARCH_NOTICE,
            colour=colour,
            planes=tasks.PLANES,
            kept_here=(KEPT_HERE, NO_DESTINATION),
        )
        self._environment.filters.update(ago=ago, moment=moment, seconds=seconds, share=share)

    def text(self, template: str, request: Request, cookie: str | None = None, **facts: Any) -> str:
        """A template with ``facts``, and with the value that its forms must come with."""
        token = self._forms.token(cookie or self._forms.cookie(request))
        return self._environment.get_template(template).render(facts, form_token=token, now=time.time())

    def page(self, template: str, request: Request, status: int = 200, **facts: Any) -> HTMLResponse:
        """The same as an answer, which leaves the cookie that the forms need."""
        cookie = self._forms.cookie(request)
        response = HTMLResponse(self.text(template, request, cookie, **facts), status)
        self._forms.remember(request, response, cookie)
        return response


def ago(at: float, now: float) -> str:
    """How long ago, in the largest unit that fits."""
    passed = max(now - at, 0.0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= 2 * length:
            return f"{passed // length:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def moment(at: float) -> str:
    """A moment on the appliance's own clock, with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(at))


def seconds(length: float) -> str:
    """A length of time."""
    return f"{length:.2f} s" if length < 100 else f"{length / 60:.1f} min"


def share(progress: str | None) -> tuple[int, int] | None:
    """What is done and what there is to do, where a worker's progress ("coronal 2/3") counts it."""
    done, slash, total = (progress or "").rpartition(" ")[2].partition("/")
    return (int(done), int(total)) if slash and done.isdecimal() and total.isdecimal() and int(total) > 0 else None
