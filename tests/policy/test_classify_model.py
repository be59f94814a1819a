"""The linear model: what it reads, what it gets right of prompts it never saw, and what does not move it."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dispatcher.policy import classify_weights
from dispatcher.policy.classify import classify
from dispatcher.policy.classify_features import (
    CODE,
    HEAD_SENTENCES,
    HEAD_WORDS,
    TAIL_SENTENCES,
    TAIL_WORDS,
    features,
    sentences,
    without_code,
)
from dispatcher.policy.classify_model import guess, unpacked
from dispatcher.vocabulary.request import TASKS, Asked
from tests.policy.held_out import BLIND, COMPLEXITY, HELD_OUT, prompts

HELD = prompts(HELD_OUT)
BLIND_HELD = prompts(BLIND)
TRAINED = Path(__file__).parents[2] / "scripts" / "classifier"
SEEDS = TRAINED / "seeds.txt"
NEUTRAL = "Some more words stand here, and they say nothing in particular. They were there yesterday, too. "

LOREM = "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et dolore."


def task_of(text: str, last_at: int = 0) -> str:
    return classify(Asked(text=text, last_at=last_at), request_id="d-1", at_seconds=0.0).task


def complexity_of(text: str) -> str:
    return classify(Asked(text=text), request_id="d-1", at_seconds=0.0).complexity


def kept_ratio(change) -> float:
    """Of our prompts, how many keep their task when changed so."""
    return sum(task_of(text) == task_of(change(text)) for text, _ in HELD) / len(HELD)


def test_held_out_prompts_of_another_style_are_named_rightly_at_least_78_times_in_100():
    right = sum(task_of(text) == task for text, task in HELD)

    assert right / len(HELD) >= 0.78


def test_prompts_written_before_the_classifier_was_read_are_named_rightly_at_least_79_times_in_100():
    right = sum(task_of(text) == task for text, task in BLIND_HELD)

    assert right / len(BLIND_HELD) >= 0.79


def test_of_every_task_more_than_six_in_ten_blind_prompts_are_found():
    found: Counter[str] = Counter(task for text, task in BLIND_HELD if task_of(text) == task)
    many = Counter(task for _, task in BLIND_HELD)

    assert {} == {task: found[task] for task in TASKS if found[task] / many[task] < 0.6}


def test_no_blind_prompt_was_trained_on():
    trained = {text for name in ("seeds", "patterns") for text, _ in prompts(TRAINED / f"{name}.txt")}

    assert set() == {text for text, _ in BLIND_HELD} & trained


def test_the_complexity_of_most_prompts_is_what_their_writer_said_and_of_few_vague_ones_anything_else():
    told = [(complexity, complexity_of(text)) for text, complexity in prompts(COMPLEXITY)]

    assert sum(said == found for said, found in told) / len(told) >= 0.6
    assert sum(found == "ambiguous" for said, found in told if said == "ambiguous") >= 9
    assert 0 == sum(found == "ambiguous" for said, found in told if said != "ambiguous")


def test_lines_of_code_become_one_mark_and_one_line_alone_stays():
    assert f"sort this\n{CODE}\nplease" == without_code("sort this\nfor x in y:\n    z = f(x)\nplease")
    assert "x = f(y);" == without_code("x = f(y);")


def test_every_task_is_among_the_held_out_prompts_and_none_of_them_was_trained_on():
    trained = {text for text, _ in prompts(SEEDS)}

    assert set(TASKS) == {task for _, task in HELD}
    assert set() == {text for text, _ in HELD} & trained


def test_of_every_task_more_are_found_than_chance_would():
    found: Counter[str] = Counter(task for text, task in HELD if task_of(text) == task)
    many = Counter(task for _, task in HELD)

    assert {} == {task: found[task] for task in TASKS if found[task] / many[task] < 1 / 3}


def test_the_weights_are_those_their_hash_was_made_of_and_small():
    body = "\n".join(classify_weights.LINES).encode()

    assert hashlib.sha256(body).hexdigest() == classify_weights.SHA256
    assert Path(classify_weights.__file__).stat().st_size <= 400_000


def test_a_weight_that_is_none_is_an_error():
    with pytest.raises(ValueError, match="stands for no weight"):
        unpacked(["\x7f" * len(TASKS) + "word"], 0.1, [0.0] * len(TASKS))


@pytest.mark.parametrize(
    ("change", "least_ratio"),
    [
        pytest.param(lambda text: "\n\n".join([text] * 3), 0.95, id="said three times"),
        pytest.param(lambda text: text + "\n" * 300 + " " * 300, 0.95, id="blanks"),
        pytest.param(lambda text: f"{text} {LOREM}", 0.9, id="Latin behind"),
        pytest.param(lambda text: f"{LOREM} {text}", 0.9, id="Latin before"),
        pytest.param(lambda text: f"{text}\n{NEUTRAL}", 0.7, id="English behind"),
        pytest.param(lambda text: f"{NEUTRAL}\n{text}", 0.7, id="English before"),
    ],
)
def test_more_text_of_no_meaning_seldom_changes_the_task_of_a_prompt(change, least_ratio):
    """Words about nothing are still words, and a prompt of five words that stood on the brink may turn."""
    assert kept_ratio(change) >= least_ratio


def test_length_alone_says_next_to_nothing():
    """The most frequent task among the 15 nearest in length, of the prompts we train on."""
    known = prompts(SEEDS)

    def by_length(text: str) -> str:
        near = sorted(known, key=lambda one: abs(len(one[0]) - len(text)))[:15]
        return Counter(task for _, task in near).most_common(1)[0][0]

    assert sum(by_length(text) == task for text, task in HELD) / len(HELD) < 0.3


def test_what_stands_between_the_first_and_the_last_sentences_is_not_read():
    first = [f"first {number}." for number in range(HEAD_SENTENCES)]
    last = [f"last {number}." for number in range(TAIL_SENTENCES)]
    middle = [f"middle {number}." for number in range(20)]

    assert [*first, *last] == sentences(" ".join([*first, *middle, *last]))


def test_a_sentence_counts_once_and_keeps_its_mark():
    assert ["why?", "because."] == sentences("why? because. why? because. why?")


@pytest.mark.parametrize(
    ("text", "system", "task"),
    [
        pytest.param("Hello, how are you?", "You are a senior Python engineer.", "general", id="the user wins"),
        pytest.param(
            "On Tuesday the board met in Bern. Eleven were there. The new hall was agreed on.",
            "Summarize the user's text in two sentences. Answer with the summary only.",
            "summarization",
            id="the system prompt says what to do",
        ),
        pytest.param("Write unit tests for the parser", "Summarize everything you are given.", "testing", id="a rule"),
    ],
)
def test_the_last_message_of_the_user_is_read_first_and_the_system_prompt_where_that_says_little(text, system, task):
    assert task == task_of(f"{system}\n{text}", last_at=len(system) + 1)


def test_a_long_system_prompt_does_not_hide_what_the_user_asks():
    system = "You are the assistant of a housing company. Be kind and never name prices. " * 60

    assert "debugging" == task_of(f"{system}\nWhy does my script crash with an exception?", last_at=len(system) + 1)


def test_the_evidence_has_words_of_the_model_with_their_weights_and_how_sure_it_is():
    seen = classify(Asked(text="Compare the two offers, which is better?"), request_id="d-1", at_seconds=0.0)

    assert "analysis" == seen.task
    assert "compa" in seen.evidence[0] and "; confidence " in seen.evidence[0]


def test_nothing_known_is_no_guess():
    assert guess("") is None
    assert guess("qwzx vbnk") is None
    assert "general" == task_of("Ĝis la revido kaj ĝojon")


ODD = {
    "one letter, a million times": "a" * 1_000_000,
    "blanks": " \n\t" * 300_000,
    "base64": base64.b64encode(bytes(range(256)) * 400).decode(),
    "zero width": "​".join("write unit tests") + "‍﻿" * 500,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈" * 400,
    "combining marks": "e" + "́" * 5000,
    "right to left": "‮" + "اكتب" * 600,
    "Georgian, Thai, Hangul": "დაწერე ფუნქცია เขียนฟังก์ชัน 함수를 작성해줘 " * 60,
    "brackets": "[" * 2000 + "(" * 2000,
    "why does": "why does my " * 170 + "!",
    "write add create": "write add create generate " * 80,
    "from from": "from " * 400,
    "import": "import " + "a." * 1000,
    "quotes": "'\"`" * 700,
    "apostrophes": "a'" * 1000,
    "nulls": "\x00" * 2000,
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_odd_input_is_classified_without_a_crash_or_a_feast_of_features(text):
    assert task_of(text) in TASKS
    assert len(features(text[:2000].lower())) <= 4 * (HEAD_WORDS + TAIL_WORDS)


@given(text=st.text(max_size=2000))
@hypothesis_settings(max_examples=100, deadline=None)
def test_any_text_gets_the_same_guess_twice_and_a_probability(text):
    first = guess(text.lower())

    assert first == guess(text.lower())
    assert first is None or 0 < first.confidence_ratio <= 1
