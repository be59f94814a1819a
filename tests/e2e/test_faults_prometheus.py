"""Every row of docs/faults.md, "Prometheus and what it scrapes": the fault injected into the running loop.

Three daemons look at the same Prometheus through the same door, each with a fleet of its own on the real engine: on one
this host's readings stand in, on one nothing does, and the third is blind from the moment its readings are not fresh.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx
import pytest

from tests.e2e.faults import (
    POLL_SECONDS,
    SOON_SECONDS,
    Fleet,
    Row,
    abandoned_threads,
    bring_up,
    candidate,
    checks,
    codes,
    config,
    parametrized,
    real_prometheus,
    snapshot,
    status,
    wait_until_well,
    words,
)
from tests.e2e.machine import Exporter
from tests.e2e.running import RunningDaemon
from tests.faultproxy import Answer, Asked, FaultProxy, canned
from tests.realdocker import DockerEngine, containers
from tests.realparts import RealPrometheus, eventually

SECTION = "Prometheus and what it scrapes"
MEMORY = "node_memory_MemAvailable_bytes"
HOUR_SECONDS = 3600
THREADS = 2  # that hang and are left behind, at most

pytestmark = [pytest.mark.needs_prometheus, pytest.mark.needs_node_exporter, pytest.mark.needs_docker]


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """door: between the daemons and Prometheus. gate: between Prometheus and the exporter. standing: host readings
    stand in; bare: nothing does; blind: nothing does, and what is not fresh is blind at once."""

    door: FaultProxy
    gate: FaultProxy
    prometheus: RealPrometheus
    exporter: Exporter
    standing: RunningDaemon
    bare: RunningDaemon
    blind: RunningDaemon
    fleets: tuple[Fleet, ...]

    @property
    def daemons(self) -> tuple[RunningDaemon, ...]:
        return (self.standing, self.bare, self.blind)


@pytest.fixture(scope="module")
def house(
    request: pytest.FixtureRequest,
    node_exporter: str,
    docker_engine: DockerEngine,
    model_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("faults")
    exporter = Exporter(folder=folder).start()
    started: list[RunningDaemon] = []
    try:
        with (
            FaultProxy(f"http://{exporter.address}") as gate,
            real_prometheus(request, folder, gate.url.removeprefix("http://")) as prometheus,
            FaultProxy(prometheus.url) as door,
        ):
            for make in containers(docker_engine, model_image):
                fleets = tuple(Fleet.made(make, name) for name in ("standing", "bare", "blind"))
                for fleet, host in zip(fleets, (True, False, False), strict=True):
                    settings = config(fleet, door.url, host=host)
                    if fleet is fleets[2]:
                        settings["policy"]["blind_after"] = f"{3 * POLL_SECONDS}s"
                    daemon = RunningDaemon(folder=folder / fleet.mine["dispatcher.fleet"], config=settings)
                    started.append(daemon.start(wait=False))
                for daemon in started:
                    daemon.wait_until_it_answers()
                standing, bare, blind = started
                wait_until_well(*started)
                for daemon in started:
                    bring_up(daemon, "phi3:mini")
                yield House(
                    door=door,
                    gate=gate,
                    prometheus=prometheus,
                    exporter=exporter,
                    standing=standing,
                    bare=bare,
                    blind=blind,
                    fleets=fleets,
                )
    finally:
        for daemon in started:
            daemon.stop()
        exporter.stop()


# ── faults: each returns what lifts it ───────────────────────────────────────────────────────────────────────────────

Lift = Callable[[], None]
QUERY = "/api/v1/query"
ANYBODY = Asked(method="GET", path=QUERY, head=b"", body=b"")


def by_door(fault: Callable[[FaultProxy], None]) -> Callable[[House], Lift]:
    def inject(house: House) -> Lift:
        fault(house.door)
        return house.door.heal

    return inject


def answered(respond: Callable[[Asked], Answer]) -> Callable[[House], Lift]:
    return by_door(lambda door: door.answer(QUERY, respond))


def stopped(house: House) -> Lift:
    house.prometheus.pause()
    return house.prometheus.resume


def exporter_gone(house: House) -> Lift:
    house.exporter.stop()

    def lift() -> None:
        house.exporter.start()

    return lift


def exporter_frozen(house: House) -> Lift:
    process = house.exporter.process
    assert process is not None
    process.send(signal.SIGSTOP)
    return lambda: process.send(signal.SIGCONT)


def rewritten(rewrite: Callable[[str], str]) -> Callable[[House], Lift]:
    """The exporter's exposition, with its line of free memory as somebody else would write it."""

    def inject(house: House) -> Lift:
        def respond(asked: Asked) -> Answer:
            text = httpx.get(f"http://{house.exporter.address}/metrics", timeout=5, trust_env=False).text
            changed = re.sub(rf"(?m)^{MEMORY} (.*)$", lambda found: rewrite(found[1]), text)
            return canned(200, changed, content_type="text/plain; version=0.0.4")(asked)

        house.gate.answer("/metrics", respond)
        return house.gate.heal

    return inject


