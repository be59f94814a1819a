"""The Docker provider on a real engine: what is ours, what is not, and what containers say of themselves."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from dispatcher.errors import EngineRefused, PlaceNotOurs
from dispatcher.lifecycle.docker_provider import DockerProvider
from dispatcher.telemetry.engine_source import EngineSource
from dispatcher.vocabulary.fleet import Place, PlaceSeen
from dispatcher.vocabulary.settings import MIB, LifecycleSettings
from tests.realdocker import SOCKET, ModelContainer, ModelContainers

MODEL = "phi3:mini"
NEIGHBOUR = {"dispatcher.managed": None, "dispatcher.model": None}  # no label of ours
DAY, NIGHT = {"stack": "day"}, {"stack": "night"}


@asynccontextmanager
async def a_provider(labels: Mapping[str, str]) -> AsyncIterator[DockerProvider]:
    source = EngineSource()
    settings = LifecycleSettings(docker_url=f"unix://{SOCKET}", docker_labels=labels, stop_grace_seconds=1)
    provider = DockerProvider(settings, source.look)
    yield provider
    await provider.close()
    await source.close()


@pytest.fixture
async def provider(docker_engine):
    async with a_provider(docker_engine.mine) as provider:
        yield provider


@pytest.fixture
async def night(docker_engine):
    """Of the one stack `night`, where others share the engine."""
    async with a_provider({**docker_engine.mine, **NIGHT}) as provider:
        yield provider


def place_of(container: ModelContainer, model: str = MODEL) -> Place:
    return Place(server=f"docker:{container.name}", model=model)


async def seen_of(provider: DockerProvider, container: ModelContainer) -> PlaceSeen | None:
    return next((seen for seen in await provider.list() if seen.place.server == f"docker:{container.name}"), None)


async def measured(provider: DockerProvider, container: ModelContainer, later_than_seconds: float) -> PlaceSeen:
    """Looks until its CPU has been read after that moment: a look never waits for the reading it begins."""
    async with asyncio.timeout(20):
        while True:
            seen = await seen_of(provider, container)
            if seen is not None and (seen.cpu_at_seconds or 0.0) > later_than_seconds:
                return seen
            await asyncio.sleep(0.05)


def events_of(container: ModelContainer, since_seconds: float) -> set[str]:
    """What happened to it since, in Docker's words."""
    client, made, until = container.engine.client, container.inspect()["Id"], int(time.time()) + 1
    seen = client.events(since=int(since_seconds), until=until, filters={"container": made}, decode=True)
    return {event["Action"] for event in seen}


def declare_by_hand(containers: ModelContainers, name: str, model: str, ports=None, **options) -> ModelContainer:
    """A labelled container without a model server; it publishes nothing, unless ports say so. options: Docker's."""
    engine = containers.engine
    labels = {"dispatcher.managed": "true", "dispatcher.model": model, **engine.mine}
    engine.client.containers.create(
        containers.image, ["/bin/busybox", "sleep", "60"], name=name, labels=labels, ports=ports, **options
    )
    containers.made.append(ModelContainer(name=name, model=model, port=0, engine=engine))
    return containers.made[-1]


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(NEIGHBOUR, id="no label"),
        pytest.param({"dispatcher.managed": None}, id="a model, but not managed"),
        pytest.param({"dispatcher.model": None}, id="managed, but no model"),
        pytest.param({"dispatcher.managed": "yes"}, id="managed is not true"),
    ],
)
async def test_a_container_that_is_not_declared_is_neither_listed_nor_touched(model_containers, provider, labels):
    neighbour = model_containers(labels=labels)
    ours = model_containers()
    since = time.time()

    assert await seen_of(provider, neighbour) is None
    for ask in (provider.start, provider.stop, lambda place: provider.load(place, 4096)):
        with pytest.raises(PlaceNotOurs, match=neighbour.name):
            await ask(place_of(neighbour))
    await provider.start(place_of(ours))
    await provider.stop(place_of(ours))

    assert events_of(neighbour, since) <= {"create"}
    assert {"start", "die", "stop"} <= events_of(ours, since)


async def test_a_privileged_look_alike_is_neither_listed_nor_touched(model_containers, provider):
    name = f"{model_containers.engine.prefix}-privileged"
    look_alike = declare_by_hand(model_containers, name, "phi3:mini", privileged=True)
    since = time.time()

    assert await seen_of(provider, look_alike) is None
    for ask in (provider.start, provider.stop, lambda place: provider.load(place, 4096)):
        with pytest.raises(PlaceNotOurs, match="privileged"):
            await ask(place_of(look_alike))
    assert events_of(look_alike, since) <= {"create"}


