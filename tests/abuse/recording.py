"""Servers on loopback that write down whatever they are asked, and answer as they are told to."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote_plus

from tests.realparts import pick_port

NOTHING_FOUND = json.dumps({"status": "success", "data": {"resultType": "vector", "result": []}}).encode()


class RecordingServer(ThreadingHTTPServer):
    """An empty Prometheus; with `elsewhere`, one that redirects every request there."""

    daemon_threads = True

    def __init__(self, elsewhere: str | None = None) -> None:
        super().__init__(("127.0.0.1", pick_port()), _Handler)
        self.elsewhere = elsewhere
        self.asked: list[str] = []  # request line and decoded body of each

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: RecordingServer

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.server.asked.append(unquote_plus(f"{self.requestline} {body}"))
        if self.server.elsewhere is not None:
            self.send_response(302)
            self.send_header("Location", self.server.elsewhere + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(NOTHING_FOUND)))
        with contextlib.suppress(ConnectionError):  # its daemon may be gone by now
            self.end_headers()
            self.wfile.write(NOTHING_FOUND)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def recording(elsewhere: str | None = None) -> Iterator[RecordingServer]:
    server = RecordingServer(elsewhere)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
