"""One HTTP request and its answer over ASGI, with the habits of the real server's HTTP libraries (net/http and gin)."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

_BUFFERED_BYTES = 2048  # Go's: a body that outgrows it goes out chunked, without Content-Length (rule 18)
JSON_UTF8 = "application/json; charset=utf-8"
JSON = "application/json"
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class ClientGone(Exception):
    """The client left, or we cut the connection: nothing more can be said."""


def go_json(value: Any) -> bytes:
    """As Go's encoding/json writes it: compact, UTF-8, <>& and the two line separators escaped (rule 18)."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_ESCAPES).encode("utf-8", "replace")


class Exchange:
    """One request, read whole, and the ways to answer it. Silence (the fault) holds back every send."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        audible: Callable[[], Awaitable[None]],
        cut: Callable[[], None],
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = Headers(scope=scope)
        self.body = b""
        self.started = False
        self._receive = receive
        self._send_message = send
        self._audible = audible
        self._cut = cut

    async def read_body(self) -> None:
        parts = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        self.body = b"".join(parts)

    async def gone(self) -> None:
        """Returns when the client has left. Only once the body is read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(
        self, status: int, body: bytes, content_type: str | None, *, chunked: bool = False, **headers: str
    ) -> None:
        """A whole answer. HEAD gets the headers of one, the length included."""
        listed = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        if content_type is not None:
            listed.append((b"content-type", content_type.encode()))
        if len(body) <= _BUFFERED_BYTES and not chunked:
            listed.append((b"content-length", str(len(body)).encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": listed})
        await self._send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def json(self, status: int, value: Any) -> None:
        """A native answer."""
        await self.answer(status, go_json(value), JSON_UTF8)

    async def start_stream(self, content_type: str) -> None:
        """The status line: only now, with the first token (rule 3)."""
        headers = [(b"content-type", content_type.encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def piece(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end_stream(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    def cut(self) -> None:
        """Closes the connection as it stands: no final chunk, or no answer at all. Raises ClientGone."""
        self._cut()
        raise ClientGone

    async def _send(self, message: Message) -> None:
        await self._audible()
        self.started = True
        await self._send_message(message)


def host_is_allowed(host: str, headers: Mapping[str, str]) -> bool:
    """What a server bound to loopback lets in (rule 20): loopback, private and unspecified addresses, localhost and the
    names that only local networks have."""
    name = headers.get("host", "")
    name = name[1 : name.find("]")] if name.startswith("[") else name.rsplit(":", 1)[0]
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        lowered = name.lower()
        return lowered in ("", "localhost", host) or lowered.endswith((".localhost", ".local", ".internal"))
    return address.is_loopback or address.is_private or address.is_unspecified


def origin_is_allowed(origin: str, host: str) -> bool:
    """Local pages, the server's own origin, and the schemes of desktop applications."""
    scheme, _, rest = origin.partition("://")
    if scheme in ("app", "file", "tauri", "vscode-webview", "vscode-file") or rest == host:
        return True
    name = rest[: rest.find("]") + 1] if rest.startswith("[") else rest.rsplit(":", 1)[0]
    return scheme in ("http", "https") and name in ("localhost", "127.0.0.1", "0.0.0.0", "[::1]")
