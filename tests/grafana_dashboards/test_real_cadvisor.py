"""Opt-in: the capture of cAdvisor, held to a real one that is built here (about two minutes the first time)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.attendance import unavailable
from tests.e2e.captures import names_of
from tests.e2e.stack import EXPOSITIONS
from tests.realdocker import ModelContainers
from tests.realparts import Process, eventually, pick_port

VERSION = "v0.53.0"
BUILD_SECONDS = 900
GO_MOD = f"module capture\n\ngo 1.23\n\nrequire github.com/google/cadvisor {VERSION}\n"
pytestmark = [pytest.mark.cadvisor, pytest.mark.needs_docker, pytest.mark.timeout(BUILD_SECONDS + 120)]


@pytest.fixture(scope="module")
def cadvisor_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    go = shutil.which("go")
    if go is None:
        unavailable(request.config, "cAdvisor", "it is built with Go, and there is no `go` on the PATH")
    folder: Path = tmp_path_factory.mktemp("cadvisor")
    shutil.copy(EXPOSITIONS / "cadvisor_capture" / "main.go", folder)
    (folder / "go.mod").write_text(GO_MOD)
    build = [go, "build", "-mod=mod", "-p", "2", "-o", "capture", "."]
    subprocess.run(build, cwd=folder, timeout=BUILD_SECONDS, check=True, env={**os.environ, "GOWORK": "off"})
    address = f"127.0.0.1:{pick_port()}"
    process = Process.start([str(folder / "capture"), "-listen", address], folder / "log")
    try:
        process.wait_for_http(f"http://{address}/metrics")
        yield f"http://{address}/metrics"
    finally:
        process.stop()


def test_every_family_of_the_capture_is_said_of_a_running_model_container(
    cadvisor_url: str, model_containers: ModelContainers
):
    container = model_containers("phi3:mini", memory_bytes=256 * 2**20).start().wait_until_it_answers()

    def said() -> str | None:
        text = httpx.get(cadvisor_url, timeout=30, trust_env=False).text
        return text if f'name="{container.name}"' in text and "container_cpu_usage_seconds_total{" in text else None

    text = eventually(said, deadline_seconds=60, what=f"cAdvisor to see {container.name}")
    captured = (EXPOSITIONS / "cadvisor.prom").read_text(encoding="utf-8")

    assert set() == names_of(captured) - names_of(text)
    limits = [line for line in text.splitlines() if line.startswith("container_spec_memory_limit_bytes{")]
    assert [256 * 2**20] == [float(line.split()[1]) for line in limits if f'name="{container.name}"' in line]
