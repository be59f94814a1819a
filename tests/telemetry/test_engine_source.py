from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dispatcher.telemetry.engine_source import MAX_CANCELLED, EngineSource
from tests.realparts import pick_port
from tests.telemetry.sick_servers import SickServer, an_answer, dripping, flooding, saying, silent

FIXTURES = Path(__file__).parent.parent / "fixtures" / "ollama"
JSON = "Content-Type: application/json"
OK_LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n"


def captured(name: str) -> bytes:
    return (FIXTURES / f"{name}.response.json").read_bytes()


def some_answers(**changes: bytes) -> dict[str, bytes]:
    return {
        "GET /api/ps": captured("ps_two_loaded"),
        "GET /api/version": captured("version"),
        "GET /api/tags": captured("tags"),
        "POST /api/show": SHOW,
        **changes,
    }


SHOW = json.dumps(
    {
        "model_info": {
            "general.architecture": "llama",
            "llama.block_count": 28,
            "llama.attention.head_count": 24,
            "llama.attention.head_count_kv": 8,
            "llama.attention.key_length": 128,
            "llama.context_length": 131072,
        },
        "capabilities": ["completion", "tools"],
    }
).encode()


@contextmanager
def an_engine(answers: dict[str, bytes]) -> Iterator[SickServer]:
    """Answers each `METHOD /path` with its bytes, others with 404; `.answers` may be exchanged."""

    def act(connection, ended):
        asked = b" ".join(server.requests[-1].split(b" ", 2)[:2]).decode()
        known = answers.get(asked)
        status = "200 OK" if known is not None else "404 Not Found"
        connection.sendall(an_answer(status, known if known is not None else b"404 page not found", JSON))

    with SickServer(act) as server:
        yield server


@pytest.fixture
async def source():
    engine_source = EngineSource()
    yield engine_source
    await engine_source.close()


def asked(server: SickServer, path: str) -> int:
    return sum(path.encode() in request.split(b"\r\n", 1)[0] for request in server.requests)


async def test_a_look_tells_what_is_loaded_and_installed_and_how_it_is_built(source):
    with an_engine(some_answers()) as server:
        seen = await source.look(server.url, deadline_seconds=20.0)

    loaded = json.loads(captured("ps_two_loaded"))["models"]
    installed = {model["name"] for model in json.loads(captured("tags"))["models"]}
    assert seen.reachable
    assert {model["name"]: model["size"] for model in loaded} == {
        name: model.size_bytes for name, model in seen.loaded.items()
    }
    assert installed == set(seen.installed) == set(seen.shapes)
    assert "0.0.0" == seen.version
    shape = next(iter(seen.shapes.values()))
    assert (28, 8, 128, 131072) == (shape.layers, shape.kv_heads, shape.head_dim, shape.context_max)
    assert frozenset({"json", "tools"}) == shape.features


async def test_without_details_only_ps_is_asked(source):
    with an_engine(some_answers()) as server:
        seen = await source.look(server.url, deadline_seconds=20.0, details=False)

        assert (1, 1) == (len(server.requests), asked(server, "/api/ps"))
    assert (None, None, {}) == (seen.version, seen.installed, seen.shapes)


async def test_show_is_asked_once_per_model_and_again_when_its_weights_change(source):
    answers = some_answers()
    models = len(json.loads(answers["GET /api/tags"])["models"])
    with an_engine(answers) as server:
        for _ in range(3):
            seen = await source.look(server.url, deadline_seconds=20.0)
        assert models == asked(server, "/api/show")
        assert models == len(seen.shapes)

        tags = json.loads(answers["GET /api/tags"])
        tags["models"][0]["digest"] = "another"
        answers["GET /api/tags"] = json.dumps(tags).encode()
        await source.look(server.url, deadline_seconds=20.0)
        assert models + 1 == asked(server, "/api/show")


async def test_details_that_do_not_come_leave_the_engine_reachable(source):
    answers = some_answers()
    del answers["GET /api/version"], answers["POST /api/show"]
    with an_engine(answers) as server:
        seen = await source.look(server.url, deadline_seconds=20.0)

    assert (True, None, {}) == (seen.reachable, seen.version, seen.shapes)
    assert seen.installed is not None

    del answers["GET /api/tags"]
    with an_engine(answers) as server:
        assert (await source.look(server.url, deadline_seconds=20.0)).installed is None


@pytest.mark.parametrize(
    ("act", "because"),
    [
        pytest.param(silent, "gave no answer within 0.5 s", id="silent, as a paused container is"),
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\nX: ", b"x"), "gave no answer within 0.5 s", id="drips headers"),
        pytest.param(dripping(OK_LONG, b" "), "gave no answer within 0.5 s", id="drips its body"),
        pytest.param(flooding(OK_LONG), "more than", id="never ends"),
        pytest.param(saying(b""), "broke off", id="hangs up"),
        pytest.param(saying(b"220 mail\r\n"), "broke off", id="is no web server"),
        pytest.param(saying(an_answer("200 OK", b"{", JSON)), "/api/ps answered '{'", id="half a JSON"),
        pytest.param(saying(an_answer("200 OK", b"<html>")), "not what Ollama answers", id="another server"),
        pytest.param(saying(an_answer("200 OK", b"{}", length=99)), "broke off", id="breaks off"),
        pytest.param(saying(an_answer("403 Forbidden", b"")), "HTTP 403: no words", id="foreign host"),
        pytest.param(saying(an_answer("500 Oh", b'{"error":"no disk"}')), "HTTP 500: no disk", id="in trouble"),
        pytest.param(saying(an_answer("302 Found", b"", "Location: /x")), "HTTP 302", id="points elsewhere"),
    ],
)
async def test_an_engine_that_gives_no_usable_answer_is_unreachable_and_says_why(source, act, because):
    with SickServer(act) as server:
        async with asyncio.timeout(10):
            seen = await source.look(server.url, deadline_seconds=0.5 if "within" in because else 8.0)

    assert (False, {}, None) == (seen.reachable, seen.loaded, seen.installed)
    assert because in seen.because


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://[::1", "nonsense", "http://nohost.invalid:1", ""])
async def test_no_endpoint_whatever_makes_a_look_raise(source, endpoint):
    seen = await source.look(endpoint, deadline_seconds=5.0)

    assert not seen.reachable
    assert seen.because


async def test_a_refused_connection_is_named(source):
    port = pick_port()

    seen = await source.look(f"http://127.0.0.1:{port}")

    assert f"http://127.0.0.1:{port} does not accept connections" in seen.because


async def test_many_abandoned_looks_do_not_make_a_healthy_engine_unreachable(source):
    with SickServer(dripping(OK_LONG, b" ")) as server, an_engine(some_answers()) as healthy:
        for _ in range(5):
            await asyncio.gather(
                *(source.look(server.url, deadline_seconds=0.05) for _ in range(MAX_CANCELLED)),
                source.look(healthy.url, deadline_seconds=20.0),
            )
        seen = await asyncio.gather(*(source.look(healthy.url, deadline_seconds=20.0) for _ in range(10)))

    assert [True] * 10 == [one.reachable for one in seen]


async def test_environment_proxies_are_not_used(monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{pick_port()}")
    source = EngineSource()
    with an_engine(some_answers()) as server:
        assert (await source.look(server.url, deadline_seconds=20.0)).reachable
    await source.close()
