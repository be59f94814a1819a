"""What a request needs beyond its task, and which of the seven capabilities it asks for."""

from __future__ import annotations

import pytest

from dispatcher.policy.classify import classify
from dispatcher.policy.scorers import TASK_NEEDS, capability_asked
from dispatcher.vocabulary.request import TASKS, Asked, Request
from dispatcher.vocabulary.settings import DEFAULT_CHAIN


def classified(text: str = "", **asked) -> Request:
    return classify(Asked(text=text, **asked), request_id="d-1", at_seconds=0.0)


@pytest.mark.parametrize(
    ("text", "asked", "needs"),
    [
        pytest.param("Tell me about foxes", {}, set(), id="none"),
        pytest.param("Write a creative story about a fox", {}, {"creativity"}, id="creativity"),
        pytest.param("Give me the exactly correct dosage, be precise", {}, {"accuracy"}, id="accuracy"),
        pytest.param("Quick question: who is it?", {}, {"speed"}, id="speed, in words"),
        pytest.param("Tell me about foxes", {"prefer": "speed"}, {"speed"}, id="speed, stated"),
        pytest.param("Tell me about foxes", {"deadline_seconds": 5.0}, {"speed"}, id="a deadline"),
        pytest.param("Tell me about foxes", {"prefer": "quality"}, {"accuracy"}, id="quality"),
        pytest.param("Return only JSON with name and age", {}, {"json"}, id="json, in words"),
        pytest.param("Tell me about foxes", {"requires": frozenset({"json", "tools"})}, {"json", "tools"}, id="stated"),
        pytest.param("You can use the following tools: search", {}, {"tools"}, id="tools, in words"),
        pytest.param("x " * 20000, {}, {"context"}, id="a long context"),
    ],
)
def test_needs_are_read_from_wording_and_wishes(text, asked, needs):
    seen = classified(text, **asked)

    assert needs == seen.needs
    assert len(needs) == sum(line.startswith("needs ") for line in seen.evidence)


def test_a_guessed_need_refuses_no_model():
    assert frozenset() == classified("Return only JSON with name and age").requires


@pytest.mark.parametrize("task", TASKS)
def test_shares_of_the_capabilities_sum_to_one_whatever_is_needed(task):
    seven = set(DEFAULT_CHAIN[0].capabilities)
    plain = Request(id="d-1", at_seconds=0.0, task=task)
    needy = Request(id="d-1", at_seconds=0.0, task=task, needs=frozenset({"speed", "creativity", "json", "context"}))

    assert TASK_NEEDS[task] == capability_asked(plain)
    for asked in (plain, needy):
        assert pytest.approx(1.0) == sum(capability_asked(asked).values())
        assert set(capability_asked(asked)) <= seven


def test_a_need_asks_more_of_its_capability():
    plain = Request(id="d-1", at_seconds=0.0, task="general")
    creative = Request(id="d-1", at_seconds=0.0, task="general", needs=frozenset({"creativity"}))

    assert capability_asked(creative)["creativity"] > capability_asked(plain)["creativity"]
