"""Every row of docs/faults.md, "Docker": each fault injected between the running daemon and the real engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.faults import (
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
    status,
    wait_until_well,
    words,
)
from tests.e2e.running import MIB, RunningDaemon
from tests.faultproxy import FaultProxy, canned
from tests.realdocker import SOCKET, DockerEngine, containers
from tests.realparts import eventually

SECTION = "Docker"
THREADS = 16  # that hang and are left behind, at most: 8 of those that look, 8 of those that act
PHI_BYTES, QWEN_BYTES = 300 * MIB, 700 * MIB

pytestmark = [pytest.mark.needs_prometheus, pytest.mark.needs_node_exporter, pytest.mark.needs_docker]


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """door: between the daemon and Docker's socket."""

    door: FaultProxy
    daemon: RunningDaemon
    fleet: Fleet


@pytest.fixture(scope="module")
def house(
    request: pytest.FixtureRequest,
    node_exporter: str,
    docker_engine: DockerEngine,
    model_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("faults")
    for make in containers(docker_engine, model_image):
        fleet = Fleet.made(make, "docker")
        with (
            real_prometheus(request, folder, node_exporter) as prometheus,
            FaultProxy(SOCKET, at=folder / "docker.sock") as door,
        ):
            daemon = RunningDaemon(
                folder=folder / "daemon", config=config(fleet, prometheus.url, host=True, docker_url=door.url)
            )
            try:
                daemon.start()
                wait_until_well(daemon)
                bring_up(daemon, "phi3:mini")
                yield House(door=door, daemon=daemon, fleet=fleet)
            finally:
                daemon.stop()


# ── faults: each returns what lifts it, and what Docker may tell that was done meanwhile ─────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """done: what is seen in Docker's own event log from the fault until all is well again."""

    lift: Callable[[], None]
    done: tuple[tuple[str, str], ...] = ()


def by_door(fault: Callable[[FaultProxy], None]) -> Callable[[House], Injected]:
    def inject(house: House) -> Injected:
        fault(house.door)
        return Injected(lift=house.door.heal)

    return inject


def vanished(house: House) -> Injected:
    """Listed, and gone when it is asked for."""
    gone = canned(404, f'{{"message": "No such container: {house.fleet.qwen.name}"}}')
    house.door.answer(f"/containers/{house.fleet.qwen.name}/json", gone)
    return Injected(lift=house.door.heal)


def stop_that_never_ends(house: House) -> Injected:
    daemon, qwen = house.daemon, house.fleet.qwen
    bring_up(daemon, "qwen2.5:7b")
    house.fleet.forget()
    house.door.hold(f"/containers/{qwen.name}/stop")
    assert 202 == daemon.post("/models/qwen2.5%3A7b/stop").status_code
    daemon.wait_for_state("qwen2.5:7b", "stuck", within_seconds=SOON_SECONDS)
    assert PHI_BYTES + QWEN_BYTES == daemon.get("/models").json()["reserved_bytes"], "its memory is not given away"
    assert qwen.state()["Running"] and [] == house.fleet.done()

    def lift() -> None:
        house.door.heal()  # what it was asked long ago, Docker does now
        daemon.wait_for_state("qwen2.5:7b", "stopped", within_seconds=SOON_SECONDS)
        assert PHI_BYTES == daemon.get("/models").json()["reserved_bytes"]

    return Injected(lift=lift, done=tuple((qwen.name, what) for what in ("kill", "die", "stop")))


def name_of_another(house: House) -> Injected:
    fleet = house.fleet
    make, end = fleet.make, fleet.qwen.name.removeprefix(f"{fleet.make.engine.prefix}-")
    fleet.qwen.remove()
    stranger = make("qwen2.5:7b", name=end, labels={"dispatcher.managed": None, "dispatcher.model": None, **fleet.mine})
    fleet.forget()

    def lift() -> None:
        assert [] == fleet.done()
        stranger.remove()
        fleet.qwen = make("qwen2.5:7b", name=end, memory_bytes=800 * MIB, labels=dict(fleet.mine))

    return Injected(lift=lift, done=((fleet.qwen.name, "destroy"),))


FAULTS: dict[str, Callable[[House], Injected]] = {
    "Docker refuses connections": by_door(FaultProxy.refuse),
    "Docker hangs": by_door(FaultProxy.hang),
    "Docker sends one byte per second": by_door(FaultProxy.drip),
    "Docker answers 500": by_door(lambda door: door.answer("", canned(500, '{"message": "no space left"}'))),
    "a container vanishes between list and inspect": vanished,
    "a stop never ends": stop_that_never_ends,
    "another container has the name": name_of_another,
}


@parametrized(SECTION, FAULTS)
def test_what_the_table_says_of_a_fault_is_so(house: House, row: Row):
    assert row.fault in FAULTS, f"docs/faults.md has no row, or this file no test, for it: {row!r}"
    daemon, fleet = house.daemon, house.fleet
    wait_until_well(daemon)
    fleet.forget()

    injected = FAULTS[row.fault](house)
    try:
        wait_until_it_shows(daemon, row)
        answer = daemon.select(model="phi3:mini", wait_seconds=0, lease_seconds=1)
        big = daemon.select(model="qwen2.5:7b", wait_seconds=0)
        readyz, told = checks(daemon)
        assert THREADS >= abandoned_threads(daemon)
    finally:
        injected.lift()

    body, refused = answer.json(), candidate(big.json(), "qwen2.5:7b")
    assert (status(row.standing), "ready") == (answer.status_code, body["state"]), answer.text
    assert words(row.standing) == ({"degraded"} if body["degraded"] else set()), body["reasons"]
    assert row.codes == codes(body), body["reasons"]
    assert status(row.other) == big.status_code, big.text
    assert words(row.other) == ({refused["rule"]} if refused else set()), big.text
    assert 1 <= int(big.headers["retry-after"]) <= 120
    assert (200, not row.failing) == (readyz, told["engine"]["ok"]), told
    wait_until_well(daemon)
    assert list(injected.done) == list(dict.fromkeys(fleet.done())), daemon.log()  # SIGTERM and SIGKILL are both kills
    assert {"phi3:mini": "ready", "qwen2.5:7b": "stopped"}.items() <= daemon.states().items()


def wait_until_it_shows(daemon: RunningDaemon, row: Row) -> None:
    """A failing engine is told; else qwen cannot be had."""

    def shows() -> bool | None:
        if row.failing:
            return bool(daemon.get("/models").json()["failing"]) or None
        return (daemon.select(model="qwen2.5:7b", dry_run=True).status_code != 200) or None

    eventually(shows, deadline_seconds=SOON_SECONDS, what=lambda: f"{row.fault} to be seen: {daemon.log()}")
