from __future__ import annotations

import pytest

from dispatcher.experiments.lifetime import stopped
from dispatcher.experiments.observe import assignment_counted
from dispatcher.experiments.verdict import verdict
from tests.experiments.simulation import NOW, Traffic, a_state, guardrails, run
from tests.experiments.test_measure import after, an_observation
from tests.experiments.test_observe import pairs


def test_nothing_observed_is_unknown_and_not_zero():
    found = verdict(a_state())

    assert (None, None) == (found.a_missing_ratio, found.b_missing_ratio)
    assert {None} == {reading.a.value for reading in found.metrics} | {reading.delta for reading in found.metrics}
    assert (
        "too little for a verdict by success: A has 0 of 30 independent units (0 observations) and "
        "B has 0 of 30 independent units (0 observations)"
    ) == found.sentence


def test_values_are_read_in_their_own_scales():
    found = verdict(after(*pairs(40, duration_seconds=12.0, quality=7.0), state=a_state(primary="quality")))
    success, latency, quality = found.metrics

    assert ("success", "log_latency", "quality") == tuple(reading.metric for reading in found.metrics)
    assert (1.0, pytest.approx(6.0), pytest.approx(12.0)) == (success.a.value, latency.a.value, latency.b.value)
    assert pytest.approx(7.0) == quality.b.value
    assert latency.low < latency.delta < latency.high
    assert ("guardrail", "watched", "primary") == (success.role, latency.role, quality.role)
    assert (None, None, 0.05) == (latency.p, latency.p_guardrail, quality.alpha)


def test_a_metric_can_be_both():
    found = verdict(a_state(guardrails=guardrails("success", "quality"))).metrics[0]

    assert ("both", 0.05, 0.05) == (found.role, found.alpha, found.alpha_guardrail)


def test_no_difference_is_said_as_such():
    words = verdict(after(*pairs(40), state=a_state(primary="log_latency"))).sentence

    assert words.startswith("no difference found yet by log_latency: A 6 s of 40, B 6 s of 40 (p 1, decided at 0.05)")


def test_few_agents_are_told_to_be_dealt_anew_now_and_then():
    state = run(a_state(primary="log_latency"), Traffic(agents=6).of(1, 600))

    assert verdict(state).sentence.endswith(
        "; few agents ask most of it: with sticky_seconds: 3600 each is assigned anew every hour"
    )


def test_the_end_is_told_in_the_words_of_its_event():
    state, events = stopped(a_state(), NOW, "stopped by the operator")

    assert "stopped by the operator" == verdict(state).sentence == events[0].because


def test_whose_outcomes_are_missing_is_seen():
    state = a_state()
    for arm in ("A", "A", "B", "B", "B", "B"):
        state = assignment_counted(state, arm)
    state = after(an_observation(arm="A"), an_observation(arm="A"), an_observation(arm="B"), state=state)
    found = verdict(state)

    assert (0.0, 0.75) == (found.a_missing_ratio, found.b_missing_ratio)
