"""The official clients of OpenAI and Ollama on the real daemon, unchanged: a base URL, a key, `auto` or a name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest

from tests.e2e.running import GIB, RunningDaemon, chain, running
from tests.realparts import eventually

KEY = "client-0123456789abcdef"
CHAIN = ("phi3:mini", "llama3.2:3b", "qwen2.5:7b")
CONFIG: dict[str, Any] = {
    "server": {"keys": [{"name": "workflow", "role": "infer", "key_env": "CLIENT_KEY"}]},
    "models": chain(GIB, 2 * GIB, 4 * GIB),
    "telemetry": {"prometheus": {"enabled": "false"}},
    "lifecycle": {"provider": "rehearsal", "idle": "1h"},
    "rehearsal": {"time_scale": 0.02},
}
ENVIRONMENT = {"DOCKER_HOST": "unix:///tmp/none.sock", "CLIENT_KEY": KEY}
ASKED: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]

either_name = pytest.mark.parametrize("model", ["auto", "phi3:mini"])


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running(tmp_path_factory.mktemp("clients"), CONFIG, environment=ENVIRONMENT) as one:
        yield one


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[RunningDaemon]:
    """Its answers take seconds."""
    config = {**CONFIG, "rehearsal": {"time_scale": 1.0}}
    with running(tmp_path / "slow", config, environment=ENVIRONMENT) as one:
        yield one


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def gpt(daemon: RunningDaemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=KEY) as client:
        yield client


@pytest.fixture
def llama(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> ollama.Client:
    monkeypatch.setenv("OLLAMA_API_KEY", KEY)
    return ollama.Client(host=daemon.url)


# ── OpenAI's ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@either_name
def test_openai_chat(gpt: openai.OpenAI, model: str) -> None:
    answer = gpt.chat.completions.create(model=model, messages=ASKED)

    assert answer.model in CHAIN if model == "auto" else model == answer.model
    assert answer.choices[0].message.content
    assert "stop" == answer.choices[0].finish_reason
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


@either_name
def test_openai_chat_as_a_stream(gpt: openai.OpenAI, model: str) -> None:
    chunks = list(gpt.chat.completions.create(model=model, messages=ASKED, stream=True))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert "stop" == chunks[-1].choices[0].finish_reason
    assert [None] == list({chunk.usage for chunk in chunks})


def test_openai_chat_as_a_stream_with_usage(gpt: openai.OpenAI) -> None:
    *chunks, last = gpt.chat.completions.create(
        model="auto", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )

    assert "stop" == chunks[-1].choices[0].finish_reason
    assert [] == last.choices
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens


@either_name
def test_openai_completions(gpt: openai.OpenAI, model: str) -> None:
    answer = gpt.completions.create(model=model, prompt="The sky is", max_tokens=8)
    pieces = list(gpt.completions.create(model=model, prompt="The sky is", max_tokens=8, stream=True))

    assert answer.choices[0].text
    assert "".join(piece.choices[0].text for piece in pieces)
    assert pieces[-1].choices[0].finish_reason


@pytest.mark.parametrize("wanted", [{}, {"encoding_format": "float"}], ids=["base64, as it asks by itself", "float"])
def test_openai_embeddings_of_auto_always_come_from_the_same_model(gpt: openai.OpenAI, wanted: dict[str, Any]) -> None:
    answer = gpt.embeddings.create(model="auto", input=["The sky is blue", "so is the sea"], **wanted)
    named = gpt.embeddings.create(model="phi3:mini", input=["The sky is blue", "so is the sea"], **wanted)

    assert [0, 1] == [row.index for row in answer.data]
    assert all(isinstance(number, float) for row in answer.data for number in row.embedding)
    assert ("phi3:mini", [row.embedding for row in named.data]) == (
        answer.model,
        [row.embedding for row in answer.data],
    )


def test_openai_models(gpt: openai.OpenAI) -> None:
    assert ["auto", *CHAIN] == [model.id for model in gpt.models.list()]
    assert ["auto", *CHAIN] == [gpt.models.retrieve(name).id for name in ("auto", *CHAIN)]
    with pytest.raises(openai.NotFoundError, match="model 'nobody:1b' not found"):
        gpt.models.retrieve("nobody:1b")


def test_the_headers_tell_an_openai_client_what_was_decided(gpt: openai.OpenAI, daemon: RunningDaemon) -> None:
    raw = gpt.chat.completions.with_raw_response.create(
        model="auto", messages=ASKED, extra_headers={"X-Dispatcher-Task": "coding", "X-Dispatcher-Agent": "digest"}
    )
    told = gpt.get(f"{daemon.url}/decisions/{raw.headers['x-dispatcher-decision']}", cast_to=dict[str, Any])

    assert raw.parse().model == raw.headers["x-dispatcher-model"] == told["model"]
    assert ("1", "coding") == (raw.headers["x-dispatcher-attempts"], told["request"]["task"])


@pytest.mark.parametrize(
    ("kind", "code", "ask"),
    [
        pytest.param(
            openai.NotFoundError,
            "not_found",
            lambda gpt: gpt.chat.completions.create(model="nobody:1b", messages=ASKED),
            id="unknown model",
        ),
        pytest.param(
            openai.NotFoundError,
            "not_found",
            lambda gpt: gpt.chat.completions.create(model="nobody:1b", messages=ASKED, stream=True),
            id="unknown model, as a stream",
        ),
        pytest.param(
            openai.AuthenticationError,
            "unauthorized",
            lambda gpt: gpt.with_options(api_key="wrong").chat.completions.create(model="auto", messages=ASKED),
            id="unknown key",
        ),
        pytest.param(
            openai.BadRequestError,
            "invalid_request",
            lambda gpt: gpt.chat.completions.create(
                model="auto", messages=ASKED, extra_headers={"X-Dispatcher-Task": "juggling"}
            ),
            id="unknown task",
        ),
        pytest.param(
            openai.BadRequestError,
            None,  # the model server's own
            lambda gpt: gpt.chat.completions.create(model="auto", messages=[]),
            id="no messages",
        ),
        pytest.param(
            openai.NotFoundError,
            "not_found",
            lambda gpt: gpt.responses.create(model="auto", input="hello"),
            id="a path that is not relayed",
        ),
    ],
)
def test_openai_errors_are_those_its_client_knows(
    gpt: openai.OpenAI, kind: type[openai.APIStatusError], code: str | None, ask: Callable[[openai.OpenAI], object]
) -> None:
    with pytest.raises(kind) as caught:
        ask(gpt.with_options(max_retries=0))

    assert code == caught.value.code
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]
    assert caught.value.request_id


async def test_openai_async_client(daemon: RunningDaemon) -> None:
    async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key=KEY) as client:
        whole = await client.chat.completions.create(model="auto", messages=ASKED)
        stream = await client.chat.completions.create(model="phi3:mini", messages=ASKED, stream=True)
        chunks = [chunk async for chunk in stream]

    assert whole.choices[0].message.content
    assert "stop" == chunks[-1].choices[0].finish_reason


def test_an_openai_stream_that_is_left_frees_its_place_and_counts_as_cancelled(slow: RunningDaemon) -> None:
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key=KEY) as gpt:
        with gpt.chat.completions.create(model="phi3:mini", messages=ASKED, stream=True) as stream:
            next(iter(stream))
            (running_now,) = queue(gpt, slow)

        assert ("phi3:mini", 1) == (running_now["model"], running_now["running"])
        eventually(
            lambda: all(place["running"] == place["draining"] == 0 for place in queue(gpt, slow)) or None,
            deadline_seconds=20,
            what=lambda: f"its slot to be free: {queue(gpt, slow)}",
        )
        eventually(
            lambda: cancelled(slow, "phi3:mini") == 1 or None,
            deadline_seconds=20,
            what=lambda: f"one cancelled: {cancelled(slow, 'phi3:mini')}",
        )
        assert gpt.chat.completions.create(model="phi3:mini", messages=ASKED, max_tokens=4).choices[0].message.content


def queue(gpt: openai.OpenAI, daemon: RunningDaemon) -> list[dict[str, Any]]:
    places: list[dict[str, Any]] = gpt.get(f"{daemon.url}/queue", cast_to=dict[str, Any])["places"]
    return places


def cancelled(daemon: RunningDaemon, model: str) -> float:
    exposition = httpx.get(f"{daemon.url}/metrics", headers={"X-API-Key": KEY}, trust_env=False).text
    name = "ollama_requests_total{"
    rows = [row for row in exposition.splitlines() if row.startswith(name) and f'model="{model}"' in row]
    return sum(float(row.rpartition(" ")[2]) for row in rows if 'status="cancelled"' in row)


# ── Ollama's ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@either_name
def test_ollama_chat_and_generate(llama: ollama.Client, model: str) -> None:
    chat = llama.chat(model=model, messages=ASKED)
    text = llama.generate(model=model, prompt="Why is the sky blue?")

    assert chat.model in CHAIN if model == "auto" else model == chat.model
    assert (True, "stop") == (chat.done, chat.done_reason)
    assert chat.message.content
    assert chat.eval_count
    assert text.response
    assert text.done


@either_name
def test_ollama_streams(llama: ollama.Client, model: str) -> None:
    chat = list(llama.chat(model=model, messages=ASKED, stream=True))
    text = list(llama.generate(model=model, prompt="Why is the sky blue?", stream=True))

    assert "".join(part.message.content or "" for part in chat)
    assert "".join(part.response for part in text)
    assert [True] == [part.done for part in chat if part.done]
    assert chat[-1].done
    assert text[-1].done


def test_what_would_reload_or_unload_a_model_is_not_passed_on(llama: ollama.Client) -> None:
    llama.chat(model="phi3:mini", messages=ASKED, options={"num_ctx": 512}, keep_alive=0)
    (loaded,) = [model for model in llama.ps().models if model.model == "phi3:mini"]

    assert 512 != loaded.context_length


@either_name
def test_ollama_embeddings(llama: ollama.Client, model: str) -> None:
    several = llama.embed(model=model, input=["The sky is blue", "so is the sea"])
    legacy = llama.embeddings(model=model, prompt="The sky is blue")

    assert ("phi3:mini", 2) == (several.model, len(several.embeddings))
    assert len(several.embeddings[0]) == len(legacy.embedding) > 0


def test_ollama_lists(llama: ollama.Client) -> None:
    llama.chat(model="phi3:mini", messages=ASKED)
    loaded = {model.model: model for model in llama.ps().models}

    assert ["auto", *CHAIN] == [model.model for model in llama.list().models]
    assert loaded["phi3:mini"].expires_at is not None
    assert (loaded["phi3:mini"].context_length or 0) > 0
    assert "completion" in (llama.show("phi3:mini").capabilities or [])
    assert (llama.show("auto").modelinfo or {})["auto.context_length"] > 0


@pytest.mark.parametrize(
    ("status", "said", "ask"),
    [
        pytest.param(404, "not found", lambda llama: llama.chat("nobody:1b", ASKED), id="unknown model"),
        pytest.param(
            404, "not found", lambda llama: list(llama.chat("nobody:1b", ASKED, stream=True)), id="unknown, as a stream"
        ),
        pytest.param(404, "not found", lambda llama: llama.embed("nobody:1b", "x"), id="unknown, embedding"),
        pytest.param(404, "not found", lambda llama: llama.show("nobody:1b"), id="unknown, shown"),
        pytest.param(404, "never relayed", lambda llama: llama.pull("phi3:mini"), id="pull"),
        pytest.param(404, "never relayed", lambda llama: list(llama.pull("phi3:mini", stream=True)), id="pull, stream"),
        pytest.param(404, "never relayed", lambda llama: llama.push("phi3:mini"), id="push"),
        pytest.param(404, "never relayed", lambda llama: llama.delete("phi3:mini"), id="delete"),
        pytest.param(404, "never relayed", lambda llama: llama.copy("phi3:mini", "mine"), id="copy"),
        pytest.param(404, "never relayed", lambda llama: llama.create("mine", from_="phi3:mini"), id="create"),
    ],
)
def test_ollama_errors_are_those_its_client_knows(
    llama: ollama.Client, status: int, said: str, ask: Callable[[ollama.Client], object]
) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        ask(llama)

    assert status == caught.value.status_code
    assert said in caught.value.error


def test_an_ollama_client_without_its_key_is_told_so(daemon: RunningDaemon) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        ollama.Client(host=daemon.url).chat("auto", ASKED)

    assert (401, True) == (caught.value.status_code, "X-API-Key" in caught.value.error)


async def test_ollama_async_client(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", KEY)
    client = ollama.AsyncClient(host=daemon.url)

    whole = await client.chat("auto", ASKED)
    parts = [part async for part in await client.generate("phi3:mini", "Why is the sky blue?", stream=True)]

    assert whole.message.content
    assert parts[-1].done
