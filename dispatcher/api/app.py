"""The API as one ASGI app, and how it wants to be served. Routing is starlette's, the rest is the front door's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

import uvicorn
from starlette.routing import Router
from starlette.types import ASGIApp

from dispatcher.api.connection import Connection
from dispatcher.api.crowd import Crowd
from dispatcher.api.doors import Doors
from dispatcher.api.front_door import FrontDoor
from dispatcher.api.routes import Routes
from dispatcher.vocabulary.settings import LimitSettings


def make_app(doors: Doors, environment: Mapping[str, str] = os.environ) -> ASGIApp:
    """environment: where settings.server.key_env is looked up. Raises ConfigurationInvalid when it is empty there.

    A bare Router: Starlette's own two error layers would answer before the front door could, and cost every request.
    """
    return FrontDoor(Router(Routes(doors).table(), redirect_slashes=False), doors.settings, environment, doors.erred)


def server_config(
    app: ASGIApp, host: str, port: int, limits: Callable[[], LimitSettings] = LimitSettings
) -> uvicorn.Config:
    """limits: asked per connection. No access log: GET /select has the prompt in its query. No forwarded headers: Host
    and Origin are checked, and who is on loopback is who is connected from there."""
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
        http=partial(Connection, limits=limits, crowd=Crowd()),  # type: ignore[arg-type]  # only ever called
    )
