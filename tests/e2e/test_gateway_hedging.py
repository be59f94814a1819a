"""A whole answer that does not come: another place is asked as well, unless this one has proved itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests import misconduct
from tests.e2e import traffic
from tests.misbehaving import Misbehaving

SOON: dict[str, Any] = {"gateway": {"timeouts": {"first_token_min": "1s"}}}
NAMED = "phi3:mini"


@pytest.fixture
def server():
    with Misbehaving() as started:
        yield started


async def test_a_place_that_never_answered_and_says_nothing_is_not_waited_for_alone(server, tmp_path):
    server.script("", {NAMED: misconduct.silent()})
    with traffic.gateway(tmp_path, server, **SOON) as daemon:
        async with traffic.clients() as session:
            seen = await traffic.ask(session, daemon.url, traffic.chat(model=NAMED, tokens=4))
        draining = {line["model"]: line["draining"] for line in await asyncio.to_thread(traffic.lines, daemon)}
        metrics = daemon.get("/metrics").text

    assert (True, "2") == (seen.whole, seen.headers["x-dispatcher-attempts"]), seen
    assert NAMED != seen.model
    assert (1, 0) == (draining[NAMED], draining[seen.model])
    moved = [row for row in metrics.splitlines() if row.startswith("dispatcher_fallbacks_total{") and NAMED in row]
    assert any('cause="silent"' in row and row.endswith(" 1.0") for row in moved), moved


async def test_what_the_first_place_says_counts_when_it_is_first_after_all(server, tmp_path):
    server.script("", {"*": misconduct.silent(), NAMED: misconduct.slow(2.5)})
    with traffic.gateway(tmp_path, server, **SOON) as daemon:
        async with traffic.clients() as session:
            first = await traffic.ask(session, daemon.url, traffic.chat(model=NAMED, tokens=400))
            again = await traffic.ask(session, daemon.url, traffic.chat(model=NAMED, tokens=400))
        breakers = {model["model"]: model["places"][0]["breaker"] for model in daemon.get("/models").json()["models"]}

    assert [(True, NAMED, "2"), (True, NAMED, "1")] == [
        (seen.whole, seen.model, seen.headers["x-dispatcher-attempts"]) for seen in (first, again)
    ], "it has answered, so the second request is given its time"
    assert {"closed"} == set(breakers.values())


async def test_both_failing_the_third_is_asked(server, tmp_path):
    async def dies_late(line):
        await asyncio.sleep(1.5)
        line.reset()

    server.script("", {NAMED: dies_late, "qwen2.5:7b": misconduct.hangs_up(), "llama3.2:3b": misconduct.answers()})
    with traffic.gateway(tmp_path, server, **SOON) as daemon:
        async with traffic.clients() as session:
            seen = await traffic.ask(session, daemon.url, traffic.chat(model=NAMED, tokens=4))
        await traffic.until(lambda: traffic.is_idle(daemon), "nothing to be left", within_seconds=45)

    assert (True, "llama3.2:3b") == (seen.whole, seen.model), seen


@pytest.mark.parametrize(
    "goes_silent",
    [
        misconduct.silent(),
        misconduct.silent(headers_first=True),
        misconduct.begins_and("stall"),
        misconduct.begins_and("bad_chunk"),
    ],
    ids=["silence", "headers, then silence", "half a body", "no chunk"],
)
async def test_a_place_that_has_answered_and_then_goes_silent_is_not_waited_for_alone(server, tmp_path, goes_silent):
    with traffic.gateway(tmp_path, server) as daemon:
        async with traffic.clients() as session:
            body = traffic.chat(model=NAMED, tokens=4)
            warm = [await traffic.ask(session, daemon.url, body) for _ in range(3)]
            server.script("", {NAMED: goes_silent})
            seen = await traffic.ask(session, daemon.url, body, timeout_seconds=30)
        await traffic.until(lambda: traffic.leases(daemon) == 0, "no lease to be left")
        running = sum(line["running"] for line in await asyncio.to_thread(traffic.lines, daemon))
        metrics = daemon.get("/metrics").text

    assert [(True, NAMED)] * 3 == [(one.whole, one.model) for one in warm]
    assert (True, "2") == (seen.whole, seen.headers["x-dispatcher-attempts"]), seen
    assert (True, 0) == (NAMED != seen.model, running)
    moved = [row for row in metrics.splitlines() if row.startswith("dispatcher_fallbacks_total{") and NAMED in row]
    assert any('cause="silent"' in row and row.endswith(" 1.0") for row in moved), moved


async def test_a_long_answer_of_a_place_that_gave_longer_ones_is_asked_for_once(server, tmp_path):
    alone = {"X-Dispatcher-Fallback": "off"}
    server.script("", {NAMED: misconduct.slow(4.0)})
    with traffic.gateway(tmp_path, server, **SOON) as daemon:
        async with traffic.clients() as session:
            body = traffic.chat(model=NAMED, tokens=4)
            first = await traffic.ask(session, daemon.url, body, headers=alone)
            server.script("", {NAMED: misconduct.slow(2.5)})
            seen = await traffic.ask(session, daemon.url, body)

    assert [(True, NAMED)] * 2 == [(one.whole, one.model) for one in (first, seen)]
    assert ("1", 2) == (seen.headers["x-dispatcher-attempts"], len(server.asked(""))), "over first_token_min by far"


async def test_without_fallback_it_is_waited_for(server, tmp_path):
    server.script("", {NAMED: misconduct.slow(3.0)})
    with traffic.gateway(tmp_path, server, **SOON) as daemon:
        async with traffic.clients() as session:
            seen = await traffic.ask(
                session, daemon.url, traffic.chat(model=NAMED, tokens=4), headers={"X-Dispatcher-Fallback": "off"}
            )

    assert (True, NAMED, 1) == (seen.whole, seen.model, len(server.asked(""))), seen


async def test_a_client_that_leaves_takes_both_attempts_with_it(server, tmp_path):
    server.script("", {"*": misconduct.silent()})
    with traffic.gateway(tmp_path, server, **SOON) as daemon:
        async with traffic.clients() as session:
            body = traffic.chat(model=NAMED, tokens=4)
            asking = asyncio.create_task(traffic.ask(session, daemon.url, body))
            await traffic.until(lambda: len(server.asked("")) == 2, "a second attempt")
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await traffic.until(lambda: traffic.leases(daemon) == 0, "no lease to be left")
        running = sum(line["running"] for line in await asyncio.to_thread(traffic.lines, daemon))

    assert 0 == running
