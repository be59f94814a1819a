"""The API as one ASGI app, and how it wants to be served. Routing is starlette's, the rest is the front door's."""

from __future__ import annotations

import os
from collections.abc import Mapping

import uvicorn
from starlette.routing import Router
from starlette.types import ASGIApp

from dispatcher.api.doors import Doors
from dispatcher.api.front_door import FrontDoor
from dispatcher.api.routes import Routes

MAX_HEADER_BYTES = 32 * 1024
MAX_CONNECTIONS = 2048


def make_app(doors: Doors, environment: Mapping[str, str] = os.environ) -> ASGIApp:
    """environment: where settings.server.key_env is looked up. Raises ConfigurationInvalid when it is empty there.

    A bare Router: Starlette's own two error layers would answer before the front door could, and cost every request.
    """
    return FrontDoor(Router(Routes(doors).table(), redirect_slashes=False), doors.settings, environment)


def server_config(app: ASGIApp, host: str, port: int) -> uvicorn.Config:
    """No access log: GET /select has the prompt in its query. No forwarded headers: Host and Origin are checked."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=75,
    )
