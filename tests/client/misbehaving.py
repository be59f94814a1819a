"""A door in front of a real model server: prompts to chosen models get a fault instead of an answer, as raw bytes.

Everything else (loads, /api/ps, prompts to the other models) goes through, so a real daemon sees a healthy server.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.realparts import pick_port

TEXT = b'{"model":"x","created_at":"2026-01-01T00:00:00Z","response":" half","done":false}\n'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(status: int, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Fault:
    """holds: the connection stays open and silent after the bytes, until the test is over or the client leaves. drips:
    spaces follow, one after the other, until the client leaves. once: the next prompt to this model goes through."""

    told: bytes = b""
    holds: bool = False
    drips: bool = False
    once: bool = False


@dataclass
class Misbehaving:
    target: str
    port: int = field(default_factory=pick_port)
    faults: dict[str, Fault] = field(default_factory=dict)
    prompts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def heal(self) -> None:
        self.faults.clear()
        self.prompts.clear()

    def serve(self, caller: socket.socket) -> None:
        head, body = _request(caller)
        if not head:
            return
        asked = json.loads(body) if body else {}
        if head.startswith(b"POST /api/generate ") and asked.get("prompt"):
            self.prompts.append(asked)
            fault = self.faults.get(asked["model"])
            if fault is not None:
                if fault.once:
                    del self.faults[asked["model"]]
                caller.sendall(fault.told)
                while fault.drips:
                    caller.sendall(chunk(b" "))
                    time.sleep(0.02)
                if fault.holds:
                    caller.recv(1)
                return
        address = urlsplit(self.target)
        with socket.create_connection((address.hostname, address.port)) as behind:
            behind.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
            while data := behind.recv(65_536):
                caller.sendall(data)


def _request(caller: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = caller.recv(65_536)
        if not piece:
            return b"", b""
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    lines = [line.split(b":", 1) for line in head.split(b"\r\n")[1:]]
    kept = [head.split(b"\r\n")[0], *(b":".join(line) for line in lines if line[0].lower() != b"connection")]
    length = next((int(line[1]) for line in lines if line[0].lower() == b"content-length"), 0)
    while len(body) < length:
        body += caller.recv(65_536)
    return b"\r\n".join(kept) + b"\r\n\r\n", body


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False


@contextmanager
def misbehaving(target: str) -> Iterator[Misbehaving]:
    door = Misbehaving(target)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                door.serve(self.request)

    with _Server(("127.0.0.1", door.port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield door
        server.shutdown()
