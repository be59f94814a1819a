"""Every rule that can refuse a place: both ways, in the words and numbers a person reads, and in their order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.policy.decide import FILTERS
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.settings import GIB
from dispatcher.vocabulary.signal import Freshness
from dispatcher.vocabulary.world import Lost
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
)
from tests.policy.asking import candidate, decided, refused

AT_22_20 = NOW + 400.0  # NOW is 22:13:20 UTC
PINNED = "qwen2.5:7b is pinned; dispatcher unpin qwen2.5:7b lets auto choose again"


# ── one world, one rule ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("asked", "fleet", "because"),
    [
        pytest.param({"model": "auto"}, {}, None, id="auto takes any"),
        pytest.param({"model": ""}, {}, None, id="no name is auto"),
        pytest.param({"model": "llama3.2:3b"}, {}, None, id="named"),
        pytest.param({"model": "phi3:mini"}, {}, "phi3:mini was asked for by name", id="another was named"),
        pytest.param({}, {"pinned_model": "qwen2.5:7b"}, PINNED, id="another is pinned"),
        pytest.param({}, {"pinned_model": "gemma2:2b"}, None, id="the pinned one is not in the chain"),
        pytest.param({}, {"pinned_model": "llama3.2:3b"}, None, id="it is pinned itself"),
        pytest.param(
            {"model": "llama3.2:3b"}, {"pinned_model": "qwen2.5:7b"}, None, id="a name is stronger than a pin"
        ),
    ],
)
def test_not_allowed_is_what_was_not_named_or_not_pinned(asked, fleet, because):
    decision = decided(a_world(fleet=a_fleet(**fleet)), **asked)

    assert (because and ("not_allowed", because)) == refused(decision, LLAMA)


@pytest.mark.parametrize(
    ("requires", "place", "because"),
    [
        pytest.param({"tools"}, LLAMA, None, id="it has it"),
        pytest.param({"tools"}, PHI, "cannot do tools; its features: json", id="it lacks it"),
        pytest.param(
            {"vision", "tools"}, LLAMA, "cannot do vision; its features: json, tools", id="it lacks one of two"
        ),
        pytest.param(set(), PHI, None, id="nothing is required"),
    ],
)
def test_lacks_capability_names_what_is_missing_and_what_is_there(requires, place, because):
    decision = decided(a_world(), requires=frozenset(requires))

    assert (because and ("lacks_capability", because)) == refused(decision, place)


@pytest.mark.parametrize(
    ("prompt_tokens", "place", "because"),
    [
        pytest.param(32_568, QWEN, None, id="exactly its maximum"),
        pytest.param(
            32_569,
            QWEN,
            "needs 32,769 tokens of context (32,569 prompt + 200 answer), the model takes 32,768",
            id="one token more",
        ),
    ],
)
def test_context_too_long_means_beyond_the_models_own_maximum(prompt_tokens, place, because):
    decision = decided(a_world(), prompt_tokens=prompt_tokens, output_tokens=200)

    assert (because and ("context_too_long", because)) == refused(decision, place)


LOST = {
    "draining": (a_ready_view(LLAMA, state=PlaceState.DRAINING), "is draining"),
    "stopping": (a_ready_view(LLAMA, state=PlaceState.STOPPING), "is stopping"),
    "stuck": (a_ready_view(LLAMA, state=PlaceState.STUCK), "is stuck: it was told to stop and has not"),
    "not installed": (
        a_place_view(LLAMA, installed=False),
        "the model is not installed there: ollama pull llama3.2:3b",
    ),
    "no endpoint": (
        a_place_view(LLAMA, endpoint=None),
        "no address that a caller can reach: no published port, no label",
    ),
    "silent": (
        a_ready_view(LLAMA, answers=False, because="connection refused"),
        "its engine is silent: connection refused",
    ),
    "taken": (a_ready_view(LLAMA, taken_by=QWEN), "is making room for qwen2.5:7b"),
    "claimed": (
        a_ready_view(LLAMA, claimed_by="d-9", claimed_for=QWEN, claimed_until_seconds=AT_22_20),
        "takes no new leases until 22:20:00: qwen2.5:7b waits for its memory",
    ),
    "backing off": (
        a_place_view(LLAMA, retry_at_seconds=AT_22_20, because="exited with 1"),
        "its last start failed (exited with 1), the next try is at 22:20:00",
    ),
    "a reload of a leased place": (
        a_ready_view(LLAMA, leases=1, busy=True),
        "is in use with 4,096 tokens of context; a reload to 8,192 waits until it is not",
    ),
    "a reload of a busy place": (
        a_ready_view(LLAMA, busy=True),
        "is in use with 4,096 tokens of context; a reload to 8,192 waits until it is not",
    ),
    "starting with too little": (
        a_place_view(LLAMA, state=PlaceState.STARTING, num_ctx=4096),
        "is starting with 4,096 tokens of context, this needs 5,200",
    ),
}


@pytest.mark.parametrize(("view", "because"), LOST.values(), ids=LOST.keys())
def test_unavailable_says_why_the_place_cannot_serve_now(view, because):
    decision = decided(a_world(fleet=a_fleet(view)), prompt_tokens=5000, output_tokens=200)

    assert ("unavailable", because) == refused(decision, LLAMA)


USABLE = {
    "stopped": a_place_view(LLAMA),
    "ready": a_ready_view(LLAMA),
    "starting with enough": a_place_view(LLAMA, state=PlaceState.STARTING, num_ctx=8192),
    "installed or not, nobody knows": a_place_view(LLAMA, installed=None),
    "silent because it is stopped": a_place_view(LLAMA, answers=False),
    "the claim is over": a_ready_view(LLAMA, claimed_by="d-9", claimed_for=QWEN, claimed_until_seconds=NOW - 1),
    "claimed by this very request": a_ready_view(
        LLAMA, claimed_by="d-1", claimed_for=LLAMA, claimed_until_seconds=AT_22_20
    ),
    "the backoff is over": a_place_view(LLAMA, retry_at_seconds=NOW),
}


@pytest.mark.parametrize("view", USABLE.values(), ids=USABLE.keys())
def test_what_is_usable_is_not_called_unavailable(view):
    decision = decided(a_world(fleet=a_fleet(view)), prompt_tokens=5000, output_tokens=200)

    assert None is refused(decision, LLAMA)


def test_an_engine_that_cannot_be_asked_refuses_starts_and_leaves_what_runs_alone():
    fleet = a_fleet(a_ready_view(LLAMA), a_place_view(QWEN), failing="Docker gave no answer within 5 s")
    decision = decided(a_world(fleet=fleet))

    assert LLAMA == decision.chosen.place
    assert ("unavailable", "would have to be started, and the engine cannot be asked") == refused(decision, QWEN)
    assert ["docker cannot be asked: Docker gave no answer within 5 s"] == [one.detail for one in decision.reasons]


def test_a_quarantined_place_says_until_when_and_why():
    view = a_place_view(LLAMA, state=PlaceState.QUARANTINED, retry_at_seconds=AT_22_20, because="it exited with 2")

    assert ("quarantined", "failed too often, quarantined until 22:20:00: it exited with 2") == refused(
        decided(a_world(fleet=a_fleet(view))), LLAMA
    )


@pytest.mark.parametrize(
    ("breaker", "rule"), [("open", "breaker_open"), ("half_open", None), ("closed", None)], ids=str
)
def test_only_an_open_breaker_refuses(breaker, rule):
    decision = decided(a_world(fleet=a_fleet(a_ready_view(LLAMA, breaker=breaker))))

    found = refused(decision, LLAMA)
    assert rule == (found and found[0])


# ── deadline and reservation ──────────────────────────────────────────────────────────────────────────────────────────


def test_too_slow_for_deadline_counts_waits_and_loads_and_the_time_already_gone():
    # 300 tokens of prompt at 800/s, 200 of answer at 100/s (Prometheus says), 1.5 s + 1.88 GiB at 1 GB/s to load
    snapshot = a_snapshot(readings={"host_cpu_busy_ratio": 0.0})
    snapshot = replace(
        snapshot, readings={**snapshot.readings, ("model_tokens_per_second", "llama3.2:3b"): a_reading(100.0)}
    )
    world = a_world(snapshot=snapshot, fleet=a_fleet(a_place_view(LLAMA)))
    total = candidate(decided(world), LLAMA).prediction.total_seconds

    assert 5.5 < total < 6.5
    assert None is refused(decided(world, deadline_seconds=total + 0.01), LLAMA)
    assert (
        "too_slow_for_deadline",
        "5.9 s predicted (wait 0.0 s, load 3.5 s), 5.0 s left of the deadline",
    ) == refused(decided(world, deadline_seconds=10.0, at_seconds=NOW - 5.0), LLAMA)


def test_a_reservation_the_ledger_refused_is_told_in_the_ledgers_words():
    world = a_world(lost={LLAMA: Lost(because="docker:phi may no longer be stopped")})

    assert ("reservation_lost", "docker:phi may no longer be stopped") == refused(decided(world), LLAMA)
    assert None is refused(decided(world), PHI)


def test_words_with_braces_do_not_break_a_sentence():
    world = a_world(lost={LLAMA: Lost(because="500 {'error': 'x'}")})

    assert ("reservation_lost", "500 {'error': 'x'}") == refused(decided(world), LLAMA)


# ── order ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


ORDER = (
    "not_allowed",
    "lacks_capability",
    "context_too_long",
    "reservation_lost",
    "unavailable",
    "quarantined",
    "breaker_open",
    "memory_short",
    "cpu_busy",
    "pressure_high",
    "signal_unknown",
)


def test_filters_stand_in_the_order_the_architecture_gives():
    assert list(ORDER) == [one.__name__ for one in FILTERS]


def test_when_everything_is_wrong_the_first_rule_of_the_order_is_named():
    """One world in which every rule refuses; curing them one by one uncovers the next."""
    snapshot = a_snapshot(
        readings={"host_memory_available_bytes": 1.5 * GIB},
        latches=frozenset({"cpu_busy", "pressure_high"}),
        freshness=Freshness.STALE,
    )
    asked = {
        "model": "phi3:mini",
        "requires": frozenset({"vision"}),
        "prompt_tokens": 40_000,
        "deadline_seconds": 0.1,
    }
    cured_model = {**asked, "model": "auto"}
    cured_features = {**cured_model, "requires": frozenset()}
    cured_context = {**cured_features, "prompt_tokens": 300}
    draining = a_place_view(QWEN, state=PlaceState.DRAINING, breaker="open")
    sick = a_place_view(QWEN, state=PlaceState.QUARANTINED, breaker="open")
    tripped = a_place_view(QWEN, breaker="open")
    well = a_place_view(QWEN)
    plenty = a_snapshot(latches=frozenset({"cpu_busy", "pressure_high"}), freshness=Freshness.STALE)
    calm = a_snapshot(latches=frozenset({"pressure_high"}), freshness=Freshness.STALE)
    lost = {QWEN: Lost(because="no")}
    steps = [
        ("not_allowed", snapshot, draining, asked, lost),
        ("lacks_capability", snapshot, draining, cured_model, lost),
        ("context_too_long", snapshot, draining, cured_features, lost),
        ("reservation_lost", snapshot, draining, cured_context, lost),
        ("unavailable", snapshot, draining, cured_context, {}),
        ("quarantined", snapshot, sick, cured_context, {}),
        ("breaker_open", snapshot, tripped, cured_context, {}),
        ("memory_short", snapshot, well, cured_context, {}),
        ("cpu_busy", plenty, well, cured_context, {}),
        ("pressure_high", calm, well, cured_context, {}),
        ("signal_unknown", a_snapshot(freshness=Freshness.STALE), well, cured_context, {}),
        ("too_slow_for_deadline", a_snapshot(), well, cured_context, {}),
    ]
    found = [
        refused(decided(a_world(snapshot=seen, fleet=a_fleet(view), lost=gone), **words), QWEN)
        for _, seen, view, words, gone in steps
    ]

    assert [rule for rule, *_ in steps] == [one and one[0] for one in found]
