"""Captures that took more than one request: what else was going on, played again on the rehearsal server.

A scene gives, per capture, the answer it saw and how many lines of a stream are comparable (None: all).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx

from dispatcher.rehearsal.server import Fault, RehearsalServer
from dispatcher.replay.models import GIB
from dispatcher.wire import ollama
from tests.rehearsal.captures import Answer, capture, capture_models, send
from tests.rehearsal.served import served

PHI, LLAMA, QWEN = "phi3:mini", "llama3.2:3b", "qwen2.5:7b"
Seen = dict[str, tuple[Answer, int | None]]
Scene = Callable[[], Awaitable[Seen]]
SCENES: dict[str, Scene] = {}


def plays(*names: str) -> Callable[[Scene], Scene]:
    def register(scene: Scene) -> Scene:
        SCENES.update(dict.fromkeys(names, scene))
        return scene

    return register


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[tuple[RehearsalServer, httpx.AsyncClient]]:
    speeds = settings.pop("speeds", {})
    server = RehearsalServer(capture_models(**speeds), characters_per_token=1, natural_tokens=1000, **settings)
    async with served(server) as client:
        yield server, client


async def load(client: httpx.AsyncClient, *models: str) -> None:
    for model in models:
        assert 200 == (await client.post("/api/generate", json={"model": model, "stream": False})).status_code


async def ask(client: httpx.AsyncClient, name: str) -> Answer:
    return await send(client, capture(name))


def asking(client: httpx.AsyncClient, name: str) -> asyncio.Task[Answer]:
    return asyncio.create_task(ask(client, name))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - the server under test tells nobody
            await asyncio.sleep(0.002)


_BUSY_503 = [
    f"busy_503_{kind}" for kind in ("chat", "embed", "generate", "generate_stream", "v1_chat", "v1_chat_stream")
]


@plays(*_BUSY_503, "busy_ps", "busy_same_model_not_refused", "busy_waited_for_other_model")
async def a_full_load_queue() -> Seen:
    async with running(max_queue=1, max_loaded=1, speeds={"decode_tokens_per_second": 20.0}) as (_, client):
        await load(client, LLAMA)
        story = asking(client, "client_disconnect_stream")  # twenty seconds, if nobody leaves
        await asyncio.sleep(0.1)
        waiting = [asking(client, "busy_waited_for_other_model") for _ in range(2)]
        await asyncio.sleep(0.2)
        seen = {name: await ask(client, name) for name in (*_BUSY_503, "busy_ps")}
        same = asking(client, "busy_same_model_not_refused")
        await asyncio.sleep(0.1)
        story.cancel()
        seen["busy_same_model_not_refused"] = await same
        seen["busy_waited_for_other_model"] = await waiting[0]
        await waiting[1]
    waited = ollama.timings(seen["busy_waited_for_other_model"].body)
    assert (waited.load_seconds or 0) > 0.2  # the other model's story and the load itself, all in load_duration
    return {name: (answer, None) for name, answer in seen.items()}


@plays("busy_starved_by_steady_traffic")
async def steady_traffic_starves_another_models_load() -> Seen:
    async with running(max_loaded=1, speeds={"decode_tokens_per_second": 100.0}) as (_, client):
        await load(client, PHI)
        over = asyncio.Event()

        async def traffic() -> None:
            body = {"model": PHI, "prompt": "x", "stream": False, "options": {"num_predict": 20}}
            while not over.is_set():
                await client.post("/api/generate", json=body)

        clients = [asyncio.create_task(traffic())]
        await asyncio.sleep(0.02)
        clients += [asyncio.create_task(traffic()) for _ in range(2)]
        starved = asking(client, "busy_starved_by_steady_traffic")
        await asyncio.sleep(0.5)
        assert not starved.done()
        over.set()
        answer = await starved
        await asyncio.gather(*clients)
    assert (ollama.timings(answer.body).load_seconds or 0) > 0.5
    return {"busy_starved_by_steady_traffic": (answer, None)}


@plays("client_disconnect_stream", "ps_after_client_disconnect", "generate_after_client_disconnect", "ps_while_busy")
async def a_client_leaves_its_stream() -> Seen:
    async with running() as (_, client):
        await load(client, LLAMA)
        left = await send(client, capture("client_disconnect_stream"), leave_after_lines=5)
        ps_after = await ask(client, "ps_after_client_disconnect")
        after = asking(client, "generate_after_client_disconnect")
        ps_busy = await ask(client, "ps_while_busy")
        answer = await after
    assert (ollama.queue_wait_seconds(ollama.timings(answer.body)) or 0) < 0.5  # 400 tokens would have taken a second
    return {
        "client_disconnect_stream": (left, 5),
        "ps_after_client_disconnect": (ps_after, None),
        "generate_after_client_disconnect": (answer, None),
        "ps_while_busy": (ps_busy, None),
    }


@plays("ps_expired_while_busy")
async def expiry_in_the_past_while_busy() -> Seen:
    async with running() as (server, client):
        body = {"model": LLAMA, "prompt": "x", "keep_alive": "20ms", "options": {"num_predict": 200}}
        story = asyncio.create_task(client.post("/api/generate", json=body))
        await until(lambda: server.loaded_bytes() > 0)
        await asyncio.sleep(0.3)
        answer = await ask(client, "ps_expired_while_busy")
        await story
    return {"ps_expired_while_busy": (answer, None)}


@plays("ps_after_client_disconnect_while_loading", "generate_load_shared_first_client_left")
async def a_client_that_leaves_aborts_its_load_for_others_too() -> Seen:
    async with running(speeds={"load_seconds": 0.5}) as (server, client):
        first = asking(client, "generate_load_shared_first_client_left")
        await until(lambda: server.loaded_bytes() > 0)
        first.cancel()
        await until(lambda: server.loaded_bytes() == 0)
        gone = await ask(client, "ps_after_client_disconnect_while_loading")
        first = asking(client, "generate_load_shared_first_client_left")
        await asyncio.sleep(0.1)
        second = asking(client, "generate_load_shared_first_client_left")
        await asyncio.sleep(0.1)
        first.cancel()
        answer = await second
    assert (ollama.timings(answer.body).load_seconds or 0) > 0.5  # a whole load after the aborted piece of one
    return {
        "ps_after_client_disconnect_while_loading": (gone, None),
        "generate_load_shared_first_client_left": (answer, None),
    }


@plays("generate_queued_1_of_3", "generate_queued_2_of_3", "generate_queued_3_of_3", "generate_stream_queued_2_of_2")
async def one_slot_and_several_clients() -> Seen:
    async with running(speeds={"decode_tokens_per_second": 100.0}) as (_, client):
        await load(client, LLAMA)
        tasks = {}
        for number in (1, 2, 3):
            tasks[f"generate_queued_{number}_of_3"] = asking(client, f"generate_queued_{number}_of_3")
            await asyncio.sleep(0.02)
        tasks["generate_stream_queued_2_of_2"] = asking(client, "generate_stream_queued_2_of_2")
        seen = {name: await task for name, task in tasks.items()}
    last = ollama.timings(seen["generate_queued_3_of_3"].body)
    assert (ollama.queue_wait_seconds(last) or 0) > (last.eval_seconds or 0)  # two others first; in no field of its own
    assert (last.load_seconds or 1) < 0.05
    return {name: (answer, None) for name, answer in seen.items()}


@plays("generate_queued_behind_abandoned")
async def a_queue_place_whose_client_left() -> Seen:
    async with running(speeds={"decode_tokens_per_second": 100.0}) as (_, client):
        await load(client, LLAMA)
        running_one = asking(client, "generate_queued_1_of_3")
        await asyncio.sleep(0.02)
        abandoned = asking(client, "client_disconnect_stream")
        await asyncio.sleep(0.02)
        third = asking(client, "generate_queued_behind_abandoned")
        await asyncio.sleep(0.02)
        abandoned.cancel()
        answer = await third
        await running_one
    assert (ollama.queue_wait_seconds(ollama.timings(answer.body)) or 9) < 2  # not the abandoned four seconds
    return {"generate_queued_behind_abandoned": (answer, None)}


_KILLED = [
    f"runner_killed_{kind}"
    for kind in (
        "chat_nonstream", "chat_stream", "generate_nonstream", "generate_stream", "v1_chat_nonstream", "v1_chat_stream",
        "v1_completions_stream",
    )
]  # fmt: skip


@plays(*_KILLED, "ps_after_runner_killed", "generate_after_runner_killed")
async def the_runner_is_killed_while_it_answers() -> Seen:
    seen: dict[str, Answer] = {}
    async with running() as (server, client):
        await load(client, LLAMA)
        for name in _KILLED:
            events = len([line for line in capture(name).lines if line])
            server.set_faults(Fault(kill_runner_after_tokens=max(3, events - 1)))
            seen[name] = await ask(client, name)
        seen["ps_after_runner_killed"] = await ask(client, "ps_after_runner_killed")
        server.set_faults()
        seen["generate_after_runner_killed"] = await ask(client, "generate_after_runner_killed")
    assert (ollama.timings(seen["generate_after_runner_killed"].body).load_seconds or 0) > 0.04  # reloaded by itself
    return {name: (answer, None) for name, answer in seen.items()}


@plays(
    "ps_after_runner_killed_idle",
    "generate_after_runner_killed_idle",
    "generate_after_runner_killed_idle_second",
    "runner_killed_while_loading",
)
async def the_runner_is_killed_while_idle_or_loading() -> Seen:
    async with running() as (server, client):
        await load(client, LLAMA)
        server.kill_runner(LLAMA)
        names = ["ps_after_runner_killed_idle", "generate_after_runner_killed_idle"]
        names.append("generate_after_runner_killed_idle_second")
        seen = {name: await ask(client, name) for name in names}
        loading = asking(client, "runner_killed_while_loading")
        held = server.loaded_bytes()
        await until(lambda: server.loaded_bytes() > held)
        server.kill_runner(QWEN)
        seen["runner_killed_while_loading"] = await loading
    return {name: (answer, None) for name, answer in seen.items()}


_LIMITED = [f"container_memory_limit_{kind}" for kind in ("generate", "generate_stream", "v1_chat", "v1_chat_stream")]


@plays(*_LIMITED)
async def the_kernel_kills_every_load() -> Seen:
    async with running() as (server, client):
        server.set_faults(Fault(model=QWEN, fail_loads=10))
        return {name: (await ask(client, name), None) for name in _LIMITED}


@plays("memory_guard_500_generate")
async def a_model_bigger_than_memory() -> Seen:
    big = replace(capture_models()[2], resident_bytes=round(30.3 * GIB))
    async with served(RehearsalServer([big], memory_bytes=round(22.7 * GIB))) as client:
        answer = await ask(client, "memory_guard_500_generate")
    return {"memory_guard_500_generate": (answer, None)}


@plays("generate_num_predict_0")
async def no_limit_on_tokens() -> Seen:
    async with running() as (_, client):
        await load(client, PHI)
        answer = await send(client, capture("generate_num_predict_0"), leave_after_lines=24)
    return {"generate_num_predict_0": (answer, 24)}


@plays("ps_after_unload")
async def an_unloaded_model_leaves_the_list_shortly_after() -> Seen:
    async with running() as (server, client):
        await load(client, LLAMA, PHI)
        held = server.loaded_bytes()
        await ask(client, "generate_unload")
        assert 2 == len((await client.get("/api/ps")).json()["models"])  # still listed right after
        await until(lambda: server.loaded_bytes() < held)
        return {"ps_after_unload": (await ask(client, "ps_after_unload"), None)}


_STOPPED = [
    "container_stopped_generate_stream",
    "container_stopped_chat_stream",
    "container_stopped_v1_chat_stream",
    "container_killed_generate_stream",
    "container_stopped_generate_nonstream",
]


@plays(*_STOPPED, "container_stopped_connect")
async def the_server_goes_away() -> Seen:
    seen: Seen = {}
    for name in _STOPPED:
        async with running() as (server, client):
            await load(client, LLAMA)
            captured = capture(name)
            stops: list[asyncio.Task[None]] = []
            newlines = captured.body[: len(captured.body) // 2].count(b"\n")

            def stop(count: int, server: RehearsalServer = server, newlines: int = newlines) -> None:
                if count >= newlines and not stops:  # noqa: B023 - used within this turn only
                    stops.append(asyncio.create_task(server.stop()))  # noqa: B023

            sent = asyncio.create_task(send(client, captured, on_line=stop))
            if not captured.body:
                await asyncio.sleep(0.1)
                await server.stop()
            answer = await sent
            assert answer.body.endswith(b"\n") or not answer.body  # cut, but on a line boundary
            assert b'"done":true' not in answer.body
            assert b"[DONE]" not in answer.body
            seen[name] = (answer, 2)
            seen["container_stopped_connect"] = (await ask(client, "container_stopped_connect"), None)
    return seen


@plays("container_paused_timeout", "container_paused_mid_stream")
async def a_paused_server() -> Seen:
    async with running(speeds={"decode_tokens_per_second": 100.0}) as (server, client):
        await load(client, LLAMA)
        paused = asyncio.Event()

        def pause(count: int) -> None:
            if count == 5 and not paused.is_set():
                server.set_faults(Fault(silent=True))
                paused.set()

        story = asyncio.create_task(send(client, capture("container_paused_mid_stream"), on_line=pause))
        await paused.wait()
        async with httpx.AsyncClient(base_url=server.url, timeout=0.5, trust_env=False) as impatient:
            nothing = await ask(impatient, "container_paused_timeout")
        assert not story.done()
        await client.post("/rehearsal/faults", content=json.dumps([]))  # answers through silence
        answer = await story
    assert (ollama.timings(answer.lines[-1]).eval_seconds or 0) > 0.5  # the gap is part of it
    return {"container_paused_timeout": (nothing, None), "container_paused_mid_stream": (answer, None)}
