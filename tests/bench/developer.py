"""`scripts/bench`: what this project claims of its own speed, each a ratio to a baseline of the same run, or a bound.

    scripts/bench select     CPU per /select, and per no-op of the same stack       aim: ratio <= 3
    scripts/bench decide     one decision for 3 models, and for 2,000 candidates    aims: p99 <= 200 us, <= 20 ms
    scripts/bench faults     p99 of /select while Prometheus, Docker and models hang  aim: ratio <= 1.2

Machines are shared and noisy: a ratio of medians from alternating rounds says more than one absolute figure.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import click
import psutil

from tests.bench.deciding import durations_seconds
from tests.bench.faulty import faults
from tests.realparts import pick_port

ROUNDS = 7
REQUESTS = 2000  # per round
CLIENTS = 8  # at once, each with a connection kept alive: as a busy workflow host has
SELECT_BODY = json.dumps(
    {"prompt": "Summarise the ticket below in two sentences. " * 8, "agent": "bench", "lease_seconds": 1}
).encode()


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
def main() -> None:
    pass


main.add_command(faults)


@main.command()
@click.option("--rounds", default=ROUNDS, show_default=True, help="Alternating rounds of each.")
@click.option("--requests", default=REQUESTS, show_default=True, help="Requests per round.")
@click.option("--dry-run", is_flag=True, help="Without a lease: the decision alone.")
def select(rounds: int, requests: int, dry_run: bool) -> None:
    """CPU per /select of the whole daemon process (pollers included), against a no-op endpoint of the same stack."""
    body = json.dumps({**json.loads(SELECT_BODY), "dry_run": True}).encode() if dry_run else SELECT_BODY
    with tempfile.TemporaryDirectory() as folder, _daemon(Path(folder)) as ours, _noop() as baseline:
        _warm_up(ours, "/select", SELECT_BODY)
        asked, answered = [], []
        for number in range(rounds):
            answered.append(_cpu_seconds_per_request(baseline, "/noop", body, requests))
            asked.append(_cpu_seconds_per_request(ours, "/select", body, requests))
            click.echo(
                f"round {number + 1}/{rounds}: select {asked[-1] * 1e6:.0f} us, no-op {answered[-1] * 1e6:.0f} us",
                err=True,
            )
    ratios = [mine / other for mine, other in zip(asked, answered, strict=True)]
    _row("CPU per /select", asked, "us", 1e6)
    _row("CPU per no-op", answered, "us", 1e6)
    _row("ratio, round by round", ratios, "", 1.0)
    click.echo(f"aim <= 3: {'met' if statistics.median(ratios) <= 3 else 'NOT met'}")


@main.command()
def decide() -> None:
    """One decision, classified and decided, without HTTP."""
    for places, rounds, aim_seconds in ((3, 5000, 200e-6), (2000, 50, 20e-3)):
        taken = durations_seconds(places, rounds, time.perf_counter)
        p50, p99 = taken[len(taken) // 2], taken[min(len(taken) - 1, int(len(taken) * 0.99))]
        verdict = "met" if (p99 if places == 3 else p50) <= aim_seconds else "NOT met"
        name = "p99" if places == 3 else "p50"
        click.echo(
            f"decide, {places:>5} candidates: p50 {p50 * 1e6:9.1f} us   p99 {p99 * 1e6:9.1f} us   "
            f"max {taken[-1] * 1e6:9.1f} us   aim {name} <= {aim_seconds * 1e6:.0f} us: {verdict}"
        )


def _row(name: str, values: list[float], unit: str, factor: float) -> None:
    low, middle, high = min(values) * factor, statistics.median(values) * factor, max(values) * factor
    click.echo(f"{name:<24} min {low:8.2f}   median {middle:8.2f}   max {high:8.2f} {unit}")


class _Server:
    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.process = psutil.Process(process.pid)

    def cpu_seconds(self) -> float:
        used = self.process.cpu_times()
        return float(used.user + used.system)


def _cpu_seconds_per_request(server: _Server, path: str, body: bytes, requests: int) -> float:
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


def _warm_up(server: _Server, path: str, body: bytes) -> None:
    """Until the model is ready: what follows measures choosing, not starting."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", path, body, {"content-type": "application/json"})
    connection.getresponse().read()
    connection.close()


@contextmanager
def _daemon(folder: Path) -> Iterator[_Server]:
    port, exporter_port = pick_port(), pick_port()
    configuration = folder / "bench.yaml"
    configuration.write_text(
        f"server: {{port: {port}}}\nexporter: {{port: {exporter_port}}}\nlifecycle: {{provider: rehearsal}}\n"
        f"history: {{path: {folder / 'history.sqlite'}}}\nrehearsal: {{time_scale: 0.1}}\n"
    )
    with _process("-m", "dispatcher", "run", "--config", str(configuration), port=port) as server:
        yield server


@contextmanager
def _noop() -> Iterator[_Server]:
    port = pick_port()
    options = ("--no-access-log", "--log-level", "warning", "--lifespan", "off", "--port", str(port))
    with _process("-m", "uvicorn", "tests.bench.noop:app", *options, port=port) as server:
        yield server


@contextmanager
def _process(*arguments: str, port: int) -> Iterator[_Server]:
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until(lambda: _listens(port), process)
        yield _Server(port, process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + 60
    while not ready():
        if process.poll() is not None or time.monotonic() > give_up_at:
            raise click.ClickException(f"{' '.join(map(str, process.args[1:]))} did not come up")  # type: ignore[index]
        time.sleep(0.05)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
