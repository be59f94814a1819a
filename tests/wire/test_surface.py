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
from dispatcher.wire.surface import MAX_NAME_CHARACTERS, Told, Wishes, addressed, same_model, told, wishes
from tests.wire.captured import Captured, captured, every

NONE_WISHED = Wishes(asked=Asked())
READABLE = [each for each in every() if isinstance(each.sent, dict)]
REFUSED_HERE = {"generate_wrong_type", "chat_malformed_json", "generate_malformed_json", "v1_chat_malformed"}
CHAT, GENERATE, EMBED = ENDPOINTS["/api/chat"], ENDPOINTS["/api/generate"], ENDPOINTS["/api/embed"]
V1_CHAT, V1_COMPLETIONS = ENDPOINTS["/v1/chat/completions"], ENDPOINTS["/v1/completions"]
V1_EMBEDDINGS = ENDPOINTS["/v1/embeddings"]


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


def wished(*pairs: tuple[str, str]) -> Wishes:
    return wishes((name.lower().encode(), value.encode("latin-1")) for name, value in pairs)


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
        assert [each for each in before if each[0] != "num_ctx"] == [each for each in after if each[0] != "num_ctx"]
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
        (b"", "the body is not JSON"),
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


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_text_of_all_messages_and_parts_is_read() -> None:
    request = chat(
        {"role": "system", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "text"}, {"type": "text", "text": ""}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "three"},
    )

    assert ("one\ntwo\nthree", None, frozenset()) == (
        request.asked.text,
        request.asked.context_tokens,
        request.asked.requires,
    )


@pytest.mark.parametrize("messages", [None, "text", [7], [{"content": 7}], [{"content": [7]}]])
def test_messages_that_are_none_are_the_servers_to_refuse(messages: object) -> None:
    request = read("/api/chat", {"messages": messages})

    assert "" == request.asked.text
    assert messages == json.loads(addressed(request, "m", 1))["messages"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"prompt": "b", "suffix": "c", "system": "a"}, "a\nb\nc"),
        ({"prompt": ""}, ""),
        ({"prompt": None}, ""),
        ({"prompt": 7}, ""),
        ({"prompt": {"a": "b"}}, ""),
        ({"prompt": ["a", "b"]}, "a\nb"),
        ({"prompt": ["a", 7]}, "a"),
        ({"prompt": []}, ""),
        ({"prompt": [1, 2, 3]}, " " * 12),
        ({"prompt": [[1, 2], [3, 4]]}, " " * 16),
    ],
)
def test_prompts_are_texts_lists_of_texts_or_numbers_of_tokens(fields: dict[str, object], text: str) -> None:
    assert text == read("/v1/completions", fields).asked.text


@pytest.mark.parametrize(
    ("path", "fields", "text"),
    [
        ("/v1/embeddings", {"input": "a", "prompt": "b"}, "a"),
        ("/v1/embeddings", {"input": ["a", "b"]}, "a\nb"),
        ("/v1/embeddings", {"input": [[1, 2]]}, " " * 8),
        ("/api/embed", {"input": ["a"]}, "a"),
        ("/api/embeddings", {"prompt": "b"}, "b"),
        ("/api/embed", {}, ""),
    ],
)
def test_what_is_embedded_is_read_and_never_moves(path: str, fields: dict[str, object], text: str) -> None:
    request = read(path, fields)

    assert (text, 1, False) == (request.asked.text, request.asked.max_output_tokens, request.fallback)


