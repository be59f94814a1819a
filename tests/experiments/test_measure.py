from __future__ import annotations

import random
from math import exp, inf, log, nan

import pytest

from dispatcher.experiments.measure import HELD, MAX_DEBTS, counted, flaw, limits
from dispatcher.experiments.observe import observe
from dispatcher.experiments.sums import mean
from dispatcher.vocabulary.experiment import ExperimentState, Observation
from tests.experiments.simulation import NOW, a_state


def an_observation(**changes) -> Observation:
    return Observation(
        **{"arm": "A", "unit": "d-1", "shared": False, "status": "ok", "duration_seconds": 6.0, **changes}
    )


def after(*observations: Observation, state: ExperimentState | None = None) -> ExperimentState:
    state = state or a_state()
    for one in observations:
        state, _ = observe(state, one, NOW)
    return state


def settled(seed: int = 1, n: int = 60) -> ExperimentState:
    """Latencies around 6 s in both arms: what an outlier is, is known."""
    chance = random.Random(seed)
    ordinary = (
        an_observation(arm=arm, unit=f"{arm}{number}", duration_seconds=6 * exp(chance.gauss(0, 0.5)))
        for number in range(n // 2)
        for arm in ("A", "B")
    )
    return after(*ordinary)


# ── what a status says ──


@pytest.mark.parametrize(
    ("status", "success", "log_latency", "quality"),
    [("ok", 1, 1, 1), ("error", 1, 0, 0), ("timeout", 1, 1, 0), ("refused", 1, 0, 0)],
)
def test_what_a_status_tells_of(status, success, log_latency, quality):
    before = settled()
    state = after(an_observation(arm="B", status=status, quality=7.0, duration_seconds=6.0), state=before)
    more = [getattr(state.b, name).n - getattr(before.b, name).n for name in ("success", "log_latency", "quality")]

    assert [success, log_latency, quality] == more


@pytest.mark.parametrize(("status", "errors"), [("ok", 0.0), ("error", 1.0), ("timeout", 1.0), ("refused", 1.0)])
def test_a_policy_that_names_no_model_fails_as_one_that_names_a_broken_one(status, errors):
    assert errors == mean(after(an_observation(status=status)).a.success)


@pytest.mark.parametrize("status", ["shed", "drained"])
def test_what_the_daemon_had_no_room_for_says_nothing_about_an_arm(status):
    state, events = observe(a_state(), an_observation(status=status), NOW)

    assert () == events
    assert {status: 1} == state.left_out
    assert 0 == state.a.observed


def test_a_quality_is_kept_as_what_is_missing_from_ten():
    assert pytest.approx(0.25) == mean(after(an_observation(quality=7.5)).a.quality)


def test_no_quality_is_no_quality():
    assert 0 == after(an_observation(quality=None)).a.quality.n


def test_a_timeout_counts_as_at_least_its_timeout():
    before = settled()
    cut = after(an_observation(status="timeout", duration_seconds=0.5, timeout_seconds=15.0), state=before)
    full = after(an_observation(duration_seconds=15.0), state=before)

    assert full.a.log_latency == cut.a.log_latency


def test_a_client_that_leaves_tells_only_that_it_was_slow_and_only_past_the_usual():
    before = settled()
    early = after(an_observation(status="cancelled", duration_seconds=0.3), state=before)
    late = after(an_observation(status="cancelled", duration_seconds=15.0), state=before)

    assert (before.a, {"cancelled": 1}) == (early.a, early.left_out)
    assert before.a.log_latency.n + 1 == late.a.log_latency.n
    assert before.a.success == late.a.success


# ── outliers ──


def test_an_answer_of_403_seconds_is_pulled_to_the_limit_and_counted():
    before = settled()
    state = after(an_observation(duration_seconds=403.0), state=before)
    high = limits(before.spread)[1]
    expected = (mean(before.a.log_latency) * before.a.log_latency.n + high) / (before.a.log_latency.n + 1)

    assert 1 == state.a.log_latency.clipped
    assert pytest.approx(expected) == mean(state.a.log_latency)
    assert exp(high) < 60


def test_the_very_first_answer_may_be_the_outlier():
    ordinary = [an_observation(unit=f"{number}", duration_seconds=5.0 + number % 3) for number in range(HELD - 1)]
    state = after(an_observation(duration_seconds=403.0), *ordinary)

    assert () == state.held
    assert (HELD, 1) == (state.a.log_latency.n, state.a.log_latency.clipped)
    assert 5 < exp(mean(state.a.log_latency)) < 8


def test_a_cached_answer_in_no_time_is_pulled_up_as_well():
    assert 1 == after(an_observation(duration_seconds=0.0), state=settled()).a.log_latency.clipped


def test_what_is_slow_for_good_is_seen_and_not_clipped_for_ever():
    state = settled()
    late = [an_observation(unit=f"late {number}", duration_seconds=400.0) for number in range(300)]
    state = after(*late, state=state)

    assert limits(state.spread)[1] > log(400.0)


# ── the cost of a switch ──


def test_a_load_is_charged_to_the_arm_that_caused_it():
    before = settled()
    waited = an_observation(duration_seconds=26.0, switch_seconds=20.0, switch_arm="B")
    charged = after(waited, an_observation(arm="B", unit="d-2", duration_seconds=5.0), state=before)
    as_if = after(
        an_observation(duration_seconds=6.0), an_observation(arm="B", unit="d-2", duration_seconds=25.0), state=before
    )

    assert (as_if.a.log_latency, as_if.b.log_latency) == (charged.a.log_latency, charged.b.log_latency)
    assert (20.0, ()) == (charged.b.charged_seconds, charged.b.debts_seconds)


def test_a_load_of_its_own_stays_where_it_is():
    own = after(an_observation(duration_seconds=26.0, switch_seconds=20.0, switch_arm="A"), state=settled())
    nobodys = after(an_observation(duration_seconds=26.0, switch_seconds=20.0), state=settled())

    assert own.a == nobodys.a
    assert 0.0 == own.a.charged_seconds


def test_each_debt_is_paid_by_an_answer_of_its_own_the_oldest_first():
    waited = [
        an_observation(unit=str(load), duration_seconds=6.0 + load, switch_seconds=load, switch_arm="B")
        for load in (10.0, 20.0)
    ]
    state = after(*waited, state=settled())
    failed = after(an_observation(arm="B", unit="e", status="error", duration_seconds=0.1), state=state)
    paid = after(an_observation(arm="B", unit="f"), state=state)

    assert (10.0, 20.0) == failed.b.debts_seconds
    assert (20.0,) == paid.b.debts_seconds


def test_debts_are_bounded_and_none_is_forgiven():
    loads = [
        an_observation(unit=str(number), duration_seconds=6.0, switch_seconds=1.0, switch_arm="B")
        for number in range(MAX_DEBTS + 5)
    ]
    state = after(*loads)

    assert MAX_DEBTS == len(state.b.debts_seconds)
    assert MAX_DEBTS + 5.0 == sum(state.b.debts_seconds) == state.b.charged_seconds


# ── what cannot be ──


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"duration_seconds": nan}, "duration_seconds is nan; it must be from 0 to 604800", id="NaN"),
        pytest.param({"duration_seconds": -1.0}, "duration_seconds is -1; it must be from 0 to 604800", id="negative"),
        pytest.param({"duration_seconds": inf}, "duration_seconds is inf; it must be from 0 to 604800", id="endless"),
        pytest.param({"duration_seconds": None}, "duration_seconds is missing, and its status is ok", id="missing"),
        pytest.param({"timeout_seconds": nan}, "timeout_seconds is nan; it must be from 0 to 604800", id="timeout"),
        pytest.param({"switch_seconds": nan}, "switch_seconds is nan; it must be from 0 to 604800", id="switch"),
        pytest.param({"quality": 11.0}, "quality is 11; it must be from 0 to 10", id="eleven"),
        pytest.param({"quality": nan}, "quality is nan; it must be from 0 to 10", id="NaN of ten"),
    ],
)
def test_what_cannot_be_is_told_in_words_and_changes_nothing(changes, words):
    observation = an_observation(**changes)
    state, events = observe(a_state(), observation, NOW)

    assert words == flaw(observation)
    assert () == events
    assert (a_state().a, {"flawed": 1}) == (state.a, state.left_out)


def test_a_good_one_has_no_flaw():
    assert flaw(an_observation(quality=10.0)) is None
    assert flaw(an_observation(status="refused", duration_seconds=None)) is None
    assert counted(a_state(), an_observation(status="refused", duration_seconds=None)) is not None
