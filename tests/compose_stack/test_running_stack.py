"""docker-compose really runs docker-compose.yml: socket proxy, dispatcher, model containers and Prometheus.

No image can be pulled here, so an override puts one made here in their place, into which the programs of this host are
mounted, read-only: haproxy, Prometheus, and this checkout with its Python. Everything else is as the file says:
commands, users, capabilities, networks and addresses, volumes, secrets, labels, limits, health checks.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.attendance import unavailable
from tests.compose_stack.parts import COMPOSE_FILE, ROOT, haproxy, without_env_file
from tests.e2e.machine import CPU_NEVER_MATTERS
from tests.realdocker import DockerEngine, static_busybox
from tests.realparts import eventually, pick_port

MODELS = {"ollama-phi3": "phi3:mini", "ollama-llama": "llama3.2:3b", "ollama-qwen": "qwen2.5:7b"}
SECRET_NAMES = ("dispatcher_admin_key", "dispatcher_n8n_key", "dispatcher_prometheus_key")
BUSY_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeStack:
    program: str
    project: str
    override: Path
    environment: Mapping[str, str]
    url: str
    prometheus_url: str
    keys: Mapping[str, str]
    engine: DockerEngine

    def compose(self, *arguments: str) -> str:
        command = [self.program, "-p", self.project, "-f", str(COMPOSE_FILE), "-f", str(self.override), *arguments]
        ran = subprocess.run(
            command, cwd=ROOT, env=dict(self.environment), capture_output=True, text=True, timeout=240, check=False
        )
        assert ran.returncode == 0, f"{arguments}: {ran.stdout}{ran.stderr}"
        return ran.stdout + ran.stderr

    def ask(self, method: str, path: str, *, key: str = "n8n", **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.keys[key]}"}
        return httpx.request(
            method, self.url + path, json=body or None, headers=headers, timeout=BUSY_SECONDS, trust_env=False
        )

    def container(self, service: str) -> dict[str, Any]:
        """As Docker inspects it."""
        wanted = [f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}"]
        (row,) = self.engine.client.api.containers(all=True, filters={"label": wanted})
        answer: dict[str, Any] = self.engine.client.api.inspect_container(row["Id"])
        return answer

    def running(self) -> set[str]:
        rows = self.engine.client.api.containers(filters={"label": f"com.docker.compose.project={self.project}"})
        return {row["Labels"]["com.docker.compose.service"] for row in rows}

    def logs(self) -> str:
        return self.compose("logs", "--no-color", "--tail=80")


def _this_host() -> list[str]:
    """Mounts: what programs of this host need to run elsewhere, at the same paths."""
    folders = [Path(one) for one in ("/usr/bin", "/usr/sbin", "/usr/lib", "/lib", "/lib64", "/usr/lib64")]
    folders += [ROOT, Path(sys.prefix), Path(sys.base_prefix)]
    wanted = [one for one in folders if one.is_dir() and one != Path("/usr")]
    return [f"{one}:{one}:ro" for one in dict.fromkeys(wanted)]


def _image(engine: DockerEngine, below: str) -> str:
    """Folders that belong to the users who write there, as in the real images: a new volume takes its owner from
    them."""
    tag, context = f"dispatcher-test/compose:{engine.prefix}", io.BytesIO()
    dockerfile = (
        f"FROM {below}\n"
        "COPY --chown=10001:10001 empty /var/lib/dispatcher\n"
        "COPY --chown=65534:65534 empty /prometheus\n"
    ).encode()
    with tarfile.open(fileobj=context, mode="w") as tar:
        head = tarfile.TarInfo("Dockerfile")
        head.size = len(dockerfile)
        tar.addfile(head, io.BytesIO(dockerfile))
        folder = tarfile.TarInfo("empty")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
    context.seek(0)
    engine.client.images.build(fileobj=context, custom_context=True, tag=tag, rm=True)
    return tag


def _override(image: str, config: Path, engine: DockerEngine) -> dict[str, Any]:
    """What is not as in docker-compose.yml: images, entry points the real images have, names that are this run's."""
    labels = {**engine.mine, "dispatcher.test.host": socket.gethostname()}
    base: dict[str, Any] = {"image": image, "labels": labels, "volumes": _this_host()}
    python = {
        "PATH": f"{sys.prefix}/bin:/usr/sbin:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    services: dict[str, Any] = {
        "socket-proxy": {**base, "entrypoint": ["/usr/bin/env"], "volumes": [*_this_host(), _busybox_as_wget()]},
        "dispatcher": {
            **base,
            "user": "10001:10001",  # as the Dockerfile says
            "entrypoint": ["python", "-P", "-m", "dispatcher"],
            "environment": python,
            "volumes": [*_this_host(), f"{config.parent}:/etc/dispatcher:ro"],
        },
        "prometheus": {
            **base,
            "user": "65534:65534",
            "entrypoint": [shutil.which("prometheus") or "prometheus"],
            "volumes": [*_this_host(), _busybox_as_wget()],
        },
    }
    for service, model in MODELS.items():
        rehearse = ["python", "-m", "dispatcher", "rehearse", "--host", "0.0.0.0", "--port", "11434", "--model", model]
        services[service] = {
            **base,
            "container_name": f"{service}-{engine.prefix}",
            "entrypoint": [*rehearse, "--load-seconds", "0.2", "--tokens-per-second", "200"],
            "environment": python,
            "healthcheck": {"test": ["CMD", "true"]},
        }
    return {"services": services}


