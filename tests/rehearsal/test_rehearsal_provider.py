"""Simulated places and the simulated host they run on."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack

import pytest

from dispatcher.errors import EngineRefused
from dispatcher.lifecycle.engine_calls import EngineCalls
from dispatcher.rehearsal.host import SimulatedHost
from dispatcher.rehearsal.provider import RehearsalProvider, simulated
from dispatcher.rehearsal.server import PRIOR_MODELS
from dispatcher.telemetry.engine_source import EngineSource
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, GIB, ModelSettings, RehearsalSettings

SETTINGS = RehearsalSettings(host_memory_bytes=8 * GIB, host_other_bytes=2 * GIB, time_scale=0.05, seed=7)


async def opened(stack: AsyncExitStack, settings: RehearsalSettings = SETTINGS) -> RehearsalProvider:
    source, calls = EngineSource(), EngineCalls()
    provider = RehearsalProvider(DEFAULT_CHAIN, settings, load=calls.load, look=source.look)
    for one in (source, calls, provider):
        stack.push_async_callback(one.close)
    return provider


@pytest.fixture
async def provider():
    async with AsyncExitStack() as stack:
        yield await opened(stack)


async def places(provider):
    return {seen.place.model: seen.place for seen in await provider.list()}


async def host_memory(host: SimulatedHost) -> float:
    return {sample.signal: sample.value for sample in await host.sample(0.0)}["host_memory_available_bytes"]


async def test_the_simulated_host_misses_what_simulated_models_hold(provider):
    host = SimulatedHost(SETTINGS, provider.loaded_bytes)
    place = (await places(provider))["llama3.2:3b"]
    assert 6 * GIB == await host_memory(host)

    await provider.start(place)
    await provider.load(place, 4096)
    (held,) = [seen.memory_used_bytes for seen in await provider.list() if seen.running]
    assert 2 * GIB < held < 3 * GIB
    assert 6 * GIB - held == await host_memory(host)

    await provider.stop(place)
    assert 6 * GIB == await host_memory(host)


async def test_a_model_beyond_the_simulated_memory_is_refused(provider):
    of = await places(provider)
    for model in ("phi3:mini", "qwen2.5:7b"):
        await provider.start(of[model])
    await provider.load(of["phi3:mini"], 4096)
    await provider.stop(of["qwen2.5:7b"])
    await provider.start(of["qwen2.5:7b"])

    with pytest.raises(EngineRefused, match="requires more system memory"):
        await provider.load(of["qwen2.5:7b"], 4096)


async def test_a_load_ends_when_its_place_is_stopped():
    async with AsyncExitStack() as stack:
        provider = await opened(stack, RehearsalSettings(time_scale=100))
        place = (await places(provider))["phi3:mini"]
        await provider.start(place)
        load = asyncio.create_task(provider.load(place, 4096))
        await asyncio.sleep(0.1)
        await provider.stop(place)

        with pytest.raises(EngineRefused, match="stopped while"):
            await load


async def test_a_port_that_somebody_took_meanwhile_is_replaced(provider):
    (seen, *_) = await provider.list()
    taken = int(seen.endpoint.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", taken)):
        await provider.start(seen.place)
        (now, *_) = await provider.list()

    assert seen.endpoint != now.endpoint
    assert now.answers


async def test_starting_and_stopping_wake(provider):
    place = (await places(provider))["phi3:mini"]
    for move in (provider.start, provider.stop):
        waking = asyncio.create_task(provider.wake())
        await move(place)
        async with asyncio.timeout(5):
            await waking


async def test_the_simulated_host_says_the_same_for_the_same_seed():
    def host() -> SimulatedHost:
        return SimulatedHost(SETTINGS, lambda: 0)

    one, other = host(), host()
    first = [await one.sample(at) for at in range(5)]

    assert first == [await other.sample(at) for at in range(5)]
    assert {"rehearsal"} == {sample.source for samples in first for sample in samples}
    assert all(0 <= sample.value <= 1 for samples in first for sample in samples if sample.signal.endswith("_ratio"))


@pytest.mark.parametrize("model", DEFAULT_CHAIN, ids=lambda model: model.name)
def test_the_chain_is_simulated_as_the_priors_say(model):
    prior, made = PRIOR_MODELS[model.name], simulated(model)

    assert (prior.layers, prior.kv_heads, prior.head_dim) == (made.layers, made.kv_heads, made.head_dim)
    assert prior.resident_bytes == pytest.approx(made.resident_bytes, rel=0.01)
    assert prior.decode_tokens_per_second == pytest.approx(made.decode_tokens_per_second, rel=0.01)


def test_a_model_of_ones_own_is_simulated_as_configured():
    made = simulated(ModelSettings(name="own:1b", tokens_per_second=50.0, load_seconds=0.5, context=2048))

    assert ("own:1b", 50.0, 0.5, 2048) == (
        made.name,
        made.decode_tokens_per_second,
        made.load_seconds,
        made.context_max,
    )