def from_another_time(house: House) -> Lift:
    """What Prometheus itself answers, with every moment in it an hour later; ages stay what they are."""

    def respond(asked: Asked) -> Answer:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        told = httpx.post(house.prometheus.url + asked.path, content=asked.body, headers=kind, timeout=5).json()
        for series in told["data"]["result"]:
            series["value"][0] += HOUR_SECONDS
        return canned(200, json.dumps(told))(asked)

    house.door.answer(QUERY, respond)
    return house.door.heal


def vector(*series: dict[str, Any]) -> str:
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": list(series)}})


@cache
def a_million_series() -> Answer:
    one = '{"metric":{"signal":"host_memory_available_bytes"},"value":[1,"1"]}'
    head, tail = vector()[:-3], "]}}"
    return canned(200, head + ",".join([one] * 1_000_000) + tail)(ANYBODY)


HALF = vector({"metric": {"signal": "host_memory_available_bytes"}, "value": [1, "1"]})[:-30]
FAULTS: dict[str, Callable[[House], Lift]] = {
    "Prometheus refuses connections": by_door(FaultProxy.refuse),
    "Prometheus is stopped (SIGSTOP)": stopped,
    "Prometheus sends one byte per second": by_door(FaultProxy.drip),
    "Prometheus answers 401": answered(canned(401, "Unauthorized", content_type="text/plain")),
    "Prometheus answers 503": answered(canned(503, "Service Unavailable", content_type="text/plain")),
    "Prometheus answers HTML with 200": answered(canned(200, "<html>please log in</html>", content_type="text/html")),
    "Prometheus answers half a JSON document": answered(canned(200, HALF)),
    "Prometheus answers a million series": answered(lambda asked: a_million_series()),
    "Prometheus answers nothing": answered(canned(200, vector())),
    "Prometheus' clock is an hour off": from_another_time,
    "the exporter is gone": exporter_gone,
    "the exporter is frozen": exporter_frozen,
    "free memory is NaN": rewritten(lambda value: f"{MEMORY} NaN"),
    "free memory is infinite": rewritten(lambda value: f"{MEMORY} +Inf"),
    "free memory is negative": rewritten(lambda value: f"{MEMORY} -1"),
    "more memory is free than there is": rewritten(lambda value: f"{MEMORY} 1e15"),
    "two series for one host": rewritten(lambda value: f'{MEMORY} {value}\n{MEMORY}{{from="another"}} {value}'),
}


# ── what each row says ───────────────────────────────────────────────────────────────────────────────────────────────


