"""docker-compose.yml as docker-compose reads it, and what it promises: pinned, on loopback, unprivileged, in step with
the dispatcher's configuration, Prometheus' targets and the labels the daemon looks for."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from dispatcher.lifecycle.docker_answers import endpoint_of, inspected_place
from dispatcher.vocabulary.request import DEFAULT_NUM_CTX
from dispatcher.vocabulary.settings import LifecycleSettings, Settings
from tests.compose_stack.parts import COMPOSE_FILE, ROOT, SECRETS, without_env_file

PROFILES = ((), ("models",), ("weights",), ("n8n",), ("models", "weights", "n8n"))
MODEL_SERVICES = ("ollama-phi3", "ollama-llama", "ollama-qwen")
WHOLE = {
    *("dispatcher socket-proxy prometheus alertmanager grafana node-exporter cadvisor n8n weights".split()),  # noqa: SIM905
    *MODEL_SERVICES,
}
# What both docker-compose 1.29 (without `version`) and Compose v2 know, of what this file needs. No `name`, `include`,
# `develop`, `configs: content`: those came with v2. No `version`: v2 warns of it.
TOP_KEYS = {"services", "networks", "volumes", "secrets"}
SERVICE_KEYS = set(
    """build cap_add cap_drop command container_name depends_on devices entrypoint environment healthcheck image labels
    logging mem_limit memswap_limit network_mode networks pid pids_limit ports profiles read_only restart secrets
    security_opt stop_grace_period tmpfs ulimits user volumes""".split()  # noqa: SIM905
)
NESTED_KEYS = {
    "healthcheck": {"test", "interval", "timeout", "start_period", "retries", "disable"},
    "logging": {"driver", "options"},
    "depends_on": set(WHOLE),
}


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())
    return read


@pytest.fixture(scope="module")
def whole(compose_program: str) -> dict[str, Any]:
    """As docker-compose sees it, every profile included."""
    return _config(compose_program, ("models", "weights", "n8n"))


@pytest.fixture(scope="module")
def services(whole: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = whole["services"]
    return found


def _command(program: str, profiles: tuple[str, ...], *arguments: str) -> list[str]:
    wanted = [word for name in profiles for word in ("--profile", name)]
    return [program, "-f", str(COMPOSE_FILE), *wanted, "config", *arguments]


def _config(program: str, profiles: tuple[str, ...]) -> dict[str, Any]:
    ran = subprocess.run(
        _command(program, profiles), env=without_env_file(), capture_output=True, text=True, timeout=60, check=True
    )
    read: dict[str, Any] = yaml.safe_load(ran.stdout)
    return read


@pytest.mark.parametrize("profiles", PROFILES, ids="+".join)
def test_docker_compose_accepts_every_profile_without_a_word(compose_program: str, profiles: tuple[str, ...]) -> None:
    command = _command(compose_program, profiles, "-q")

    ran = subprocess.run(command, env=without_env_file(), capture_output=True, text=True, timeout=60, check=False)

    assert (0, "", "") == (ran.returncode, ran.stdout, ran.stderr)


def test_without_prepared_secrets_it_says_what_to_run(compose_program: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in without_env_file().items() if name != "DISPATCHER_SECRETS"}
    empty = tmp_path / "env"
    empty.touch()

    command = [compose_program, "--env-file", str(empty), "-f", str(COMPOSE_FILE), "config", "-q"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert ran.returncode != 0
    assert "run compose/prepare first" in ran.stderr


def test_only_keys_that_both_generations_of_compose_know(raw: dict[str, Any]) -> None:
    unknown = {key for key in raw if key not in TOP_KEYS and not key.startswith("x-")}
    for name, service in raw["services"].items():
        unknown |= {f"{name}.{key}" for key in service.keys() - SERVICE_KEYS}
        for part, keys in NESTED_KEYS.items():
            if isinstance(service.get(part), dict):
                unknown |= {f"{name}.{part}.{key}" for key in service[part].keys() - keys}

    assert set() == unknown
    assert WHOLE == raw["services"].keys()


def test_every_image_is_pinned_by_a_version(services: dict[str, dict[str, Any]]) -> None:
    images = {name: service["image"] for name, service in services.items()}

    assert {} == {name: image for name, image in images.items() if not re.search(r":v?\d+\.\d+\.\d+(-alpine)?$", image)}


def test_every_base_image_is_pinned_and_the_user_is_nobody_in_particular() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]

    assert {"python:3.12.8-slim-bookworm"} == set(bases)
    assert ["USER 10001:10001"] == [line for line in lines if line.startswith("USER ")]


def test_every_published_port_is_on_loopback(services: dict[str, dict[str, Any]]) -> None:
    ports = [str(port) for service in services.values() for port in service.get("ports", ())]

    assert len(ports) == 5
    assert [] == [port for port in ports if not port.startswith("127.0.0.1:")]


def test_nothing_is_privileged_and_all_but_cadvisor_have_no_capability(services: dict[str, dict[str, Any]]) -> None:
    assert {"cadvisor"} == {name for name, service in services.items() if service.get("cap_drop") != ["ALL"]}
    assert set() == {name for name, one in services.items() if "no-new-privileges:true" not in one["security_opt"]}
    assert set() == {name for name, one in services.items() if one.get("privileged")}
    added = {name: one["cap_add"] for name, one in services.items() if one.get("cap_add")}
    assert {"cadvisor": ["SYSLOG"]} == added, "the kernel's log, for out-of-memory kills"


def test_dockers_socket_is_mounted_by_the_proxy_and_cadvisor_only(services: dict[str, dict[str, Any]]) -> None:
    holders = {name for name, one in services.items() if any("docker.sock" in str(v) for v in one.get("volumes", ()))}

    assert {"socket-proxy", "cadvisor"} == holders
    assert "none" == services["socket-proxy"]["network_mode"]
    shared = {name for name, one in services.items() if any("socket-proxy:/run" in str(v) for v in one["volumes"])}
    assert {"socket-proxy", "dispatcher"} == shared


def test_the_dispatcher_is_hardened(services: dict[str, dict[str, Any]]) -> None:
    dispatcher = services["dispatcher"]

    assert dispatcher["read_only"] is True
    assert dispatcher["tmpfs"] == ["/tmp:size=64m,mode=1777"]
    assert "/livez" in " ".join(dispatcher["healthcheck"]["test"])
    grace = dispatcher["stop_grace_period"]
    assert "4m" in grace, "longer than open requests may take (180 s)"


def as_inspected(service: dict[str, Any], name: str) -> dict[str, Any]:
    """What Docker would say of the container: the parts that tell a place."""
    return {"Name": f"/{name}", "Config": {"Labels": service["labels"]}, "State": {"Running": False}, "HostConfig": {}}


@pytest.mark.parametrize("name", MODEL_SERVICES)
def test_a_model_container_is_a_place_to_the_daemon(services: dict[str, dict[str, Any]], name: str) -> None:
    service = services[name]
    inspected = as_inspected(service, service["container_name"])
    place, (endpoint, _) = inspected_place(inspected), endpoint_of(inspected, None)

    assert place is not None
    assert place.model in [model.name for model in Settings().models]
    assert f"http://{service['networks']['models']['ipv4_address']}:11434" == endpoint
    assert re.fullmatch(r"ollama-[a-z0-9-]{1,100}", service["container_name"]), "the socket proxy lets no other through"
    assert "no" == service["restart"]
    assert service["mem_limit"] == service["memswap_limit"], "no swap: a model that swaps answers nobody"
    assert not service.get("ports")


@pytest.mark.parametrize("name", MODEL_SERVICES)
def test_a_model_server_loads_as_the_dispatcher_reckons(services: dict[str, dict[str, Any]], name: str) -> None:
    environment = services[name]["environment"]
    parallel = LifecycleSettings().num_parallel

    assert "-1" == environment["OLLAMA_KEEP_ALIVE"]
    assert "1" == environment["OLLAMA_MAX_LOADED_MODELS"]
    assert (str(parallel), str(DEFAULT_NUM_CTX)) == (
        environment["OLLAMA_NUM_PARALLEL"],
        environment["OLLAMA_CONTEXT_LENGTH"],
    )


def test_each_model_of_the_chain_has_one_container_and_is_pulled(services: dict[str, dict[str, Any]]) -> None:
    chain = [model.name for model in Settings().models]

    assert chain == [services[name]["labels"]["dispatcher.model"] for name in MODEL_SERVICES]
    assert " ".join(chain) == services["weights"]["environment"]["WANTED"]


def test_a_model_fits_into_its_containers_limit_with_room_for_twice_the_context(
    services: dict[str, dict[str, Any]],
) -> None:
    for model, name in zip(Settings().models, MODEL_SERVICES, strict=True):
        assert model.kv_bytes_per_token is not None
        need = model.file_bytes + model.kv_bytes_per_token * 2 * DEFAULT_NUM_CTX
        limit = re.fullmatch(r"(\d+)g", str(services[name]["mem_limit"]))

        assert limit is not None
        assert int(limit[1]) * 2**30 >= need


def configuration() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "compose" / "dispatcher" / "dispatcher.yaml").read_text())
    return read


def test_the_dispatchers_configuration_is_valid(whole: dict[str, Any], tmp_path: Path) -> None:
    text = (ROOT / "compose" / "dispatcher" / "dispatcher.yaml").read_text()
    for name in whole["secrets"]:
        (tmp_path / name).write_text(f"{name:x<40}")
    path = tmp_path / "dispatcher.yaml"
    path.write_text(text.replace("/run/secrets", str(tmp_path)))

    command = [str(ROOT / ".venv" / "bin" / "dispatcher"), "check-config", str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert 0 == ran.returncode, ran.stdout + ran.stderr


def test_the_configuration_uses_what_the_file_mounts(whole: dict[str, Any], services: dict[str, Any]) -> None:
    keys = {key["key_file"] for key in configuration()["server"]["keys"]}
    mounted = {f"/run/secrets/{one['source']}" for one in services["dispatcher"]["secrets"]}

    assert mounted == keys
    assert "unix:///run/socket-proxy/docker.sock" == configuration()["lifecycle"]["docker_url"]
    assert "/var/lib/dispatcher/history.sqlite" == configuration()["history"]["path"]
    for name in MODEL_SERVICES:
        labels = services[name]["labels"]
        assert configuration()["lifecycle"]["docker_labels"].items() <= labels.items()


def jobs() -> dict[str, dict[str, Any]]:
    read = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
    return {job["job_name"]: job for job in read["scrape_configs"]}


def targets() -> Iterator[str]:
    for job in jobs().values():
        for group in job["static_configs"]:
            yield from group["targets"]


def test_prometheus_finds_every_target_in_a_network_they_share(services: dict[str, dict[str, Any]]) -> None:
    own = set(services["prometheus"]["networks"])
    others = {target.rpartition(":")[0] for target in targets()} - {"localhost"}

    assert {"node-exporter", "cadvisor", "dispatcher", "n8n", "alertmanager"} == others
    assert {} == {name: services[name]["networks"] for name in others if not own & set(services[name]["networks"])}


def test_alertmanager_can_reach_the_receiver_it_comes_with(services: dict[str, dict[str, Any]]) -> None:
    """127.0.0.1 would be its own container."""
    read = yaml.safe_load((ROOT / "prometheus" / "alertmanager.yml").read_text())
    urls = [hook["url"] for receiver in read["receivers"] for hook in receiver.get("webhook_configs", ())]

    assert ["n8n"] == [urlsplit(url).hostname for url in urls]
    assert set(services["alertmanager"]["networks"]) & set(services["n8n"]["networks"])


def test_prometheus_shows_the_key_that_the_dispatcher_asks_for(raw: dict[str, Any]) -> None:
    shown = jobs()["dispatcher"]["authorization"]["credentials_file"]
    mounted = [volume.split(":") for volume in raw["services"]["prometheus"]["volumes"] if shown in volume]

    assert (ROOT / "prometheus" / shown).exists(), "what is mounted over must be there: the folder is read-only"
    assert [f"/etc/prometheus/{shown}"] == [parts[-2] for parts in mounted]
    assert mounted[0][-3].endswith("/prometheus.key")


def test_the_dispatcher_knows_its_host_by_the_name_prometheus_gives_it() -> None:
    (group,) = jobs()["node"]["static_configs"]

    assert "instance" not in group.get("labels", {})
    assert not jobs()["node"].get("relabel_configs")
    assert [configuration()["telemetry"]["instance"]] == group["targets"]


def test_every_variable_is_told_in_the_example_of_the_environment() -> None:
    used = set(re.findall(r"\$\{(\w+)[:}-]", COMPOSE_FILE.read_text()))
    told = set(re.findall(r"^#?([A-Z0-9_]+)=", (ROOT / "compose" / "env.example").read_text(), re.M))

    assert set() == used - told
    assert {"COMPOSE_PROJECT_NAME"} == told - used


def test_every_file_it_mounts_is_in_the_repository(services: dict[str, dict[str, Any]]) -> None:
    sources = {str(volume).split(":")[0] for one in services.values() for volume in one.get("volumes", ())}
    ours = {Path(source) for source in sources if source.startswith(f"{ROOT}/")}

    assert set() == {path for path in ours if not path.exists()}
    assert {ROOT / "grafana" / "dashboards", ROOT / "prometheus"} <= ours


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of a fresh one as compose/prepare needs."""
    (tmp_path / "compose").mkdir()
    for name in ("prepare", "env.example"):
        (tmp_path / "compose" / name).write_bytes((ROOT / "compose" / name).read_bytes())
    return tmp_path