async def test_a_place_of_another_stack_on_the_same_engine_is_neither_listed_nor_touched(model_containers, night):
    theirs, ours = model_containers(labels=DAY), model_containers(labels=NIGHT)
    since = time.time()

    assert [place_of(ours)] == [seen.place for seen in await night.list()]
    for ask in (night.start, night.stop, lambda place: night.load(place, 4096)):
        with pytest.raises(PlaceNotOurs, match="stack=night"):
            await ask(place_of(theirs))
    await night.start(place_of(ours))
    await night.stop(place_of(ours))

    assert events_of(theirs, since) <= {"create"}


async def test_a_container_made_anew_under_its_name_for_another_model_is_not_touched(model_containers, provider):
    container = model_containers()
    seen = await seen_of(provider, container)
    container.remove()
    anew = declare_by_hand(model_containers, container.name, "qwen2.5:7b")

    with pytest.raises(PlaceNotOurs, match=r"qwen2\.5:7b"):
        await provider.start(seen.place)

    assert anew.state()["Status"] == "created"


async def test_a_container_removed_since_the_list_is_no_place_any_more(model_containers, provider):
    container = model_containers()
    seen = await seen_of(provider, container)
    container.remove()

    for ask in (provider.start, provider.stop):
        with pytest.raises(PlaceNotOurs, match="no container"):
            await ask(seen.place)
    assert await seen_of(provider, container) is None


async def test_two_containers_for_one_model_are_two_places(model_containers, provider):
    containers = [model_containers(), model_containers()]

    seen = [await seen_of(provider, container) for container in containers]

    assert [place_of(container) for container in containers] == [one.place for one in seen]


async def test_a_running_place_tells_its_memory_its_cpu_and_its_limit(model_containers, provider):
    container = model_containers(MODEL, resident_bytes=60 * MIB, memory_bytes=300 * MIB)
    await provider.start(place_of(container))
    await provider.load(place_of(container), 4096)
    first = await measured(provider, container, later_than_seconds=0.0)
    second = await measured(provider, container, later_than_seconds=first.cpu_at_seconds)

    assert 300 * MIB == first.memory_limit_bytes
    assert 60 * MIB < first.memory_used_bytes < 300 * MIB
    assert 0 < first.cpu_seconds_total <= second.cpu_seconds_total
    assert first.cpu_at_seconds < second.cpu_at_seconds
    assert first.started_at_seconds == pytest.approx(time.time(), abs=60)
    assert (None, False, False) == (first.exit_code, first.oom_killed, first.paused)


async def test_a_stopped_place_tells_how_it_ended(model_containers, provider):
    container = model_containers()
    fresh = await seen_of(provider, container)
    await provider.start(place_of(container))
    await provider.load(place_of(container), 4096)
    await provider.stop(place_of(container))
    stopped = await seen_of(provider, container)

    assert (None, None, "never started") == (fresh.exit_code, fresh.started_at_seconds, fresh.because)
    assert 0 == stopped.exit_code
    assert (None, None, None) == (stopped.answers, stopped.memory_used_bytes, stopped.cpu_seconds_total)
    assert "exited with exit code 0" == stopped.because
    assert fresh.endpoint == stopped.endpoint


async def test_a_paused_place_runs_on_silently_and_can_only_be_stopped(model_containers, provider):
    container = model_containers()
    await provider.start(place_of(container))
    container.engine.client.api.pause(container.name)
    paused = await seen_of(provider, container)

    assert (True, True, False) == (paused.running, paused.paused, paused.answers)
    assert "its container is paused" == paused.because
    with pytest.raises(EngineRefused, match="paused"):
        await provider.start(place_of(container))
    with pytest.raises(EngineRefused, match="paused"):
        await provider.load(place_of(container), 4096)

    await provider.stop(place_of(container))
    stopped = await seen_of(provider, container)
    assert (False, False) == (stopped.running, stopped.paused)


async def test_a_place_that_does_not_answer_yet_runs_and_does_not_answer(model_containers, provider):
    container = model_containers(options=["--startup-seconds", "600"])
    await provider.start(place_of(container))
    seen = await seen_of(provider, container)

    assert (True, False, None) == (seen.running, seen.answers, seen.loaded)
    assert seen.because


async def test_a_model_the_server_does_not_have_is_not_installed(model_containers, provider):
    container = model_containers("llama3.2:3b", labels={"dispatcher.model": MODEL})
    await provider.start(place_of(container))
    with pytest.raises(EngineRefused, match="not found") as refused:
        await provider.load(place_of(container), 4096)
    seen = await seen_of(provider, container)

    assert 404 == refused.value.status
    assert (True, True, False, False) == (seen.running, seen.answers, seen.loaded, seen.installed)


