"""What docker-compose.yml promises that no program would miss: who is started by itself, who says that it is well, who
reaches whom, and that no password is written down."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.compose_stack.parts import COMPOSE_FILE
from tests.realdocker import DockerEngine

BY_ITSELF = {"dispatcher", "socket-proxy", "prometheus", "alertmanager", "grafana", "node-exporter", "cadvisor"}
MODELS = {"ollama-phi3", "ollama-llama", "ollama-qwen"}
WITH_ITS_OWN = {"cadvisor"}  # the image brings a health check
WRITING = {"grafana", "n8n", "cadvisor", "weights", *MODELS}  # wherever their images want to


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())
    return read


@pytest.fixture(scope="module")
def services(whole: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = whole["services"]
    return found


def test_up_starts_everything_but_models_weights_and_n8n(services: dict[str, dict[str, Any]]) -> None:
    profiles = {name: one.get("profiles") for name, one in services.items()}

    assert BY_ITSELF == {name for name, given in profiles.items() if not given}
    assert MODELS == {name for name, given in profiles.items() if given == ["models"]}
    assert (["weights"], ["n8n"]) == (profiles["weights"], profiles["n8n"])


def test_every_service_that_stays_says_whether_it_is_well(services: dict[str, dict[str, Any]]) -> None:
    silent = {name for name, one in services.items() if "test" not in one.get("healthcheck", {})}

    assert {*WITH_ITS_OWN, "weights"} == silent


def test_every_service_that_stays_has_a_memory_limit_and_bounded_logs(services: dict[str, dict[str, Any]]) -> None:
    assert {"weights"} == {name for name, one in services.items() if "mem_limit" not in one}
    assert set() == {name for name, one in services.items() if "max-size" not in one["logging"]["options"]}


def test_what_need_not_write_cannot(services: dict[str, dict[str, Any]]) -> None:
    assert WRITING == {name for name, one in services.items() if not one.get("read_only")}


def test_model_servers_and_exporters_have_no_way_out(
    whole: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    inner = {name for name, network in whole["networks"].items() if network.get("internal")}

    assert {"monitoring", "models"} == inner
    for name in (*MODELS, "node-exporter", "cadvisor"):
        assert inner >= set(services[name]["networks"]), name


def test_no_password_is_written_down(services: dict[str, dict[str, Any]]) -> None:
    told = {key: value for one in services.values() for key, value in one.get("environment", {}).items()}
    secret = {key: value for key, value in told.items() if any(word in key for word in ("PASSWORD", "KEY", "TOKEN"))}

    assert {"GF_SECURITY_ADMIN_PASSWORD__FILE", "N8N_ENCRYPTION_KEY_FILE"} == secret.keys()
    assert all(value.startswith("/run/secrets/") for value in secret.values())


def test_cadvisor_may_read_the_kernels_log(
    services: dict[str, dict[str, Any]], docker_engine: DockerEngine, model_image: str
) -> None:
    """Out-of-memory kills are told there. Real Docker, what the file grants, on a kernel as this one is set up."""
    granted: Any = {key: services["cadvisor"].get(key) for key in ("cap_add", "cap_drop", "devices", "security_opt")}
    read = ["dd", "if=/dev/kmsg", "of=/dev/null", "bs=8192", "count=1"]

    said = docker_engine.client.containers.run(
        model_image, read, entrypoint=["/bin/busybox"], labels=docker_engine.mine, remove=True, stderr=True, **granted
    )

    assert b"records out" in said
