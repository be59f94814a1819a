"""wire.surface reads what it must know of a request, and changes nothing of it that is not its own."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.errors import AskInvalid
from dispatcher.vocabulary.relay import ENDPOINTS
from dispatcher.vocabulary.request import Asked
from dispatcher.wire.surface import MAX_NAME_CHARACTERS, RUNNER_OPTIONS, Told, Wishes, addressed, same_model, told
from tests.wire.captured import Captured, captured, every

NONE_WISHED = Wishes(asked=Asked())
READABLE = [each for each in every() if isinstance(each.sent, dict)]
REFUSED_HERE = {"generate_wrong_type", "chat_malformed_json", "generate_malformed_json", "v1_chat_malformed"}
GENERATE = ENDPOINTS["/api/generate"]


def read(path: str, body: object, wished: Wishes = NONE_WISHED) -> Told:
    return told(ENDPOINTS[path], body if isinstance(body, bytes) else json.dumps(body).encode(), wished)


def chat(*messages: Any, **fields: Any) -> Told:
    return read("/v1/chat/completions", {"messages": list(messages), **fields})


def native(**fields: Any) -> Told:
    return read("/api/generate", {"model": "phi3:mini", **fields})


def refused(path: str, body: object) -> str:
    with pytest.raises(AskInvalid) as problem:
        read(path, body)
    return str(problem.value)


def raw_fields(body: bytes) -> list[tuple[str, bytes]]:
    return [(name, bytes(raw)) for name, raw in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items()]


# ── what goes to a place ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("asked", [each for each in READABLE if each.name not in REFUSED_HERE], ids=str)
def test_only_what_reloads_or_unloads_is_replaced_in_a_captured_request(asked: Captured) -> None:
    request = told(asked.endpoint, asked.sent_bytes, NONE_WISHED)
    sent, goes = raw_fields(asked.sent_bytes), raw_fields(addressed(request, "llama3.2:3b", 8192))
    ours = {"model"} if asked.endpoint.surface == "openai" else {"model", "options", "keep_alive"}

    assert b'"llama3.2:3b"' == dict(goes)["model"]
    assert [each for each in sent if each[0] not in ours] == [each for each in goes if each[0] not in ours]
    assert [name for name, _ in sent] == [name for name, _ in goes][: len(sent)]
    assert set(dict(goes)) == set(dict(sent)) | ours
    if "options" in ours and not isinstance(asked.sent.get("options", {}), dict):
        assert dict(sent)["options"] == dict(goes)["options"]
    elif "options" in ours:
        before, after = raw_fields(dict(sent).get("options", b"{}")), raw_fields(dict(goes)["options"])
        kept = [each for each in before if each[0] not in RUNNER_OPTIONS]
        assert kept == [each for each in after if each[0] != "num_ctx"]
        assert (b"8192", b"-1") == (dict(after)["num_ctx"], dict(goes)["keep_alive"])


@pytest.mark.parametrize("name", sorted(REFUSED_HERE))
def test_a_captured_request_that_cannot_be_read_is_refused(name: str) -> None:
    asked = captured(name)

    with pytest.raises(AskInvalid):
        told(asked.endpoint, asked.sent_bytes, NONE_WISHED)


def test_values_stay_as_they_were_written() -> None:
    body = (
        b'{"zeta": 1.50e+01, "model":"a", "prompt" : "\\u00e9\\/ \xc3\xa9", '
        b'"options":{"b":[1, 2 ],"num_ctx":9}, "alpha":{}}'
    )
    request = told(GENERATE, body, NONE_WISHED)

    assert (
        b'{"zeta":1.50e+01,"model":"b","prompt":"\\u00e9\\/ \xc3\xa9",'
        b'"options":{"b":[1, 2 ],"num_ctx":4096},"alpha":{},"keep_alive":-1}'
    ) == addressed(request, "b", 4096)


@pytest.mark.parametrize("options", ["7", '"x"', "[1]", "true"])
def test_options_that_are_no_object_stay_for_the_server_to_refuse(options: str) -> None:
    request = told(GENERATE, b'{"options":%s}' % options.encode(), NONE_WISHED)

    assert options.encode() == dict(raw_fields(addressed(request, "m", 1)))["options"]


@pytest.mark.parametrize("body", [b"{}", b'{"options":null}', b'{"options":{}}', b'{"options":{"num_ctx":"x"}}'])
def test_absent_options_get_the_context_that_is_loaded(body: bytes) -> None:
    request = told(GENERATE, body, NONE_WISHED)

    assert b'{"num_ctx":512}' == dict(raw_fields(addressed(request, "m", 512)))["options"]


@pytest.mark.parametrize("options", [{"num_predict": "x"}, {"temperature": [1]}, {"temperature": {}, "top_k": "y"}])
def test_a_wrongly_typed_option_stays_for_the_server_to_refuse(options: dict[str, object]) -> None:
    sent = json.loads(addressed(native(options=options), "m", 1))

    assert {**options, "num_ctx": 1} == sent["options"]


@pytest.mark.parametrize("name", [*sorted(RUNNER_OPTIONS), "Num_GPU", "NUM_CTX"])
def test_no_option_that_a_model_is_loaded_with_goes_on(name: str) -> None:
    sent = addressed(native(options={"seed": 7, name: 1, "top_k": 2}), "m", 512)

    assert b'{"seed":7,"top_k":2,"num_ctx":512}' == dict(raw_fields(sent))["options"]


def test_the_openai_surface_gets_neither_options_nor_keep_alive() -> None:
    assert b'{"messages":[],"model":"m"}' == addressed(chat(), "m", 4096)


def test_of_a_field_said_twice_only_the_one_that_was_read_goes_on() -> None:
    request = told(
        GENERATE, b'{"model":"a","keep_alive":0,"model":"b","options":{"num_ctx":1,"num_ctx":2}}', NONE_WISHED
    )

    assert "b" == request.asked.model
    assert b'{"model":"c","keep_alive":-1,"options":{"num_ctx":3}}' == addressed(request, "c", 3)


@pytest.mark.parametrize(
    "name", ["Model", "KEEP_ALIVE", "\u212aeep_alive", "option\u017f", "Options", "STREAM", "sTream"]
)
def test_another_spelling_of_a_field_that_is_replaced_is_refused(name: str) -> None:
    assert "write " in refused("/api/generate", {"model": "a", name: 0})


def test_other_fields_may_be_spelled_as_they_like() -> None:
    assert {"Prompt": 1, "ÄÖ": 2} == {
        name: value
        for name, value in json.loads(addressed(native(Prompt=1, ÄÖ=2), "m", 1)).items()
        if name in "PromptÄÖ"
    }


@given(
    st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=5))),
    st.sampled_from(list(ENDPOINTS.values())),
)
def test_any_object_is_read_or_refused(fields: dict[str, object], endpoint) -> None:
    try:
        request = told(endpoint, json.dumps(fields).encode(), NONE_WISHED)
    except AskInvalid:
        return
    goes = json.loads(addressed(request, "m", 1))

    assert {name: goes[name] for name in fields if name not in ("model", "options", "keep_alive")} == {
        name: value for name, value in fields.items() if name not in ("model", "options", "keep_alive")
    }


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    ("body", "because"),
    [
        (b"", "the body is empty"),
        (b"{", "the body is not JSON"),
        (b'{"model":}', "the body is not JSON"),
        (b'{"\xff":1}', "the body is not JSON"),
        (b"null", "the body is not a JSON object"),
        (b"[]", "the body is not a JSON object"),
        (b'"x"', "the body is not a JSON object"),
        (b"7", "the body is not a JSON object"),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "nests deeper than 64 levels"),
        (b'{"model":7}', "model: must be a text"),
        (b'{"model":["a"]}', "model: must be a text"),
        (b'{"model":"\xff"}', "model: must be a text"),
        (b'{"prompt":"\\ud83d and more"}', "the body is not JSON"),
        (b'{"model":"a\\nb"}', "characters that cannot be shown"),
        (b'{"model":"' + b"a" * 201 + b'"}', "longer than 200 characters"),
        (b'{"api_base":"http://203.0.113.1"}', "api_base: where a request goes is decided here"),
        (b'{"base_url":null}', "base_url: where a request goes is decided here"),
        (b'{"api_key":"x"}', "api_key: where a request goes is decided here"),
        (b'{"api_version":"x"}', "api_version: where a request goes is decided here"),
        (b'{"API_Base":"x"}', "API_Base: where a request goes is decided here"),
    ],
)
def test_a_body_that_cannot_be_relayed_is_refused_in_words(path: str, body: bytes, because: str) -> None:
    assert because in refused(path, body)


def test_what_was_sent_does_not_show_where_a_request_is_printed() -> None:
    assert "secret" not in repr(chat({"role": "user", "content": "secret"}))


def test_the_deepest_allowed_body_is_read() -> None:
    assert "auto" == read("/api/generate", b'{"a":' + b"[" * 63 + b"]" * 63 + b"}").asked.model


@pytest.mark.parametrize("stream", ["yes", 1, 0, [], {}])
@pytest.mark.parametrize("path", ["/api/generate", "/v1/chat/completions"])
def test_a_stream_that_is_neither_true_nor_false_is_refused(path: str, stream: object) -> None:
    assert "stream: must be true or false" == refused(path, {"stream": stream})


@pytest.mark.parametrize("path", ENDPOINTS)
def test_streaming_is_what_the_surface_means_by_silence(path: str) -> None:
    endpoint = ENDPOINTS[path]
    usual = path in ("/api/chat", "/api/generate")

    assert [usual, usual] == [read(path, {}).stream, read(path, {"stream": None}).stream]
    assert endpoint.may_stream == read(path, {"stream": True}).stream
    assert not read(path, {"stream": False}).stream


def test_embeddings_never_stream_whatever_is_said() -> None:
    assert not read("/api/embed", {"stream": "yes"}).stream


# ── names of models ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "model"),
    [
        ({}, "auto"),
        ({"model": None}, "auto"),
        ({"model": ""}, "auto"),
        ({"model": "auto"}, "auto"),
        ({"model": "auto:latest"}, "auto"),
        ({"model": "phi3:latest"}, "phi3:latest"),
        ({"model": "phi3:mini"}, "phi3:mini"),
        ({"model": "a" * MAX_NAME_CHARACTERS}, "a" * MAX_NAME_CHARACTERS),
    ],
)
def test_a_model_is_named_or_left_to_the_dispatcher(fields: dict[str, object], model: str) -> None:
    assert model == read("/api/chat", fields).asked.model


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("phi3:mini", "phi3:mini"),
        ("PHI3:Mini", "phi3:mini"),
        ("library/phi3:mini", "phi3:mini"),
        ("registry.ollama.ai/library/phi3:mini", "phi3:mini"),
        ("mistral", "mistral:latest"),
        ("mistral:latest", "mistral:latest"),
        ("gemma", "gemma"),
        ("gemma:latest", "gemma"),
        ("me/own", "me/own:latest"),
        ("localhost:5000/me/x", "localhost:5000/me/x"),
        ("localhost:5000/me/x:latest", "localhost:5000/me/x"),
        ("phi3", None),
        ("phi3:mini:latest", None),
        ("own", None),
        ("auto", None),
        ("", None),
    ],
)
def test_a_name_is_the_model_that_ollama_would_take_it_for(name: str, found: str | None) -> None:
    chain = ("phi3:mini", "mistral:latest", "gemma", "me/own:latest", "localhost:5000/me/x")

    assert found == same_model(name, chain)