def prepare(checkout: Path) -> str:
    ran = subprocess.run(
        ["bash", str(checkout / "compose" / "prepare")], capture_output=True, text=True, timeout=60, check=True
    )
    return ran.stdout


def test_prepare_makes_every_secret_once_and_never_changes_one(checkout: Path, whole: dict[str, Any]) -> None:
    prepare(checkout)
    made = {path.name: path.read_text() for path in (checkout / "compose" / "secrets").iterdir()}
    (checkout / ".env").write_text("DISPATCHER_SECRETS=./elsewhere\n")
    said = prepare(checkout)

    assert {Path(secret["file"]).name for secret in whole["secrets"].values()} == made.keys()
    assert len(set(made.values())) == len(made)
    assert {True} == {re.fullmatch(r"[A-Za-z0-9]{40}", text) is not None for text in made.values()}
    assert made == {path.name: path.read_text() for path in (checkout / "compose" / "secrets").iterdir()}
    assert "DISPATCHER_SECRETS=./elsewhere\n" == (checkout / ".env").read_text()
    assert "made" not in said
    assert not any(text in said for text in made.values()), "a secret does not belong on a screen"


def refused(checkout: Path) -> str:
    """What prepare says when it cannot be done."""
    ran = subprocess.run(
        ["bash", str(checkout / "compose" / "prepare")], capture_output=True, text=True, timeout=60, check=False
    )
    assert 1 == ran.returncode, ran.stdout
    return ran.stderr


