"""`scripts/bench gateway`: what a relayed request costs, everything on, beside a bare relay and the direct call."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import click

from tests.bench.processes import Server, cpu_seconds_per_request, process, row, warm_up
from tests.realparts import pick_port

AIM_RATIO = 1.5
PATH = "/api/chat"
_ASKED = {
    "model": "auto",
    "messages": [{"role": "user", "content": "Summarise the ticket below in two sentences. " * 8}],
    "options": {"num_predict": 50},
}


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Alternating rounds of each.")
@click.option("--requests", default=1600, show_default=True, help="JSON requests per round; a quarter as many streams.")
@click.option("--profile", type=click.Path(), help="Write a cProfile of the daemon there.")
def gateway(rounds: int, requests: int, profile: str | None) -> None:
    """CPU per relayed request of the whole daemon (decision, queue, breaker, metrics, history; pollers included)
    against a bare starlette + aiohttp relay, and the latency each adds to the direct call. JSON, and streams of 50."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        direct = stack.enter_context(_model_server())
        bare = stack.enter_context(_bare(direct.port))
        ours = stack.enter_context(_daemon(Path(folder), direct.port, profile))
        met = True
        for name, stream, count in (("JSON", False, requests), ("stream", True, requests // 4)):
            body = json.dumps({**_ASKED, "stream": stream}).encode()
            warm_up(ours, PATH, body)
            met = _measured(name, body, count, rounds, direct, bare, ours) and met
    click.echo(f"aim <= {AIM_RATIO:g} x bare: {'met' if met else 'NOT met'}")


def _measured(name: str, body: bytes, count: int, rounds: int, direct: Server, bare: Server, ours: Server) -> bool:
    mine: list[float] = []
    other: list[float] = []
    for number in range(rounds):
        other.append(cpu_seconds_per_request(bare, PATH, body, count))
        mine.append(cpu_seconds_per_request(ours, PATH, body, count))
        told = f"round {number + 1}/{rounds}, {name}: gateway {mine[-1] * 1e6:.0f} us, bare {other[-1] * 1e6:.0f} us"
        click.echo(told, err=True)
    added = {server: _latency_seconds(server, body) for server in (direct, bare, ours)}
    ratios = [one / two for one, two in zip(mine, other, strict=True)]
    row(f"{name}: CPU, gateway", mine, "us", 1e6)
    row(f"{name}: CPU, bare relay", other, "us", 1e6)
    row(f"{name}: ratio", ratios, "", 1.0)
    click.echo(
        f"{name}: added latency, median: gateway {(added[ours] - added[direct]) * 1e3:.2f} ms, "
        f"bare relay {(added[bare] - added[direct]) * 1e3:.2f} ms (direct {added[direct] * 1e3:.2f} ms)"
    )
    return statistics.median(ratios) <= AIM_RATIO


def _latency_seconds(server: Server, body: bytes, times: int = 200) -> float:
    """Of one client, one after the other."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        connection.request("POST", PATH, body, {"content-type": "application/json"})
        connection.getresponse().read()
        taken.append(time.perf_counter() - began)
    connection.close()
    return statistics.median(taken)


@contextmanager
def _model_server() -> Iterator[Server]:
    port = pick_port()
    with process("-m", "tests.bench.model_server", str(port), port=port) as server:
        yield server


@contextmanager
def _bare(upstream_port: int) -> Iterator[Server]:
    port = pick_port()
    options = ("--no-access-log", "--log-level", "warning", "--lifespan", "off", "--port", str(port))
    environment = {"UPSTREAM": f"http://127.0.0.1:{upstream_port}"}
    with process("-m", "uvicorn", "tests.bench.bare_relay:app", *options, port=port, environment=environment) as server:
        yield server


@contextmanager
def _daemon(folder: Path, upstream_port: int, profile: str | None) -> Iterator[Server]:
    port = pick_port()
    configuration = folder / "bench.yaml"
    configuration.write_text(
        f"server: {{port: {port}}}\nexporter: {{enabled: false}}\ntelemetry: {{prometheus: {{enabled: false}}}}\n"
        f"lifecycle: {{provider: ollama, ollama_url: 'http://127.0.0.1:{upstream_port}', num_parallel: 16,\n"
        f"  capacity: 64GiB, reserve: 1GiB}}\nhistory: {{path: {folder / 'history.sqlite'}}}\n"
    )
    profiled = ("-m", "cProfile", "-o", profile) if profile else ()
    with process(*profiled, "-m", "dispatcher", "run", "--config", str(configuration), port=port) as server:
        yield server
