"""What the Docker provider does when Docker hangs, breaks or talks nonsense: it says so in time, and recovers."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from dispatcher.errors import EngineAnswerUnreadable, EngineRefused, EngineUnreachable, OutOfMemory, PlaceNotOurs
from dispatcher.lifecycle.docker_calls import MAX_CALLS
from dispatcher.lifecycle.docker_provider import DockerProvider
from dispatcher.vocabulary.engine import EngineSeen
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.settings import LifecycleSettings
from tests.lifecycle.sick_docker import SickDocker

PHI = Place(server="docker:phi", model="phi3:mini")


async def nobody_answers(endpoint: str, *, deadline_seconds: float, details: bool) -> EngineSeen:
    return EngineSeen(at_seconds=0.0, reachable=False, because="nobody is there")


@pytest.fixture
async def docker(tmp_path):
    async with SickDocker(tmp_path / "docker.sock") as sick:
        yield sick


@pytest.fixture
async def provider(docker):
    settings = LifecycleSettings(
        docker_url=docker.url,
        list_timeout_seconds=0.5,
        start_timeout_seconds=0.5,
        stop_timeout_seconds=1.5,
        stop_grace_seconds=1.0,
    )
    provider = DockerProvider(settings, nobody_answers)
    yield provider
    await provider.close()


@pytest.mark.parametrize("mood", ["silent", "broken", "dribbling", "garbage"])
@pytest.mark.parametrize("connected", [False, True], ids=["from the start", "after it was well"])
async def test_a_docker_that_does_not_answer_is_unreachable_in_time_and_then_recovers(
    docker, provider, mood, connected
):
    docker.declare("phi", "phi3:mini")
    if connected:
        await provider.list()

    docker.mood = mood
    for ask in (provider.list, lambda: provider.start(PHI), lambda: provider.stop(PHI)):
        with pytest.raises(EngineUnreachable):
            async with asyncio.timeout(5):  # ten times its own deadline
                await ask()

    docker.mood = "well"
    assert [PHI] == [seen.place for seen in await provider.list()]


async def test_a_socket_that_is_not_there_is_unreachable(tmp_path):
    provider = DockerProvider(LifecycleSettings(docker_url=f"unix://{tmp_path}/none.sock"), nobody_answers)

    with pytest.raises(EngineUnreachable, match="docker version"):
        await provider.list()

    await provider.close()


async def test_calls_that_hang_are_counted_and_bounded(docker, provider):
    docker.mood = "dribbling"
    for _ in range(MAX_CALLS + 2):
        with contextlib.suppress(EngineUnreachable):
            await provider.list()

    assert MAX_CALLS == provider.abandoned_threads
    with pytest.raises(EngineUnreachable, match=f"{MAX_CALLS} earlier calls hang still; no further one is begun"):
        await provider.list()


async def test_threads_come_back_when_the_engine_that_hung_is_restarted(tmp_path):
    provider = DockerProvider(
        LifecycleSettings(docker_url=f"unix://{tmp_path}/docker.sock", list_timeout_seconds=0.2), nobody_answers
    )
    async with SickDocker(tmp_path / "docker.sock") as docker:
        docker.mood = "dribbling"
        for _ in range(MAX_CALLS + 1):
            with contextlib.suppress(EngineUnreachable):
                await provider.list()
    async with asyncio.timeout(5):
        while provider.abandoned_threads:  # noqa: ASYNC110  # threads end in their own time; nothing tells of it
            await asyncio.sleep(0.01)

    (tmp_path / "docker.sock").unlink(missing_ok=True)
    async with SickDocker(tmp_path / "docker.sock"):
        assert [] == await provider.list()

    await provider.close()


async def test_one_container_that_docker_does_not_inspect_is_listed_from_its_row_beside_the_others(docker, provider):
    docker.declare("llama", "llama3.2:3b", status="running")
    docker.declare("phi", "phi3:mini")
    docker.silent_inspections.add("llama")

    llama, phi = await provider.list()

    assert (True, None, None) == (llama.running, llama.answers, llama.endpoint)
    assert "inspect llama" in llama.because
    assert phi.because.startswith("exited with exit code 0; no endpoint: publish a port")


async def test_a_container_that_vanishes_between_list_and_inspect_is_left_out(docker, provider):
    docker.declare("llama", "llama3.2:3b")
    docker.declare("phi", "phi3:mini")
    del docker.inspected["phi"]

    assert ["docker:llama"] == [seen.place.server for seen in await provider.list()]


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param({}, id="labels gone"),
        pytest.param({"dispatcher.managed": "true", "dispatcher.model": "qwen2.5:7b"}, id="another model"),
        pytest.param({"dispatcher.managed": "false", "dispatcher.model": "phi3:mini"}, id="no longer managed"),
        pytest.param(None, id="no labels at all"),
    ],
)
async def test_a_container_whose_labels_changed_since_the_list_is_not_touched(docker, provider, labels):
    docker.declare("phi", "phi3:mini")
    (seen,) = await provider.list()
    docker.inspected["phi"]["Config"] = {"Labels": labels}

    for ask in (provider.start(seen.place), provider.stop(seen.place), provider.load(seen.place, 4096)):
        with pytest.raises(PlaceNotOurs):
            await ask

    assert not [asked for asked in docker.asked if asked.startswith("POST")]


async def test_a_privileged_look_alike_is_no_place_is_never_touched_and_is_told_once(docker, provider, caplog):
    docker.declare("phi", "phi3:mini", HostConfig={"Memory": 0, "PortBindings": {}, "Privileged": True})
    docker.declare("llama", "llama3.2:3b")

    assert ["llama3.2:3b"] == [seen.place.model for seen in await provider.list()]
    await provider.list()
    told = [record.getMessage() for record in caplog.records if "container=phi" in record.getMessage()]
    assert 1 == len(told)
    assert told[0].startswith("container=phi ignored: it is privileged")

    for act in (provider.start, provider.stop, lambda place: provider.load(place, 4096)):
        with pytest.raises(PlaceNotOurs, match=r"phi is privileged, .* Nothing was done to it"):
            await act(PHI)
    assert [] == [asked for asked in docker.asked if asked.startswith("POST")]


async def test_a_container_found_by_the_beginning_of_its_id_is_not_the_place(docker, provider):
    docker.declare("phi", "phi3:mini")
    docker.inspected["phi"]["Name"] = "/somebody-elses"

    with pytest.raises(PlaceNotOurs):
        await provider.start(PHI)

    assert not [asked for asked in docker.asked if asked.startswith("POST")]


async def test_a_proxy_that_forbids_an_action_is_a_refusal_in_its_own_words(docker, provider):
    docker.declare("phi", "phi3:mini")
    docker.mood = "forbidding"

    with pytest.raises(EngineRefused, match="not allowed by the proxy") as refused:
        await provider.start(PHI)

    assert 403 == refused.value.status


async def test_a_stopped_place_is_not_loaded(docker, provider):
    docker.declare("phi", "phi3:mini")

    with pytest.raises(EngineRefused, match="exited with exit code 0"):
        await provider.load(PHI, 4096)


async def test_closing_while_docker_is_silent_does_not_wait_for_it(docker, provider):
    docker.mood = "silent"
    waking = asyncio.create_task(provider.wake())
    await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await provider.close()

    waking.cancel()


async def test_an_event_wakes_and_so_does_the_stream_coming_back(docker, provider):
    waking = asyncio.create_task(provider.wake())
    async with asyncio.timeout(10):
        await docker.listening.wait()
        docker.tell({"Type": "container", "Action": "start"})
        await waking

        waking = asyncio.create_task(provider.wake())
        docker.tell(None)
        await waking  # reconnected: what happened meanwhile is not known


async def test_closing_ends_the_event_stream_at_once(docker, provider):
    waking = asyncio.create_task(provider.wake())
    async with asyncio.timeout(10):
        await docker.listening.wait()
        await provider.close()
        for thread in [thread for thread in threading.enumerate() if thread.name == "docker events"]:
            await asyncio.to_thread(thread.join)

    assert not waking.done()
    waking.cancel()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param({"Name": None}, id="no name"),
        pytest.param({"Name": 7}, id="a number for a name"),
        pytest.param({"State": "running"}, id="state is no object"),
        pytest.param({"State": None}, id="no state"),
        pytest.param({"State": {"Running": None}}, id="nobody knows whether it runs"),
        pytest.param({"Config": None}, id="no configuration"),
        pytest.param({"Config": {"Labels": ["dispatcher.managed"]}}, id="labels are a list"),
        pytest.param({"HostConfig": [], "NetworkSettings": 3}, id="networks are a number"),
        pytest.param({"HostConfig": {"PortBindings": {"11434/tcp": 5}}, "NetworkSettings": None}, id="bindings"),
    ],
)
async def test_an_inspection_that_cannot_be_read_leaves_the_place_as_its_row_tells_it(docker, provider, spoil):
    docker.declare("llama", "llama3.2:3b", status="running")
    docker.declare("phi", "phi3:mini")
    docker.inspected["llama"] = {**docker.inspected["llama"], **spoil}

    llama, phi = await provider.list()

    assert ("docker:llama", True, True) == (llama.place.server, llama.running, llama.in_part)
    assert not phi.in_part


async def test_an_inspection_that_cannot_be_read_is_no_reason_to_touch_anything(docker, provider):
    docker.declare("phi", "phi3:mini")
    docker.inspected["phi"]["Name"] = None

    with pytest.raises(EngineAnswerUnreadable):
        await provider.start(PHI)

    assert not [asked for asked in docker.asked if asked.startswith("POST")]


@pytest.mark.parametrize("rows", [{"message": "?"}, ["phi"], [{"Names": "/phi"}], [{"Names": [None], "Labels": None}]])
async def test_a_list_that_cannot_be_read_is_no_answer(docker, provider, rows):
    docker.containers = rows

    with pytest.raises(EngineUnreachable, match="no answer"):
        await provider.list()


async def test_a_container_that_was_killed_for_want_of_memory_says_so_by_its_error(docker, provider):
    docker.declare("phi", "phi3:mini")
    docker.inspected["phi"]["State"] |= {"OOMKilled": True, "ExitCode": 137}

    with pytest.raises(OutOfMemory, match="killed for want of memory"):
        await provider.load(PHI, 4096)
