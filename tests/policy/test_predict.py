"""Seconds: each part of the formula by hand, what measurement weighs against the prior, and who is named as source."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import pytest

from dispatcher.policy.decide import decide
from dispatcher.policy.sight import slowdown_ratio
from dispatcher.vocabulary.decision import Prediction
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.profile import HostSpeed, Measured, Rates, blended
from dispatcher.vocabulary.settings import GIB, Settings
from dispatcher.vocabulary.signal import HOST
from tests.builders import (
    LLAMA,
    NOW,
    PHI,
    QWEN,
    a_fleet,
    a_place_view,
    a_reading,
    a_ready_view,
    a_request,
    a_snapshot,
    a_world,
    some_profiles,
)

IDLE = a_snapshot(readings={"host_cpu_busy_ratio": 0.0})
# llama3.2:3b: 0.035 s + (1.88 GiB + 112 KiB × 2,048) / 40 GB/s
LLAMA_PRIOR_RATE = 1 / (0.035 + (round(1.88 * GIB) + 112 * 1024 * 2048) / 40e9)
LLAMA_LOAD_SECONDS = 1.5 + round(1.88 * GIB) / 1e9


def predicted(*views, place: Place = LLAMA, snapshot=IDLE, settings=None, rates=None, **profiles) -> Prediction:
    world = a_world(snapshot=snapshot, fleet=a_fleet(*views), profiles=some_profiles(rates=rates or {}, **profiles))
    decision = decide(a_request(model=place.model), world, settings or Settings(), NOW)
    assert decision.chosen is not None, decision.sentence
    return decision.chosen.prediction


def with_reading(name: str, value: float | None, subject: str = "llama3.2:3b", snapshot=IDLE):
    return replace(snapshot, readings={**snapshot.readings, (name, subject): a_reading(value)})


def test_every_part_of_the_formula_adds_up_by_hand():
    """300 prompt tokens, 200 answer tokens, cold, nothing measured: all of it from numbers.md."""
    seen = predicted(a_place_view(LLAMA))

    assert pytest.approx(LLAMA_PRIOR_RATE) == seen.tokens_per_second
    assert 0 == seen.wait_seconds
    assert 0 == seen.evict_seconds
    assert pytest.approx(LLAMA_LOAD_SECONDS) == seen.load_seconds
    assert pytest.approx(300 / (8 * LLAMA_PRIOR_RATE) + 1 / LLAMA_PRIOR_RATE) == seen.first_token_seconds
    assert pytest.approx(199 / LLAMA_PRIOR_RATE) == seen.decode_seconds
    assert pytest.approx(LLAMA_LOAD_SECONDS + 300 / (8 * LLAMA_PRIOR_RATE) + 200 / LLAMA_PRIOR_RATE) == (
        seen.total_seconds
    )
    assert "prior" == seen.source
    assert 0 == seen.samples


def test_what_is_ready_loads_nothing():
    assert 0 == predicted(a_ready_view(LLAMA)).load_seconds


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        pytest.param(0, 10.0, id="none: the prior"),
        pytest.param(1, 10 + (100 - 10) / 26, id="1 of 26"),
        pytest.param(5, 55.0, id="half"),
        pytest.param(15, 10 + 90 * 0.9, id="90 %"),
    ],
)
def test_measurement_weighs_n_squared_over_n_squared_plus_25(n, expected):
    assert pytest.approx(expected) == blended(Measured(value=100.0 if n else None, n=n), 10.0)


SOURCES = {
    "prior": ({}, IDLE, {}, "prior", LLAMA_PRIOR_RATE),
    "calibrated": ({}, IDLE, {"host_speed": HostSpeed(n=7)}, "calibrated", LLAMA_PRIOR_RATE),
    "prometheus": ({}, with_reading("model_tokens_per_second", 50.0), {}, "prometheus", 50.0),
    "prometheus beats calibrated": (
        {},
        with_reading("model_tokens_per_second", 50.0),
        {"host_speed": HostSpeed(n=7)},
        "prometheus",
        50.0,
    ),
    "prometheus knows latency alone": (
        {},
        with_reading("model_request_seconds_p50", 4.0),
        {},
        "prometheus",
        50.0,  # 200 tokens, what such answers usually have, in 4 s
    ),
    "a signal of another model": (
        {},
        with_reading("model_tokens_per_second", 50.0, subject="phi3:mini"),
        {},
        "prior",
        LLAMA_PRIOR_RATE,
    ),
    "history": (
        {LLAMA: Rates(decode_tokens_per_second=Measured(value=30.0, n=5))},
        IDLE,
        {},
        "history",
        (30 + LLAMA_PRIOR_RATE) / 2,
    ),
    "history, blended with prometheus": (
        {LLAMA: Rates(decode_tokens_per_second=Measured(value=30.0, n=5))},
        with_reading("model_tokens_per_second", 50.0),
        {},
        "history",
        40.0,
    ),
    "history of another place": (
        {PHI: Rates(decode_tokens_per_second=Measured(value=30.0, n=5))},
        IDLE,
        {},
        "prior",
        LLAMA_PRIOR_RATE,
    ),
    "nonsense is not a rate": ({}, with_reading("model_tokens_per_second", -1.0), {}, "prior", LLAMA_PRIOR_RATE),
    "nor is what is no number": (
        {},
        with_reading("model_tokens_per_second", float("nan")),
        {},
        "prior",
        LLAMA_PRIOR_RATE,
    ),
}


@pytest.mark.parametrize(("rates", "snapshot", "profiles", "source", "rate"), SOURCES.values(), ids=SOURCES.keys())
def test_the_source_word_says_what_the_rate_rests_on(rates, snapshot, profiles, source, rate):
    seen = predicted(a_ready_view(LLAMA), rates=rates, snapshot=snapshot, **profiles)

    assert source == seen.source
    assert pytest.approx(rate) == seen.tokens_per_second


def test_a_rate_of_somebody_elses_latency_does_not_depend_on_this_request():
    snapshot = with_reading("model_request_seconds_p50", 4.0)
    rates = set()
    for output_tokens in (0, 1, 2000):
        world = a_world(snapshot=snapshot, fleet=a_fleet(a_ready_view(LLAMA)))
        decision = decide(a_request(output_tokens=output_tokens, prompt_tokens=10), world, Settings(), NOW)
        rates.add(decision.chosen.prediction.tokens_per_second)

    assert {50.0} == rates


def test_a_configured_rate_is_the_prior():
    llama = replace(Settings().models[1], tokens_per_second=25.0, load_seconds=9.0)
    settings = replace(Settings(), models=(Settings().models[0], llama, Settings().models[2]))
    seen = predicted(a_place_view(LLAMA), settings=settings, host_speed=HostSpeed(n=9))

    assert (25.0, 9.0, "prior") == (seen.tokens_per_second, seen.load_seconds, seen.source)


def test_measured_prefill_and_load_are_blended_too():
    rates = Rates(prefill_tokens_per_second=Measured(value=600.0, n=5), load_seconds=Measured(value=20.0, n=15))
    seen = predicted(a_place_view(LLAMA), rates={LLAMA: rates})
    prefill = (600 + 8 * LLAMA_PRIOR_RATE) / 2

    assert pytest.approx(300 / prefill + 1 / LLAMA_PRIOR_RATE) == seen.first_token_seconds
    assert pytest.approx(0.9 * 20 + 0.1 * LLAMA_LOAD_SECONDS) == seen.load_seconds


def test_the_spread_shrinks_with_samples():
    rates = {LLAMA: Rates(decode_tokens_per_second=Measured(value=30.0, n=3))}

    assert 0.5 == predicted(a_ready_view(LLAMA)).spread_ratio
    assert 0.25 == predicted(a_ready_view(LLAMA), rates=rates).spread_ratio


# ── a busy host ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("others", "steal", "expected"),
    [
        pytest.param(0.0, 0.0, 1.0, id="idle"),
        pytest.param(0.4, 0.0, 0.6, id="others use 40 %"),
        pytest.param(0.4, 0.1, 0.5, id="and 10 % are stolen"),
        pytest.param(1.0, 0.5, 0.1, id="never below a tenth"),
        pytest.param(None, 0.1, 0.9, id="others unknown: steal alone"),
        pytest.param(None, None, 1.0, id="nobody knows"),
    ],
)
def test_rates_shrink_by_what_others_use_and_what_is_stolen(others, steal, expected):
    snapshot = a_snapshot(readings={"host_cpu_others_ratio": others, "host_cpu_steal_ratio": steal})
    view = a_ready_view(LLAMA)
    rates = {LLAMA: Rates(prefill_tokens_per_second=Measured(value=600.0, n=5))}
    seen = predicted(view, snapshot=snapshot, rates=rates)
    undisturbed = predicted(view, rates=rates)

    assert pytest.approx(expected) == slowdown_ratio(a_world(snapshot=snapshot, fleet=a_fleet(view)), Settings())
    assert pytest.approx(undisturbed.tokens_per_second * expected) == seen.tokens_per_second
    assert pytest.approx(undisturbed.first_token_seconds / expected) == seen.first_token_seconds


def test_a_busy_host_whose_others_are_unknown_slows_nobody_down():
    """It may be our own work of a moment ago: the host's reading is a mean over a minute."""
    snapshot = a_snapshot(readings={"host_cpu_busy_ratio": 0.95})
    world = a_world(snapshot=snapshot, fleet=a_fleet(a_ready_view(LLAMA, cpu_cores=a_reading(0.0))))

    assert 1.0 == slowdown_ratio(world, Settings())


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("leases", "in_flight", "parallel", "ahead"),
    [
        pytest.param(0, 0, 1, 0, id="free"),
        pytest.param(1, 0, 1, 1, id="one lease is one in flight from its grant"),
        pytest.param(2, 1, 1, 2, id="a request in flight has one of the leases"),
        pytest.param(1, 3, 1, 3, id="requests in flight whose leases are over"),
        pytest.param(0, 1, 1, 1, id="a cancelled prompt that the engine may still work on"),
        pytest.param(1, 0, 2, 0, id="a second slot"),
        pytest.param(3, 0, 2, 2 / 2, id="two slots share the queue"),
    ],
)
def test_the_wait_is_as_many_requests_as_are_ahead(leases, in_flight, parallel, ahead):
    whole = Rates(request_seconds=Measured(value=12.0, n=1_000_000))
    view = a_ready_view(LLAMA, leases=leases, in_flight=in_flight, parallel=parallel, busy=bool(leases + in_flight))
    seen = predicted(view, rates={LLAMA: whole})

    assert pytest.approx(ahead * 12.0, rel=1e-4) == seen.wait_seconds


