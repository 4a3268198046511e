"""Who may ask for what: the token, the host names, where a form may come from, and what a browser may load.

Three things stand between a page from elsewhere and this one, in a browser that can reach both:

- A name that someone else's server resolves to our address (DNS rebinding) is not among our names, so it is refused.
  An IP address can't be rebound, and is taken.
- A form must come with a cookie that browsers send along from our own pages only (SameSite=Strict), with a value that
  was made for that cookie and stood in the form, and from our own origin.
- The policy that every answer bears lets scripts, styles and pictures come from here and from nowhere else.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import secrets
from collections.abc import Collection
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from orthokernels.edge.credentials import SHORTEST_TOKEN, read_secret
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'{images}; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY.format(images=""),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # no-referrer would make a browser send our own forms with the origin "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

# NiiVue carries the picture of its font in its script, as a data: address. It needs no worker, no WebAssembly (that is
# in it for Zarr files, which we have none of), and no inline style.
VIEWER_POLICY = {"Content-Security-Policy": _POLICY.format(images=" data:")}

# Of ours none has a tenth of it; a study's number of thousands of digits would be an error instead of an answer.
_LONGEST_PATH = 1024

_LONGEST_FORM = 64 * 1024  # bytes
_MOST_FIELDS = 20
_COOKIE = "orthokernels_form"


class Access:
    """Lets requests in, and sets the headers that every answer bears."""

    def __init__(self, app: ASGIApp, names: Collection[str], token: str | None, open_to_all: Collection[str]) -> None:
        self._app = app
        self._names = {"localhost", *names}
        self._token = token
        self._open = open_to_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refusal(scope["method"], scope["path"], Headers(scope=scope)) or self._app
        await answer(scope, receive, guarded)

    def _refusal(self, method: str, path: str, headers: Headers) -> Response | None:
        if path in self._open:
            return None
        if len(path) > _LONGEST_PATH:
            return PlainTextResponse("there is no such page\n", 414)
        if not self._is_ours(headers.get("host", "")):
            told = "this name is not among the page's: use localhost, its IP address, or a name in page.names\n"
            return PlainTextResponse(told, 421)
        if self._token and not hmac.compare_digest(_given(headers).encode(), self._token.encode()):
            return PlainTextResponse("a token is needed\n", 401, {"WWW-Authenticate": "Basic"})
        if method not in ("GET", "HEAD") and not _from_our_pages(headers):
            return PlainTextResponse("forms are taken from this appliance's own pages only\n", 403)
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._names:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _from_our_pages(headers: Headers) -> bool:
    """What a browser says of where a form stood. Not every browser says it; the form's own token is asked for too."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    try:
        ours = origin is None or urlsplit(origin).netloc == headers.get("host")
    except ValueError:  # no address at all
        return False
    return ours and site in (None, "same-origin")


def _given(headers: Headers) -> str:
    """The token, as a bearer's or as the password that a browser asks for."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return given
    try:
        return base64.b64decode(given).decode().partition(":")[2]
    except ValueError:  # not base 64, or not of text; binascii's and the decoder's own are ValueErrors too
        return ""


def read_token(path: Path | None) -> str | None:
    """The page's token.

    Raises:
        InputError: the file can't be read, or holds too short a token.
    """
    return read_secret(path, "page.token_file", SHORTEST_TOKEN) if path is not None else None


class Forms:
    """Makes the value that a form must come with, and reads forms that do."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def cookie(self, request: Request) -> str:
        """The browser's own, or a new one."""
        return request.cookies.get(_COOKIE) or secrets.token_urlsafe(32)

    def token(self, cookie: str) -> str:
        """What stands in a form that is shown to the browser with this cookie."""
        return hmac.new(self._secret, cookie.encode(), "sha256").hexdigest()

    def remember(self, request: Request, response: Response, cookie: str) -> None:
        secure = request.url.scheme == "https"
        response.set_cookie(_COOKIE, cookie, path="/", httponly=True, samesite="strict", secure=secure)

    async def read(self, request: Request) -> dict[str, str]:
        """A form's fields.

        Raises:
            HTTPException: it is too long, not a form, or did not stand in one of our pages.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            raise HTTPException(415, "only forms are taken here")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _LONGEST_FORM:
                raise HTTPException(413, f"the form is longer than {_LONGEST_FORM} bytes")
        try:
            fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
        except ValueError as error:
            raise HTTPException(400, "the form can't be read") from error
        cookie = request.cookies.get(_COOKIE, "")
        if not cookie or not hmac.compare_digest(fields.get("token", "").encode(), self.token(cookie).encode()):
            raise HTTPException(403, "the page had been open since before the appliance's start; load it again")
        return fields