def test_what_a_model_reads_besides_the_words_counts_as_context() -> None:
    tools = [{"type": "function", "function": {"name": "x" * 400}}]
    calls = [{"function": {"name": "y" * 400}}]

    with_tools = chat({"content": "four"}, tools=tools).asked
    with_calls = chat({"content": "four"}, {"content": "", "tool_calls": calls}).asked
    with_history = native(prompt="four", context=[1, 2, 3, 4, 5]).asked

    assert -(-(4 + len(json.dumps(tools))) // 4) == with_tools.context_tokens
    assert -(-(5 + len(json.dumps(calls))) // 4) == with_calls.context_tokens
    assert (1 + 5, "four") == (with_history.context_tokens, with_history.text)
    assert native(prompt="four", context=[]).asked.context_tokens is None
    assert chat({"content": "four", "tool_calls": None}, tools=[]).asked.context_tokens is None


# ── needs ────────────────────────────────────────────────────────────────────────────────────────────────────────────

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}


@pytest.mark.parametrize(
    ("path", "fields", "needs"),
    [
        ("/v1/chat/completions", {"tools": [{"type": "function"}]}, {"tools"}),
        ("/v1/chat/completions", {"tools": []}, set()),
        ("/v1/chat/completions", {"tools": None}, set()),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}, {"json"}),
        ("/v1/chat/completions", {"response_format": {"a": "x" * 3000, "type": "json_schema"}}, {"json"}),
        ("/v1/chat/completions", {"response_format": {"type": "text", "a": "json"}}, set()),
        ("/v1/chat/completions", {"response_format": None}, set()),
        ("/v1/chat/completions", {"response_format": 7}, set()),
        ("/v1/chat/completions", {"format": "json"}, set()),
        ("/v1/chat/completions", {"messages": [{"content": [IMAGE]}]}, {"vision"}),
        ("/v1/chat/completions", {"messages": [{"content": [{"type": "input_image"}]}]}, {"vision"}),
        ("/v1/chat/completions", {"messages": [{"content": [IMAGE]}, {"content": "a"}]}, {"vision"}),
        ("/api/chat", {"messages": [{"content": "a", "images": ["AA"]}, {"content": "b"}]}, {"vision"}),
        ("/api/chat", {"messages": [{"content": "a", "images": []}]}, set()),
        ("/api/chat", {"tools": [{}], "format": "json"}, {"tools", "json"}),
        ("/api/generate", {"images": ["AA"]}, {"vision"}),
        ("/api/generate", {"images": []}, set()),
        ("/api/generate", {"images": None}, set()),
        ("/api/generate", {"format": "json"}, {"json"}),
        ("/api/generate", {"format": {"type": "object"}}, {"json"}),
        ("/api/generate", {"format": ""}, set()),
        ("/api/generate", {"format": None}, set()),
        ("/api/generate", {"response_format": {"type": "json_object"}}, set()),
        ("/api/embed", {"input": "json"}, set()),
    ],
)
def test_what_a_model_must_be_able_to_do_is_seen(path: str, fields: dict[str, object], needs: set[str]) -> None:
    assert needs == read(path, fields).asked.requires


def test_a_list_with_only_blanks_in_it_asks_for_no_tools() -> None:
    assert frozenset() == told(V1_CHAT, b'{"tools":[ \n ]}', NONE_WISHED).asked.requires


# ── lengths and repeats ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "fields", "most"),
    [
        ("/v1/chat/completions", {"max_tokens": 7}, 7),
        ("/v1/chat/completions", {"max_completion_tokens": 8, "max_tokens": 7}, 8),
        ("/v1/chat/completions", {"max_completion_tokens": None, "max_tokens": 7}, 7),
        ("/v1/chat/completions", {"max_tokens": 0}, None),
        ("/v1/chat/completions", {"max_tokens": True}, None),
        ("/v1/chat/completions", {"max_tokens": "7"}, None),
        ("/v1/chat/completions", {"max_tokens": 7.5}, None),
        ("/v1/chat/completions", {"options": {"num_predict": 7}}, None),
        ("/api/generate", {"options": {"num_predict": 7}}, 7),
        ("/api/generate", {"options": {"num_predict": 0}}, None),
        ("/api/generate", {"options": {"num_predict": -1}}, None),
        ("/api/generate", {"options": {"num_predict": True}}, None),
        ("/api/generate", {"options": 7}, None),
        ("/api/generate", {"max_tokens": 7}, None),
        ("/api/generate", {}, None),
    ],
)
def test_where_an_answer_is_cut_at_the_latest_is_read(path: str, fields: dict[str, object], most: int | None) -> None:
    assert most == read(path, fields).asked.max_output_tokens


@pytest.mark.parametrize(
    ("temperature", "same"),
    [
        ("0", True),
        ("0.0", True),
        ("-0.0", True),
        ("0e5", True),
        ("0.1", False),
        ("1", False),
        ("true", False),
        ("false", False),
        ("null", False),
        ('"0"', False),
        ("[0]", False),
        ("1" * 5000, False),
        ("0." + "0" * 100, False),  # too long a number to be read
    ],
)
def test_only_temperature_zero_promises_the_same_answer(temperature: str, same: bool) -> None:
    body = b'{"temperature":' + temperature.encode() + b"}"

    assert same == told(V1_CHAT, body, NONE_WISHED).deterministic
    if len(temperature) < 100:
        assert same == told(GENERATE, b'{"options":' + body + b"}", NONE_WISHED).deterministic
    assert not told(GENERATE, body, NONE_WISHED).deterministic
    assert not told(V1_CHAT, b'{"options":' + body + b"}", NONE_WISHED).deterministic


