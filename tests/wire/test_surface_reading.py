"""wire.surface: what is understood of a request: its words, what they need, and what its headers wish."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dispatcher.errors import AskInvalid
from dispatcher.vocabulary.relay import ENDPOINTS
from dispatcher.vocabulary.request import Asked
from dispatcher.wire.surface import Told, Wishes, addressed, told, wishes

NONE_WISHED = Wishes(asked=Asked())
CHAT, GENERATE, V1_CHAT = (ENDPOINTS[path] for path in ("/api/chat", "/api/generate", "/v1/chat/completions"))


def read(path: str, body: object, wished: Wishes = NONE_WISHED) -> Told:
    return told(ENDPOINTS[path], body if isinstance(body, bytes) else json.dumps(body).encode(), wished)


def chat(*messages: Any, **fields: Any) -> Told:
    return read("/v1/chat/completions", {"messages": list(messages), **fields})


def native(**fields: Any) -> Told:
    return read("/api/generate", {"model": "phi3:mini", **fields})


def wished(*pairs: tuple[str, str]) -> Wishes:
    return wishes((name.lower().encode(), value.encode("latin-1")) for name, value in pairs)


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
        ("/v1/chat/completions", {"max_tokens": 1}, 1),
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


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("Dedline", "X-Dispatcher-Dedline: no such header; did you mean X-Dispatcher-Deadline?"),
        ("Zzz", "X-Dispatcher-Zzz: no such header; there are X-Dispatcher-Task, "),
        ("Model", "name the model in the body"),
    ],
)
def test_a_header_of_ours_that_is_none_is_refused_with_what_may_be_meant(header: str, hint: str) -> None:
    with pytest.raises(AskInvalid) as problem:
        wished((f"X-Dispatcher-{header}", "x"))

    assert hint in str(problem.value)


@pytest.mark.parametrize(
    ("body", "hint"), [(b" ", "the body is empty"), (b'{"a": "line\nbreak"}', "in n8n use JSON.stringify")]
)
def test_a_body_that_is_no_json_gets_a_hint(body: bytes, hint: str) -> None:
    with pytest.raises(AskInvalid) as problem:
        read("/v1/chat/completions", body)

    assert hint in str(problem.value)


@pytest.mark.parametrize("seconds", ["0.001", "86400"])
def test_a_deadline_may_be_a_millisecond_or_a_day(seconds: str) -> None:
    assert float(seconds) == wished(("X-Dispatcher-Deadline", seconds)).asked.deadline_seconds


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


@pytest.mark.parametrize("header", ["Task", "Agent", "Deadline"])
def test_a_wish_made_twice_is_refused(header: str) -> None:
    with pytest.raises(AskInvalid, match=f"X-Dispatcher-{header}: said more than once"):
        wished((f"X-Dispatcher-{header}", "1"), (f"X-Dispatcher-{header}", "1"))


def test_wishes_and_body_make_one_request() -> None:
    wish = wished(("X-Dispatcher-Task", "coding"), ("X-Dispatcher-Fallback", "off"), ("X-Dispatcher-Cache", "on"))
    request = read("/api/chat", {"model": "phi3:mini", "messages": [{"content": "hi"}]}, wish)

    assert Asked(task="coding", model="phi3:mini", text="hi") == request.asked
    assert (False, True, CHAT) == (request.fallback, request.cache, request.endpoint)
    assert read("/api/chat", {}).fallback
