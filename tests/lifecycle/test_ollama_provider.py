"""The Ollama provider beyond the contract: what it shares, and with whom."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from dispatcher.errors import EngineRefused, EngineUnreachable, PlaceNotOurs
from dispatcher.lifecycle.ollama_provider import OllamaProvider
from dispatcher.rehearsal.server import PRIOR_MODELS, Fault, RehearsalServer
from dispatcher.telemetry.engine_source import EngineSource
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.settings import LifecycleSettings

FOREIGN = "qwen2.5:7b"  # installed there, but not of our chain
CHAIN = ["phi3:mini", "llama3.2:3b", "mistral"]


@pytest.fixture
async def server():
    server = RehearsalServer(PRIOR_MODELS, time_scale=0.05)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def provider(server):
    source = EngineSource()
    settings = LifecycleSettings(ollama_url=server.url, stop_timeout_seconds=1.0, list_timeout_seconds=1.0)
    provider = OllamaProvider(settings, CHAIN, source.look)
    yield provider
    await provider.close()
    await source.close()


async def load_by_somebody(server: RehearsalServer, model: str) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        (await client.post(f"{server.url}/api/generate", json={"model": model, "stream": False})).raise_for_status()


async def test_every_model_of_the_chain_is_a_place_and_says_whether_it_is_installed(provider):
    seen = await provider.list()

    assert CHAIN == [one.place.model for one in seen]
    assert [True, True, False] == [one.installed for one in seen]
    assert "ollama pull mistral" in seen[2].because
    assert all(one.shared and one.answers for one in seen)


async def test_what_others_loaded_counts_as_foreign_and_is_not_touched(server, provider):
    await load_by_somebody(server, FOREIGN)
    await provider.list()

    assert PRIOR_MODELS[FOREIGN].resident_bytes == pytest.approx(provider.foreign_bytes(), rel=0.01)
    with pytest.raises(PlaceNotOurs):
        await provider.stop(Place(server=provider.server, model=FOREIGN))
    await provider.list()
    assert provider.foreign_bytes() > 0


async def test_what_others_loaded_of_the_chain_is_ours_to_see(server, provider):
    await load_by_somebody(server, "phi3:mini")
    seen, *_ = await provider.list()

    assert (True, 4096) == (seen.running, seen.loaded_num_ctx)
    assert 0 == provider.foreign_bytes()


async def test_an_ollama_that_is_gone_is_unreachable_and_found_again(server, provider):
    await server.stop()
    with pytest.raises(EngineUnreachable, match="curl"):
        await provider.list()
    for ask in (provider.stop,):
        with pytest.raises(EngineUnreachable):
            await ask(Place(server=provider.server, model="phi3:mini"))

    await server.start()
    assert len(CHAIN) == len(await provider.list())


async def test_an_ollama_that_is_silent_is_unreachable_in_time(server, provider):
    server.set_faults(Fault(silent=True))

    async with asyncio.timeout(5):
        with pytest.raises(EngineUnreachable):
            await provider.list()
        with pytest.raises(EngineUnreachable):
            await provider.stop(Place(server=provider.server, model="phi3:mini"))


async def test_a_busy_model_that_does_not_go_in_time_is_refused_not_forgotten(server, provider):
    place = Place(server=provider.server, model="phi3:mini")
    await provider.load(place, 4096)
    server.set_faults(Fault(slowdown_ratio=10_000))
    async with httpx.AsyncClient(trust_env=False, timeout=None) as client:
        body = {"model": "phi3:mini", "prompt": "a long story", "stream": False}
        busy = asyncio.create_task(client.post(f"{server.url}/api/generate", json=body))
        await asyncio.sleep(0.2)
        with pytest.raises(EngineRefused, match="still loaded"):
            await provider.stop(place)
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)


async def test_a_model_that_is_not_installed_is_refused_in_ollamas_words(provider):
    with pytest.raises(EngineRefused, match="not found") as refused:
        await provider.load(Place(server=provider.server, model="mistral"), 4096)

    assert 404 == refused.value.status


@pytest.mark.parametrize(
    ("url", "server", "local"),
    [
        ("http://127.0.0.1:11434", "ollama:127.0.0.1:11434", True),
        ("http://localhost", "ollama:localhost:11434", True),
        ("http://[::1]:11434/", "ollama:::1:11434", True),
        ("http://gpu-box:8080", "ollama:gpu-box:8080", False),
    ],
)
async def test_a_server_is_named_by_its_address_and_local_on_loopback(url, server, local):
    provider = OllamaProvider(LifecycleSettings(ollama_url=url), CHAIN, lambda *_: None)

    assert (server, local) == (provider.server, provider.local)
    await provider.close()
