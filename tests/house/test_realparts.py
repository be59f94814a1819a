"""The real parts really run: what the rest of the suite rests on."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

from tests.realdocker import MIB
from tests.realparts import eventually

SERVE = "import http.server as s; s.test(s.SimpleHTTPRequestHandler, port=11434, bind='0.0.0.0')"


def serve_with(statement: str) -> list[str]:
    """A command for the chroot: this Python, which serves files after it ran the statement."""
    return [sys.executable, "-c", f"{statement}; {SERVE}"]


def test_ports_are_bindable_and_never_given_twice(free_port):
    ports = [free_port() for _ in range(20)]

    assert 20 == len(set(ports))
    assert all(20_000 <= port < 32_000 for port in ports)
    with socket.create_server(("127.0.0.1", ports[0])):
        pass


def test_prometheus_scrapes_a_node_exporter(prometheus_factory, node_exporter):
    prometheus = prometheus_factory([{"job_name": "node", "static_configs": [{"targets": [node_exporter]}]}])

    [sample] = prometheus.wait_for("node_memory_MemAvailable_bytes")

    assert float(sample["value"][1]) > 0
    assert node_exporter == sample["metric"]["instance"]


def test_a_stopped_prometheus_refuses_and_comes_back_at_its_address(prometheus_factory):
    prometheus = prometheus_factory()
    port = int(prometheus.url.rpartition(":")[2])

    prometheus.stop()
    with pytest.raises(httpx.ConnectError):
        prometheus.query("1")
    again = prometheus_factory(port=port)

    assert prometheus.url == again.url
    assert "1" == again.query("vector(1)")[0]["value"][1]


def test_a_paused_prometheus_accepts_and_does_not_answer(prometheus_factory):
    prometheus = prometheus_factory()

    prometheus.pause()
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{prometheus.url}/-/ready", timeout=0.3, trust_env=False)
    prometheus.resume()

    prometheus.process.wait_for_http(f"{prometheus.url}/-/ready")


@pytest.mark.needs_docker
def test_a_model_container_is_declared_stopped_labelled_limited_and_on_loopback_only(model_containers):
    phi = model_containers("phi3:mini", memory_bytes=64 * MIB, labels={"dispatcher.endpoint": "http://phi:11434"})

    seen = phi.inspect()

    assert "created" == seen["State"]["Status"]
    assert ("true", "phi3:mini") == tuple(seen["Config"]["Labels"][f"dispatcher.{key}"] for key in ("managed", "model"))
    assert "http://phi:11434" == seen["Config"]["Labels"]["dispatcher.endpoint"]
    assert 64 * MIB == seen["HostConfig"]["Memory"]
    assert "no" == seen["HostConfig"]["RestartPolicy"]["Name"]
    assert [{"HostIp": "127.0.0.1", "HostPort": str(phi.port)}] == seen["HostConfig"]["PortBindings"]["11434/tcp"]


def test_a_label_can_be_left_out(model_containers):
    stranger = model_containers(labels={"dispatcher.managed": None})

    assert "dispatcher.managed" not in stranger.inspect()["Config"]["Labels"]


def test_a_model_container_runs_this_python_with_this_checkout_on_a_read_only_disk(model_containers):
    statement = "import dispatcher, errno, os; assert os.access(dispatcher.__file__, os.R_OK)"
    probe = (
        "\ntry: open(dispatcher.__file__ + '.probe', 'w')"
        "\nexcept OSError as error: assert error.errno == errno.EROFS, error"
        "\nelse: raise SystemExit('the host is writable')"
        "\npass"
    )
    container = model_containers(command=serve_with(statement + probe)).start().wait_until_it_answers("/")

    assert container.state()["Running"]
    assert not Path(f"{Path(__file__).parents[2]}/dispatcher/__init__.py.probe").exists()


def test_a_model_container_can_be_stopped_and_started_again(model_containers):
    container = model_containers(command=serve_with("pass")).start().wait_until_it_answers("/")

    container.stop(grace_seconds=1)
    assert not container.state()["Running"]
    with pytest.raises(httpx.TransportError):
        httpx.get(container.endpoint, timeout=2, trust_env=False)
    container.start().wait_until_it_answers("/")

    assert container.state()["Running"]


def test_a_model_container_over_its_limit_is_killed(model_containers):
    hungry = model_containers(memory_bytes=48 * MIB, command=[sys.executable, "-c", f"b'x' * {256 * MIB}"])

    hungry.start()
    state = eventually(
        lambda: state if (state := hungry.state())["Status"] == "exited" else None,
        deadline_seconds=30,
        what="the kill",
    )

    assert (True, 128 + signal.SIGKILL) == (state["OOMKilled"], state["ExitCode"])


def test_a_model_container_rehearses_a_model(model_containers):
    phi = model_containers("phi3:mini", memory_bytes=256 * MIB, resident_bytes=100 * MIB)

    phi.start().wait_until_it_answers()
    answer = httpx.get(f"{phi.endpoint}/api/tags", timeout=10, trust_env=False).json()

    assert ["phi3:mini"] == [model["name"] for model in answer["models"]]
