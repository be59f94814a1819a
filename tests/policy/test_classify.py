"""From words to features: what the rules see, whose word wins, and that the words end there."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dispatcher.policy.classify import _COMPLEX, _TASK_RULES, READ_CHARACTERS, classify
from dispatcher.vocabulary.request import COMPLEXITIES, TASKS, Asked, Request
from tests.builders import NOW


def classified(text: str = "", **asked) -> Request:
    return classify(Asked(text=text, **asked), request_id="d-1", at_seconds=NOW)


PROMPTS = [
    # debugging
    ("Traceback (most recent call last):\n  File 'x.py', line 3\nKeyError: 'a'", "debugging", "moderate"),
    ("Here is the stack trace of our service, what happened?", "debugging", "moderate"),
    ("Fix the bug in this function: def f(x): return x+", "debugging", "moderate"),
    ("Why does my code crash when the list is empty?", "debugging", "moderate"),
    ("What is wrong with this code? it is not working", "debugging", "moderate"),
    ("Exception in thread main java.lang.NullPointerException", "debugging", "moderate"),
    ("Debug a race: concurrent writers make the function fail, it is broken", "debugging", "complex"),
    # testing
    ("Write unit tests for the parser", "testing", "moderate"),
    ("Generate test cases for a login form", "testing", "moderate"),
    ("Please make this pass under pytest", "testing", "moderate"),
    ("Draft a test plan for the checkout", "testing", "moderate"),
    ("Create comprehensive integration tests for the API", "testing", "complex"),
    # summarization
    ("Summarize this article in three sentences", "summarization", "moderate"),
    ("Give me a summary of the meeting", "summarization", "moderate"),
    ("TL;DR of the following mail", "summarization", "moderate"),
    ("What are the key points here?", "summarization", "moderate"),
    ("Summarise the thread thoroughly", "summarization", "complex"),
    # documentation
    ("Add docstrings to this module", "documentation", "moderate"),
    ("Write a README for the project", "documentation", "moderate"),
    ("Write documentation for the REST interface", "documentation", "moderate"),
    ("Update the changelog", "documentation", "moderate"),
    # architecture
    ("Design a scalable event-driven system", "architecture", "complex"),
    ("Microservices or a monolith for us?", "architecture", "complex"),
    ("Propose an architecture for a chat application", "architecture", "complex"),
    ("Design a database schema for a shop", "architecture", "complex"),
    # coding
    ("Write a Python function that reverses a string", "coding", "moderate"),
    ("Implement a binary search algorithm", "coding", "moderate"),
    ("Create a bash script to rotate logs", "coding", "moderate"),
    ("Refactor this class", "coding", "moderate"),
    ("Write a SQL query for the top ten customers", "coding", "moderate"),
    ("```\nint main() {}\n``` continue please", "coding", "moderate"),
    ("Optimize this: select name from users", "coding", "complex"),
    # planning
    ("Make a plan for the product launch", "planning", "moderate"),
    ("A roadmap for the next two quarters", "planning", "moderate"),
    ("Plan a week in Lisbon, an itinerary please", "planning", "moderate"),
    ("Schedule these five meetings", "planning", "moderate"),
    # analysis
    ("Compare the two offers", "analysis", "moderate"),
    ("Pros and cons of remote work", "analysis", "moderate"),
    ("Analyze the sentiment of this review", "analysis", "moderate"),
    ("Classify this ticket: printer is on fire", "analysis", "moderate"),
    ("Evaluate in depth the trade-offs of raft and paxos", "analysis", "complex"),
    # general
    ("Hi there!", "general", "simple"),
    ("Thanks a lot", "general", "simple"),
    ("Translate 'good morning' into French", "general", "simple"),
    ("What is the capital of Peru?", "general", "simple"),
    ("Who was Ada Lovelace?", "general", "simple"),
    ("Tell me a story about a fox", "general", "moderate"),
    ("Prove that there are infinitely many primes", "analysis", "complex"),
    ("continue", "general", "ambiguous"),
    ("fix it", "general", "ambiguous"),
    ("Improve this!", "general", "ambiguous"),
    ("help", "general", "ambiguous"),
    ("more…", "general", "ambiguous"),
    ("", "general", "moderate"),
    ("   \n\t ", "general", "moderate"),
]


@pytest.mark.parametrize(("text", "task", "complexity"), PROMPTS, ids=[text[:40] for text, *_ in PROMPTS])
def test_rules_name_task_and_complexity(text, task, complexity):
    seen = classified(text)

    assert (task, complexity) == (seen.task, seen.complexity)
    assert "heuristic" == seen.classified_by


def test_the_table_above_covers_every_task_and_complexity():
    assert set(TASKS) == {task for _, task, _ in PROMPTS}
    assert set(COMPLEXITIES) == {complexity for *_, complexity in PROMPTS}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param({}, ("coding", "moderate", "heuristic"), id="nothing said"),
        pytest.param({"task": "planning"}, ("planning", "moderate", "heuristic"), id="the task"),
        pytest.param({"complexity": "simple"}, ("coding", "simple", "heuristic"), id="the complexity"),
        pytest.param(
            {"task": "general", "complexity": "ambiguous"}, ("general", "ambiguous", "caller"), id="both: the caller's"
        ),
    ],
)
def test_what_the_caller_states_wins_and_the_request_says_so(asked, expected):
    seen = classified("Write a Python function that adds two numbers", **asked)

    assert expected == (seen.task, seen.complexity, seen.classified_by)


def test_the_evidence_says_which_rule_fired():
    seen = classified("Write unit tests for the parser", complexity="simple")

    assert ("task testing: asks for tests", "complexity simple: the caller said so") == seen.evidence


@pytest.mark.parametrize(
    ("text", "context_tokens", "expected"),
    [
        pytest.param("x" * 400, None, 100, id="characters / 4"),
        pytest.param("x" * 401, None, 101, id="rounded up"),
        pytest.param("", None, 0, id="no text"),
        pytest.param("x" * 400, 7, 7, id="the caller counted"),
        pytest.param("x" * 400, 0, 0, id="and counted none"),
        pytest.param("x" * 100_000, None, 25_000, id="all of a long one, though little of it is read"),
    ],
)
def test_prompt_tokens_are_the_callers_count_or_characters_over_four(text, context_tokens, expected):
    assert expected == classified(text, context_tokens=context_tokens).prompt_tokens


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param({"task": "coding", "complexity": "moderate"}, 400, id="what code takes"),
        pytest.param({"task": "coding", "complexity": "simple"}, 200, id="half when simple"),
        pytest.param({"task": "coding", "complexity": "complex"}, 600, id="half more when complex"),
        pytest.param({"task": "coding", "expected_output_tokens": 33}, 33, id="the caller's word"),
    ],
)
def test_output_tokens_are_the_callers_or_what_such_answers_take(asked, expected):
    assert expected == classified(**asked).output_tokens


def test_every_other_wish_is_passed_on():
    wishes = {
        "prefer": "quality",
        "model": "qwen2.5:7b",
        "requires": frozenset({"tools"}),
        "deadline_seconds": 9.0,
        "priority": "batch",
        "agent": "digest",
        "start": False,
        "wait_seconds": 3.0,
        "lease_seconds": 30.0,
        "dry_run": True,
    }
    seen = classified("hi", **wishes)

    assert wishes == {name: getattr(seen, name) for name in wishes}
    assert ("d-1", NOW) == (seen.id, seen.at_seconds)


def test_only_the_first_2000_characters_are_read():
    """A hundred kilobytes cost what two thousand characters cost: what stands behind them changes nothing."""
    filler = "tell a tale of a fox " * 5000
    head = filler[:READ_CHARACTERS]

    assert READ_CHARACTERS == 2000
    assert len(filler) > 100_000
    late = classified(head + " write unit tests for the parser, in depth")
    early = classified("write unit tests for the parser, in depth " + filler)
    assert ("general", "moderate") == (late.task, late.complexity)
    assert ("testing", "complex") == (early.task, early.complexity)


SECRET = "zebrafish-42"


@pytest.mark.parametrize(
    "text", [f"Write unit tests for {SECRET}", SECRET, f"Traceback (most recent call last) {SECRET}"]
)
def test_the_words_end_here(text):
    asked = Asked(text=text)
    seen = classify(asked, request_id="d-1", at_seconds=NOW)

    assert SECRET not in repr(seen)
    assert SECRET not in repr(asked)
    assert SECRET not in str([getattr(seen, field.name) for field in fields(seen)])


FOREIGN = [
    "Schreibe eine Funktion, die eine Liste sortiert",
    "Напиши функцию сортировки",
    "写一个排序函数",
    "اكتب دالة لفرز قائمة",
    "リストをソートする関数を書いてください",
    "🙂🙃" * 300,
    "\x00\x01\x02",
    "\ud800 lone surrogate",
    "ＷＲＩＴＥ ＵＮＩＴ ＴＥＳＴＳ",
    "İIıi" * 400,  # lower() makes this longer than it was
    "((((((((((" * 300,
    "write " * 2000,
    "why does " * 1000,
    "\n" * 5000,
    "%s {0} {text} \\ \" '",
]


@pytest.mark.parametrize("text", FOREIGN, ids=range(len(FOREIGN)))
def test_other_languages_and_odd_input_are_classified_without_a_crash(text):
    seen = classified(text)

    assert seen.task in TASKS
    assert seen.complexity in COMPLEXITIES


@pytest.mark.parametrize("rule", [*(rule for _, rule in _TASK_RULES), _COMPLEX], ids=lambda rule: rule.name)
@given(data=st.data())
@hypothesis_settings(max_examples=60, deadline=None)
def test_what_a_rule_matches_has_one_of_its_words(rule, data):
    text = data.draw(st.from_regex(rule.pattern))

    assert any(word in text for word in rule.words)


@given(text=st.text(max_size=3000))
@hypothesis_settings(max_examples=150, deadline=None)
def test_any_text_is_classified_and_forgotten(text):
    seen = classified(text)

    assert seen.task in TASKS
    assert seen.complexity in COMPLEXITIES
    assert seen.output_tokens > 0
    assert seen == classified(text)
