"""What every provider does alike: containers on a real engine, a shared Ollama, and rehearsal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest

from dispatcher.errors import EngineRefused, PlaceNotOurs
from dispatcher.lifecycle.docker_provider import DockerProvider
from dispatcher.lifecycle.engine_calls import EngineCalls
from dispatcher.lifecycle.none_provider import NoneProvider
from dispatcher.lifecycle.ollama_provider import OllamaProvider
from dispatcher.lifecycle.provider import Provider
from dispatcher.rehearsal.provider import RehearsalProvider
from dispatcher.rehearsal.server import PRIOR_MODELS, RehearsalServer
from dispatcher.telemetry.engine_source import EngineSource
from dispatcher.vocabulary.fleet import Place, PlaceSeen
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, LifecycleSettings, RehearsalSettings
from tests.realdocker import SOCKET

FAST = 0.05  # of the simulated load seconds


@dataclass
class Stage:
    """A provider with its places, all stopped, and one of them to play with."""

    provider: Provider
    place: Place
    places: set[Place]

    async def seen(self, place: Place | None = None) -> PlaceSeen:
        return next(seen for seen in await self.provider.list() if seen.place == (place or self.place))


async def _docker(stack: AsyncExitStack, request: pytest.FixtureRequest) -> Stage:
    model_containers = request.getfixturevalue("model_containers")
    made = [model_containers(model) for model in ("phi3:mini", "llama3.2:3b")]
    places = {Place(server=f"docker:{container.name}", model=container.model) for container in made}
    source = EngineSource()
    stack.push_async_callback(source.close)
    mine = request.getfixturevalue("docker_engine").mine
    settings = LifecycleSettings(docker_url=f"unix://{SOCKET}", docker_labels=mine, stop_grace_seconds=1)
    return Stage(DockerProvider(settings, source.look), min(places), places)


async def _ollama(stack: AsyncExitStack, _: pytest.FixtureRequest) -> Stage:
    server = RehearsalServer(PRIOR_MODELS, time_scale=FAST)
    await server.start()
    stack.push_async_callback(server.stop)
    source = EngineSource()
    stack.push_async_callback(source.close)
    provider = OllamaProvider(LifecycleSettings(ollama_url=server.url), list(PRIOR_MODELS), source.look)
    places = {Place(server=f"ollama:127.0.0.1:{server.port}", model=model) for model in PRIOR_MODELS}
    return Stage(provider, max(places), places)


async def _rehearsal(stack: AsyncExitStack, _: pytest.FixtureRequest) -> Stage:
    source, calls = EngineSource(), EngineCalls()
    stack.push_async_callback(source.close)
    stack.push_async_callback(calls.close)
    provider = RehearsalProvider(DEFAULT_CHAIN, RehearsalSettings(time_scale=FAST), load=calls.load, look=source.look)
    places = {seen.place for seen in await provider.list()}
    return Stage(provider, min(places), places)


@pytest.fixture(
    params=[pytest.param(_docker, marks=pytest.mark.needs_docker, id="docker"), _ollama, _rehearsal],
    ids=lambda make: make.__name__.strip("_"),
)
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    make: Callable[..., Awaitable[Stage]] = request.param
    async with AsyncExitStack() as stack:
        stage = await make(stack, request)
        stack.push_async_callback(stage.provider.close)
        yield stage


async def up(stage: Stage, num_ctx: int = 4096) -> float:
    await stage.provider.start(stage.place)
    return await stage.provider.load(stage.place, num_ctx)


async def test_declared_places_are_listed_stopped_with_an_endpoint(stage):
    seen = [one for one in await stage.provider.list() if one.place in stage.places]

    assert stage.places == {one.place for one in seen}
    assert [False] * len(seen) == [one.running for one in seen]
    assert all(one.endpoint.startswith("http://127.0.0.1:") for one in seen)


async def test_starting_twice_is_no_error(stage):
    await stage.provider.start(stage.place)
    await stage.provider.start(stage.place)


async def test_a_loaded_place_says_what_it_has_loaded(stage):
    load_seconds = await up(stage)
    seen = await stage.seen()

    assert load_seconds > 0
    assert (True, True, True, 4096) == (seen.running, seen.answers, seen.loaded, seen.loaded_num_ctx)
    assert seen.installed
    assert seen.loaded_size_bytes > 0
    assert seen.loaded_vram_bytes == 0
    assert seen.version


async def test_only_the_place_asked_for_comes_up(stage):
    await up(stage)

    assert [stage.place] == [
        one.place for one in await stage.provider.list() if one.running and one.place in stage.places
    ]


async def test_loading_with_another_context_reloads(stage):
    await up(stage)
    await stage.provider.load(stage.place, 8192)

    assert 8192 == (await stage.seen()).loaded_num_ctx


async def test_a_stopped_place_is_stopped_when_stop_returns(stage):
    await up(stage)
    await stage.provider.stop(stage.place)

    assert not (await stage.seen()).running


async def test_stopping_a_stopped_place_is_no_error(stage):
    await stage.provider.stop(stage.place)
    await up(stage)
    await stage.provider.stop(stage.place)
    await stage.provider.stop(stage.place)


async def test_a_place_comes_up_again_after_a_stop(stage):
    await up(stage)
    await stage.provider.stop(stage.place)
    await up(stage, 8192)

    assert 8192 == (await stage.seen()).loaded_num_ctx


async def test_a_load_refused_for_memory_is_told_in_the_engines_words(stage):
    await up(stage)
    endpoint = (await stage.seen()).endpoint
    async with httpx.AsyncClient(trust_env=False) as client:
        (await client.post(f"{endpoint}/rehearsal/faults", json={"refuse_loads": "memory"})).raise_for_status()

    with pytest.raises(EngineRefused, match="requires more system memory") as refused:
        await stage.provider.load(stage.place, 16384)

    assert 500 == refused.value.status


async def test_a_cancelled_load_can_be_begun_anew(stage):
    await stage.provider.start(stage.place)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await stage.provider.load(stage.place, 4096)
    await stage.provider.load(stage.place, 8192)

    assert 8192 == (await stage.seen()).loaded_num_ctx


async def test_what_is_no_declared_place_is_not_touched(stage):
    await refuses_everything(stage.provider, Place(server=stage.place.server, model="stranger:1b"))
    await refuses_everything(stage.provider, Place(server="docker:nobody-here", model=stage.place.model))
    await refuses_everything(stage.provider, Place(server="elsewhere:1", model=stage.place.model))


async def test_without_an_engine_nothing_is_listed_and_everything_is_refused():
    provider = NoneProvider()

    assert () == await provider.list()
    await refuses_everything(provider, Place(server="docker:phi", model="phi3:mini"))


async def test_waiting_for_a_wake_can_be_given_up(stage):
    waking = asyncio.create_task(stage.provider.wake())
    await asyncio.sleep(0)
    waking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waking


async def refuses_everything(provider: Provider, place: Place) -> None:
    for asked in (provider.start(place), provider.load(place, 4096), provider.stop(place)):
        with pytest.raises(PlaceNotOurs):
            await asked
