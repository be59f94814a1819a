"""Docker's JSON read into places: endpoints, endings, times, memory and CPU."""

from __future__ import annotations

import pytest

from dispatcher.lifecycle.docker_answers import (
    cpu_of,
    endpoint_comes_later,
    endpoint_of,
    how_it_ended,
    is_privileged,
    memory_of,
    place_of,
    seconds_of,
)
from dispatcher.vocabulary.fleet import Place


def inspected(*, ports=None, bound=None, labels=None, **state):
    state = {"Running": bound is not None, "Status": "running" if bound is not None else "exited", **state}
    return {
        "Name": "/phi",
        "Config": {"Labels": labels},
        "HostConfig": {"PortBindings": ports or {}},
        "NetworkSettings": {"Ports": bound or {}},
        "State": state,
    }


def at(address, port):
    return [{"HostIp": address, "HostPort": port}]


@pytest.mark.parametrize(
    ("container", "endpoint"),
    [
        pytest.param(inspected(ports={"11434/tcp": at("127.0.0.1", "21000")}), "http://127.0.0.1:21000", id="stopped"),
        pytest.param(inspected(bound={"11434/tcp": at("127.0.0.1", "21000")}), "http://127.0.0.1:21000", id="running"),
        pytest.param(inspected(bound={"11434/tcp": at("0.0.0.0", "21000")}), "http://127.0.0.1:21000", id="everywhere"),
        pytest.param(inspected(ports={"11434/tcp": at("", "21000")}), "http://127.0.0.1:21000", id="no address given"),
        pytest.param(inspected(bound={"11434/tcp": at("::1", "21000")}), "http://[::1]:21000", id="IPv6"),
        pytest.param(
            inspected(bound={"11434/tcp": [*at("::", "21001"), *at("0.0.0.0", "21000")]}),
            "http://127.0.0.1:21000",
            id="IPv4 before IPv6",
        ),
        pytest.param(
            inspected(ports={"80/tcp": at("127.0.0.1", "20080"), "11434/tcp": at("127.0.0.1", "21000")}),
            "http://127.0.0.1:21000",
            id="Ollama's port of several",
        ),
        pytest.param(
            inspected(ports={"80/tcp": at("127.0.0.1", "20080")}), "http://127.0.0.1:20080", id="another port, if only"
        ),
        pytest.param(
            inspected(
                ports={"11434/tcp": at("127.0.0.1", "21000")},
                labels={"dispatcher.endpoint": "http://ollama-phi:11434/"},
            ),
            "http://ollama-phi:11434",
            id="label",
        ),
        pytest.param(inspected(ports={"11434/tcp": at("127.0.0.1", "")}), None, id="chosen at its start"),
        pytest.param(inspected(ports={"11434/udp": at("127.0.0.1", "21000")}), None, id="udp"),
        pytest.param(inspected(bound={"11434/tcp": None}), None, id="exposed only"),
        pytest.param(inspected(), None, id="nothing published"),
    ],
)
def test_the_endpoint_is_what_a_caller_on_this_host_can_reach(container, endpoint):
    found, because = endpoint_of(container, None)

    assert endpoint == found
    assert (endpoint is None) == bool(because)


@pytest.mark.parametrize(
    ("container", "later"),
    [
        pytest.param(inspected(ports={"11434/tcp": at("127.0.0.1", "0")}), True, id="any port"),
        pytest.param(inspected(ports={"11434/tcp": at("127.0.0.1", "")}), True, id="no port named"),
        pytest.param(inspected(bound={"11434/tcp": at("127.0.0.1", "21000")}), False, id="bound by now"),
        pytest.param(inspected(ports={"11434/tcp": at("127.0.0.1", "21000")}), False, id="fixed"),
        pytest.param(
            inspected(ports={"11434/tcp": at("", "0")}, labels={"dispatcher.endpoint": "http://phi:11434"}),
            False,
            id="a label says it",
        ),
        pytest.param(inspected(), False, id="none, and none will come"),
    ],
)
def test_a_port_that_is_chosen_at_the_start_is_an_address_to_come(container, later):
    assert later is endpoint_comes_later(container)


