from __future__ import annotations

import json

import pytest

from dispatcher.errors import AskInvalid
from dispatcher.vocabulary.request import Asked
from dispatcher.wire import select
from dispatcher.wire.select import (
    MAX_JSON_DEPTH,
    OutcomeReport,
    asked_from_body,
    asked_from_query,
    decisions_from_query,
    depth_exceeds,
    nothing_from_body,
    outcome_from_body,
    performance_from_query,
)

EVERYTHING = {
    "prompt": "Summarise this.",
    "task": "summarization",
    "complexity": "complex",
    "prefer": "quality",
    "model": "qwen2.5:7b",
    "requires": ["tools", "json"],
    "context_tokens": 1200,
    "expected_output_tokens": 200,
    "deadline_seconds": 30,
    "priority": "batch",
    "agent": "daily-digest",
    "start": False,
    "wait_seconds": 0,
    "lease_seconds": 90,
    "dry_run": True,
    "soft": True,
}
ASKED_EVERYTHING = Asked(
    text="Summarise this.",
    task="summarization",
    complexity="complex",
    prefer="quality",
    model="qwen2.5:7b",
    requires=frozenset({"tools", "json"}),
    context_tokens=1200,
    expected_output_tokens=200,
    deadline_seconds=30.0,
    priority="batch",
    agent="daily-digest",
    start=False,
    wait_seconds=0.0,
    lease_seconds=90.0,
    dry_run=True,
)


def test_every_field_of_a_body_is_read():
    assert (ASKED_EVERYTHING, True) == asked_from_body(json.dumps(EVERYTHING).encode())


def test_a_query_says_the_same_as_a_body():
    words = {**EVERYTHING, "start": "false", "dry_run": "true", "soft": "1", "requires": "tools,json"}

    assert (ASKED_EVERYTHING, True) == asked_from_query([(name, str(value)) for name, value in words.items()])


@pytest.mark.parametrize("body", [b"", b"{}", json.dumps(dict.fromkeys(EVERYTHING)).encode()])
def test_nothing_said_or_null_means_all_defaults(body):
    assert (Asked(), False) == asked_from_body(body)


def test_a_bare_flag_in_a_query_is_true():
    asked, soft = asked_from_query([("dry_run", ""), ("start", ""), ("soft", "")])

    assert (True, True, True) == (asked.dry_run, asked.start, soft)


@pytest.mark.parametrize("name", ["task", "context_tokens", "prompt", "requires", "messages", "wait_seconds"])
def test_anything_else_empty_in_a_query_is_refused_by_name(name):
    with pytest.raises(AskInvalid, match=f"{name}: empty"):
        asked_from_query([(name, "")])


@pytest.mark.parametrize("read", [asked_from_query, decisions_from_query, performance_from_query])
def test_an_unknown_parameter_is_refused_with_and_without_a_value(read):
    for value in ("", "1"):
        with pytest.raises(AskInvalid, match="dry_rum: no such field"):
            read([("dry_rum", value)])


def test_of_a_long_unknown_name_only_the_beginning_is_looked_at(monkeypatch):
    looked_at = []
    monkeypatch.setattr(select.difflib, "get_close_matches", lambda word, *_, **__: looked_at.append(word) or [])
    for name in ("x" * 1_000_000, " - at `$" * 100_000, "\n" * 70):
        with pytest.raises(AskInvalid, match="no such field"):
            asked_from_body(json.dumps({name: 1}).encode())

    assert 3 == len(looked_at)
    assert all(len(word) <= 60 for word in looked_at)


@pytest.mark.parametrize(
    "messages",
    [[{}] * 10_001, [{"content": [{}] * 10_001}]],
)
def test_more_messages_or_pieces_than_anybody_reads_are_refused(messages):
    with pytest.raises(AskInvalid, match="at most 10000"):
        asked_from_body(json.dumps({"messages": messages}).encode())
    with pytest.raises(AskInvalid, match="at most 10000"):
        asked_from_query([("messages", json.dumps(messages))])


def test_ten_thousand_messages_are_read():
    asked, _ = asked_from_body(json.dumps({"messages": [{"content": "a"}] * 10_000}).encode())

    assert 10_000 == asked.text.count("a")


@pytest.mark.parametrize(
    ("theirs", "ours"), [("low", "simple"), ("medium", "moderate"), ("high", "complex"), ("ambiguous", "ambiguous")]
)
def test_other_words_for_complexity_are_understood(theirs, ours):
    assert ours == asked_from_body(json.dumps({"complexity": theirs}).encode())[0].complexity


def test_messages_are_joined_to_text_whatever_the_form_of_their_content():
    messages = [
        {"role": "system", "content": "Be brief.", "name": "x"},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
    ]
    body = json.dumps({"messages": messages, "prompt": "And why?"}).encode()

    assert "Be brief.\nWhat is it?\nAnd why?" == asked_from_body(body)[0].text


