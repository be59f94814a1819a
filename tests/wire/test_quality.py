"""What an answer shows of its own quality: faults are found, and what only looks like one is none."""

from __future__ import annotations

import json

import pytest

from dispatcher.vocabulary.relay import ENDPOINTS
from dispatcher.wire import relayed, surface
from dispatcher.wire.quality import (
    CUT,
    EMPTY,
    FAULTLESS,
    MAX_CALLS,
    MAX_CHARACTERS,
    REFUSED,
    REPEATED,
    WRONG_FORM,
    Expected,
    Heard,
    expected,
)
from dispatcher.wire.relayed_shapes import heard

PLAIN, JSON = Expected(), Expected(json=True)
TOOLS = Expected(tools=frozenset({"get_weather"}))
STUCK = "I think that the answer is probably this. "
TABLE = "".join(f"| row {number} | {number * number} |\n" for number in range(40))


def quality(text: str, wanted: Expected = PLAIN, *, cut: bool = False, calls: object = None) -> float:
    said = Heard()
    said.say(text)
    said.call(calls)
    said.cut = cut
    return said.quality(wanted)


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        pytest.param("The train leaves at nine.", PLAIN, FAULTLESS, id="an answer"),
        pytest.param("42", PLAIN, FAULTLESS, id="a short one"),
        pytest.param("", PLAIN, EMPTY, id="nothing"),
        pytest.param(" \n ", PLAIN, EMPTY, id="white space"),
        pytest.param("I'm sorry, but I can't help with that.", PLAIN, REFUSED, id="it refuses"),
        pytest.param("Sorry, I cannot do this.", PLAIN, REFUSED, id="shortly"),
        pytest.param("As an AI language model, I am unable to browse.", PLAIN, REFUSED, id="as an AI"),
        pytest.param("I'm sorry to hear that! Try this: restart it.", PLAIN, FAULTLESS, id="it is sorry, and helps"),
        pytest.param("He said: I cannot help you. She left.", PLAIN, FAULTLESS, id="somebody in the text refuses"),
        pytest.param(
            f"I'm sorry, but I can't open files. {'Here is how: ' * 3}{TABLE}", PLAIN, FAULTLESS, id="a long no"
        ),
        pytest.param('{"a": [1, 2]}', JSON, FAULTLESS, id="JSON"),
        pytest.param('Sure! {"a": 1}', JSON, WRONG_FORM, id="words before the JSON"),
        pytest.param('{"a": 1', JSON, WRONG_FORM, id="half of it"),
        pytest.param('{"a": 1', PLAIN, FAULTLESS, id="nobody asked for JSON"),
        pytest.param("Let me see. " + STUCK * 8, PLAIN, REPEATED, id="it is stuck"),
        pytest.param("Let me see. " + STUCK * 3, PLAIN, FAULTLESS, id="it says so three times"),
        pytest.param(TABLE, PLAIN, FAULTLESS, id="a table"),
        pytest.param("=" * 400, PLAIN, FAULTLESS, id="a line"),
        pytest.param("0, " * 200, PLAIN, REPEATED, id="a number without end"),
    ],
)
def test_faults_are_found_and_nothing_else_is(text, wanted, found):
    assert found == quality(text, wanted)


def test_a_limit_the_caller_set_is_no_fault_and_the_models_own_is():
    assert CUT == quality("The train", cut=True)
    assert FAULTLESS == quality("The train", Expected(limited=True), cut=True)
    assert FAULTLESS == quality('{"a": ', Expected(limited=True, json=True), cut=True), "what was cut is no JSON"


