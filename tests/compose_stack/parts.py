"""The socket proxy as compose runs it, on this machine: real haproxy, our haproxy.cfg, the real engine behind it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.attendance import present, unavailable
from tests.realdocker import SOCKET
from tests.realparts import Process, eventually, pick_port

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
PROXY_CONFIG = ROOT / "compose" / "socket-proxy" / "haproxy.cfg"
SECRETS = "/dispatcher-test-secrets"  # where no file is: `config` reads none of them
_READY_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketProxy:
    path: Path
    health: str  # url
    process: Process

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def statuses(self, sent: bytes) -> list[int]:
        """Of every answer to these bytes, until the proxy closes: the last of them should ask for that."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(self.path))
            client.sendall(sent)
            answered = b""
            with suppress(TimeoutError, ConnectionResetError):  # what came before counts
                while piece := client.recv(65536):
                    answered += piece
        return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answered)]

    def status(self, line: str, *headers: str) -> int:
        """Of one request: its first line without the version, its further headers."""
        lines = [f"{line} HTTP/1.1", "Host: localhost", *headers, "Connection: close", "", ""]
        return self.statuses("\r\n".join(lines).encode("latin-1"))[0]


def haproxy(config: pytest.Config) -> str:
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        unavailable(config, "HAProxy", "no `haproxy` on the PATH (Debian package: haproxy)")
    said = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=30, check=True).stdout
    match = re.search(r"version (\S+)", said)
    present(config, "HAProxy", match[1] if match else "unknown version")
    return program


@contextmanager
def started_proxy(
    config: pytest.Config, folder: Path, docker_socket: Path = SOCKET, *, healthy: bool = True
) -> Iterator[SocketProxy]:
    program = haproxy(config)
    path, port = folder / "docker.sock", pick_port()
    settings = [f"PROXY_SOCKET={path}", f"PROXY_HEALTH_PORT={port}", f"DOCKER_SOCKET={docker_socket}"]
    command = ["/usr/bin/env", *settings, program, "-f", str(PROXY_CONFIG)]
    process = Process.start(command, folder / "haproxy.log")
    health = f"http://127.0.0.1:{port}/healthz"
    try:
        if healthy:
            process.wait_for_http(health)
        eventually(lambda: path.exists() or None, deadline_seconds=_READY_SECONDS, what=process.tail)
        yield SocketProxy(path=path, health=health, process=process)
    finally:
        process.stop()


def docker_compose(config: pytest.Config) -> str:
    """docker-compose 1.29.2, or another 1.29."""
    program = shutil.which("docker-compose")
    if program is None:
        unavailable(config, "Compose", "no `docker-compose` on the PATH (Debian package: docker-compose)")
    said = subprocess.run([program, "version", "--short"], capture_output=True, text=True, timeout=60, check=True)
    present(config, "Compose", said.stdout.strip())
    return program


def without_env_file(**more: str) -> dict[str, str]:
    """The environment of docker-compose, whatever .env this checkout has: the shell's wins over it."""
    return {**os.environ, "COMPOSE_PROJECT_NAME": "dispatcher-test", "DISPATCHER_SECRETS": SECRETS, **more}