def test_messages_in_a_query_are_json_text():
    assert "hi" == asked_from_query([("messages", '[{"role": "user", "content": "hi"}]')])[0].text


def test_requires_may_repeat_in_a_query():
    asked, _ = asked_from_query([("requires", "tools"), ("requires", "json,vision")])

    assert frozenset({"tools", "json", "vision"}) == asked.requires


@pytest.mark.parametrize(
    ("body", "told"),
    [
        pytest.param({"wait_seconds": 281}, "wait_seconds: 281 is not allowed; a number from 0 to 280", id="too long"),
        pytest.param({"lease_seconds": 901}, "lease_seconds: 901 is not allowed; a number above 0, at most 900"),
        pytest.param({"context_tokens": 0}, "context_tokens: 0 is not allowed; a whole number from 1 to 1000000000"),
        pytest.param({"context_tokens": 1.5}, "context_tokens: 1.5 is not allowed; a whole number"),
        pytest.param({"expected_output_tokens": "9"}, 'expected_output_tokens: "9" is not allowed', id="a string"),
        pytest.param({"deadline_seconds": -1}, "deadline_seconds: -1 is not allowed; a number above 0"),
        pytest.param({"task": "cooking"}, 'task: "cooking" is not allowed; one of coding, architecture'),
        pytest.param({"prefer": "cheap"}, 'prefer: "cheap" is not allowed; one of speed, balanced, quality'),
        pytest.param({"requires": ["wings"]}, 'requires: ["wings"] is not allowed; a list of tools, json, vision'),
        pytest.param({"soft": "true"}, 'soft: "true" is not allowed; true or false'),
        pytest.param({"agent": "a\nb"}, "none of them control characters", id="control characters"),
        pytest.param({"agent": "a\n"}, "none of them control characters", id="one at the very end"),
        pytest.param({"agent": "x" * 300}, "agent: ", id="long agent"),
        pytest.param({"taks": "coding"}, "taks: no such field; did you mean 'task'?", id="unknown, nearly right"),
        pytest.param({"zzz": 1}, "zzz: no such field; known: prompt, messages, task", id="unknown"),
        pytest.param([], "the body is not a JSON object", id="a list"),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_what_is_allowed(body, told):
    with pytest.raises(AskInvalid) as refused:
        asked_from_body(json.dumps(body).encode())

    assert told in str(refused.value)


@pytest.mark.parametrize(
    "body",
    [b"nope", b'{"wait_seconds": NaN}', b'{"wait_seconds": Infinity}', b'{"prompt": "\xff"}', b'{"task": ', b"{} {}"],
)
def test_what_is_no_json_is_said_to_be_none(body):
    with pytest.raises(AskInvalid, match="not JSON"):
        asked_from_body(body)


def test_a_number_beyond_every_float_is_out_of_range():
    with pytest.raises(AskInvalid, match="deadline_seconds: 1e999 is not allowed"):
        asked_from_body(b'{"deadline_seconds": 1e999}')


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("name", ["deadline_seconds", "wait_seconds", "lease_seconds"])
def test_no_number_in_a_query_is_nan_or_endless(name, number):
    with pytest.raises(AskInvalid, match=name):
        asked_from_query([(name, number)])


def test_a_parameter_given_twice_is_refused():
    with pytest.raises(AskInvalid, match="task: given more than once"):
        asked_from_query([("task", "coding"), ("task", "general")])


@pytest.mark.parametrize(
    "body",
    [{"prompt": ["secret words"]}, {"messages": "secret words"}, {"messages": [{"content": 5, "x": "secret words"}]}],
)
def test_a_refusal_never_repeats_the_callers_words(body):
    with pytest.raises(AskInvalid) as refused:
        asked_from_body(json.dumps(body).encode())

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"prompt": 5}, "prompt: must be text, not a number"),
        ({"prompt": ["a"]}, "prompt: must be text, not a list"),
        ({"prompt": {"a": 1}}, "prompt: must be text, not an object"),
        ({"prompt": True}, "prompt: must be text, not true"),
        ({"messages": "a"}, "messages: must be a list of at most 10000"),
        ({"messages": [5]}, "messages: what was sent is not allowed; a list of at most 10000"),
    ],
)
def test_a_secret_of_the_wrong_kind_is_told_by_its_kind(body, told):
    with pytest.raises(AskInvalid) as refused:
        asked_from_body(json.dumps(body).encode())

    assert str(refused.value).startswith(told)


def test_a_prompt_with_a_bare_line_break_is_told_how_to_escape_it():
    with pytest.raises(AskInvalid, match=r"must be escaped: in n8n use JSON\.stringify"):
        asked_from_body(b'{"prompt": "one\ntwo"}')


