"""Fixtures that bring up real programs on loopback: ports, Prometheus, node_exporter, an Ollama somebody else runs.

    def test_x(prometheus_factory, node_exporter):
        prometheus = prometheus_factory([{"job_name": "node", "static_configs": [{"targets": [node_exporter]}]}])
        prometheus.wait_for("node_memory_MemAvailable_bytes")

Docker is next door, in realdocker.py. What a machine lacks is skipped, and said (attendance.py).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml

from tests.attendance import present, unavailable

T = TypeVar("T")

_ALL_PORTS = range(20_000, 32_000)  # below the ephemeral ports: a readiness loop on one of those can connect to itself
# A port is picked now and bound later: processes side by side (side_by_side.py) pick from different ones.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_PORTS = _ALL_PORTS[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS :: _WORKERS]
_given: set[int] = set()
_READY_WITHIN_SECONDS = 30.0  # 0.3 s when idle; two shared cores can be very busy
_PAUSE_SECONDS = 0.05


def pick_port() -> int:
    """A port nobody listens on, 20000 to 31999, never the same twice in a run."""
    for port in random.sample(_PORTS, len(_PORTS)):
        if port in _given:
            continue
        with suppress(OSError), socket.socket() as probe:
            # All addresses: a port taken on 0.0.0.0 is of no use on loopback either.
            probe.bind(("0.0.0.0", port))
            _given.add(port)
            return port
    raise OSError("no port between 20000 and 31999 is free")


def eventually(look: Callable[[], T | None], *, deadline_seconds: float, what: Callable[[], str] | str) -> T:
    """The first answer of `look` that is not None. Raises TimeoutError, saying `what` was waited for."""
    give_up_at = time.monotonic() + deadline_seconds
    while (seen := look()) is None:
        if time.monotonic() >= give_up_at:
            raise TimeoutError(f"waited {deadline_seconds:g} s for {what() if callable(what) else what}")
        time.sleep(_PAUSE_SECONDS)
    return seen


def version_of(program: str) -> str:
    """As a Prometheus-family program says it: `prometheus, version 2.42.0+ds (…)`."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    match = re.search(r"version (\S+)", said.stdout + said.stderr)
    return match[1] if match else "unknown version"


@dataclass(slots=True, kw_only=True)
class Process:
    """A program of ours in a session of its own, with its output in a file. Ended by its pid, never by its name."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, command: Sequence[str], log: Path) -> Process:
        with log.open("ab") as out:
            popen = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        return cls(name=Path(command[0]).name, popen=popen, log=log)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def wait_for_http(self, url: str) -> None:
        """Returns once `url` answers 200. Raises RuntimeError with the end of the log when the process ends before."""

        def answers() -> bool | None:
            if self.popen.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.popen.returncode}: {self.tail()}")
            with suppress(httpx.HTTPError):
                return httpx.get(url, timeout=2, trust_env=False).status_code == 200 or None
            return None

        eventually(answers, deadline_seconds=_READY_WITHIN_SECONDS, what=lambda: f"{url}: {self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def send(self, number: int) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(number)

    def stop(self, grace_seconds: float = 10) -> None:
        """Idempotent; a paused process is woken first, and one that does not listen is killed."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            self.popen.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


@dataclass(slots=True, kw_only=True)
class RealPrometheus:
    """A running Prometheus. `config` is its file; `reload()` makes it read a changed one."""

    url: str
    config: Path
    process: Process

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """From now on connections are refused."""
        self.process.stop()

    def pause(self) -> None:
        """From now on connections are accepted and never answered (SIGSTOP)."""
        self.process.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send(signal.SIGCONT)

    def reload(self) -> None:
        httpx.post(f"{self.url}/-/reload", timeout=10, trust_env=False).raise_for_status()

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The result of an instant query, as the API writes it: [{"metric": {…}, "value": [at_seconds, "1"]}]."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expr}, timeout=10, trust_env=False)
        answer.raise_for_status()
        result: list[dict[str, Any]] = answer.json()["data"]["result"]
        return result

    def wait_for(self, expr: str, deadline_seconds: float = 30) -> list[dict[str, Any]]:
        """The first result of `expr` that is not empty: one scrape for a plain selector, two for a rate()."""
        return eventually(
            lambda: self.query(expr) or None, deadline_seconds=deadline_seconds, what=f"a sample of {expr}"
        )