def _busybox_as_wget() -> str:
    """busybox is what it is called as."""
    return f"{static_busybox()}:/usr/local/bin/wget:ro"


def _config(folder: Path, engine: DockerEngine) -> Path:
    """compose/dispatcher/dispatcher.yaml with this run's labels, looking more often."""
    read = yaml.safe_load((ROOT / "compose" / "dispatcher" / "dispatcher.yaml").read_text())
    assert {"dispatcher.stack": "ai-model-dispatcher"} == read["lifecycle"]["docker_labels"]
    read["lifecycle"] |= {"docker_labels": {"dispatcher.stack": "ai-model-dispatcher", **engine.mine}}
    read["lifecycle"] |= {"reconcile_interval": "1s", "dwell": "0s", "stop_grace": "2s"}
    read["telemetry"]["interval"] = "1s"
    read["telemetry"]["prometheus"]["timeout"] = "800ms"
    read["policy"] = CPU_NEVER_MATTERS
    folder.mkdir()
    path = folder / "dispatcher.yaml"
    path.write_text(yaml.safe_dump(read))
    return path


@pytest.fixture(scope="module")
def stack(
    request: pytest.FixtureRequest,
    docker_engine: DockerEngine,
    model_image: str,
    compose_program: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComposeStack]:
    folder, project = tmp_path_factory.mktemp("compose"), f"dispatcher-test-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    if shutil.which("prometheus") is None:
        unavailable(request.config, "Prometheus", "no `prometheus` on the PATH (Debian package: prometheus)")
    secrets = folder / "secrets"
    secrets.mkdir()
    keys = {name: uuid.uuid4().hex for name in ("admin", "n8n", "prometheus")}
    for name in keys:
        (secrets / f"{name}.key").write_text(keys[name])
    for name in ("grafana.password", "n8n.encryption"):
        (secrets / name).write_text("of a service that is not started")
    ports = {name: str(pick_port()) for name in ("DISPATCHER_PORT", "PROMETHEUS_PORT")}
    network = {"MODELS_NETWORK": f"10.213.{random.randrange(144, 254)}"}
    image = _image(docker_engine, model_image)
    haproxy(request.config)
    override = folder / "override.yml"
    override.write_text(yaml.safe_dump(_override(image, _config(folder / "etc", docker_engine), docker_engine)))
    made = ComposeStack(
        program=compose_program,
        project=project,
        override=override,
        environment=without_env_file(DISPATCHER_SECRETS=str(secrets), **ports, **network),
        url=f"http://127.0.0.1:{ports['DISPATCHER_PORT']}",
        prometheus_url=f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}",
        keys=keys,
        engine=docker_engine,
    )
    try:
        made.compose("up", "--no-start", *MODELS)
        made.compose("up", "-d", "dispatcher", "prometheus")
        eventually(lambda: _lives(made), deadline_seconds=BUSY_SECONDS, what=made.logs)
        yield made
    finally:
        made.compose("--profile", "models", "down", "--volumes", "--timeout", "1")
        docker_engine.client.images.remove(image)