def test_a_wait_without_history_is_as_long_as_this_request_itself():
    seen = predicted(a_ready_view(LLAMA, leases=1, busy=True))

    assert pytest.approx(seen.first_token_seconds + seen.decode_seconds) == seen.wait_seconds


@pytest.mark.parametrize(("eta_seconds", "expected"), [(3.0, 3.0), (0.0, 0.0), (None, LLAMA_LOAD_SECONDS)])
def test_a_load_under_way_is_waited_for_not_paid_again(eta_seconds, expected):
    view = a_place_view(LLAMA, state=PlaceState.STARTING, num_ctx=4096, budget_bytes=GIB, eta_seconds=eta_seconds)
    seen = predicted(view)

    assert pytest.approx(expected) == seen.wait_seconds
    assert 0 == seen.load_seconds


# ── evicting ────────────────────────────────────────────────────────────────────────────────────────────────────────


def eviction(**profiles) -> float:
    tight = replace(IDLE, readings={**IDLE.readings, ("host_memory_available_bytes", HOST): a_reading(4.4 * GIB)})
    seen = predicted(a_ready_view(LLAMA), a_place_view(QWEN), place=QWEN, snapshot=tight, **profiles)
    return seen.evict_seconds


def test_evicting_what_nobody_wants_costs_its_stop():
    assert 2.0 == eviction()


