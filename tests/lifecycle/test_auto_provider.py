"""Which engine is used, when nobody said which: Docker (a socket that answers as Docker does), Ollama, rehearsal."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from dispatcher.errors import EngineUnreachable
from dispatcher.lifecycle.auto_provider import AutoProvider
from dispatcher.lifecycle.docker_provider import DockerProvider
from dispatcher.lifecycle.engine_calls import EngineCalls
from dispatcher.lifecycle.ollama_provider import OllamaProvider
from dispatcher.rehearsal.provider import RehearsalProvider
from dispatcher.rehearsal.server import PRIOR_MODELS, RehearsalServer
from dispatcher.telemetry.engine_source import EngineSource
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, LifecycleSettings, RehearsalSettings
from tests.lifecycle.sick_docker import SickDocker

CHAIN = [model.name for model in DEFAULT_CHAIN]


class Town:
    """A machine with a Docker and an Ollama on it, each to be switched on and off, and an AutoProvider looking."""

    def __init__(self, stack: AsyncExitStack, docker: SickDocker) -> None:
        self.docker = docker
        self.ollama = RehearsalServer(PRIOR_MODELS, time_scale=0.05)
        self.now_seconds = 0.0
        self.saw_real = False
        self.had: str | None = None
        self._stack = stack

    async def look_around(self, *, rehearsal: bool = True) -> AutoProvider:
        if not self.ollama.port:  # an address that nobody listens on yet
            await self.ollama.start()
            await self.ollama.stop()
        source, calls = EngineSource(), EngineCalls()
        settings = LifecycleSettings(docker_url=self.docker.url, ollama_url=self.ollama.url, list_timeout_seconds=0.5)
        auto = AutoProvider(
            DockerProvider(settings, source.look),
            OllamaProvider(settings, CHAIN, source.look),
            rehearsal=(lambda: RehearsalProvider(DEFAULT_CHAIN, RehearsalSettings(), load=calls.load, look=source.look))
            if rehearsal
            else None,
            saw_real=lambda: self.saw_real,
            had=lambda: self.had,
            now_seconds=lambda: self.now_seconds,
        )
        for opened in (source, calls, auto):
            self._stack.push_async_callback(opened.close)
        return auto

    async def later(self, auto: AutoProvider) -> str:
        """The provider in use half a minute later."""
        self.now_seconds += 30.0
        await auto.list()
        return auto.name


@pytest.fixture
async def town(tmp_path):
    async with AsyncExitStack() as stack:
        docker = await stack.enter_async_context(SickDocker(tmp_path / "docker.sock"))
        town = Town(stack, docker)
        yield town
        await town.ollama.stop()


async def test_labelled_containers_come_first(town):
    town.docker.declare("phi", "phi3:mini")
    await town.ollama.start()
    auto = await town.look_around()

    assert "docker" == await auto.detect()
    assert ["docker:phi"] == [seen.place.server for seen in await auto.list()]
    assert "Docker: 1 labelled container" == auto.found()["docker"]
    assert f"Ollama: {', '.join(CHAIN)}" == auto.found()["ollama"]
    assert not auto.rehearsal


async def test_without_labelled_containers_an_ollama_with_a_model_of_the_chain_is_used(town):
    await town.ollama.start()
    auto = await town.look_around()

    assert "ollama" == await auto.detect()
    assert "Docker: no labelled containers" == auto.found()["docker"]


async def test_without_either_it_rehearses_and_says_what_it_looked_at(town):
    town.docker.mood = "broken"
    auto = await town.look_around()

    assert "rehearsal" == await auto.detect()
    assert auto.rehearsal
    assert len(CHAIN) == len(await auto.list())
    assert auto.found()["docker"].startswith("Docker: no answer (")
    assert "the storage driver is on fire" in auto.found()["docker"]
    assert auto.found()["ollama"].startswith("Ollama: no answer (")


async def test_an_ollama_without_a_model_of_the_chain_names_the_one_to_pull(town):
    town.ollama = RehearsalServer([], time_scale=0.05)
    await town.ollama.start()
    auto = await town.look_around()

    assert "rehearsal" == await auto.detect()
    assert "Ollama: answers, has no model of the chain; try: ollama pull phi3:mini" == auto.found()["ollama"]


async def test_it_leaves_rehearsal_for_the_real_thing_and_never_goes_back(town):
    auto = await town.look_around()
    assert "rehearsal" == await auto.detect()
    (rehearsed, *_) = await auto.list()
    await auto.start(rehearsed.place)

    await town.ollama.start()
    assert "ollama" == await town.later(auto)
    assert not auto.rehearsal

    town.docker.declare("phi", "phi3:mini")
    assert "docker" == await town.later(auto)

    town.docker.containers.clear()
    assert "ollama" == await town.later(auto)

    await town.ollama.stop()
    with pytest.raises(EngineUnreachable):
        await town.later(auto)
    assert "ollama" == auto.name


class Faulty:
    """A provider with a fault of ours in it. What it promises is EngineUnreachable."""

    name, rehearsal, local = "docker", False, True

    async def list(self):
        raise KeyError("Names")

    async def wake(self) -> None:
        raise KeyError("Actor")

    async def close(self) -> None: ...


async def test_a_fault_of_ours_at_one_engine_costs_no_other_and_is_counted_each_time_and_told_once(town, caplog):
    erred: list[str] = []
    await town.ollama.start()
    auto = await town.look_around()
    ollama = auto._candidates[1]
    faulty = AutoProvider(Faulty(), ollama, rehearsal=None, saw_real=lambda: False, erred=erred.append)

    assert ["ollama", "ollama"] == [await faulty.detect(), await faulty.detect()]
    assert "Docker: no answer (a fault of ours: KeyError('Names'))" == faulty.found()["docker"]
    assert (["internal"] * 2, 1) == (erred, caplog.text.count("provider=docker fault="))


async def test_a_wake_that_fails_is_no_news(town):
    auto = await town.look_around()
    auto._current = Faulty()

    with pytest.raises(KeyError, match="Actor"):
        await auto.wake()


async def test_it_looks_again_only_every_thirty_seconds(town):
    auto = await town.look_around()
    await auto.list()
    await town.ollama.start()
    await auto.list()
    assert "rehearsal" == auto.name

    assert "ollama" == await town.later(auto)


async def test_an_engine_that_merely_hangs_is_waited_for_not_replaced(town):
    town.docker.declare("phi", "phi3:mini")
    await town.ollama.start()
    auto = await town.look_around()
    await auto.detect()

    town.docker.mood = "silent"
    with pytest.raises(EngineUnreachable):
        await town.later(auto)
    assert "docker" == auto.name

    town.docker.mood = "well"
    assert "docker" == await town.later(auto)


async def test_where_real_places_were_seen_once_nothing_is_rehearsed(town):
    town.saw_real = True
    town.docker.mood = "broken"
    auto = await town.look_around()

    assert "none" == await auto.detect()
    with pytest.raises(EngineUnreachable, match="on fire"):
        await auto.list()


async def test_after_a_restart_a_silent_engine_that_had_the_models_is_waited_for_not_replaced(town):
    town.saw_real, town.had = True, "docker"
    town.docker.declare("phi", "phi3:mini")
    town.docker.mood = "broken"
    await town.ollama.start()
    auto = await town.look_around()

    assert "docker" == await auto.detect()
    with pytest.raises(EngineUnreachable, match="It had the models last, so it is waited for"):
        await auto.list()
    assert "it had the models last and is waited for" in auto.found()["docker"]

    town.docker.mood = "well"
    assert "docker" == await town.later(auto)
    assert ["docker:phi"] == [seen.place.server for seen in await auto.list()]


async def test_after_a_restart_an_engine_that_answers_without_the_models_it_had_is_replaced(town):
    town.saw_real, town.had = True, "docker"
    await town.ollama.start()
    auto = await town.look_around()

    assert "ollama" == await auto.detect()


async def test_after_a_restart_labelled_containers_still_come_before_a_silent_ollama_that_had_the_models(town):
    town.saw_real, town.had = True, "ollama"
    town.docker.declare("phi", "phi3:mini")
    auto = await town.look_around()

    assert "docker" == await auto.detect()


async def test_with_rehearsal_forbidden_there_is_nothing(town):
    auto = await town.look_around(rehearsal=False)

    assert "none" == await auto.detect()
    assert [] == list(await auto.list())


async def test_another_provider_coming_into_use_wakes(town):
    auto = await town.look_around()
    await auto.detect()
    waking = asyncio.create_task(auto.wake())
    await asyncio.sleep(0)

    await town.ollama.start()
    await town.later(auto)
    async with asyncio.timeout(5):
        await waking
