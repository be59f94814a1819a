"""What we rely on in a model server, asked of the rehearsal server always and of a real Ollama with --ollama URL.

A real one must have the three models of the chain installed; it is left with none of them loaded. Texts are nobody's
business here, only shapes, statuses and what the durations mean.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from dispatcher.rehearsal.server import PRIOR_MODELS, RehearsalServer
from dispatcher.wire import ollama
from tests.rehearsal.served import served

CHAIN = ("phi3:mini", "llama3.2:3b", "qwen2.5:7b")
PHI, LLAMA = CHAIN[0], CHAIN[1]
_REAL = pytest.param("ollama", marks=pytest.mark.needs_ollama)


@pytest.fixture(params=["rehearsal", _REAL])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the server under test. Slow answers are no failure here: a real one may have to load 4 GiB."""
    if request.param == "ollama":
        url = request.config.getoption("--ollama", default=None)
        if not url:
            pytest.skip("no real Ollama given; --ollama URL runs this against one")
        async with httpx.AsyncClient(base_url=url, timeout=110, trust_env=False) as client:
            yield client
            for model in CHAIN:
                await client.post("/api/generate", content=ollama.unload_body(model))
        return
    async with served(RehearsalServer(PRIOR_MODELS, time_scale=0.02)) as client:
        yield client


async def loaded(engine: httpx.AsyncClient) -> dict[str, int | None]:
    models = ollama.parse_ps((await engine.get("/api/ps")).content)
    return {name: model.num_ctx for name, model in models.items()}


async def load(engine: httpx.AsyncClient, model: str, num_ctx: int = 2048) -> httpx.Response:
    return await engine.post("/api/generate", content=ollama.load_body(model, num_ctx))


async def until_unloaded(engine: httpx.AsyncClient, model: str) -> None:
    async with asyncio.timeout(30):
        while model in await loaded(engine):  # noqa: ASYNC110 - a server tells nobody
            await asyncio.sleep(0.05)


def generate(model: str = PHI, num_ctx: int = 2048, **more: object) -> dict[str, object]:
    options = {"num_predict": 8, "num_ctx": num_ctx}
    return {"model": model, "prompt": "Name three colours.", "stream": False, "options": options, **more}


async def test_it_says_its_version(engine: httpx.AsyncClient) -> None:
    assert ollama.parse_version((await engine.get("/api/version")).content)


async def test_it_lists_what_is_installed_and_tells_its_shape(engine: httpx.AsyncClient) -> None:
    installed = ollama.parse_tags((await engine.get("/api/tags")).content)

    assert set(CHAIN) <= set(installed)
    for model in CHAIN:
        answer = await engine.post("/api/show", json={"model": model})
        shape = ollama.parse_show(model, answer.content)
        assert installed[model].size_bytes > 0
        assert None not in (shape.layers, shape.kv_heads, shape.head_dim, shape.context_max)


async def test_our_load_loads_with_our_context_and_for_ever(engine: httpx.AsyncClient) -> None:
    answer = await load(engine, PHI)

    models = ollama.parse_ps((await engine.get("/api/ps")).content)
    assert (200, "load") == (answer.status_code, answer.json()["done_reason"])
    assert 2048 == models[PHI].num_ctx
    assert models[PHI].size_bytes > 0
    assert (models[PHI].expires_at_seconds or 0) > 4e9  # years from now


async def test_our_unload_answers_at_once_and_takes_it_out_of_the_list(engine: httpx.AsyncClient) -> None:
    await load(engine, PHI)

    answer = await engine.post("/api/generate", content=ollama.unload_body(PHI))

    assert (200, "unload") == (answer.status_code, answer.json()["done_reason"])
    await until_unloaded(engine, PHI)


async def test_unloading_what_is_not_loaded_is_no_error(engine: httpx.AsyncClient) -> None:
    await engine.post("/api/generate", content=ollama.unload_body(LLAMA))
    await until_unloaded(engine, LLAMA)

    answer = await engine.post("/api/generate", content=ollama.unload_body(LLAMA))

    assert 200 == answer.status_code


async def test_an_answer_tells_its_durations_and_they_add_up(engine: httpx.AsyncClient) -> None:
    await load(engine, PHI)

    measured = ollama.timings((await engine.post("/api/generate", json=generate())).content)

    assert 8 == measured.output_tokens
    assert (measured.prompt_tokens or 0) > 0
    assert (ollama.decode_rate_tokens_per_second(measured) or 0) > 0
    assert (measured.load_seconds or 0) > 0
    assert 0 <= (ollama.queue_wait_seconds(measured) or 0) <= (measured.total_seconds or 0)


async def test_a_cold_answer_has_its_load_in_load_duration(engine: httpx.AsyncClient) -> None:
    await engine.post("/api/generate", content=ollama.unload_body(PHI))
    await until_unloaded(engine, PHI)

    cold = ollama.timings((await engine.post("/api/generate", json=generate())).content)
    warm = ollama.timings((await engine.post("/api/generate", json=generate())).content)

    assert (cold.load_seconds or 0) > (warm.load_seconds or 0)