def test_evicting_what_may_be_wanted_back_costs_that_share_of_its_reload():
    """1 − exp(−rate × 600 s), times its reload."""
    once_in_ten_minutes = {"llama3.2:3b": 1 / 600}

    assert pytest.approx(2.0 + (1 - exp(-1)) * LLAMA_LOAD_SECONDS) == eviction(wanted_per_second=once_in_ten_minutes)
    assert pytest.approx(2.0 + LLAMA_LOAD_SECONDS) == eviction(wanted_per_second={"llama3.2:3b": 10.0})


def test_measured_stops_and_reloads_count_for_the_victim():
    rates = {LLAMA: Rates(stop_seconds=Measured(value=8.0, n=5), load_seconds=Measured(value=30.0, n=5))}

    assert pytest.approx(5.0 + (30.0 + LLAMA_LOAD_SECONDS) / 2) == eviction(
        rates=rates, wanted_per_second={"llama3.2:3b": 10.0}
    )


def test_a_reload_costs_a_load_and_evicts_nobody():
    world = a_world(snapshot=IDLE, fleet=a_fleet(a_ready_view(LLAMA)))
    seen = decide(a_request(prompt_tokens=6000), world, Settings(), NOW).chosen

    assert 8192 == seen.num_ctx
    assert () == seen.evicts
    assert pytest.approx(LLAMA_LOAD_SECONDS) == seen.prediction.load_seconds
    assert 0 == seen.prediction.evict_seconds
