"""The server as an ASGI application: the routes of all APIs behind the guard, errors in the words of each."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from profiles.errors import OverstoryError
from tui.server import anthropic_routes, openai_routes, responses_routes, status_routes
from tui.server.exchange import ApiRoute, Service
from tui.server.failures import Failure, RefusedError, failure_of, openai_error
from tui.server.guard import Guard

ROUTES = (*openai_routes.ROUTES, *responses_routes.ROUTES, *anthropic_routes.ROUTES, *status_routes.ROUTES)
_ERROR_BODIES = {route.path: route.error_body for route in ROUTES}
_GONE_STATUS = 499
"""Which nobody reads."""


def build_app(service: Service, *, api_key: str | None = None) -> ASGIApp:
    """Return the application; with `api_key` only requests that bring it are answered, and /health."""
    app = Starlette(
        routes=[Route(route.path, _endpoint(service, route), methods=[route.method]) for route in ROUTES],
        exception_handlers={HTTPException: _unknown(service)},
    )

    def refuse(path: str, failure: Failure) -> object:
        service.log.refuse(path, failure)
        return _say(path, failure)

    return Guard(app, api_key=api_key, refuse=refuse)


def _say(path: str, failure: Failure) -> object:
    return _ERROR_BODIES.get(path, openai_error)(failure)


def _respond(path: str, failure: Failure) -> Response:
    return JSONResponse(_say(path, failure), failure.status, headers=failure.headers)


def _endpoint(service: Service, route: ApiRoute) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return await route.handle(service, request)
        except RefusedError as error:
            failure = error.failure
        except OverstoryError as error:
            failure = failure_of(error)
        except ClientDisconnect:
            return Response(status_code=_GONE_STATUS)
        if not getattr(request.state, "has_answers", False):  # else their ends are told
            service.log.refuse(route.shown_path, failure)
        return _respond(route.path, failure)

    return answer


def _unknown(service: Service) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return what answers for paths that do not exist, and methods that a path does not have."""

    async def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = ", ".join(f"{route.method} {route.shown_path}" for route in ROUTES)
        sentence = f"{request.method} {request.url.path} is not done here; the endpoints are {known}"
        failure = Failure(error.status_code, sentence, headers=error.headers or {})
        service.log.refuse(request.url.path, failure)
        return _respond(request.url.path, failure)

    return answer
