"""`scripts/bench`: what this project claims of its own speed, each a ratio to a baseline of the same run, or a bound.

    scripts/bench select     CPU per /select, and per no-op of the same stack       aim: ratio <= 3
    scripts/bench decide     one decision for 3 models, and for 2,000 candidates    aims: p99 <= 200 us, <= 20 ms
    scripts/bench faults     p99 of /select while Prometheus, Docker and models hang  aim: ratio <= 1.2
    scripts/bench classify   one prompt to its task, in microseconds                aims: p50 <= 150 us, p99 <= 1.5 ms
    scripts/bench gateway    CPU per relayed request, and per request of a bare relay   aim: ratio <= 1.5
    scripts/bench learning   a recorded trace on a simulated machine: the policy, each model alone, an oracle

Machines are shared and noisy: a ratio of medians from alternating rounds says more than one absolute figure.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from tests.bench.classifying import classifying
from tests.bench.deciding import durations_seconds
from tests.bench.faulty import faults
from tests.bench.learning import learning
from tests.bench.processes import Server, cpu_seconds_per_request, process, row, warm_up
from tests.bench.relaying import gateway
from tests.realparts import pick_port

ROUNDS = 7
REQUESTS = 2000  # per round
SELECT_BODY = json.dumps(
    {"prompt": "Summarise the ticket below in two sentences. " * 8, "agent": "bench", "lease_seconds": 1}
).encode()


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
def main() -> None:
    pass


main.add_command(faults)
main.add_command(gateway)
main.add_command(classifying)
main.add_command(learning)


@main.command()
@click.option("--rounds", default=ROUNDS, show_default=True, help="Alternating rounds of each.")
@click.option("--requests", default=REQUESTS, show_default=True, help="Requests per round.")
@click.option("--dry-run", is_flag=True, help="Without a lease: the decision alone.")
def select(rounds: int, requests: int, dry_run: bool) -> None:
    """CPU per /select of the whole daemon process (pollers included), against a no-op endpoint of the same stack."""
    body = json.dumps({**json.loads(SELECT_BODY), "dry_run": True}).encode() if dry_run else SELECT_BODY
    with tempfile.TemporaryDirectory() as folder, _daemon(Path(folder)) as ours, _noop() as baseline:
        warm_up(ours, "/select", SELECT_BODY)
        asked, answered = [], []
        for number in range(rounds):
            answered.append(cpu_seconds_per_request(baseline, "/noop", body, requests))
            asked.append(cpu_seconds_per_request(ours, "/select", body, requests))
            click.echo(
                f"round {number + 1}/{rounds}: select {asked[-1] * 1e6:.0f} us, no-op {answered[-1] * 1e6:.0f} us",
                err=True,
            )
    ratios = [mine / other for mine, other in zip(asked, answered, strict=True)]
    row("CPU per /select", asked, "us", 1e6)
    row("CPU per no-op", answered, "us", 1e6)
    row("ratio, round by round", ratios, "", 1.0)
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


@contextmanager
def _daemon(folder: Path) -> Iterator[Server]:
    port, exporter_port = pick_port(), pick_port()
    configuration = folder / "bench.yaml"
    configuration.write_text(
        f"server: {{port: {port}}}\nexporter: {{port: {exporter_port}}}\nlifecycle: {{provider: rehearsal}}\n"
        f"history: {{path: {folder / 'history.sqlite'}}}\nrehearsal: {{time_scale: 0.1}}\n"
    )
    with process("-m", "dispatcher", "run", "--config", str(configuration), port=port) as server:
        yield server


@contextmanager
def _noop() -> Iterator[Server]:
    port = pick_port()
    options = ("--no-access-log", "--log-level", "warning", "--lifespan", "off", "--port", str(port))
    with process("-m", "uvicorn", "tests.bench.noop:app", *options, port=port) as server:
        yield server


if __name__ == "__main__":
    main()
