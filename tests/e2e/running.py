"""The real daemon as a process of its own, as a user runs it: a configuration file, a state folder, nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.realparts import eventually, pick_port

ROOT = Path(__file__).resolve().parents[2]
GIB = 1024**3
MIB = 1024**2
START_SECONDS = 60
# One for all: a client of its own per call would read the certificate store each time (20 ms of CPU).
_client = httpx.Client(timeout=320, trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=0))


@dataclass(slots=True, kw_only=True)
class RunningDaemon:
    folder: Path
    config: dict[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=pick_port)
    exporter_port: int = field(default_factory=pick_port)
    program: Sequence[str] = ("-m", "dispatcher", "run")  # of Python, before --config
    popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True) -> RunningDaemon:
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = {
            **self.config,
            "server": {**self.config.get("server", {}), "port": self.port},
            "exporter": {"port": self.exporter_port},
            "history": {"path": str(self.folder / "history.sqlite"), **self.config.get("history", {})},
        }
        path = self.folder / "dispatcher.yaml"
        path.write_text(yaml.safe_dump(whole))
        with (self.folder / "daemon.log").open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, *self.program, "--config", str(path)],
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONPATH": str(ROOT), **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait_until_it_answers()
        return self

    def wait_until_it_answers(self) -> None:
        def answers() -> bool | None:
            assert self.popen is not None
            if self.popen.poll() is not None:
                raise RuntimeError(f"the daemon ended with {self.popen.returncode}: {self.log()}")
            with suppress(httpx.HTTPError):
                return self.get("/livez").status_code == 200 or None
            return None

        eventually(answers, deadline_seconds=START_SECONDS, what=self.log)

    def log(self) -> str:
        return (self.folder / "daemon.log").read_text(errors="replace")[-6000:]

    def kill(self) -> None:
        """kill -9, at this very moment."""
        assert self.popen is not None
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def stop(self) -> None:
        if self.popen is None or self.popen.poll() is not None:
            return
        self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        return _client.get(self.url + path, params=parameters or None)

    def select(self, **body: Any) -> httpx.Response:
        return _client.post(self.url + "/select", json=body)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return _client.post(self.url + path, json=body)

    def put(self, path: str) -> httpx.Response:
        return _client.put(self.url + path)

    def delete(self, path: str) -> httpx.Response:
        return _client.delete(self.url + path)

    def states(self) -> dict[str, str]:
        """model → state of its (first) place."""
        told = self.get("/models").json()
        return {model["model"]: model["places"][0]["state"] for model in told["models"] if model["places"]}

    def wait_for_state(self, model: str, state: str, *, within_seconds: float = 60) -> None:
        eventually(
            lambda: self.states().get(model) == state or None,
            deadline_seconds=within_seconds,
            what=lambda: f"{model} to be {state}: {self.states()}\n{self.log()}",
        )


@contextmanager
def running(folder: Path, config: dict[str, Any], **options: Any) -> Iterator[RunningDaemon]:
    daemon = RunningDaemon(folder=folder, config=config, **options)
    try:
        yield daemon.start()
    finally:
        daemon.stop()


def chain(phi_bytes: int, llama_bytes: int, qwen_bytes: int) -> list[dict[str, Any]]:
    """The chain with fixed footprints, so that a test can say what fits beside what."""
    return [
        {"name": "phi3:mini", "footprint": phi_bytes},
        {"name": "llama3.2:3b", "footprint": llama_bytes},
        {"name": "qwen2.5:7b", "footprint": qwen_bytes},
    ]