async def test_one_token_has_no_eval_duration(engine: httpx.AsyncClient) -> None:
    body = generate(options={"num_predict": 1, "num_ctx": 2048})

    answer = (await engine.post("/api/generate", json=body)).json()

    assert (1, False) == (answer["eval_count"], "eval_duration" in answer)


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_a_stream_is_silent_before_its_first_token_and_ends_with_done(
    engine: httpx.AsyncClient, path: str
) -> None:
    await engine.post("/api/generate", content=ollama.unload_body(PHI))
    await until_unloaded(engine, PHI)
    body = generate(messages=[{"role": "user", "content": "Name three colours."}], stream=True)
    began, lines, first_seconds = asyncio.get_running_loop().time(), [], 0.0

    async with engine.stream("POST", path, json=body) as answer:
        first_seconds = asyncio.get_running_loop().time() - began
        async for line in answer.aiter_lines():
            lines.append(line)

    measured = ollama.timings(lines[-1].encode())
    assert "application/x-ndjson" == answer.headers["content-type"]
    assert [False] * (len(lines) - 1) + [True] == [json.loads(line)["done"] for line in lines]
    assert 8 == measured.output_tokens
    assert first_seconds > (measured.load_seconds or 0)  # not even the status line came before the load was over


async def test_another_context_reloads_the_model(engine: httpx.AsyncClient) -> None:
    await load(engine, PHI, 2048)

    await engine.post("/api/generate", json=generate(num_ctx=1024))

    assert 1024 == (await loaded(engine))[PHI]


async def test_the_openai_surface_counts_tokens(engine: httpx.AsyncClient) -> None:
    body = {"model": PHI, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}

    answer = (await engine.post("/v1/chat/completions", json=body)).json()

    assert 4 == answer["usage"]["completion_tokens"]
    assert "assistant" == answer["choices"][0]["message"]["role"]


async def test_an_openai_stream_says_its_usage_before_done(engine: httpx.AsyncClient) -> None:
    body = {"model": PHI, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "stream": True}

    answer = await engine.post("/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}})

    events = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    assert "[DONE]" == events[-1]
    assert ([], 4) == (json.loads(events[-2])["choices"], json.loads(events[-2])["usage"]["completion_tokens"])


REFUSALS = {
    "unknown model": ("/api/generate", {"model": "no-such-model:1b", "prompt": "x"}, 404),
    "unknown model, chat": ("/api/chat", {"model": "no-such-model:1b", "messages": []}, 404),
    "unknown model, embed": ("/api/embed", {"model": "no-such-model:1b", "input": "x"}, 404),
    "unknown model, show": ("/api/show", {"model": "no-such-model:1b"}, 404),
    "unknown model, OpenAI": (
        "/v1/chat/completions",
        {"model": "no-such-model:1b", "messages": [{"role": "user", "content": "x"}]},
        404,
    ),
    "malformed JSON": ("/api/generate", '{"model": "phi3:mini", "prompt": ', 400),
    "malformed JSON, OpenAI": ("/v1/chat/completions", '{"model": ', 400),
    "wrong type": ("/api/generate", {"model": 7}, 400),
    "wrong option type": ("/api/generate", {"model": PHI, "prompt": "x", "options": {"num_predict": "eight"}}, 500),
    "no duration": ("/api/generate", {"model": PHI, "prompt": "x", "keep_alive": "soon"}, 400),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_has_its_status_and_words(engine: httpx.AsyncClient, case: str) -> None:
    path, body, status = REFUSALS[case]

    answer = await engine.post(path, content=body if isinstance(body, str) else json.dumps(body))

    assert status == answer.status_code
    assert ollama.error_text(answer.content)
    assert (case == "wrong option type") == ollama.is_wrong_option(answer.status_code, answer.content)


async def test_a_prompt_that_is_too_long_is_refused_only_if_that_was_asked_for(engine: httpx.AsyncClient) -> None:
    long = generate(prompt="lorem ipsum dolor sit amet " * 100, num_ctx=128)

    cut = await engine.post("/api/generate", json=long)
    refused = await engine.post("/api/generate", json={**long, "truncate": False})

    assert (200, 128) == (cut.status_code, cut.json()["prompt_eval_count"])
    assert ollama.is_context_exceeded(refused.status_code, refused.content)


async def test_a_client_that_leaves_during_a_load_aborts_it(engine: httpx.AsyncClient) -> None:
    await engine.post("/api/generate", content=ollama.unload_body(LLAMA))
    await until_unloaded(engine, LLAMA)

    with pytest.raises(httpx.TimeoutException):
        await engine.post("/api/generate", json=generate(LLAMA), timeout=0.02)

    await until_unloaded(engine, LLAMA)
