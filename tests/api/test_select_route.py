"""/select on real sockets: asking, refusing, draining, and a client that leaves while it waits."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from dispatcher.vocabulary.request import Asked
from tests.api.made_doors import answered, serving, some_doors
from tests.decisions import a_rejected, a_selected, no_decision


async def test_a_get_and_a_post_ask_the_same():
    seen = []

    async def select(asked):
        seen.append(asked)
        return a_selected()

    doors = some_doors(select=select)
    async with serving(doors) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        await client.get("/select", params={"prompt": "Fix: a+b & c", "task": "coding", "deadline_seconds": "30"})
        await client.post("/select", json={"prompt": "Fix: a+b & c", "task": "coding", "deadline_seconds": 30})
        await client.post("/select")

    same = Asked(text="Fix: a+b & c", task="coding", deadline_seconds=30.0)
    assert [same, same, Asked()] == seen


async def test_a_model_is_named_with_200():
    answer = await answered("POST", "/select", json={"prompt": "hello"})

    assert (200, "llama3.2:3b", "l-1") == (answer.status_code, answer.json()["model"], answer.json()["lease"]["id"])


async def test_no_model_is_a_problem_that_says_when_to_ask_again():
    async def none(_):
        return a_selected(no_decision(a_rejected(leases_only=True), retry_after_seconds=17))

    answer = await answered("POST", "/select", doors=some_doors(select=none))

    assert (503, "application/problem+json") == (answer.status_code, answer.headers["content-type"])
    assert ("17", "true") == (answer.headers["retry-after"], answer.headers["x-should-retry"])
    assert "memory_short" == answer.json()["candidates"][0]["rule"]


async def test_what_does_not_fit_is_not_worth_asking_again():
    async def none(_):
        return a_selected(no_decision())

    answer = await answered("POST", "/select", doors=some_doors(select=none))

    assert ("false", "urn:dispatcher:insufficient_memory") == (answer.headers["x-should-retry"], answer.json()["type"])
    assert answer.json()["needed_bytes"] > answer.json()["available_bytes"] > 0


async def test_soft_is_the_same_body_with_200():
    async def none(_):
        return a_selected(no_decision())

    doors = some_doors(select=none)
    headers = {"X-Request-Id": "same"}
    hard = await answered("POST", "/select", doors=doors, headers=headers)
    soft = await answered("POST", "/select", doors=doors, headers=headers, json={"soft": True})

    assert (503, 200, "application/json") == (hard.status_code, soft.status_code, soft.headers["content-type"])
    assert hard.json() == soft.json()
    assert (None, "wait") == (soft.json()["model"], soft.json()["decision"])


async def test_draining_takes_nothing_new():
    answer = await answered("POST", "/select", doors=some_doors(draining=lambda: True))

    assert (503, "2") == (answer.status_code, answer.headers["retry-after"])
    assert "urn:dispatcher:draining" == answer.json()["type"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"POST /select HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}", id="POST"),
        pytest.param(b"GET /select?task=coding HTTP/1.1\r\nHost: localhost\r\n\r\n", id="GET"),
    ],
)
async def test_a_client_that_leaves_ends_its_wait(request_bytes):
    waiting, cancelled = asyncio.Event(), asyncio.Event()

    async def select(_):
        waiting.set()
        try:
            return await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serving(some_doors(select=select)) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(request_bytes)
        await asyncio.wait_for(waiting.wait(), 5)
        writer.close()

        await asyncio.wait_for(cancelled.wait(), 5)


async def test_a_promise_that_survives_its_client_is_given_back():
    waiting, ended = asyncio.Event(), asyncio.Queue()

    async def stubborn(_):
        waiting.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return a_selected()

    async with serving(some_doors(select=stubborn, end_lease=ended.put_nowait)) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST /select HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        await asyncio.wait_for(waiting.wait(), 5)
        writer.close()

        assert "l-1" == await asyncio.wait_for(ended.get(), 5)


async def test_a_client_that_stays_is_answered_after_its_wait_and_its_connection_lives_on():
    go_on = asyncio.Event()

    async def select(asked):
        if asked.task == "coding":
            await go_on.wait()
        else:
            go_on.set()
        return a_selected()

    async with serving(some_doors(select=select)) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        slow = asyncio.create_task(client.post("/select", json={"task": "coding"}))
        await asyncio.sleep(0)
        quick = await client.post("/select", json={})
        again = await client.post("/select", json={})

        assert [200, 200, 200] == [(await slow).status_code, quick.status_code, again.status_code]


async def test_a_select_that_is_cancelled_by_the_daemon_is_not_mistaken_for_a_client_that_left():
    app_cancelled = asyncio.Event()

    async def select(_):
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            app_cancelled.set()

    from dispatcher.api.exchange import Companion

    async def silent() -> dict[str, Any]:
        return await asyncio.get_running_loop().create_future()

    async def waits() -> None:
        async with Companion(silent):
            await select(None)

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert app_cancelled.is_set()
