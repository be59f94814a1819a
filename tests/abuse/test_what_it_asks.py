"""Upstreams that send us elsewhere, and containers that look like ours."""

from __future__ import annotations

import pytest

from tests.abuse.recording import recording
from tests.e2e.machine import CPU_NEVER_MATTERS
from tests.e2e.running import MIB, chain, running
from tests.realdocker import ModelContainer
from tests.realparts import eventually

LOOK_ALIKES = {  # the end of its name → labels; all of them privileged
    "yes": {"dispatcher.managed": "yes", "dispatcher.model": "phi3:mini"},
    "upper": {"DISPATCHER.MANAGED": "true", "dispatcher.model": "phi3:mini"},
    "under": {"dispatcher_managed": "true", "dispatcher_model": "phi3:mini"},
    "none": {},
}


def test_a_redirect_of_prometheus_is_an_error_and_is_not_followed(tmp_path):
    with recording() as elsewhere, recording(elsewhere.url) as prometheus:
        config = {
            "telemetry": {
                "interval": "500ms",
                "prometheus": {"enabled": "true", "url": prometheus.url, "timeout": "400ms"},
            },
            "lifecycle": {"provider": "none"},
        }
        with running(tmp_path, config, environment={"DOCKER_HOST": "unix:///tmp/none.sock"}) as daemon:
            failing = eventually(
                lambda: daemon.get("/snapshot").json()["failing"].get("prometheus"),
                deadline_seconds=20,
                what=daemon.log,
            )
            eventually(lambda: len(prometheus.asked) >= 4 or None, deadline_seconds=20, what=daemon.log)

            assert "prom_error" == failing
            assert [] == elsewhere.asked


def test_a_redirect_of_ollama_is_an_error_and_is_not_followed(tmp_path):
    with recording() as elsewhere, recording(elsewhere.url) as ollama:
        config = {
            "telemetry": {"prometheus": {"enabled": "false"}},
            "lifecycle": {"provider": "ollama", "ollama_url": ollama.url, "reconcile_interval": "500ms"},
        }
        with running(tmp_path, config, environment={"DOCKER_HOST": "unix:///tmp/none.sock"}) as daemon:
            eventually(lambda: len(ollama.asked) >= 4 or None, deadline_seconds=20, what=daemon.log)
            answer = daemon.select(wait_seconds=0)

            assert 503 == answer.status_code
            assert daemon.get("/models").json()["failing"] is not None
            assert [] == elsewhere.asked


@pytest.mark.needs_docker
def test_containers_that_only_look_like_ours_are_never_touched(docker_engine, model_containers, tmp_path):
    """Ours without a model, a model's without our label, privileged look-alikes: one place, and they stay as made."""
    phi = model_containers("phi3:mini", name="real")
    others = [
        model_containers("phi3:mini", name="unnamed", labels={"dispatcher.model": None}),
        model_containers("phi3:mini", name="phi3-mini", labels={"dispatcher.managed": None, "dispatcher.model": None}),
    ]
    for end, labels in LOOK_ALIKES.items():
        name = f"{docker_engine.prefix}-{end}"
        docker_engine.client.containers.create(
            model_containers.image,
            ["/bin/busybox", "sleep", "60"],
            name=name,
            labels={**labels, **docker_engine.mine},
            privileged=True,
        )
        others.append(ModelContainer(name=name, model="phi3:mini", port=0, engine=docker_engine))
    model_containers.made += others[2:]
    config = {
        "models": chain(300 * MIB, 500 * MIB, 700 * MIB),
        "telemetry": {"prometheus": {"enabled": "false"}},
        "lifecycle": {"provider": "docker", "docker_labels": docker_engine.mine, "reconcile_interval": "500ms"},
        "policy": CPU_NEVER_MATTERS,
    }
    with running(tmp_path, config) as daemon:
        selected = daemon.select(model="phi3:mini", wait_seconds=60)
        for other in others:
            for what in ("start", "stop", "pin"):
                assert 404 == daemon.post(f"/models/{other.name}/{what}").status_code
        told = daemon.get("/models").json()["models"]
        daemon.delete(f"/leases/{selected.json()['lease']['id']}")

        assert [f"docker:{phi.name}"] == [place["place"] for model in told for place in model["places"]]
        assert ("ready", phi.endpoint) == (selected.json()["state"], selected.json()["endpoint"]), daemon.log()
        assert ["created"] * len(others) == [other.state()["Status"] for other in others]
