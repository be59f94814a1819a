"""The machine a daemon looks at, as processes of the test: an exporter that can go away and come back at the same
address, a model server, and a door in front of Prometheus that counts."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.e2e.running import ROOT
from tests.realparts import Process, pick_port

MODELS = ("phi3:mini", "llama3.2:3b", "qwen2.5:7b")
# Nothing here is about the CPU: two busy cores of a test machine must not decide its outcome.
CPU_NEVER_MATTERS = {"degrade_samples": 1000, "degrade_window": 1000, "cpu_pressure_enter_ratio": 1.0}


@dataclass(slots=True, kw_only=True)
class Exporter:
    """A node_exporter of this test's own."""

    folder: Path
    port: int = field(default_factory=pick_port)
    process: Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> Exporter:
        program = shutil.which("prometheus-node-exporter") or shutil.which("node_exporter")
        assert program is not None, "the fixture node_exporter has found one"
        command = [program, f"--web.listen-address={self.address}"]
        self.process = Process.start(command, self.folder / "node_exporter.log")
        self.process.wait_for_http(f"http://{self.address}/metrics")
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()


@contextmanager
def model_server(folder: Path, *, load_seconds: float = 0.2) -> Iterator[str]:
    """The address of one shared server with all models of the chain, none loaded; a load takes no memory."""
    port = pick_port()
    command = [
        sys.executable,
        "-m",
        "dispatcher",
        "rehearse",
        "--port",
        str(port),
        "--load-seconds",
        f"{load_seconds:g}",
    ]
    for model in MODELS:
        command += ["--model", model]
    process = Process.start(
        ["env", f"PYTHONPATH={ROOT}", f"PATH={os.environ['PATH']}", *command], folder / "model_server.log"
    )
    try:
        process.wait_for_http(f"http://127.0.0.1:{port}/api/version")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stop()


class CountingDoor:
    """Passes everything on to Prometheus as it came and remembers the query of each request, in order."""

    def __init__(self, target: str, port: int | None = None) -> None:
        self.queries: list[str] = []
        self._open: set[socket.socket] = set()
        door, address = self, urlsplit(target).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                door._open.add(self.connection)

            def finish(self) -> None:
                door._open.discard(self.connection)
                super().finish()

            def do_GET(self) -> None:
                self._pass_on(parse_qs(urlsplit(self.path).query).get("query", [self.path])[0], b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._pass_on(parse_qs(body.decode()).get("query", [self.path])[0], body)

            def _pass_on(self, query: str, body: bytes) -> None:
                door.queries.append(query)
                connection = HTTPConnection(address, timeout=10)
                try:
                    kept = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                    connection.request(self.command, self.path, body or None, kept)
                    answer = connection.getresponse()
                    content = answer.read()
                    status, kind = answer.status, answer.getheader("Content-Type", "")
                except (OSError, HTTPException):
                    status, kind, content = 502, "text/plain", b"nobody behind the door"
                finally:
                    connection.close()
                with suppress(OSError):  # whoever asked may have left
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port or pick_port()), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> CountingDoor:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """From now on connections are refused, and the open ones are ended."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
