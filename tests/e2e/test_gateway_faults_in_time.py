"""What the gateway makes of a place that goes on failing: its breaker and its probes, refused loads, a server that is
gone; heartbeats on a silent stream; clients that are slow or leave. Real daemon, real misbehaving model server."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests import misconduct
from tests.e2e.gateway_house import (
    API_JSON,
    API_STREAM,
    JSON_WAYS,
    LLAMA,
    PHI,
    QUICK,
    QWEN,
    V1_JSON,
    V1_STREAM,
    WAYS,
    House,
    Way,
    house,
    new_case,
)
from tests.misbehaving import Line, Misbehaving, good_pieces, words_of
from tests.realparts import eventually

OPEN_SECONDS = 0.3
PROBED = {**QUICK, "breaker": {"failures_in_row": 3, "open": f"{int(OPEN_SECONDS * 1000)}ms", "open_max": "600ms"}}
BEATING = {**QUICK, "timeouts": {**QUICK["timeouts"], "heartbeat": "100ms"}}


@pytest.fixture(scope="module")
def beating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("beating"), BEATING) as made:
        yield made


# --- breakers --------------------------------------------------------------------------------------------------------


async def test_with_all_defaults_a_place_that_fails_fast_is_tried_five_times_and_then_attracts_nothing(
    tmp_path: Path,
) -> None:
    with house(tmp_path, None, num_parallel=1) as there:
        case = new_case("fast")
        there.server.script(case, {PHI: misconduct.refuses(500)})
        for number in range(24):
            model = PHI if number % 2 else "auto"
            opened = there.asked(case, PHI) == 5
            got = await there.ask(WAYS[number % len(WAYS)], case, model=model, headers={"X-Dispatcher-Prefer": "speed"})
            got.assert_answered_by(got.model)
            assert got.model in (LLAMA, QWEN), got
            assert got.attempts <= (1 if opened else 2), got
        assert 5 == there.asked(case, PHI)
        health = {model["model"]: model for model in there.daemon.get("/models").json()["models"]}
        assert "ready" == health[PHI]["places"][0]["state"]
        assert 'dispatcher_breaker_state{model="phi3:mini",place="' in there.daemon.get("/metrics").text


async def test_after_its_breaker_opened_a_place_gets_probes_one_by_one_and_then_its_share_again(
    tmp_path: Path,
) -> None:
    with house(tmp_path, PROBED) as there:
        case = new_case("probed")
        there.server.script(case, {PHI: misconduct.refuses(503)})
        for _ in range(6):
            got = await there.ask(API_JSON, case)
            got.assert_answered_by(got.model)
        assert 3 == there.asked(case, PHI)

        there.server.script(case, {PHI: _slow_refusal})
        found = []
        while there.asked(case, PHI) < 6:
            found += await asyncio.gather(*(there.ask(way, case) for way in (*WAYS, *JSON_WAYS * 8)))
        for got in found:
            got.assert_answered_by(got.model)
            assert got.model in (LLAMA, QWEN), got
        at = [heard.at_seconds for heard in there.server.asked(case, PHI)][2:]
        gaps = [later - earlier for earlier, later in pairwise(at)]
        assert all(gap >= OPEN_SECONDS * 0.9 for gap in gaps), f"more than a probe per cool-off: {gaps}"

        there.server.script(case, {})
        async with asyncio.timeout(20):
            while PHI not in [got.model for got in [await there.ask(way, case) for way in WAYS]]:
                pass
        for got in [await there.ask(way, case) for way in WAYS]:
            got.assert_answered_by(got.model)
        eventually(lambda: _breaker(there) == "closed" or None, deadline_seconds=20, what="a closed breaker")


async def _slow_refusal(line: Line) -> None:
    """So that all who ask at once find the probe under way."""
    await asyncio.sleep(0.1)
    await misconduct.refuses(503)(line)


def _breaker(there: House) -> str:
    for line in there.daemon.get("/metrics").text.splitlines():
        if line.startswith('dispatcher_breaker_state{model="phi3:mini"'):
            return {"0.0": "closed", "1.0": "half_open", "2.0": "open"}.get(line.rsplit(" ", 1)[1], line)
    return "none"


async def test_with_all_breakers_open_the_caller_is_told_when_to_come_again_and_nothing_is_asked(
    tmp_path: Path,
) -> None:
    gateway = {**QUICK, "breaker": {"failures_in_row": 2, "open": "1m"}}
    with house(tmp_path, gateway) as there:
        case = new_case("dead")
        there.server.script(case, {"*": misconduct.hangs_up(reset=True)})
        for _ in range(2):
            (await there.ask(API_JSON, case)).assert_failed_visibly()
        asked = there.asked(case)
        assert 6 == asked
        for way in WAYS:
            got = await there.ask(way, case, model="auto")
            got.assert_failed_visibly()
            assert 503 == got.status, got
            assert 30 <= int(got.headers["retry-after"]) <= 60, got.headers
        assert asked == there.asked(case)


# --- loads that are refused, or never end ----------------------------------------------------------------------------


async def test_a_preload_that_is_refused_means_the_next_model(tmp_path: Path) -> None:
    loading = {PHI: misconduct.refuses(500, misconduct.KILLED)}
    with house(tmp_path, loaded={LLAMA: 4096, QWEN: 4096}, loading=loading) as there:
        for way in WAYS:
            got = await there.ask(way, case := new_case("preload"))
            assert got.model in (LLAMA, QWEN), got
            got.assert_answered_by(got.model)
            assert 1 == there.asked(case), "nobody asks a model to answer that could not be loaded"
        assert 1 <= there.server.loads_asked(PHI) <= 3


async def test_a_preload_that_never_ends_does_not_outlast_the_callers_deadline(tmp_path: Path) -> None:
    with house(tmp_path, loaded={LLAMA: 4096, QWEN: 4096}, loading={PHI: misconduct.silent()}) as there:
        deadline = {"X-Dispatcher-Deadline": "4"}
        asked = (there.ask(way, new_case("hung"), headers=deadline) for way in WAYS)
        for got in await asyncio.gather(*asked):
            if got.status != 200:
                got.assert_failed_visibly()
            else:
                assert got.model in (LLAMA, QWEN), got
                got.assert_answered_by(got.model)


async def test_a_server_that_goes_away_is_seen_to_and_one_that_comes_back_is_used_again(tmp_path: Path) -> None:
    with house(tmp_path) as there:
        there.server.stop()
        for way in WAYS:
            (await there.ask(way, new_case("gone"))).assert_failed_visibly()
        with Misbehaving(port=there.server.port) as again:
            there.server = again
            async with asyncio.timeout(30):
                while (await there.ask(API_JSON, new_case("back"))).status != 200:
                    pass
            for got in await asyncio.gather(*(there.ask(way, new_case("back")) for way in WAYS)):
                got.assert_answered_by(got.model)


# --- a silent stream -------------------------------------------------------------------------------------------------


async def test_after_heartbeats_another_model_may_still_answer(beating: House) -> None:
    case = new_case("beats")
    beating.server.script(case, {PHI: misconduct.silent()})

    got = await beating.ask(V1_STREAM, case)

    assert got.body.startswith(b": "), got
    assert (200, "") == (got.status, got.model), "what could still change was not said"
    assert got.says_it_ended and not got.broken and not got.error, got
    assert got.words in ("".join(words_of(LLAMA)), "".join(words_of(QWEN))), got
    assert 2 == beating.asked(case)


async def test_after_heartbeats_a_failure_is_an_error_event_and_an_end_that_is_none(beating: House) -> None:
    case = new_case("beats")
    beating.server.script(case, {"*": misconduct.silent()})

    got = await beating.ask(V1_STREAM, case)

    assert 200 == got.status, got
    got.assert_failed_visibly()
    assert "" == got.words
    assert 3 == beating.asked(case)


async def test_after_heartbeats_a_refusal_is_an_error_event_too(beating: House) -> None:
    case = new_case("beats")

    async def late(line: Line) -> None:
        await asyncio.sleep(0.3)
        await misconduct.refuses(400, "you got it wrong")(line)

    beating.server.script(case, {PHI: late})

    got = await beating.ask(V1_STREAM, case)

    assert 200 == got.status, got
    got.assert_failed_visibly()
    assert "you got it wrong" in got.error
    assert 1 == beating.asked(case)


# --- the other side --------------------------------------------------------------------------------------------------


async def test_a_reader_that_is_slow_itself_does_not_make_the_model_a_bad_one(tmp_path: Path) -> None:
    gateway = {**QUICK, "breaker": {"failures_in_row": 1, "open": "1m"}}
    with house(tmp_path, gateway) as there:
        case = new_case("reader")
        there.server.script(case, {PHI: _endless})
        lazy = await asyncio.to_thread(_begins_to_read, there, case)
        try:
            await asyncio.sleep(2.5)  # beyond every deadline for a model server here
            assert "open" != _breaker(there)
        finally:
            lazy.close()
        got = await there.ask(API_JSON, new_case())
        got.assert_answered_by(PHI, attempts=1)


def _begins_to_read(there: House, case: str) -> socket.socket:
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.settimeout(20)
    lazy.connect(("127.0.0.1", there.daemon.port))
    body = json.dumps(API_STREAM.body(PHI, case)).encode()
    head = f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    lazy.sendall(head.encode() + body)
    assert lazy.recv(1000).startswith(b"HTTP/1.1 200")
    return lazy


async def _endless(line: Line) -> None:
    """A stream that comes as fast as it is read, for ever."""
    piece = good_pieces(line.heard)[0]
    await line.head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
    while True:
        await line.chunk(piece * 200)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("num_parallel", [1, 64])
async def test_clients_that_hang_up_early_leave_the_model_to_the_others(tmp_path: Path, num_parallel: int) -> None:
    with house(tmp_path, num_parallel=num_parallel) as there:
        for way in (V1_JSON, V1_STREAM):
            case = new_case("early")
            there.server.script(case, {PHI: misconduct.slow(0.3)})
            for _ in range(4):
                await asyncio.gather(*(_leaves(there, way, case) for _ in range(25)))
            for _ in range(20):
                (await there.ask(API_JSON, new_case())).assert_answered_by(PHI, attempts=1)


async def _leaves(there: House, way: Way, case: str) -> None:
    body = json.dumps(way.body(PHI, case)).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", there.daemon.port)
    writer.write(f"POST {way.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await asyncio.sleep(0.05)
    writer.transport.abort()
