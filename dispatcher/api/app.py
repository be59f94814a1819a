"""The API as one ASGI app, and how it wants to be served. Routing is starlette's, the rest is the front door's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import uvicorn
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from dispatcher.api.connection import Connection
from dispatcher.api.crowd import Crowd
from dispatcher.api.doors import Doors
from dispatcher.api.front_door import FrontDoor
from dispatcher.api.page.document import sign_in
from dispatcher.api.routes import Routes
from dispatcher.vocabulary.settings import LimitSettings


def make_app(doors: Doors, environment: Mapping[str, str] = os.environ) -> ASGIApp:
    """environment: where settings.server.key_env is looked up. Raises ConfigurationInvalid when it is empty there.

    A bare Router: Starlette's own two error layers would answer before the front door could, and cost every request.
    """
    table = Routes(doors).table()
    return FrontDoor(ByPath(table), doors.settings, environment, doors.erred, sign_in=sign_in)


class ByPath:
    """What is at a fixed path is looked up; starlette has the rest: paths with a part that varies, and what is nowhere
    or not answered to this method. Tried in order, as there, what is relayed came after twenty others (20 µs)."""

    def __init__(self, table: Sequence[Route]) -> None:
        self._router = Router(table, redirect_slashes=False)
        self._fixed = {
            (method, route.path): route.app
            for route in table
            if not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._router
        if scope["type"] == "http":
            app = self._fixed.get((scope["method"], scope["path"]), app)
        await app(scope, receive, send)


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
