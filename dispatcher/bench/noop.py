"""The baseline of `scripts/bench select`: the same stack, an endpoint that does nothing but answer."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

_BODY = b'{"ok":true}'


async def _noop(request: Request) -> Response:
    await request.body()
    return Response(_BODY, media_type="application/json")


app = Router([Route("/noop", _noop, methods=["POST"])])
