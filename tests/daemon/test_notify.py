"""What the service manager is told, on a real datagram socket; nothing without one."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from dispatcher.daemon import notify
from dispatcher.daemon.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path) -> Iterator[tuple[socket.socket, str]]:
    """Its socket, and NOTIFY_SOCKET as it would be set."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"dispatcher-test-{os.getpid()}"
        listening.bind(str(tmp_path / "notify") if request.param == "path" else f"\0{name}")
        listening.setblocking(False)
        yield listening, str(tmp_path / "notify") if request.param == "path" else f"@{name}"


def heard(listening: socket.socket) -> list[list[str]]:
    told = []
    while True:
        try:
            told.append(listening.recv(4096).decode().split("\n"))
        except BlockingIOError:
            return told


def test_ready_is_told_once_when_it_serves_and_a_step_has_ended(manager):
    listening, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.beat(None)
    notifier.beat(1.0)
    assert [] == heard(listening)

    notifier.serving("found: Prometheus:\nno answer")
    notifier.beat(None)
    assert [] == heard(listening)
    notifier.beat(1.0)
    notifier.beat(2.0)

    assert [["READY=1", "STATUS=found: Prometheus: no answer"]] == heard(listening)


def test_a_reload_is_told_with_its_moment_and_ends_ready_even_when_it_fails(manager):
    listening, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.serving("found")
    notifier.beat(1.0)
    heard(listening)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000

    with pytest.raises(ValueError), notifier.reloading():
        raise ValueError("broken configuration")

    began, ended = heard(listening)
    assert "RELOADING=1" == began[0]
    moment = int(began[1].removeprefix("MONOTONIC_USEC="))
    assert before <= moment <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert ["READY=1", "STATUS=found"] == ended


def a_ready(address: str) -> Notifier:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.serving("found")
    notifier.beat(1.0)
    return notifier


def test_a_reload_while_it_starts_does_not_pass_for_the_end_of_the_start(manager):
    listening, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})

    with notifier.reloading():
        notifier.serving("found")
    assert [] == heard(listening)

    notifier.beat(1.0)
    assert [["READY=1", "STATUS=found"]] == heard(listening)


def test_a_beat_during_a_reload_does_not_call_it_done(manager):
    listening, address = manager
    notifier = a_ready(address)
    heard(listening)

    with notifier.reloading():
        notifier.beat(2.0)
        assert ["RELOADING=1"] == [told[0] for told in heard(listening)]
    notifier.beat(3.0)

    assert ["READY=1"] == [told[0] for told in heard(listening)]


def filled(listening: socket.socket, address: str) -> None:
    """A manager so busy that it takes nothing more for now."""
    to = b"\0" + address[1:].encode() if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as noise, suppress(BlockingIOError):
        noise.setblocking(False)
        while True:
            noise.sendto(b"noise", to)


def test_a_ready_that_the_manager_could_not_take_follows_with_the_next_beat(manager):
    listening, address = manager
    notifier = a_ready(address)
    heard(listening)

    with notifier.reloading():
        assert 1 == len(heard(listening))
        filled(listening, address)
    assert {"noise"} == {told[0] for told in heard(listening)}
    notifier.beat(2.0)
    notifier.beat(3.0)

    assert [["READY=1", "STATUS=found"]] == heard(listening)


def test_a_reload_that_could_not_be_announced_is_announced_at_its_end(manager):
    listening, address = manager
    notifier = a_ready(address)
    filled(listening, address)

    with notifier.reloading():
        heard(listening)

    assert ["RELOADING=1", "READY=1"] == [told[0] for told in heard(listening)]


def test_a_reload_that_is_cut_short_by_leaving_is_not_ready_again(manager):
    listening, address = manager
    notifier = a_ready(address)
    heard(listening)

    with notifier.reloading():
        notifier.stopping("stopping", 1.0)
    notifier.beat(2.0)

    assert ["RELOADING=1", "STOPPING=1"] == [told[0] for told in heard(listening)]


def test_stopping_asks_for_the_time_it_may_take(manager):
    listening, address = manager

    Notifier({"NOTIFY_SOCKET": address}).stopping("stopping", 240.0)

    assert [["STOPPING=1", "STATUS=stopping", "EXTEND_TIMEOUT_USEC=240000000"]] == heard(listening)


def a_watched(address: str, monkeypatched_now: Callable[[], float] | None = None, **more: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000000", **more})


def test_the_watchdog_is_fed_by_the_end_of_a_step_only_and_at_most_twice_per_interval(manager, monkeypatch):
    listening, address = manager
    now = [100.0]
    monkeypatch.setattr(notify.time, "monotonic", lambda: now[0])
    notifier = a_watched(address)

    told = []
    for at, step in [(0, None), (1, 1.0), (2, 1.0), (3, 2.0), (5.9, 3.0), (6.1, 3.0), (12, 3.0), (60, 3.0), (61, 4.0)]:
        now[0] = 100.0 + at
        notifier.beat(step)
        told.append(heard(listening))

    ping = [["WATCHDOG=1"]]
    assert [[], ping, [], [], [], ping, [], [], ping] == told


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="none asked for"),
        pytest.param({"WATCHDOG_USEC": "garbage"}, id="no number"),
        pytest.param({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, id="another process"),
    ],
)
def test_without_a_watchdog_of_its_own_nothing_is_fed(manager, environment):
    listening, address = manager

    Notifier({"NOTIFY_SOCKET": address, **environment}).beat(1.0)

    assert [] == heard(listening)


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative", "/nowhere/at/all"])
def test_without_a_manager_that_listens_nothing_happens(address):
    notifier = a_watched(address)

    notifier.serving("found")
    notifier.beat(1.0)
    with notifier.reloading():
        notifier.stopping("stopping", 1.0)


def test_a_watchdog_that_would_bite_a_merely_slow_daemon_is_warned_of():
    notifier = a_watched("/nowhere")

    assert notifier.too_impatient(5.0) is None
    assert "set WatchdogSec to at least 20" in (notifier.too_impatient(10.0) or "")
    assert Notifier({}).too_impatient(10.0) is None