async def test_a_load_ends_when_its_container_exits(model_containers, provider):
    container = model_containers(command=["/bin/sh", "-c", "sleep 0.5; exit 7"])
    await provider.start(place_of(container))

    with pytest.raises(EngineRefused, match="exit code 7"):
        await provider.load(place_of(container), 4096)


async def test_a_load_ends_when_its_container_is_stopped(model_containers, provider):
    container = model_containers(load_seconds=600)
    await provider.start(place_of(container))
    load = asyncio.create_task(provider.load(place_of(container), 4096))
    async with asyncio.timeout(30):
        while not (await seen_of(provider, container)).answers:
            pass
    await provider.stop(place_of(container))

    with pytest.raises(EngineRefused, match="exit code"):
        await load


async def test_a_load_beyond_the_containers_memory_is_refused_and_the_container_runs_on(model_containers, provider):
    container = model_containers(MODEL, resident_bytes=400 * MIB, memory_bytes=150 * MIB)
    await provider.start(place_of(container))

    with pytest.raises(EngineRefused, match="signal: killed") as refused:
        await provider.load(place_of(container), 4096)

    assert 500 == refused.value.status
    assert (await seen_of(provider, container)).running


async def test_a_container_that_cannot_start_is_refused_in_dockers_words(model_containers, provider):
    container = model_containers()
    somebody_else = socket.create_server(("127.0.0.1", container.port))
    with somebody_else, pytest.raises(EngineRefused, match="address already in use") as refused:
        await provider.start(place_of(container))

    assert 500 == refused.value.status


async def test_a_port_that_docker_chooses_at_the_start_is_read_after_it(model_containers, provider):
    name = f"{model_containers.engine.prefix}-anyport"
    container = declare_by_hand(model_containers, name, MODEL, ports={"11434/tcp": ("127.0.0.1", 0)})
    before = await seen_of(provider, container)
    assert (None, True) == (before.endpoint, before.endpoint_later)

    await provider.start(place_of(container))
    after = await seen_of(provider, container)
    (bound,) = container.inspect()["NetworkSettings"]["Ports"]["11434/tcp"]
    assert (f"http://127.0.0.1:{bound['HostPort']}", False) == (after.endpoint, after.endpoint_later)


async def test_the_endpoint_label_wins_over_the_published_port(model_containers, provider):
    container = model_containers(labels={"dispatcher.endpoint": "http://ollama-phi:11434/"})

    assert "http://ollama-phi:11434" == (await seen_of(provider, container)).endpoint


async def test_a_container_that_nobody_can_reach_is_listed_and_says_why(model_containers, provider):
    container = declare_by_hand(model_containers, f"{model_containers.engine.prefix}-unpublished", MODEL)
    await provider.start(place_of(container))
    seen = await seen_of(provider, container)

    assert (True, None, None, None) == (seen.running, seen.endpoint, seen.answers, seen.installed)
    assert "dispatcher.endpoint" in seen.because
    with pytest.raises(EngineRefused, match=r"dispatcher\.endpoint"):
        await provider.load(place_of(container), 4096)


@pytest.mark.parametrize("labels", [NEIGHBOUR, DAY], ids=["no label", "another stack"])
async def test_what_happens_to_a_place_wakes_and_what_happens_to_others_does_not(model_containers, night, labels):
    neighbour, ours = model_containers(labels=labels), model_containers(labels=NIGHT)
    waking = asyncio.create_task(night.wake())
    async with asyncio.timeout(30):
        while not waking.done():  # the stream may not be open yet: start ours until it is noticed
            await asyncio.to_thread(ours.start)
            await asyncio.to_thread(ours.kill)
            await asyncio.wait({waking}, timeout=0.2)
    again = asyncio.create_task(night.wake())
    while again in (await asyncio.wait({again}, timeout=0.5))[0]:  # until the rest of its own events has arrived
        again = asyncio.create_task(night.wake())
    await asyncio.to_thread(neighbour.start)
    await asyncio.wait({again}, timeout=1)
    silent_of_the_neighbour = not again.done()
    await asyncio.to_thread(ours.start)
    async with asyncio.timeout(30):
        await again

    assert silent_of_the_neighbour


async def test_nothing_but_reads_starts_and_stops_is_ever_asked(model_containers, provider):
    """By Docker's own words on what happened to a place in a whole life."""
    container = model_containers()
    since = time.time()
    await provider.start(place_of(container))
    await provider.load(place_of(container), 4096)
    await provider.list()
    await provider.stop(place_of(container))

    happened = events_of(container, since)
    assert happened <= {"create", "start", "kill", "die", "stop"}, json.dumps(sorted(happened))
