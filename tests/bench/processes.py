"""The processes that `scripts/bench` measures, and how: CPU per request, from clients that keep their connections."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from types import MappingProxyType

import click
import psutil

CLIENTS = 8  # at once, each with a connection kept alive: as a busy workflow host has


def row(name: str, values: list[float], unit: str, factor: float) -> None:
    low, middle, high = min(values) * factor, statistics.median(values) * factor, max(values) * factor
    click.echo(f"{name:<24} min {low:8.2f}   median {middle:8.2f}   max {high:8.2f} {unit}")


class Server:
    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.process = psutil.Process(process.pid)

    def cpu_seconds(self) -> float:
        used = self.process.cpu_times()
        return float(used.user + used.system)


def cpu_seconds_per_request(server: Server, path: str, body: bytes, requests: int) -> float:
    before = server.cpu_seconds()
    with ThreadPoolExecutor(CLIENTS) as clients:
        for done in [clients.submit(_ask, server.port, path, body, requests // CLIENTS) for _ in range(CLIENTS)]:
            done.result()
    return (server.cpu_seconds() - before) / (requests // CLIENTS * CLIENTS)


def _ask(port: int, path: str, body: bytes, requests: int) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(requests):
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        told = answer.read()
        if answer.status != 200:
            raise click.ClickException(f"{path} answered {answer.status}: {told.decode(errors='replace')[:500]}")
    connection.close()


def warm_up(server: Server, path: str, body: bytes) -> None:
    """Until the model is ready: what follows measures choosing, not starting."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", path, body, {"content-type": "application/json"})
    connection.getresponse().read()
    connection.close()


@contextmanager
def process(*arguments: str, port: int, environment: Mapping[str, str] = MappingProxyType({})) -> Iterator[Server]:
    started = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    try:
        _until(lambda: _listens(port), started)
        yield Server(port, started)
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + 60
    while not ready():
        if process.poll() is not None or time.monotonic() > give_up_at:
            raise click.ClickException(f"{' '.join(map(str, process.args[1:]))} did not come up")  # type: ignore[index]
        time.sleep(0.05)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
