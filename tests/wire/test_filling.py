"""Options of the preferences reach a model where its caller said nothing of them, and never over the caller's own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dispatcher.vocabulary.preference_settings import NO_OPTIONS, GenerationOptions
from dispatcher.vocabulary.relay import ENDPOINTS
from dispatcher.vocabulary.request import Asked
from dispatcher.wire.decision import document
from dispatcher.wire.surface import Wishes, addressed, told, wishes
from tests.decisions import a_decision, a_selected

WANTED = GenerationOptions(temperature=0.2, top_k=5, num_predict=64, seed=0, stop=("END", "STOP"))


def sent(path: str, wanted: GenerationOptions = WANTED, **fields: Any) -> dict[str, Any]:
    request = told(ENDPOINTS[path], json.dumps({"model": "m", **fields}).encode(), Wishes(asked=Asked()))
    goes: dict[str, Any] = json.loads(addressed(request, "m", 4096, wanted))
    return goes


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        pytest.param({}, {"temperature": 0.2, "top_k": 5, "num_predict": 64, "seed": 0}, id="says nothing"),
        pytest.param(
            {"temperature": 0, "SEED": 3}, {"temperature": 0, "SEED": 3, "top_k": 5, "num_predict": 64}, id="its own"
        ),
        pytest.param({"top_k": None}, {"temperature": 0.2, "top_k": 5, "num_predict": 64, "seed": 0}, id="null"),
        pytest.param(
            {"num_ctx": 9, "top_k": "x", "num_predict": -1},
            {"temperature": 0.2, "top_k": "x", "num_predict": -1, "seed": 0},
            id="odd",
        ),
    ],
)
def test_a_native_request_is_completed_and_keeps_its_own(own, expected):
    for path in ("/api/generate", "/api/chat"):
        assert {**expected, "stop": ["END", "STOP"], "num_ctx": 4096} == sent(path, options=own)["options"]


def test_a_native_request_without_options_gets_them():
    assert 0.2 == sent("/api/chat")["options"]["temperature"]
    assert 0.2 == sent("/api/chat", options=None)["options"]["temperature"]


def test_options_that_are_none_are_left_to_the_server():
    assert "warm" == sent("/api/chat", options="warm")["options"]


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        pytest.param({}, {"temperature": 0.2, "max_tokens": 64, "seed": 0, "stop": ["END", "STOP"]}, id="says nothing"),
        pytest.param(
            {"temperature": 1, "stop": "x"}, {"temperature": 1, "stop": "x", "max_tokens": 64, "seed": 0}, id="its own"
        ),
        pytest.param(
            {"max_completion_tokens": 3},
            {"max_completion_tokens": 3, "temperature": 0.2, "seed": 0, "stop": ["END", "STOP"]},
            id="another word",
        ),
        pytest.param(
            {"max_tokens": None, "seed": 7},
            {"max_tokens": 64, "temperature": 0.2, "seed": 7, "stop": ["END", "STOP"]},
            id="null",
        ),
    ],
)
def test_a_v1_request_is_completed_in_openais_names(own, expected):
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert {"model": "m", **expected} == sent(path, **own)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed", "/api/embeddings"])
def test_an_embedding_is_not_told_how_to_write(path):
    assert sent(path, NO_OPTIONS, input="x") == sent(path, input="x")


def test_an_answer_of_select_names_the_options_beside_the_context():
    plain, wanted = document(a_selected()), document(a_selected(a_decision(options=WANTED)))

    assert {"num_ctx": 4096} == plain["options"]
    options = {"num_ctx": 4096, "temperature": 0.2, "top_k": 5, "num_predict": 64, "seed": 0, "stop": ["END", "STOP"]}
    assert options == wanted["options"]


def test_headers_that_say_nothing_leave_it_to_the_agent():
    assert {"prefer", "priority"} == wishes(()).asked.unsaid
    assert {"priority"} == wishes([(b"x-dispatcher-prefer", b"balanced")]).asked.unsaid
    assert set() == wishes([(b"x-dispatcher-prefer", b"speed"), (b"x-dispatcher-priority", b"normal")]).asked.unsaid
