"""Captures of real expositions (tests/fixtures/expositions), served as if their programs were running."""

from __future__ import annotations

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.realparts import pick_port

GROWTH_RATIO = 0.01  # per scrape, of everything that counts: what stood at 0 stays there, as it would
_TYPE = re.compile(r"# TYPE (\S+) (\S+)")
_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?P<labels>\{.*\})? (?P<value>\S+)(?P<timestamp> \d+)?$")
_CUMULATIVE = ("counter", "histogram", "summary")


class CaptureServer:
    """Counters, buckets, counts and sums grow alike with each scrape, so that histograms stay what they are; times that
    mean now are now. The timestamps of the capture are served as they were: they are long gone, as cAdvisor's are of a
    container that has stopped, and only a job that does not honour them sees anything."""

    def __init__(self, exposition: str) -> None:
        self._lines = [_parsed(line, types) for types in [_types(exposition)] for line in exposition.splitlines()]
        self.scrapes = 0
        capture = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = capture.exposition().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", pick_port()), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def exposition(self) -> str:
        """One scrape."""
        self.scrapes += 1
        factor, now = 1 + GROWTH_RATIO * self.scrapes, f"{time.time():.0f}"
        said = []
        for before, value, kind, after in self._lines:
            grown = f"{value * factor:.12g}" if kind == "grows" and value is not None else f"{value}"
            said.append(before + (now if kind == "now" else grown if value is not None else "") + after)
        return "\n".join(said) + "\n"

    def __enter__(self) -> CaptureServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _types(exposition: str) -> dict[str, str]:
    return {match[1]: match[2] for match in map(_TYPE.match, exposition.splitlines()) if match}


def _parsed(line: str, types: dict[str, str]) -> tuple[str, float | None, str, str]:
    """(what stands before the value, the value, what becomes of it, what stands after it); comments have no value."""
    match = None if line.startswith("#") else _SAMPLE.match(line)
    if match is None:
        return line, None, "", ""
    name, labels = match["name"], match["labels"] or ""
    # A summary's quantiles are times, not counts.
    family = re.sub(r"_(bucket|count|sum)$", "", name)
    cumulative = types.get(name) == "counter" or (family != name and types.get(family) in _CUMULATIVE)
    kind = "now" if name.endswith("_last_seen") else "grows" if cumulative else "stays"
    return f"{name}{labels} ", float(match["value"]), kind, match["timestamp"] or ""


def names_of(exposition: str) -> frozenset[str]:
    """Of every sample, histograms' parts included."""
    samples = (_SAMPLE.match(line) for line in exposition.splitlines() if line and not line.startswith("#"))
    return frozenset(match["name"] for match in samples if match)
