"""A Docker API on a unix socket that can be told to misbehave. A server, not a patched client."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

VERSION = {"ApiVersion": "1.41", "Version": "20.10.24"}


class SickDocker:
    """mood: well | silent (accepts and says nothing) | broken (500) | dribbling (a header byte by byte, for ever)
    | garbage (200 that is not Docker's) | forbidding (403 on actions, as a filtering proxy)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mood = "well"
        self.asked: list[str] = []  # "GET /containers/json", without the version
        self.containers: list[dict[str, object]] = []  # rows of the list
        self.inspected: dict[str, dict[str, object]] = {}  # by name
        self.silent_inspections: set[str] = set()  # names whose inspection never answers
        self.listening = asyncio.Event()  # somebody follows the events
        self._events: asyncio.Queue[dict[str, object] | None] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    async def __aenter__(self) -> SickDocker:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head.split(b"\r\n", 1)[0].decode(), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            with contextlib.suppress(Exception):
                writer.close()

    async def _answer(self, request_line: str, writer: asyncio.StreamWriter) -> None:
        method, target, _ = request_line.split(" ")
        path = target.split("?")[0]
        if path.startswith("/v1."):
            path = "/" + path.split("/", 2)[2]
        self.asked.append(f"{method} {path}")
        name = path.split("/")[2] if path.startswith("/containers/") and path.count("/") > 2 else ""
        if self.mood == "silent" or (path.endswith("/json") and name in self.silent_inspections):
            await asyncio.Event().wait()
        if self.mood == "dribbling":
            writer.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            while True:
                writer.write(b".")
                await writer.drain()
                await asyncio.sleep(0.05)
        if path == "/events" and self.mood == "well":
            await self._tell_events(writer)
            return
        status, body = self._body(method, path, name)
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        writer.write(head.encode() + payload)
        await writer.drain()

    async def _tell_events(self, writer: asyncio.StreamWriter) -> None:
        """Until told None: one chunk per event."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        await writer.drain()
        self.listening.set()
        while (event := await self._events.get()) is not None:
            line = json.dumps(event).encode() + b"\n"
            writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            await writer.drain()
        self.listening.clear()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def tell(self, event: dict[str, object] | None) -> None:
        """To whoever follows the events; None ends the stream."""
        self._events.put_nowait(event)

    def _body(self, method: str, path: str, name: str) -> tuple[int, object]:
        if self.mood == "broken":
            return 500, {"message": "the storage driver is on fire"}
        if self.mood == "garbage":
            return 200, b"<html>a captive portal</html>"
        if path == "/version":
            return 200, VERSION
        if path == "/containers/json":
            return 200, self.containers
        if name and path.endswith("/json"):
            found = self.inspected.get(name)
            return (200, found) if found else (404, {"message": f"No such container: {name}"})
        if self.mood == "forbidding" and method == "POST":
            return 403, {"message": "not allowed by the proxy"}
        return (204, b"") if method == "POST" else (404, {"message": "page not found"})

    def declare(self, name: str, model: str, *, status: str = "exited", **config: object) -> None:
        """A labelled container, as Docker lists and inspects it."""
        labels = {"dispatcher.managed": "true", "dispatcher.model": model}
        running = status == "running"
        self.containers.append({"Names": [f"/{name}"], "Labels": labels, "State": status, "Status": status})
        self.inspected[name] = {
            "Id": f"id-of-{name}",
            "Name": f"/{name}",
            "Config": {"Labels": labels},
            "HostConfig": {"Memory": 0, "PortBindings": {}},
            "NetworkSettings": {"Ports": {}},
            "State": {"Status": status, "Running": running, "Paused": False, "ExitCode": 0, "OOMKilled": False,
                      "StartedAt": "2026-11-21T00:16:02.209439493Z", "Error": ""},
            **config,
        }  # fmt: skip