def test_prepare_says_what_an_env_of_somebody_elses_lacks(checkout: Path) -> None:
    (checkout / ".env").write_text("OTHER=1\n#DISPATCHER_SECRETS=\n")

    assert "DISPATCHER_SECRETS=./compose/secrets" in refused(checkout)
    assert "OTHER=1\n#DISPATCHER_SECRETS=\n" == (checkout / ".env").read_text()


def test_prepare_says_which_mounted_files_the_containers_could_not_read(checkout: Path) -> None:
    (checkout / "prometheus").mkdir(mode=0o755)
    (checkout / "prometheus" / "prometheus.yml").write_text("")
    (checkout / "prometheus" / "prometheus.yml").chmod(0o600)

    said = refused(checkout)
    (checkout / "prometheus" / "prometheus.yml").chmod(0o644)

    assert "prometheus/prometheus.yml" in said and "chmod -R o+rX" in said
    assert "ready" in prepare(checkout)


def test_n8n_tells_the_counters_that_the_docs_and_the_dashboard_need(services: dict[str, dict[str, Any]]) -> None:
    asked = re.findall(r"`(N8N_METRICS\w*)=true`", (ROOT / "docs" / "n8n.md").read_text())

    assert len(asked) >= 5
    assert dict.fromkeys(asked, "true") == {name: services["n8n"]["environment"].get(name) for name in asked}


def test_what_prepare_makes_is_never_committed() -> None:
    ignored = subprocess.run(
        ["git", "-C", str(ROOT), "check-ignore", ".env", "compose/secrets/admin.key"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert [".env", "compose/secrets/admin.key"] == ignored.stdout.split()
    assert not SECRETS.startswith(str(ROOT)) and "DISPATCHER_SECRETS" not in os.environ
