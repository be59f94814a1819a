"""HTTP as bytes on a socket: for requests that no client library would send."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

WAIT_SECONDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def word(self) -> str:
        """The problem's, without its urn; "" for an answer that is no problem."""
        if self.headers.get("content-type") != "application/problem+json":
            return ""
        return str(json.loads(self.body)["type"]).removeprefix("urn:dispatcher:")

    @property
    def detail(self) -> str:
        return str(json.loads(self.body)["detail"])


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=WAIT_SECONDS) as raw:
        yield raw


def exchange(url: str, request: bytes) -> list[Answer]:
    """Sends it whole, or as much as is taken, and reads until the server closes. Add Connection: close."""
    with connected(url) as raw:
        with suppress(ConnectionError):
            raw.sendall(request)
        return answers_in(read_to_end(raw))


def read_to_end(raw: socket.socket) -> bytes:
    pieces = []
    with suppress(ConnectionError):
        while piece := raw.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def answers_in(data: bytes) -> list[Answer]:
    """Of answers with a Content-Length."""
    answers = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        size = int(headers.get("content-length", "0"))
        answers.append(Answer(status=int(lines[0].split()[1]), headers=headers, body=rest[:size]))
        data = rest[size:]
    return answers


def request(
    target: str = "/models", *, method: str = "GET", body: bytes = b"", host: str = "localhost", **more: Any
) -> bytes:
    """One that asks for the connection to be closed after it. more: further headers, _ for -."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
