"""How good a model's answers are: what callers say moves it, an answer without a fault does not."""

from __future__ import annotations

import math

import pytest

from dispatcher.control.beliefs import Beliefs
from dispatcher.vocabulary.event import Completed
from dispatcher.vocabulary.profile import NO_BELIEF, Belief
from tests.builders import LLAMA, NOW

KEY = ("llama3.2:3b", "coding")
PRIOR, PRIOR_SAMPLES = 0.6, 20.0


def ended(quality: float | None, **changes) -> Completed:
    told = {
        "at_seconds": NOW,
        "decision_id": "d-1",
        "model": LLAMA.model,
        "place": LLAMA,
        "task": "coding",
        "agent": "",
        "status": "ok",
        "duration_seconds": 1.0,
        "quality": quality,
        "judged_by": "caller",
    }
    return Completed(**{**told, **changes})


def after(*events: Completed) -> Belief:
    beliefs = Beliefs()
    for event in events:
        beliefs.add(event)
    return beliefs.known.get(KEY, NO_BELIEF)


def mean(belief: Belief) -> float:
    low, high = belief.bounds(PRIOR, PRIOR_SAMPLES)
    return (low + high) / 2


@pytest.mark.parametrize("declared", [0.0, 0.05, 0.5, 0.6, 0.9, 1.0])
def test_who_nobody_judged_counts_as_declared(declared):
    low, high = NO_BELIEF.bounds(declared, PRIOR_SAMPLES)
    middle = (low + high) / 2

    assert pytest.approx(declared, abs=1e-9) == low
    assert declared == 1.0 or pytest.approx(2 * math.sqrt(middle * (1 - middle) / 21), abs=0.03) == high - low


def test_who_is_judged_as_it_was_declared_counts_little_less_at_any_time():
    lows = [after(*[ended(10 * PRIOR)] * n).bounds(PRIOR, PRIOR_SAMPLES)[0] for n in (1, 5, 20, 100, 500)]

    assert all(PRIOR - 0.05 < low <= PRIOR for low in lows), lows


def test_reports_move_the_belief_and_narrow_it():
    few, many = after(*[ended(9.0)] * 10), after(*[ended(9.0)] * 500)

    assert mean(NO_BELIEF) < mean(few) < mean(many) < 0.9
    assert mean(many) == pytest.approx(0.9, abs=0.02)
    assert _width(many) < _width(few) < _width(NO_BELIEF)


def _width(belief: Belief) -> float:
    low, high = belief.bounds(PRIOR, PRIOR_SAMPLES)
    return high - low


def test_one_report_moves_it_by_a_share_of_one_answer_at_most():
    assert abs(mean(after(ended(0.0))) - mean(NO_BELIEF)) <= 1 / (PRIOR_SAMPLES + 1)


def test_an_answer_that_showed_no_fault_of_itself_speaks_for_what_was_believed():
    plain = after(*[ended(8.0, judged_by="answer")] * 500)

    assert NO_BELIEF.bounds(PRIOR, PRIOR_SAMPLES) == pytest.approx(plain.bounds(PRIOR, PRIOR_SAMPLES))
    assert 0 == plain.judged


def test_an_answer_that_showed_a_fault_tells_against_it_by_how_often_that_happens():
    faults = [ended(0.0, judged_by="answer"), *[ended(8.0, judged_by="answer")] * 9] * 50

    assert mean(after(*faults)) == pytest.approx(mean(NO_BELIEF) * 0.9, abs=0.02)


def test_what_was_reported_long_ago_fades():
    before = [ended(0.0)] * 500
    assert mean(after(*before, *[ended(10.0)] * 3000)) > 0.9


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(ended(None), id="nothing said"),
        pytest.param(ended(11.0), id="beyond 10"),
        pytest.param(ended(-1.0), id="below 0"),
        pytest.param(ended(float("nan")), id="not a number"),
        pytest.param(ended(9.0, status="error"), id="it failed"),
        pytest.param(ended(9.0, status="cancelled"), id="its caller left"),
    ],
)
def test_what_says_nothing_of_quality_teaches_nothing(event):
    assert NO_BELIEF == after(event)


def test_a_model_can_be_forgotten_without_the_others():
    beliefs = Beliefs()
    beliefs.add(ended(9.0))
    beliefs.add(ended(9.0, model="phi3:mini"))
    beliefs.forget("llama3.2:3b")

    assert {("phi3:mini", "coding")} == beliefs.known.keys()