@parametrized(SECTION, FAULTS)
def test_what_the_table_says_of_a_fault_is_so(house: House, row: Row):
    assert row.fault in FAULTS, f"docs/faults.md has no row, or this file no test, for it: {row!r}"
    wait_until_well(*house.daemons)
    for fleet in house.fleets:
        fleet.forget()
    polls, asked = polled(house), len(house.door.passed)

    lift = FAULTS[row.fault](house)
    try:
        this_host_stands_in(house.standing, row)
        nothing_stands_in(house.bare, row, "stale" if "stale" in row.other else "blind")
        nothing_stands_in(house.blind, row, "blind")
        assert THREADS >= max(map(abandoned_threads, house.daemons))
    finally:
        lift()

    wait_until_well(*house.daemons)
    assert [] == [action for fleet in house.fleets for action in fleet.done()]
    asked, polls = len(house.door.passed) - asked, polled(house) - polls
    assert asked <= polls + len(house.daemons), "one query per poll, whatever comes back; one may be under way at each"


def test_blind_with_nothing_running_the_smallest_alone_is_started(house: House):
    wait_until_well(*house.daemons)
    fleet, daemon = house.fleets[2], house.blind
    assert 202 == daemon.post("/models/phi3%3Amini/stop").status_code
    daemon.wait_for_state("phi3:mini", "stopped", within_seconds=SOON_SECONDS)
    fleet.forget()

    house.door.refuse()
    try:
        daemon.wait_for_state("phi3:mini", "ready", within_seconds=SOON_SECONDS)
        answer = daemon.select(wait_seconds=0, lease_seconds=1)
    finally:
        house.door.heal()

    assert (200, "phi3:mini", "low") == (answer.status_code, answer.json()["model"], answer.json()["confidence"])
    assert [(fleet.phi.name, "start")] == fleet.done()


def polled(house: House) -> int:
    return sum(snapshot(daemon)["number"] for daemon in house.daemons)


def this_host_stands_in(daemon: RunningDaemon, row: Row) -> None:
    failing = {"prometheus": next(iter(row.codes))} if row.failing else {}
    told = seen(daemon, lambda told: told["failing"] == failing and stands_in(told))
    answer = daemon.select(model="phi3:mini", wait_seconds=0, lease_seconds=1)
    big = daemon.select(model="qwen2.5:7b", dry_run=True)
    body = answer.json()

    assert status(row.standing) == answer.status_code, answer.text
    assert words(row.standing) == ({"degraded"} if body["degraded"] else set()) | {body["confidence"]}, body["reasons"]
    assert (row.codes if row.failing else frozenset()) == codes(body)
    assert ("phi3:mini", "ready", "fresh") == (body["model"], body["state"], told["freshness"])
    assert 200 == big.status_code, f"everything may still be started: {big.text}"


def nothing_stands_in(daemon: RunningDaemon, row: Row, freshness: str) -> None:
    failing = {"prometheus": next(iter(row.codes))} if row.failing else {}
    seen(daemon, lambda told: told["freshness"] == freshness and told["failing"] == failing)
    answer, big = daemon.select(wait_seconds=0, lease_seconds=1), daemon.select(model="qwen2.5:7b", wait_seconds=0)
    readyz, told = checks(daemon)
    body, refused = answer.json(), candidate(big.json(), "qwen2.5:7b")

    assert status(row.other) == answer.status_code, answer.text
    assert ("phi3:mini", "ready", True, "low") == (body["model"], body["state"], body["degraded"], body["confidence"])
    assert row.codes <= codes(body) <= row.codes | {"prom_stale"}, body["reasons"]
    assert (503, "signal_unknown") == (big.status_code, refused["rule"] if refused else None), big.text
    assert (200, False, not row.failing) == (readyz, told["signals"]["ok"], told["prometheus"]["ok"])
    if row.failing:
        assert f"failing: {failing['prometheus']}" == told["prometheus"]["because"]


def stands_in(told: dict[str, Any]) -> bool:
    memory = next(one for one in told["signals"] if one["signal"] == "host_memory_available_bytes")
    return bool(memory["source"] == "host" and told["source"] in ("host", "mixed"))


def seen(daemon: RunningDaemon, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    return eventually(
        lambda: told if wanted(told := snapshot(daemon)) else None,
        deadline_seconds=SOON_SECONDS,
        what=lambda: f"{daemon.folder.name} to see it: {snapshot(daemon)}\n{daemon.log()}",
    )
