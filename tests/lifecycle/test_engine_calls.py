"""Loading at servers that are late, rude or no model servers at all."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from dispatcher.errors import EngineAnswerUnreadable, EngineRefused, EngineUnreachable, OutOfMemory
from dispatcher.lifecycle.engine_calls import EngineCalls, named
from dispatcher.rehearsal.server import PRIOR_MODELS, RehearsalServer

MODEL = "phi3:mini"


@pytest.fixture
async def calls():
    calls = EngineCalls()
    yield calls
    await calls.close()


@asynccontextmanager
async def rude_server(status_line: str, body: str):
    """Answers /api/version well, and everything else like this; status_line "": hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        if b"/api/version" in asked:
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"version":"0"}')
        elif status_line:
            writer.write(f"HTTP/1.1 {status_line}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("status_line", "body", "error", "words"),
    [
        pytest.param("500 No", '{"error":"signal: killed"}', OutOfMemory, "signal: killed", id="killed"),
        pytest.param("500 No", '{"error":"model requires more system memory"}', EngineRefused, "more", id="guard"),
        pytest.param("503 No", '{"error":"server busy"}', EngineRefused, "server busy", id="busy"),
        pytest.param("404 Not Found", "404 page not found", EngineRefused, "page not found", id="no such path"),
        pytest.param("200 OK", '{"error":"too late"}', EngineRefused, "too late", id="an error with status 200"),
        pytest.param("302 Found", "", EngineRefused, "302", id="redirects are not followed"),
        pytest.param("200 OK", "<html>", EngineAnswerUnreadable, "no JSON", id="a web page"),
        pytest.param("200 OK", '{"done":false}', EngineAnswerUnreadable, "done: true", id="not done"),
        pytest.param("200 OK", "[]", EngineAnswerUnreadable, "done: true", id="a list"),
        pytest.param("", "", EngineUnreachable, "curl", id="hangs up"),
    ],
)
async def test_a_load_that_is_not_confirmed_has_failed(calls, status_line, body, error, words):
    async with rude_server(status_line, body) as endpoint:
        with pytest.raises(error, match=words) as raised:
            await calls.load(endpoint, MODEL, 4096)

    assert error is raised.type


async def test_a_refusal_carries_its_status(calls):
    async with rude_server("503 No", '{"error":"server busy"}') as endpoint:
        with pytest.raises(EngineRefused) as refused:
            await calls.load(endpoint, MODEL, 4096)

    assert 503 == refused.value.status


async def test_a_load_waits_for_a_server_that_is_not_there_yet(calls):
    server = RehearsalServer(PRIOR_MODELS, time_scale=0.01)
    await server.start()
    await server.stop()
    load = asyncio.create_task(calls.load(server.url, MODEL, 4096))
    await asyncio.wait({load}, timeout=0.3)
    assert not load.done()

    await server.start()
    assert await load > 0
    await server.stop()


async def test_a_load_is_asked_for_with_its_context_and_kept(calls):
    server = RehearsalServer(PRIOR_MODELS, time_scale=0.01)
    await server.start()
    await calls.load(server.url, MODEL, 8192)
    loaded = (await calls.loaded(server.url))[MODEL]
    await server.stop()

    assert 8192 == loaded.num_ctx
    assert loaded.expires_at_seconds is None or loaded.expires_at_seconds > 9e9  # keep_alive -1: the year 2319


async def test_unloading_what_is_not_loaded_asks_for_nothing(calls):
    server = RehearsalServer(PRIOR_MODELS, time_scale=0.01)
    await server.start()
    await calls.unload(server.url, MODEL, 5.0)
    await server.stop()


@pytest.mark.parametrize(
    ("name", "row"),
    [("mistral", 1), ("mistral:latest", 1), ("phi3:mini", 2), ("phi3", None), ("host:5000/own", 3), ("absent", None)],
)
def test_a_name_without_a_tag_means_latest(name, row):
    assert row == named({"mistral:latest": 1, "phi3:mini": 2, "host:5000/own:latest": 3}, name)
