"""Where in the joined text the last message of the user begins, on each surface: what classify reads first."""

from __future__ import annotations

import json

import pytest

from dispatcher.vocabulary.relay import ENDPOINTS
from dispatcher.wire.select import asked_from_body
from dispatcher.wire.surface import told, wishes

SYSTEM = {"role": "system", "content": "be kind"}
FIRST = {"role": "user", "content": "one"}
ANSWER = {"role": "assistant", "content": "1"}
LAST = {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "three"}]}
BODIES = [
    pytest.param([SYSTEM, FIRST, ANSWER, LAST], "two\nthree", id="a conversation"),
    pytest.param([FIRST, ANSWER], "one\n1", id="the last word is not the user's"),
    pytest.param([LAST], "two\nthree", id="one message"),
    pytest.param([SYSTEM], "be kind", id="none of the user"),
    pytest.param([SYSTEM, {"role": "user", "content": ""}], "", id="an empty one"),
]


@pytest.mark.parametrize(("messages", "expected"), BODIES)
def test_of_select_it_is_where_the_last_of_role_user_begins(messages, expected):
    asked, _ = asked_from_body(json.dumps({"messages": messages}).encode())

    assert expected == asked.text[asked.last_at :]


def test_of_select_a_prompt_behind_messages_is_the_last():
    asked, _ = asked_from_body(json.dumps({"messages": [SYSTEM, FIRST], "prompt": "do it"}).encode())

    assert "do it" == asked.text[asked.last_at :]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
@pytest.mark.parametrize(("messages", "expected"), BODIES)
def test_of_a_relayed_chat_it_is_the_same(path, messages, expected):
    body = json.dumps({"model": "auto", "messages": messages}).encode()
    asked = told(ENDPOINTS[path], body, wishes([])).asked

    assert expected == asked.text[asked.last_at :]


def test_of_generate_the_system_prompt_stands_before_it():
    body = json.dumps({"model": "auto", "system": "be kind", "prompt": "do it"}).encode()
    asked = told(ENDPOINTS["/api/generate"], body, wishes([])).asked

    assert "do it" == asked.text[asked.last_at :]