@dataclass(slots=True, kw_only=True)
class PrometheusFactory:
    """Call it with scrape_configs as prometheus.yml has them. What it started is stopped at the end of the test."""

    folder: Path
    started: list[RealPrometheus] = field(default_factory=list)

    def __call__(
        self,
        scrape_configs: Sequence[Mapping[str, Any]] = (),
        *,
        scrape_interval: str = "1s",
        rule_files: Sequence[Path] = (),
        settings: Mapping[str, Any] | None = None,  # further top-level sections of prometheus.yml: alerting, …
        flags: Sequence[str] = (),
        port: int | None = None,  # None: a free one. Give it again to start anew at the same address
    ) -> RealPrometheus:
        home = self.folder / f"prometheus-{len(self.started)}"
        home.mkdir()
        port = port or pick_port()
        config = home / "prometheus.yml"
        content = {
            "global": {"scrape_interval": scrape_interval, "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "scrape_configs": [dict(job) for job in scrape_configs],
            "rule_files": [str(path) for path in rule_files],
            **(settings or {}),
        }
        config.write_text(yaml.safe_dump(content))
        url = f"http://127.0.0.1:{port}"
        command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={home / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--web.enable-lifecycle",
            "--storage.tsdb.retention.time=1h",
            "--rules.alert.resend-delay=2s",
            *flags,
        ]
        process = Process.start(command, home / "log")
        self.started.append(RealPrometheus(url=url, config=config, process=process))
        process.wait_for_http(f"{url}/-/ready")
        return self.started[-1]


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A factory: each call answers another free port, bindable a moment ago."""
    return pick_port


@pytest.fixture
def prometheus_factory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PrometheusFactory]:
    yield from prometheus_parts(request, tmp_path)


def prometheus_parts(request: pytest.FixtureRequest, folder: Path) -> Iterator[PrometheusFactory]:
    """What the fixture does, for one of a longer life: a new Prometheus takes 5 s to its first scrape."""
    if shutil.which("prometheus") is None:
        unavailable(request.config, "Prometheus", "no `prometheus` on the PATH (Debian package: prometheus)")
    present(request.config, "Prometheus", _prometheus_version(request.config))
    factory = PrometheusFactory(folder=folder)
    try:
        yield factory
    finally:
        for prometheus in factory.started:
            prometheus.stop()


_VERSION = pytest.StashKey[str]()


def _prometheus_version(config: pytest.Config) -> str:
    if _VERSION not in config.stash:
        config.stash[_VERSION] = version_of("prometheus")
    return config.stash[_VERSION]


@pytest.fixture(scope="session")
def node_exporter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running node_exporter, host:port, as a scrape target is written."""
    program = shutil.which("prometheus-node-exporter") or shutil.which("node_exporter")
    if program is None:
        why = "no `prometheus-node-exporter` on the PATH (Debian package of that name)"
        unavailable(request.config, "node_exporter", why)
    address = f"127.0.0.1:{pick_port()}"
    command = [program, f"--web.listen-address={address}"]
    process = Process.start(command, tmp_path_factory.mktemp("node_exporter") / "log")
    try:
        process.wait_for_http(f"http://{address}/metrics")
        present(request.config, "node_exporter", version_of(program))
        yield address
    finally:
        process.stop()


@pytest.fixture(scope="session")
def ollama_url(request: pytest.FixtureRequest) -> str:
    """The Ollama given by --ollama URL, once it has answered /api/version."""
    url: str | None = request.config.getoption("--ollama")
    if url is None:
        unavailable(request.config, "Ollama", "none was given (scripts/test --ollama URL)")
    try:
        answer = httpx.get(f"{url.rstrip('/')}/api/version", timeout=5, trust_env=False)
        present(request.config, "Ollama", answer.raise_for_status().json()["version"])
    except (httpx.HTTPError, ValueError, KeyError) as cause:
        # It was asked for by name: its absence is an error, not a reason to skip.
        pytest.fail(f"--ollama {url} does not answer /api/version as an Ollama does: {cause!r}")
    return url.rstrip("/")


@pytest.fixture(scope="session")
def seeds(request: pytest.FixtureRequest) -> range:
    """The seeds a randomised test runs with: 0 to --seeds N, exclusive."""
    return range(request.config.getoption("--seeds"))