# ── headers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_header_wishes_nothing() -> None:
    assert Wishes(asked=Asked(), fallback=True, cache=None) == wished(("Content-Type", "x"), ("X-Other", "y"))


def test_each_header_is_a_wish() -> None:
    asked = wished(
        ("X-Dispatcher-Task", "coding"),
        ("X-Dispatcher-Complexity", "high"),
        ("X-Dispatcher-Prefer", " speed "),
        ("X-Dispatcher-Priority", "batch"),
        ("X-Dispatcher-Deadline", "2.5"),
        ("X-Dispatcher-Agent", "daily-digest"),
        ("X-Dispatcher-Fallback", "off"),
        ("X-Dispatcher-Cache", "on"),
        ("X-Dispatcher-Unknown", "passes"),
    )

    assert (
        Wishes(
            asked=Asked(
                task="coding",
                complexity="complex",
                prefer="speed",
                priority="batch",
                deadline_seconds=2.5,
                agent="daily-digest",
            ),
            fallback=False,
            cache=True,
        )
        == asked
    )


@pytest.mark.parametrize(
    ("header", "value", "read_as"),
    [("Cache", "off", Wishes(asked=Asked(), cache=False)), ("Fallback", "on", Wishes(asked=Asked(), fallback=True))],
)
def test_a_header_may_say_the_other_word(header: str, value: str, read_as: Wishes) -> None:
    assert read_as == wished((f"X-Dispatcher-{header}", value))


@pytest.mark.parametrize(("word", "meaning"), [("low", "simple"), ("medium", "moderate"), ("ambiguous", "ambiguous")])
def test_complexity_has_two_vocabularies(word: str, meaning: str) -> None:
    assert meaning == wished(("X-Dispatcher-Complexity", word)).asked.complexity


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Task", "cooking"),
        ("Task", ""),
        ("Task", "x" * 10_000),
        ("Complexity", "HIGH"),
        ("Prefer", "cheap"),
        ("Priority", "urgent"),
        ("Deadline", "soon"),
        ("Deadline", "0"),
        ("Deadline", "-1"),
        ("Deadline", "nan"),
        ("Deadline", "inf"),
        ("Deadline", "86401"),
        ("Deadline", ""),
        ("Deadline", "9" * 5000),
        ("Agent", "x" * 201),
        ("Agent", "a\tb"),
        ("Agent", "a\x1b[31mb"),
        ("Agent", "a\x85b"),
        ("Fallback", "maybe"),
        ("Cache", "true"),
    ],
)
def test_a_wish_outside_its_vocabulary_is_refused_by_name_and_in_one_printable_line(header: str, value: str) -> None:
    with pytest.raises(AskInvalid) as problem:
        wished((f"X-Dispatcher-{header}", value))

    assert str(problem.value).startswith(f"X-Dispatcher-{header}: ")
    assert str(problem.value).isprintable()
    assert 300 > len(str(problem.value))


@pytest.mark.parametrize("header", ["Task", "Agent", "Deadline", "Unknown"])
def test_a_wish_made_twice_is_refused(header: str) -> None:
    with pytest.raises(AskInvalid, match=f"X-Dispatcher-{header}: said more than once"):
        wished((f"X-Dispatcher-{header}", "1"), (f"X-Dispatcher-{header}", "1"))


def test_wishes_and_body_make_one_request() -> None:
    wish = wished(("X-Dispatcher-Task", "coding"), ("X-Dispatcher-Fallback", "off"), ("X-Dispatcher-Cache", "on"))
    request = read("/api/chat", {"model": "phi3:mini", "messages": [{"content": "hi"}]}, wish)

    assert Asked(task="coding", model="phi3:mini", text="hi") == request.asked
    assert (False, True, CHAT) == (request.fallback, request.cache, request.endpoint)
    assert read("/api/chat", {}).fallback