@pytest.mark.parametrize(
    ("calls", "found"),
    [
        pytest.param([{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}], FAULTLESS, id="native"),
        pytest.param(
            [{"index": 0, "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}], FAULTLESS, id="v1"
        ),
        pytest.param(
            [{"index": 0, "function": {"name": "get_weather", "arguments": ""}}], FAULTLESS, id="no arguments"
        ),
        pytest.param([{"function": {"name": "get_time", "arguments": {}}}], WRONG_FORM, id="a tool nobody offered"),
        pytest.param(
            [{"index": 0, "function": {"name": "get_weather", "arguments": "{city"}}], WRONG_FORM, id="no JSON"
        ),
        pytest.param(
            [{"index": 0, "function": {"name": "get_weather", "arguments": "[1]"}}], WRONG_FORM, id="no object"
        ),
        pytest.param([{"function": {"name": None, "arguments": {}}}], WRONG_FORM, id="no name"),
    ],
)
def test_tool_calls_are_judged_by_what_was_offered(calls, found):
    assert found == quality("", TOOLS, calls=calls)


def test_the_pieces_of_a_call_are_one():
    said = Heard()
    for piece in ('{"ci', 'ty": "Oslo"}'):
        said.call([{"index": 0, "function": {"name": "get_weather" if "ci" in piece else None, "arguments": piece}}])

    assert FAULTLESS == said.quality(TOOLS)


@pytest.mark.parametrize("calls", [None, 5, "x", [1], [{"function": 3}], [{"index": "a", "function": {}}], [{}] * 9999])
def test_odd_calls_are_survived(calls):
    quality("text", TOOLS, calls=calls)


def test_a_very_long_answer_is_bounded_and_its_form_not_judged():
    said = Heard()
    for _ in range(100_000):
        said.say("0123456789" * 10)

    assert sum(map(len, said._pieces)) < 70_000
    assert FAULTLESS == said.quality(JSON) or REPEATED == said.quality(JSON)


# ── as it passes by ───────────────────────────────────────────────────────────────────────────────────────────────────

NATIVE = [
    b'{"message":{"role":"assistant","content":"{\\"a\\":"},"done":false}\n',
    b'{"message":{"content":" 1}"},"done":false}\n',
    b'{"message":{"content":""},"done":true,"done_reason":"stop"}\n',
]
EVENTS = [
    b'data: {"choices":[{"delta":{"content":"{\\"a\\":"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":" 1}"}}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
]


@pytest.mark.parametrize(("kind", "pieces"), [("ollama", NATIVE), ("openai", EVENTS)])
def test_a_stream_is_heard_piece_by_piece(kind, pieces):
    watch = relayed.Watch(kind)
    for piece in pieces:
        watch.take(piece)

    assert watch.ended
    assert (FAULTLESS, FAULTLESS) == (watch.heard.quality(JSON), watch.heard.quality(PLAIN))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("ollama", {"message": {"content": "no JSON"}, "done": True, "done_reason": "length"}),
        ("ollama", {"response": "no JSON", "done": True, "done_reason": "length"}),
        ("openai", {"choices": [{"message": {"content": "no JSON"}, "finish_reason": "length"}]}),
        ("openai", {"choices": [{"text": "no JSON", "finish_reason": "length"}]}),
    ],
)
def test_a_whole_answer_is_heard_on_both_surfaces(kind, body):
    said = heard(kind, json.dumps(body).encode())

    assert (True, CUT) == (said.cut, said.quality(JSON))
    said.cut = False
    assert WRONG_FORM == said.quality(JSON)


def test_the_arguments_of_a_call_without_end_are_not_kept_and_not_judged():
    said = Heard()
    said.call([{"index": 0, "function": {"name": "get_weather", "arguments": '{"city": "'}}])
    for _ in range(100):
        said.call([{"index": 0, "function": {"arguments": "x" * 1024}}])

    assert FAULTLESS == said.quality(TOOLS), "its end was not heard"
    assert MAX_CHARACTERS >= sum(len(piece) for piece in said._calls[0].arguments)


def test_of_more_calls_than_are_kept_none_is_judged():
    said = Heard()
    for index in [*range(MAX_CALLS + 6), *range(MAX_CALLS + 6)]:  # begun, then ended
        half = '{"city": ' if index not in said._calls or not said._calls[index].arguments else '"Oslo"}'
        said.call([{"index": index, "function": {"name": "get_weather", "arguments": half}}])

    assert FAULTLESS == said.quality(TOOLS)
    assert MAX_CALLS == len(said._calls)


# ── what is expected ──────────────────────────────────────────────────────────────────────────────────────────────────


def told(path: str, **body: object) -> surface.Told:
    return surface.told(ENDPOINTS[path], json.dumps(body).encode(), surface.wishes([]))


def test_what_is_expected_is_read_off_the_request():
    messages = [{"role": "user", "content": "hi"}]
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}

    assert PLAIN == expected(told("/api/chat", messages=messages))
    assert JSON == expected(told("/api/chat", messages=messages, format="json"))
    assert TOOLS == expected(told("/v1/chat/completions", messages=messages, tools=[tool]))
    assert Expected(limited=True) == expected(told("/v1/chat/completions", messages=messages, max_tokens=5))
    assert Expected(tools=frozenset()) == expected(told("/api/chat", messages=messages, tools=[{"odd": 1}]))


def test_vectors_and_loads_are_not_judged():
    assert None is expected(told("/api/embed", input="hi"))
    assert None is expected(told("/api/generate", prompt=""))
