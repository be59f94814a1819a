"""The exposition as bytes, and a small application that serves nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector as Registrable

Exposition = Callable[[str | None], tuple[bytes, str]]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_INDEX = b"""<!doctype html><html lang="en"><title>AI Model Dispatcher exporter</title>
<h1>AI Model Dispatcher exporter</h1><p><a href="/metrics">/metrics</a></p></html>
"""
_TEXT = "text/plain; charset=utf-8"


def exposition_of(collector: Registrable) -> Exposition:
    """exposition(accept) → body and content type: OpenMetrics for who asks for it, else the text format. A registry of
    its own: no process-wide metrics, no `_created` series."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)

    def exposition(accept: str | None) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(accept or "")
        return encode(registry), content_type

    return exposition


def metrics_app(exposition: Exposition) -> Application:
    """GET and HEAD of /metrics, and an index at /."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await _answer(scope, send, exposition)
        else:  # a websocket: closed before it is accepted
            await send({"type": "websocket.close", "code": 1000})

    return app


async def _answer(scope: Scope, send: Send, exposition: Exposition) -> None:
    status, body, content_type, more = 200, b"", _TEXT, list[tuple[bytes, bytes]]()
    if scope["path"] not in ("/", "/metrics"):
        status, body = 404, b"not found; the metrics are at /metrics\n"
    elif scope["method"] not in ("GET", "HEAD"):
        status, body, more = 405, b"only GET and HEAD\n", [(b"allow", b"GET, HEAD")]
    elif scope["path"] == "/":
        body, content_type = _INDEX, "text/html; charset=utf-8"
    else:
        body, content_type = exposition(_accept(scope["headers"]))
    headers = [
        (b"content-type", content_type.encode("latin-1")),
        (b"content-length", str(len(body)).encode("latin-1")),
        (b"x-content-type-options", b"nosniff"),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _accept(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    given = [value.decode("latin-1") for name, value in headers if name == b"accept"]
    return ",".join(given) if given else None


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
