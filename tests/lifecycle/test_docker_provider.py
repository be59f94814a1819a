"""The Docker provider on a real engine: what is ours, what is not, and what containers say of themselves."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from dispatcher.errors import EngineRefused, PlaceNotOurs
from dispatcher.lifecycle.docker_provider import DockerProvider
from dispatcher.telemetry.engine_source import EngineSource
from dispatcher.vocabulary.fleet import Place, PlaceSeen
from dispatcher.vocabulary.settings import MIB, LifecycleSettings
from tests.lifecycle.container_places import ContainerPlaces, why_not

pytestmark = pytest.mark.needs_docker
MODEL = "phi3:mini"
LABELS = {"dispatcher.managed": "true", "dispatcher.model": MODEL}


@pytest.fixture
def containers():
    if (missing := why_not()) is not None:
        pytest.skip(missing)
    places = ContainerPlaces()
    yield places
    places.remove()


@pytest.fixture
async def provider():
    source = EngineSource()
    provider = DockerProvider(LifecycleSettings(stop_grace_seconds=1), source.look)
    yield provider
    await provider.close()
    await source.close()


def place_of(name: str, model: str = MODEL) -> Place:
    return Place(server=f"docker:{name}", model=model)


async def seen_of(provider: DockerProvider, name: str) -> PlaceSeen | None:
    return next((seen for seen in await provider.list() if seen.place.server == f"docker:{name}"), None)


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param({}, id="no label"),
        pytest.param({"dispatcher.model": MODEL}, id="a model, but not managed"),
        pytest.param({"dispatcher.managed": "true"}, id="managed, but no model"),
        pytest.param({"dispatcher.managed": "yes", "dispatcher.model": MODEL}, id="managed is not true"),
    ],
)
async def test_a_container_that_is_not_declared_is_neither_listed_nor_touched(containers, provider, labels):
    neighbour = containers.declare(labels=labels)
    ours = containers.declare()
    since = time.time()

    assert await seen_of(provider, neighbour) is None
    for ask in (provider.start, provider.stop, lambda place: provider.load(place, 4096)):
        with pytest.raises(PlaceNotOurs, match=neighbour):
            await ask(place_of(neighbour))
    await provider.start(place_of(ours))
    await provider.stop(place_of(ours))

    assert {"create"} >= set(containers.events(neighbour, since, time.time()))
    assert {"start", "die", "stop"} <= set(containers.events(ours, since, time.time()))


async def test_a_container_made_anew_under_its_name_for_another_model_is_not_touched(containers, provider):
    name = containers.declare()
    seen = await seen_of(provider, name)
    containers.container(name).remove()
    containers.client.containers.create(
        "dispatcher-test-place", ["/bin/busybox", "sleep", "60"], name=name,
        labels=LABELS | {"dispatcher.model": "qwen2.5:7b"},
    )  # fmt: skip

    with pytest.raises(PlaceNotOurs, match=r"qwen2\.5:7b"):
        await provider.start(seen.place)

    assert containers.container(name).status == "created"


async def test_a_container_removed_since_the_list_is_no_place_any_more(containers, provider):
    name = containers.declare()
    seen = await seen_of(provider, name)
    containers.container(name).remove()

    for ask in (provider.start, provider.stop):
        with pytest.raises(PlaceNotOurs, match="no container"):
            await ask(seen.place)
    assert await seen_of(provider, name) is None


async def test_two_containers_for_one_model_are_two_places(containers, provider):
    names = [containers.declare(), containers.declare()]

    seen = [await seen_of(provider, name) for name in names]

    assert [place_of(name) for name in names] == [one.place for one in seen]


async def test_a_running_place_tells_its_memory_its_cpu_and_its_limit(containers, provider):
    name = containers.declare(MODEL, "--allocate", "--resident-bytes", "60MiB", memory_bytes=300 * MIB)
    await provider.start(place_of(name))
    await provider.load(place_of(name), 4096)
    first = await seen_of(provider, name)
    second = await seen_of(provider, name)

    assert 300 * MIB == first.memory_limit_bytes
    assert 60 * MIB < first.memory_used_bytes < 300 * MIB
    assert 0 < first.cpu_seconds_total <= second.cpu_seconds_total
    assert first.cpu_at_seconds < second.cpu_at_seconds
    assert first.started_at_seconds == pytest.approx(time.time(), abs=60)
    assert (None, False, False) == (first.exit_code, first.oom_killed, first.paused)


async def test_a_stopped_place_tells_how_it_ended(containers, provider):
    name = containers.declare()
    fresh = await seen_of(provider, name)
    await provider.start(place_of(name))
    await provider.load(place_of(name), 4096)
    await provider.stop(place_of(name))
    stopped = await seen_of(provider, name)

    assert (None, None, "never started") == (fresh.exit_code, fresh.started_at_seconds, fresh.because)
    assert 0 == stopped.exit_code
    assert (None, None, None) == (stopped.answers, stopped.memory_used_bytes, stopped.cpu_seconds_total)
    assert "exited with exit code 0" == stopped.because
    assert fresh.endpoint == stopped.endpoint


async def test_a_paused_place_is_not_running_and_is_not_asked(containers, provider):
    name = containers.declare()
    await provider.start(place_of(name))
    containers.container(name).pause()
    paused = await seen_of(provider, name)

    assert (False, True, None) == (paused.running, paused.paused, paused.answers)
    assert "paused" in paused.because
    with pytest.raises(EngineRefused, match="paused"):
        await provider.start(place_of(name))
    with pytest.raises(EngineRefused, match="paused"):
        await provider.load(place_of(name), 4096)


async def test_a_place_that_does_not_answer_yet_runs_and_does_not_answer(containers, provider):
    name = containers.declare(MODEL, "--startup-seconds", "600")
    await provider.start(place_of(name))
    seen = await seen_of(provider, name)

    assert (True, False, None) == (seen.running, seen.answers, seen.loaded)
    assert seen.because


async def test_a_model_the_server_does_not_have_is_not_installed(containers, provider):
    name = containers.declare("llama3.2:3b", labels=LABELS)
    await provider.start(place_of(name))
    with pytest.raises(EngineRefused, match="not found") as refused:
        await provider.load(place_of(name), 4096)
    seen = await seen_of(provider, name)

    assert 404 == refused.value.status
    assert (True, True, False, False) == (seen.running, seen.answers, seen.loaded, seen.installed)


async def test_a_load_ends_when_its_container_exits(containers, provider):
    name = containers.declare(command=["/bin/busybox", "sh", "-c", "sleep 0.5; exit 7"])
    await provider.start(place_of(name))

    with pytest.raises(EngineRefused, match="exit code 7"):
        await provider.load(place_of(name), 4096)


async def test_a_load_ends_when_its_container_is_stopped(containers, provider):
    name = containers.declare(MODEL, "--load-seconds", "600")
    await provider.start(place_of(name))
    load = asyncio.create_task(provider.load(place_of(name), 4096))
    async with asyncio.timeout(30):
        while not (await seen_of(provider, name)).answers:
            pass
    await provider.stop(place_of(name))

    with pytest.raises(EngineRefused, match="exit code"):
        await load


async def test_a_load_beyond_the_containers_memory_is_refused_and_the_container_runs_on(containers, provider):
    name = containers.declare(MODEL, "--allocate", "--resident-bytes", "400MiB", memory_bytes=150 * MIB)
    await provider.start(place_of(name))

    with pytest.raises(EngineRefused, match="signal: killed") as refused:
        await provider.load(place_of(name), 4096)

    assert 500 == refused.value.status
    assert (await seen_of(provider, name)).running


async def test_a_container_that_cannot_start_is_refused_in_dockers_words(containers, provider):
    name = containers.declare(command=["/no/such/program"])

    with pytest.raises(EngineRefused, match="no such file"):
        await provider.start(place_of(name))


async def test_the_endpoint_label_wins_over_the_published_port(containers, provider):
    name = containers.declare(labels=LABELS | {"dispatcher.endpoint": "http://ollama-phi:11434/"})

    assert "http://ollama-phi:11434" == (await seen_of(provider, name)).endpoint


async def test_a_container_that_nobody_can_reach_is_listed_and_says_why(containers, provider):
    name = containers.declare(publish=False)
    await provider.start(place_of(name))
    seen = await seen_of(provider, name)

    assert (True, None, None, None) == (seen.running, seen.endpoint, seen.answers, seen.installed)
    assert "dispatcher.endpoint" in seen.because
    with pytest.raises(EngineRefused, match=r"dispatcher\.endpoint"):
        await provider.load(place_of(name), 4096)


async def test_what_happens_to_a_place_wakes_and_what_happens_to_others_does_not(containers, provider):
    neighbour, ours = containers.declare(labels={}), containers.declare()
    waking = asyncio.create_task(provider.wake())
    async with asyncio.timeout(30):
        while not waking.done():  # the stream may not be open yet: start ours until it is noticed
            await asyncio.to_thread(containers.container(ours).start)
            await asyncio.to_thread(containers.container(ours).kill)
            await asyncio.wait({waking}, timeout=0.2)
    again = asyncio.create_task(provider.wake())
    while again in (await asyncio.wait({again}, timeout=0.5))[0]:  # until the rest of its own events has arrived
        again = asyncio.create_task(provider.wake())
    await asyncio.to_thread(containers.container(neighbour).start)
    await asyncio.wait({again}, timeout=1)
    silent_of_the_neighbour = not again.done()
    await asyncio.to_thread(containers.container(ours).start)
    async with asyncio.timeout(30):
        await again

    assert silent_of_the_neighbour


async def test_nothing_but_reads_starts_and_stops_is_ever_asked(containers, provider):
    """By Docker's own words on what happened to a place in a whole life."""
    name = containers.declare()
    since = time.time()
    await provider.start(place_of(name))
    await provider.load(place_of(name), 4096)
    await provider.list()
    await provider.stop(place_of(name))

    happened = set(containers.events(name, since, time.time()))
    assert happened <= {"create", "start", "kill", "die", "stop"}, json.dumps(sorted(happened))
