"""The words around a choice: confidence, reasons, and one sentence with the numbers in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.profile import Measured, Rates, Success
from dispatcher.vocabulary.signal import Freshness, UnknownReason
from tests.builders import (
    LLAMA,
    NOW,
    PHI,
    QWEN,
    a_fleet,
    a_place_view,
    a_reading,
    a_ready_view,
    a_snapshot,
    a_world,
    some_profiles,
)
from tests.policy.asking import decided, short_of_memory

FAST = {place: Rates(decode_tokens_per_second=Measured(value=1000.0, n=10**6)) for place in (PHI, LLAMA, QWEN)}
KNOWN = {place: Rates(decode_tokens_per_second=Measured(value=30.0, n=50)) for place in (PHI, LLAMA, QWEN)}


@pytest.mark.parametrize(
    ("snapshot", "rates", "expected"),
    [
        pytest.param(a_snapshot(), KNOWN, "high", id="fresh, and five samples"),
        pytest.param(a_snapshot(), {}, "medium", id="no own samples yet"),
        pytest.param(a_snapshot(freshness=Freshness.STALE), KNOWN, "low", id="stale"),
        pytest.param(a_snapshot(readings={"host_cpu_busy_ratio": None}), KNOWN, "low", id="a signal unknown"),
        pytest.param(a_snapshot(stale=frozenset({"host_cpu_busy_ratio"})), KNOWN, "low", id="the CPU stale"),
        pytest.param(a_snapshot(stale=frozenset({"host_cpu_steal_ratio"})), KNOWN, "low", id="the steal stale"),
        pytest.param(a_snapshot(readings={"host_cpu_steal_ratio": None}), KNOWN, "low", id="the steal unknown"),
        pytest.param(a_snapshot(stale=frozenset({"host_cpu_count"})), KNOWN, "high", id="stale, and not used"),
    ],
)
def test_confidence_says_what_the_decision_rests_on(snapshot, rates, expected):
    world = a_world(snapshot=snapshot, fleet=a_fleet(a_ready_view(LLAMA)), profiles=some_profiles(rates=rates))

    assert expected == decided(world).confidence


def test_host_readings_that_stand_in_make_it_medium():
    snapshot = a_snapshot(source="host")
    stood_in = {key: replace(one, source="host") for key, one in snapshot.readings.items()}
    world = a_world(
        snapshot=replace(snapshot, readings=stood_in),
        fleet=a_fleet(a_ready_view(LLAMA)),
        profiles=some_profiles(rates=KNOWN),
    )

    assert "medium" == decided(world).confidence


@pytest.mark.parametrize(
    ("snapshot", "fleet", "degraded", "code"),
    [
        pytest.param(a_snapshot(), a_fleet(), False, None, id="all good"),
        pytest.param(
            a_snapshot(failing={"prometheus": UnknownReason.PROM_UNREACHABLE}),
            a_fleet(),
            True,
            "prom_unreachable",
            id="Prometheus fails, the host stands in",
        ),
        pytest.param(a_snapshot(), a_fleet(failing="down"), True, "engine_unreachable", id="the engine is down"),
        pytest.param(a_snapshot(freshness=Freshness.STALE), a_fleet(), True, "prom_stale", id="stale"),
        pytest.param(
            a_snapshot(stale=frozenset({"host_cpu_busy_ratio"})), a_fleet(), False, "prom_stale", id="the CPU stale"
        ),
        pytest.param(
            a_snapshot(readings={"host_cpu_busy_ratio": None}), a_fleet(), False, "None", id="a value unknown"
        ),
    ],
)
def test_degraded_and_reasons_say_what_is_missing(snapshot, fleet, degraded, code):
    decision = decided(a_world(snapshot=snapshot, fleet=fleet))

    assert degraded == decision.degraded
    assert ([code] if code else []) == [one.code for one in decision.reasons]


def test_a_host_without_steal_may_be_high():
    snapshot = a_snapshot()
    readings = {key: one for key, one in snapshot.readings.items() if key[0] != "host_cpu_steal_ratio"}
    world = a_world(
        snapshot=replace(snapshot, readings=readings),
        fleet=a_fleet(a_ready_view(LLAMA)),
        profiles=some_profiles(rates=KNOWN),
    )

    assert "high" == decided(world).confidence


@pytest.mark.parametrize(
    ("shared", "state", "start", "codes"),
    [
        pytest.param(True, PlaceState.READY, False, ["best_effort_lease"], id="ready: leased at once"),
        pytest.param(True, PlaceState.STOPPED, True, ["best_effort_lease"], id="started for it"),
        pytest.param(True, PlaceState.STOPPED, False, [], id="not started: no lease"),
        pytest.param(False, PlaceState.READY, True, [], id="a container of its own"),
    ],
)
def test_a_lease_on_a_shared_server_says_that_it_is_best_effort(shared, state, start, codes):
    fleet = a_fleet(a_place_view(LLAMA, state=state, num_ctx=4096, shared=shared))

    assert codes == [one.code for one in decided(a_world(fleet=fleet), start=start).reasons]


def test_the_snapshot_used_is_named_with_its_age():
    world = a_world(snapshot=a_snapshot(number=4127, at_seconds=NOW - 2.1))

    decision = decided(world)

    assert (4127, "prometheus") == (decision.snapshot_number, decision.snapshot_source)
    assert pytest.approx(2.1) == decision.snapshot_age_seconds
    assert None is decided(a_world(snapshot=a_snapshot(number=0))).snapshot_age_seconds


LEASED_LLAMA = a_ready_view(LLAMA, leases=1, busy=True, leased_until_seconds=NOW + 42)
SENTENCES = {
    "ready": (
        a_world(fleet=a_fleet(a_ready_view(LLAMA))),
        {},
        "llama3.2:3b for this moderate general request: it is ready and should answer in 21.7 s.",
    ),
    "to be started": (
        a_world(fleet=a_fleet(a_place_view(LLAMA))),
        {},
        "llama3.2:3b for this moderate general request: it will be started and should answer in 25.2 s.",
    ),
    "starting": (
        a_world(fleet=a_fleet(a_place_view(LLAMA, state=PlaceState.STARTING, num_ctx=4096, eta_seconds=2.0))),
        {"task": "coding", "complexity": "complex"},
        "llama3.2:3b for this complex coding request: it is starting and should answer in 23.7 s.",
    ),
    "after an eviction": (
        short_of_memory(a_ready_view(LLAMA), a_place_view(QWEN), available_gib=4.4),
        {"model": "qwen2.5:7b"},
        "qwen2.5:7b for this moderate general request: it will be started after llama3.2:3b makes room "
        "and should answer in 45.0 s.",
    ),
    "the more capable would not do": (
        short_of_memory(LEASED_LLAMA, a_place_view(QWEN)),
        {},
        "llama3.2:3b for this moderate general request: it is ready and should answer in 43.4 s; qwen2.5:7b would "
        "not do: needs 4.9 GiB, 3.0 GiB free after the reserve, short 1.9 GiB; llama3.2:3b (2.6 GiB) is leased until "
        "22:14:02.",
    ),
    "none": (
        a_world(fleet=a_fleet(a_place_view(LLAMA, breaker="open"), a_place_view(QWEN, state=PlaceState.STUCK))),
        {},
        "No model for this moderate general request now: llama3.2:3b: its breaker is open: it failed too often; "
        "qwen2.5:7b: is stuck: it was told to stop and has not.",
    ),
}


@pytest.mark.parametrize(("world", "asked", "sentence"), SENTENCES.values(), ids=SENTENCES.keys())
def test_one_sentence_for_a_person_with_the_numbers_in_it(world, asked, sentence):
    assert sentence == decided(world, **asked).sentence


CHAIN = "phi3:mini, llama3.2:3b, qwen2.5:7b"
NO_MODEL = {
    "in the same trouble, told together": (
        a_fleet(a_place_view(LLAMA, breaker="open"), a_place_view(QWEN, breaker="open")),
        {},
        "No model for this moderate general request now: llama3.2:3b, qwen2.5:7b: its breaker is open: it failed too "
        "often.",
    ),
    "an engine that cannot be asked is told once": (
        a_fleet(a_place_view(LLAMA), a_place_view(QWEN), failing="no answer within 5 s."),
        {},
        "No model for this moderate general request now: llama3.2:3b, qwen2.5:7b: would have to be started, and the "
        "engine cannot be asked; docker cannot be asked: no answer within 5 s.",
    ),
    "no place is known, for the engine cannot be asked": (
        a_fleet(places=(), provider="none", failing="no socket there."),
        {},
        "No model for this moderate general request now: the engine cannot be asked: no socket there.",
    ),
    "nearly a name of the chain": (
        a_fleet(a_place_view(LLAMA)),
        {"model": "qwen2.5:14b"},
        f"no model 'qwen2.5:14b' in the chain ({CHAIN}); did you mean qwen2.5:7b? Else add it under models: in the "
        "configuration.",
    ),
    "no name of the chain": (
        a_fleet(a_place_view(LLAMA)),
        {"model": "gpt-4"},
        f"no model 'gpt-4' in the chain ({CHAIN}); add it under models: in the configuration.",
    ),
    "a name without a place": (
        a_fleet(a_place_view(LLAMA)),
        {"model": "qwen2.5:7b"},
        "No model for this moderate general request: qwen2.5:7b is in the chain, but no place that runs it is known "
        "here.",
    ),
    "a pin without a place": (
        a_fleet(a_place_view(LLAMA), pinned_model="qwen2.5:7b"),
        {},
        "No model for this moderate general request: qwen2.5:7b is pinned; dispatcher unpin qwen2.5:7b lets auto "
        "choose again, and no place that runs it is known here.",
    ),
}


@pytest.mark.parametrize(("fleet", "asked", "sentence"), NO_MODEL.values(), ids=NO_MODEL.keys())
def test_no_model_is_told_in_one_sentence_each_trouble_once(fleet, asked, sentence):
    decision = decided(a_world(fleet=fleet), **asked)

    assert (None, sentence) == (decision.chosen, decision.sentence)


def test_a_pin_on_a_model_outside_the_chain_blocks_nothing_and_is_said():
    decision = decided(a_world(fleet=a_fleet(a_ready_view(LLAMA), pinned_model="gemma2:2b")))

    told = f"gemma2:2b is pinned and not in the chain ({CHAIN}), so it is ignored; dispatcher unpin gemma2:2b"
    assert (LLAMA, [("pin_ignored", told)]) == (
        decision.chosen.place,
        [(one.code, one.detail) for one in decision.reasons],
    )


def test_what_was_not_allowed_is_no_news_in_the_sentence():
    world = a_world(fleet=a_fleet(a_ready_view(LLAMA), a_place_view(QWEN)))

    assert "qwen" not in decided(world, model="llama3.2:3b").sentence


def test_a_candidates_because_says_state_and_seconds():
    decision = decided(a_world(fleet=a_fleet(a_ready_view(LLAMA, cpu_cores=a_reading(0.0)))))

    assert "ready, 21.7 s predicted" == decision.chosen.because


def test_every_score_and_number_stays_with_the_decision():
    decision = decided(a_world(profiles=some_profiles(success={("llama3.2:3b", "general"): Success(ok=1, n=2)})))

    for one in decision.candidates:
        assert None is not one.score
        assert None is not one.scores
        assert None is not one.prediction
        assert one.need_bytes
        assert one.free_bytes