def _lives(stack: ComposeStack) -> bool | None:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{stack.url}/livez", timeout=2, trust_env=False).status_code == 200 or None
    return None


def test_model_containers_are_created_and_not_started(stack: ComposeStack) -> None:
    assert {"created"} == {stack.container(service)["State"]["Status"] for service in MODELS}
    assert {"dispatcher", "socket-proxy", "prometheus"} == stack.running()


def test_a_selected_model_is_started_reached_from_the_host_and_stopped(stack: ComposeStack) -> None:
    answer = stack.ask("POST", "/select", model="llama3.2:3b", wait_seconds=60)
    assert 200 == answer.status_code, answer.text + stack.logs()
    chosen = answer.json()

    assert ("llama3.2:3b", "ready", False) == (chosen["model"], chosen["state"], chosen["rehearsal"])
    assert stack.running() & set(MODELS) == {"ollama-llama"}
    address = stack.container("ollama-llama")["NetworkSettings"]["Networks"][f"{stack.project}_models"]["IPAddress"]
    assert f"http://{address}:11434" == chosen["endpoint"], "n8n, in that network, calls the same address"
    said = httpx.post(
        chosen["urls"]["generate"],
        json={"model": chosen["model"], "prompt": "hi", "stream": False, "options": chosen["options"]},
        timeout=BUSY_SECONDS,
        trust_env=False,
    )
    assert 200 == said.status_code
    assert 204 == stack.ask("DELETE", f"/leases/{chosen['lease']['id']}").status_code

    assert 403 == stack.ask("POST", "/models/llama3.2:3b/stop").status_code, "n8n's key is no admin's"
    assert 202 == stack.ask("POST", "/models/llama3.2:3b/stop", key="admin").status_code
    eventually(
        lambda: not stack.container("ollama-llama")["State"]["Running"] or None,
        deadline_seconds=BUSY_SECONDS,
        what=stack.logs,
    )


def test_this_hosts_own_readings_stand_in_although_the_dispatcher_is_in_a_container(stack: ComposeStack) -> None:
    signals = stack.ask("GET", "/snapshot").json()

    total = next(one for one in signals["signals"] if one["signal"] == "host_memory_total_bytes")
    assert ("host", psutil.virtual_memory().total) == (total["source"], total["value"])


def test_prometheus_scrapes_the_dispatcher_with_its_key_and_is_asked_by_it(stack: ComposeStack) -> None:
    def up() -> bool | None:
        with suppress(httpx.HTTPError):
            query = {"query": 'up{job="dispatcher"}'}
            answer = httpx.get(f"{stack.prometheus_url}/api/v1/query", params=query, timeout=5, trust_env=False).json()
            return any(one["value"][1] == "1" for one in answer["data"]["result"]) or None
        return None

    eventually(up, deadline_seconds=60, what=stack.logs)

    def asked() -> bool | None:
        checks = stack.ask("GET", "/readyz?verbose").json()["checks"]
        return next(one for one in checks if one["name"] == "prometheus")["ok"] or None

    eventually(asked, deadline_seconds=60, what=stack.logs)


def test_nobody_comes_in_without_a_key_or_from_beyond_loopback(stack: ComposeStack) -> None:
    published = stack.container("dispatcher")["NetworkSettings"]["Ports"]

    assert 401 == httpx.get(f"{stack.url}/models", timeout=10, trust_env=False).status_code
    assert {"127.0.0.1"} == {binding["HostIp"] for bindings in published.values() for binding in bindings or ()}


def test_the_dispatcher_can_write_nothing_but_its_history_and_has_no_capability(stack: ComposeStack) -> None:
    inspected = stack.container("dispatcher")

    assert inspected["HostConfig"]["ReadonlyRootfs"] and not inspected["HostConfig"]["Privileged"]
    assert ["ALL"] == inspected["HostConfig"]["CapDrop"]
    writable = {mount["Destination"] for mount in inspected["Mounts"] if mount["RW"]}
    assert (
        {"/run/socket-proxy", "/var/lib/dispatcher"}
        <= writable
        <= {"/run/socket-proxy", "/var/lib/dispatcher", *(f"/run/secrets/{name}" for name in SECRET_NAMES)}
    )