@pytest.mark.parametrize("body", [b"", b" ", b"{}", b" {} "])
def test_a_renewal_without_a_word_is_one(body):
    nothing_from_body(body)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"lease_seconds": 600}', "lease_seconds: no such field; a renewal takes no body"),
        (b"[1]", "a renewal takes no body"),
        (b"soon", "a renewal takes no body"),
        (b'"\xff"', "a renewal takes no body"),
    ],
)
def test_a_renewal_that_says_something_is_refused(body, told):
    with pytest.raises(AskInvalid, match=told):
        nothing_from_body(body)


@pytest.mark.parametrize("levels", [MAX_JSON_DEPTH + 1, 5000, 200_000])
def test_a_body_that_nests_too_deep_is_refused_before_it_is_decoded(levels):
    body = b'{"messages": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    with pytest.raises(AskInvalid, match="deeper than 64"):
        asked_from_body(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"[" * 64 + b"]" * 64, False, id="just so"),
        pytest.param(b"[" * 65 + b"]" * 65, True, id="one too many"),
        pytest.param(b"[" + b"{}," * 200 + b"1]", False, id="wide, not deep"),
        pytest.param(json.dumps({"prompt": '[{"' * 200}).encode(), False, id="brackets in text"),
        pytest.param(b"{" * 60 + b'"' + b"[" * 200, False, id="brackets in text that does not end"),
        pytest.param(b"[" * 60 + b'"' + b'\\"[' * 200, False, id="and has quotes in it"),
        pytest.param(b"[" * 65 + b'"' + b'\\"' * 1_000_000, True, id="and would take the square of its length"),
    ],
)
def test_depth_counts_brackets_outside_of_text(body, expected):
    assert expected == depth_exceeds(body, 64)


def test_an_outcome_is_read_whole():
    body = {
        "decision_id": "d-1",
        "status": "ok",
        "duration_seconds": 6.1,
        "output_tokens": 120,
        "prompt_tokens": 300,
        "quality": 8,
    }

    expected = OutcomeReport(
        decision_id="d-1", status="ok", duration_seconds=6.1, output_tokens=120, prompt_tokens=300, quality=8.0
    )
    assert expected == outcome_from_body(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"status": "shed"}, "one of ok, error, timeout, cancelled"),
        ({"quality": 11}, "a number from 0 to 10"),
        ({"duration_seconds": -1}, "a number from 0 \\(not timed\\) to 604800"),
        ({"duration_seconds": 604_801}, "a number from 0 \\(not timed\\) to 604800"),
        ({"duration_seconds": 1e308}, "a number from 0 \\(not timed\\) to 604800"),
        ({"output_tokens": -1}, "a whole number from 0 to 10000000"),
        ({"output_tokens": 10_000_001}, "a whole number from 0 to 10000000"),
        ({"prompt_tokens": 10**400}, "a whole number from 0 to 10000000|not JSON"),
        ({"decision_id": ""}, "the decision_id of an answer"),
        ({"decision_id": None}, "the decision_id of an answer"),
        ({"tokens": 1}, "no such field"),
    ],
)
def test_an_outcome_that_cannot_be_is_refused(change, told):
    body = {"decision_id": "d-1", "status": "ok", "duration_seconds": 1.0, **change}

    with pytest.raises(AskInvalid, match=told):
        outcome_from_body(json.dumps(body).encode())


def test_an_outcome_without_its_decision_is_refused_by_name():
    with pytest.raises(AskInvalid, match="decision_id: missing"):
        outcome_from_body(b'{"status": "ok", "duration_seconds": 1}')


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("1700000000", 1_700_000_000.0),
        ("1700000000.5", 1_700_000_000.5),
        ("2023-11-14T22:13:20Z", 1_700_000_000.0),
        ("2023-11-14T22:13:20", 1_700_000_000.0),
        ("2023-11-14T23:13:20 01:00", 1_700_000_000.0),
    ],
)
def test_since_is_unix_seconds_or_a_time(since, expected):
    assert (7, "phi3:mini", expected) == decisions_from_query(
        [("limit", "7"), ("model", "phi3:mini"), ("since", since)]
    )


def test_decisions_have_a_limit_by_default():
    assert (50, None, None) == decisions_from_query([])


@pytest.mark.parametrize(
    "pair", [("limit", "0"), ("limit", "1001"), ("since", "yesterday"), ("since", "nan"), ("page", "2")]
)
def test_a_listing_that_cannot_be_is_refused(pair):
    with pytest.raises(AskInvalid, match=pair[0]):
        decisions_from_query([pair])


def test_performance_is_filtered_by_agent_model_and_task():
    pairs = [("agent_type", "digest"), ("model", "phi3:mini"), ("task", "coding")]

    assert ("digest", "phi3:mini", "coding") == performance_from_query(pairs)
