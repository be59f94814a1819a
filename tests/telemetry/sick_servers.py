"""A proxy that counts, and servers that misbehave on purpose. The real parts: tests/realparts.py."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.realparts import pick_port


async def becomes_true(condition: Callable[[], object], *, within_seconds: float = 15.0) -> object:
    """The first truthy answer; AssertionError when there is none in time. A condition that raises is not met."""
    async with asyncio.timeout(within_seconds):
        while True:
            try:
                if met := condition():
                    return met
            except OSError:
                pass
            await asyncio.sleep(0.05)


@contextmanager
def a_counting_proxy(url: str) -> Iterator[tuple[str, list[str]]]:
    """Passes requests on to `url`; its own url, and the list of `METHOD path` it has passed."""
    passed: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            passed.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            kind = {"Content-Type": self.headers.get("Content-Type", "")}
            asked = urllib.request.Request(url + self.path, data=body or None, headers=kind, method=self.command)
            try:
                with urllib.request.urlopen(asked, timeout=10) as answer:
                    status, answered = answer.status, answer.read()
            except urllib.error.HTTPError as refused:
                status, answered = refused.code, refused.read()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answered)))
            self.end_headers()
            self.wfile.write(answered)

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            return

    with _served(Proxy) as proxy_url:
        yield proxy_url, passed


@contextmanager
def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", pick_port()), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class SickServer:
    """One TCP server whose behaviour is `act(connection, ended)`, and may be exchanged while it runs. `requests`:
    those it has read."""

    def __init__(self, act: Callable[[socket.socket, threading.Event], None]) -> None:
        self.act = act
        self.requests: list[bytes] = []
        self._ended = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", pick_port()))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> SickServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with connection:
            try:
                self.requests.append(_whole_request(connection))
                self.act(connection, self._ended)
            except OSError:
                return


def _whole_request(connection: socket.socket) -> bytes:
    """With its body: hanging up on unread bytes would reset the connection and lose the answer."""
    told = b""
    while b"\r\n\r\n" not in told and (piece := connection.recv(65536)):
        told += piece
    head, _, body = told.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    while length and len(body) < int(length[1]) and (piece := connection.recv(65536)):
        body += piece
    return head + b"\r\n\r\n" + body


def saying(answer: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """Sends these bytes and hangs up."""
    return lambda connection, ended: connection.sendall(answer)


def an_answer(status: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def silent(connection: socket.socket, ended: threading.Event) -> None:
    ended.wait(30)


def dripping(first: bytes, drop: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """`first` at once, then `drop` every 20 ms for as long as somebody listens: no single read ever times out."""

    def act(connection: socket.socket, ended: threading.Event) -> None:
        connection.sendall(first)
        while not ended.wait(0.02):
            connection.sendall(drop)

    return act


def flooding(first: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def act(connection: socket.socket, ended: threading.Event) -> None:
        connection.sendall(first)
        while not ended.is_set():
            connection.sendall(b" " * 65536)

    return act
