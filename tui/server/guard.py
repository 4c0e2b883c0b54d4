"""Who may talk to the server: programs of this machine, and with a key those alone that know it; no page in a browser.

A page of the web can make a browser send requests to loopback, or give its own name the address 127.0.0.1 (DNS
rebinding). The first kind bears the page's name in Origin, the second the name in Host.
"""

import hmac
import re
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tui.server.failures import Failure

_LOOPBACK = r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?"
_HOST = re.compile(_LOOPBACK, re.IGNORECASE)
_ORIGIN = re.compile("https?://" + _LOOPBACK, re.IGNORECASE)


class Guard:
    """An ASGI application in front of another."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, refuse: Callable[[str, Failure], object]) -> None:
        """`refuse` tells of a failure and returns it in the words of the API that a path belongs to.

        `api_key` None: none is asked for.
        """
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        failure = self._refusal(scope) if scope["type"] == "http" else None
        if failure is None:
            await self._app(scope, receive, send)
        else:
            body = self._refuse(scope["path"], failure)
            await JSONResponse(body, failure.status, headers=failure.headers)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Failure | None:
        headers = Headers(scope=scope)
        if not _HOST.fullmatch(headers.get("host", "")):
            return Failure(403, "the Host header names no loopback address; call the server as 127.0.0.1 or localhost")
        origin = headers.get("origin")
        is_foreign = origin is not None and not _ORIGIN.fullmatch(origin)
        if is_foreign or headers.get("sec-fetch-site") == "cross-site":
            return Failure(403, "the request comes from a web page; only programs of this machine are answered")
        if self._api_key is not None and scope["path"] != "/health" and not self._knows_key(headers):
            return Failure(
                401,
                "the API key is missing or wrong; send the one of --api-key, as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None

    def _knows_key(self, headers: Headers) -> bool:
        assert self._api_key is not None
        given = headers.get("authorization", "")
        given = given[7:] if given[:7].lower() == "bearer " else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode(), self._api_key)
