"""The baseline of `scripts/bench select`: the same stack , an endpoint that only answers."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from dispatcher.api.front_door import FrontDoor
from dispatcher.vocabulary.settings import Settings

_BODY = b'{"ok":true}'


async def _noop(request: Request) -> Response:
    await request.body()
    return Response(_BODY, media_type="application/json")


app = FrontDoor(Router([Route("/noop", _noop, methods=["POST"])]), Settings, {})