def test_with_docker_on_another_host_only_what_is_published_to_the_network_can_be_reached():
    everywhere = inspected(bound={"11434/tcp": at("0.0.0.0", "21000")})
    loopback = inspected(bound={"11434/tcp": at("127.0.0.1", "21000")})

    assert "http://box:21000" == endpoint_of(everywhere, "box")[0]
    assert endpoint_of(loopback, "box")[0] is None
    assert "out of reach" in endpoint_of(loopback, "box")[1]


@pytest.mark.parametrize(
    ("labels", "place"),
    [
        ({"dispatcher.managed": "true", "dispatcher.model": "m"}, Place(server="docker:phi", model="m")),
        ({"dispatcher.managed": "True", "dispatcher.model": "m"}, None),
        ({"dispatcher.managed": "true", "dispatcher.model": ""}, None),
        ({"dispatcher.managed": "true"}, None),
        ({"dispatcher.model": "m"}, None),
        (None, None),
    ],
)
def test_a_place_is_declared_by_both_labels(labels, place):
    assert place == place_of("phi", labels)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"Running": True, "Status": "running"}, ""),
        ({"Running": True, "Paused": True}, ""),
        ({"Status": "created"}, "never started"),
        (
            {"Status": "exited", "ExitCode": 137, "OOMKilled": True},
            "exited with exit code 137, killed for want of memory",
        ),
        ({"Status": "created", "ExitCode": 127, "Error": "no such file"}, "never started"),
        ({"Status": "exited", "ExitCode": 127, "Error": "no such file"}, "exited with exit code 127 (no such file)"),
    ],
)
def test_how_a_container_ended_is_told_in_words(state, words):
    assert words == how_it_ended({"State": state})


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("2026-11-21T00:16:02.209439493Z", 1795220162.209439),
        ("2026-11-21T00:16:02Z", 1795220162.0),
        ("2026-11-21T01:16:02.5+01:00", 1795220162.5),
        ("0001-01-01T00:00:00Z", None),
        ("", None),
        (None, None),
    ],
)
def test_dockers_times_have_nine_digits_or_none(stamp, seconds):
    assert seconds == seconds_of(stamp)


@pytest.mark.parametrize(
    ("stats", "held_bytes"),
    [
        pytest.param({"rss": 100, "mapped_file": 20, "cache": 999, "total_rss": 100}, 120, id="cgroup v1"),
        pytest.param({"anon": 100, "file_mapped": 20, "file": 999}, 120, id="cgroup v2"),
        pytest.param({"anon": 100}, 100, id="nothing mapped"),
        pytest.param({}, None, id="stopped"),
        pytest.param(None, None, id="not said"),
    ],
)
def test_memory_is_rss_and_mapped_file_and_never_page_cache(stats, held_bytes):
    assert held_bytes == memory_of({"memory_stats": {"usage": 5000, "stats": stats}})


def test_cpu_is_cumulative_and_dated_or_unknown():
    used = {"cpu_usage": {"total_usage": 1_500_000_000}}

    assert (1.5, 1795220162.5) == cpu_of({"cpu_stats": used, "read": "2026-11-21T00:16:02.5Z"})
    assert (None, None) == cpu_of({"cpu_stats": used, "read": "0001-01-01T00:00:00Z"})
    assert (None, None) == cpu_of({})


@pytest.mark.parametrize(
    ("host", "privileged"),
    [
        pytest.param({"Privileged": True}, True, id="privileged"),
        pytest.param({"Privileged": False}, False, id="as it is usual"),
        pytest.param({}, False, id="not told"),
        pytest.param(None, False, id="no configuration of the host"),
        pytest.param("garbage", False, id="garbage"),
    ],
)
def test_a_privileged_container_is_told_by_its_host_configuration(host, privileged):
    assert privileged is is_privileged({"HostConfig": host})
