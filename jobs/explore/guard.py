"""Which requests the application answers: those of the person who started it.

Other users of the machine can reach the port, and so can every web page that the person visits. So, as in
Jupyter, the printed URL holds a random token, which becomes a cookie; the header Host must name this server,
which ends DNS rebinding; and a request that comes from a page must come from one of ours.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import Headers, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
"""Of every answer."""


class Guard:
    """An ASGI application around another: it answers 400, 401 or 403 to what is not let through."""

    def __init__(
        self, app: Any, token: str, hosts: frozenset[str], port: int, *, every_address: bool = False
    ) -> None:
        """`hosts`: the names, without port, that the header Host may have.

        With `every_address` it may be any IP address too: the server listens on all of the machine's, and
        DNS rebinding needs a name.
        """
        self._app, self._token, self._hosts, self._port = app, token, hosts, port
        self._every_address = every_address
        # cookies do not know of ports: those of two servers of one machine have two names
        self._cookie = f"latentlake-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":  # `lifespan`; there are no web sockets
            await self._app(scope, receive, send)
            return
        answer = self._refusal(scope) or self._entrance(scope) or self._app
        await answer(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._is_ours(headers.get("host", "")):
            return PlainTextResponse("The header Host does not name this server.", 400)
        origin = headers.get("origin")
        if origin is not None and not self._is_ours(origin.removeprefix("http://")):
            return PlainTextResponse("The request comes from another site.", 403)
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            is_known = parts.hostname in self._hosts or (self._every_address and _is_address(parts.hostname))
            return is_known and (parts.port or 80) == self._port and "@" not in host
        except ValueError:
            return False

    def _entrance(self, scope: Scope) -> Response | None:
        """A redirect for a URL with the token, which is then a cookie; a refusal where neither is there."""
        query = QueryParams(scope["query_string"])
        given = query.get("token")
        if given is not None and self._is_token(given):
            others = urlencode([pair for pair in query.multi_items() if pair[0] != "token"])
            response = RedirectResponse(scope["path"] + (others and f"?{others}"), 303)
            response.set_cookie(self._cookie, self._token, httponly=True, samesite="lax", path="/")
            return response
        headers = Headers(scope=scope)
        cookies = cookie_parser(headers.get("cookie", ""))
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_token(cookies.get(self._cookie, "")) or self._is_token(bearer):
            return None
        return PlainTextResponse("Open the URL that `latentlake explore` printed: it holds a token.", 401)

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())


def _is_address(host: str | None) -> bool:
    """Whether it is an IP address and not a name."""
    try:
        ip_address(host or "")
    except ValueError:
        return False
    return True


def _with_headers(send: Send) -> Send:
    async def add(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            names = {name for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message["headers"] = [*message["headers"], *(pair for pair in more if pair[0] not in names)]
        await send(message)

    return add
