from __future__ import annotations

import itertools
from dataclasses import replace

import msgspec
import pytest

from dispatcher.experiments.evidence import TAU, comparison, one_sided_p, two_sided_p
from dispatcher.experiments.lifetime import cooling_until_seconds, lapsed, started, stopped
from dispatcher.experiments.observe import assignment_counted, guardrail_alpha, observe, primary_alpha
from dispatcher.vocabulary.experiment import ArmObserved, ExperimentState, ExperimentTurned, Guardrail
from tests.experiments.simulation import NOW, Traffic, a_specification, a_state, guardrails, run
from tests.experiments.test_measure import after, an_observation

METRICS = ("success", "log_latency", "quality")


def pairs(n: int, **of_b):
    """One answer of A, then one of B, n times; every request a unit of its own."""
    for number in range(n):
        for arm, changes in (("A", {}), ("B", of_b)):
            yield an_observation(**{"arm": arm, "unit": f"{arm}{number}", "quality": 6.0 + number % 3, **changes})


def test_an_outcome_is_counted_and_told():
    state, events = observe(a_state(), an_observation(arm="B"), NOW)

    assert (ArmObserved(at_seconds=NOW, experiment_id="x", arm="B"),) == events
    assert (0, 1) == (state.a.observed, state.b.observed)


def test_a_better_arm_wins_once_by_its_primary_metric():
    state, told = a_state(primary="log_latency"), []
    for one in pairs(200, duration_seconds=3.0):
        state, events = observe(state, one, NOW)
        told += [event for event in events if isinstance(event, ExperimentTurned)]

    assert [("won", "B", "log_latency")] == [(event.after, event.winner, event.metric) for event in told]
    assert told[0].because.startswith("B is better by log_latency: A 6 s of 30, B 3 s of 30 (p ")
    assert state.b.observed == 30


def test_a_worse_arm_loses_to_a():
    state = run(a_state(primary="quality"), pairs(200, quality=2.0))

    assert ("won", "A") == (state.phase, state.winner)


def test_nothing_is_decided_before_there_are_thirty_in_each_arm():
    state = after(*pairs(29, duration_seconds=3.0), state=a_state(primary="log_latency"))

    assert ("running", 1.0, (1.0,)) == (state.phase, state.p_primary, state.p_guardrails)


def test_a_broken_guardrail_switches_the_arm_off_and_is_told():
    state, told = a_state(primary="log_latency"), []
    for number, one in enumerate(pairs(400, duration_seconds=3.0)):
        failing = one.arm == "B" and number % 3 != 0
        state, events = observe(state, replace(one, status="error" if failing else "ok"), NOW + 5)
        told += [event for event in events if isinstance(event, ExperimentTurned)]
        if told:
            break

    assert ("rolled_back", None, "success") == (told[0].after, told[0].winner, told[0].metric)
    assert told[0].because.startswith("guardrail success broken: A 100.0 % of ")
    assert NOW + 5 + 3600 == cooling_until_seconds(state)


def test_a_guardrail_comes_before_a_win_by_failing_fast():
    """Both in one look: success is primary and guardrail, and B is worse."""
    state = run(a_state(primary="success"), pairs(500, status="error"))

    assert "rolled_back" == state.phase


def test_a_tolerated_harm_breaks_nothing():
    tolerant = (Guardrail(metric="success"), Guardrail(metric="log_latency", tolerance=0.5))
    strict = run(
        a_state(primary="quality", guardrails=guardrails("success", "log_latency")), pairs(200, duration_seconds=9.0)
    )
    lenient = run(a_state(primary="quality", guardrails=tolerant), pairs(200, duration_seconds=9.0))

    assert ("rolled_back", "running") == (strict.phase, lenient.phase)


def test_after_its_end_an_experiment_takes_nothing_in():
    done, _ = stopped(a_state(), NOW)

    assert (done, ()) == observe(done, an_observation(), NOW)


def test_it_lapses_when_its_time_is_over_whether_asked_or_not():
    state = a_state(max_seconds=600.0)
    seen, events = observe(state, an_observation(), NOW + 600)
    asked, turns = lapsed(state, NOW + 600)

    assert ("lapsed", "lapsed") == (seen.phase, asked.phase)
    assert ["no verdict within 10 min"] * 2 == [events[0].because, turns[0].because]
    assert (state, ()) == lapsed(state, NOW + 599)


def test_it_ends_once():
    state, _ = stopped(a_state(), NOW)

    assert (state, ()) == stopped(state, NOW + 1)


def test_a_full_layer_is_not_begun_in():
    with pytest.raises(ValueError, match="layer default has no 1 of its traffic free"):
        started(a_specification(id="y"), [a_state()], NOW)


# ── the error that is promised ──


def test_the_p_values_only_fall_although_the_evidence_comes_and_goes():
    state = a_state(primary="log_latency", guardrails=guardrails(*METRICS))
    p, now = [(1.0,) * 4], []
    for one in Traffic(slower=1.1).of(4, 1_200):
        state, _ = observe(state, one, NOW)
        p.append((state.p_primary, *state.p_guardrails))
        found = comparison("log_latency", state.a.log_latency, state.b.log_latency)
        now.append(1.0 if found is None else two_sided_p(found, TAU["log_latency"]))

    assert all(
        later <= sooner for before, after in itertools.pairwise(p) for sooner, later in zip(before, after, strict=True)
    )
    assert min(now) == state.p_primary < now[-1]


def test_the_error_allowed_is_shared_among_the_guardrails():
    one, three = a_specification(), a_specification(guardrails=guardrails(*METRICS))

    assert (0.1, 0.1 / 3, 0.05) == (guardrail_alpha(one), guardrail_alpha(three), primary_alpha(three))


def test_a_harm_that_breaks_a_lone_guardrail_does_not_break_one_of_three():
    """Of the same outcomes, at the same look, with p between 0.1 / 3 and 0.1."""
    lone = run(a_state(primary="quality"), Traffic(error_a=0.02, error_b=0.10).of(1, 2_000))
    seen = list(Traffic(error_a=0.02, error_b=0.10).of(1, 2_000))[: lone.a.observed + lone.b.observed]
    of_three = run(a_state(primary="quality", guardrails=guardrails(*METRICS)), seen)
    found = comparison("success", lone.a.success, lone.b.success)

    assert found is not None and 0.1 / 3 < one_sided_p(found, TAU["success"]) <= 0.1
    assert ("rolled_back", "running") == (lone.phase, of_three.phase)
    assert lone.a.success == of_three.a.success


# ── as a value ──


def test_a_state_can_be_stored_at_any_moment_and_goes_on_as_if_nothing_had_been():
    state = whole = a_state(primary="quality", guardrails=guardrails(*METRICS), sticky_seconds=3600.0)
    for number, one in enumerate(Traffic(agents=300).of(3, 400)):
        whole, _ = observe(whole, one, NOW)
        state, _ = observe(state, one, NOW)
        if number in (0, 10, 100):
            state = msgspec.json.decode(msgspec.json.encode(state), type=ExperimentState)

    assert whole == state


def test_observing_leaves_the_state_before_as_it_was():
    before = a_state()
    copy = msgspec.json.encode(before)
    after(*pairs(40), state=before)

    assert copy == msgspec.json.encode(before)


def test_assignments_are_counted_beside_the_outcomes():
    state = assignment_counted(assignment_counted(a_state(), "B"), "A")

    assert (1, 1, 0) == (state.a.assigned, state.b.assigned, state.b.observed)
