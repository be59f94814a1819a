"""The baseline of `scripts/bench gateway`: starlette and aiohttp, and nothing that decides, waits, watches or counts.

$UPSTREAM: where it relays to.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import aiohttp
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, Router

_session: aiohttp.ClientSession | None = None
_UPSTREAM = os.environ.get("UPSTREAM", "")


async def _relay(request: Request) -> Response:
    global _session
    if _session is None:
        _session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
    body = await request.body()
    answer = await _session.post(
        _UPSTREAM + request.url.path, data=body, headers={"content-type": "application/json"}, allow_redirects=False
    )
    kind = answer.headers["content-type"]
    if "ndjson" in kind:
        return StreamingResponse(_pieces(answer), answer.status, media_type=kind)
    try:
        return Response(await answer.read(), answer.status, media_type=kind)
    finally:
        answer.release()


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.content.iter_any():
            yield piece
    finally:
        answer.release()


app = Router([Route("/api/chat", _relay, methods=["POST"])])
