"""The HTTP API as an ASGI application."""

import logging
import secrets
import time
from collections.abc import MutableMapping
from functools import cache, partial
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

import videoar
from videoar.core.printable import printable
from videoar.serving import routes
from videoar.serving.errors import ApiError, as_api_error
from videoar.serving.openapi import describe, errors
from videoar.serving.page import page_router
from videoar.serving.server import Server, ServerSettings
from videoar.serving.service import VideoService
from videoar.serving.wire import invalid

_ID = "x-request-id"
logger = logging.getLogger(__name__)


def create_app(service: VideoService, settings: ServerSettings | None = None) -> FastAPI:
    """Return the API on a service; `app.state.server` is its `Server`.

    Args:
        service: runs and keeps the jobs.
        settings: keys and limits.
    """
    server = Server(service, settings or ServerSettings())

    app = FastAPI(
        title="VideoAR",
        version=videoar.__version__,
        docs_url=None,  # its page loads scripts from other sites
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.server = server
    has_keys = bool(server.settings.keys)
    app.include_router(routes.operation, responses=errors())
    app.include_router(
        routes.videos,
        dependencies=[
            Depends(routes.identify_client),
            *([Depends(HTTPBearer(auto_error=False))] if has_keys else []),
        ],
        responses=errors(400, *([401] if has_keys else []), 403, 429, 503),
    )
    app.include_router(routes.sessions)
    app.include_router(page_router())
    app.add_middleware(Monitor, server=server)
    for kind in (ApiError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _on_error)
    app.openapi = cache(partial(describe, app))  # type: ignore[method-assign]  # as FastAPI documents
    return app


class Monitor:
    """Counts requests, gives each an id, and answers for exceptions that nobody expected."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, started, given = time.perf_counter(), False, Headers(scope=scope).get(_ID)
        # a proxy that gives an id, as that of Ray Serve, also puts it into the answer
        request_id = printable(given[:64]) if given else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def observe(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if not given:
                    message["headers"].append((_ID.encode(), request_id.encode()))
                route, seconds = _route(scope), time.perf_counter() - start
                self._server.metrics.request(route, scope["method"], message["status"], seconds)
            await send(message)

        try:
            await self._app(scope, receive, observe)
        except Exception as error:
            logger.exception("%s %s: %s", request_id, _route(scope), type(error).__name__)
            if started:  # the client sees that the connection ends
                raise
            await as_api_error(error).response(scope, receive, observe)


def _route(scope: Scope) -> str:
    """Return the route of a request with its parameters as names: few values, as labels need."""
    return getattr(scope.get("route"), "path", "none")


async def _on_error(request: Request, error: Exception) -> Response:
    match error:
        case RequestValidationError():
            return invalid(error.errors()).response
        case HTTPException(status_code=405):
            # Starlette names only the methods of the first route of a path
            methods = request.app.openapi()["paths"].get(_route(request.scope), {})
            response = ApiError(405, "this path has no such method", "method_not_allowed").response
            response.headers["Allow"] = ", ".join(sorted(methods)).upper()
            return response
        case HTTPException():
            return ApiError(error.status_code, str(error.detail)).response
    server: Server = request.app.state.server
    return server.api_error(error, request.state.request_id).response
