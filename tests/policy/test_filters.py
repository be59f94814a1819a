"""Every rule that can refuse a place: both ways, in the words and numbers a person reads, and in their order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.policy.decide import FILTERS, decide
from dispatcher.vocabulary.decision import Candidate, Decision
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.settings import GIB, MIB, Settings
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
    a_request,
    a_snapshot,
    a_world,
    some_profiles,
)

AT_22_20 = NOW + 400.0  # NOW is 22:13:20 UTC


def decided(world, settings: Settings | None = None, now_seconds: float = NOW, **asked) -> Decision:
    return decide(a_request(**asked), world, settings or Settings(), now_seconds)


def candidate(decision: Decision, place: Place) -> Candidate:
    return next(one for one in decision.candidates if one.place == place)


def refused(decision: Decision, place: Place) -> tuple[str, str] | None:
    """(rule, because), or None when the place survived."""
    rejection = candidate(decision, place).rejection
    return None if rejection is None else (rejection.rule, rejection.because)


def fixed_footprints(**bytes_by_model: float) -> Profiles:
    """Profiles with footprints in GiB that the configuration fixed: qwen=5.4."""
    names = {"phi": "phi3:mini", "llama": "llama3.2:3b", "qwen": "qwen2.5:7b"}
    facts = dict(some_profiles().facts)
    for short, gib in bytes_by_model.items():
        facts[names[short]] = replace(facts[names[short]], footprint_bytes=round(gib * GIB))
    return some_profiles(facts=facts)


# ── one world, one rule ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("asked", "fleet", "because"),
    [
        pytest.param({"model": "auto"}, {}, None, id="auto takes any"),
        pytest.param({"model": ""}, {}, None, id="no name is auto"),
        pytest.param({"model": "llama3.2:3b"}, {}, None, id="named"),
        pytest.param({"model": "phi3:mini"}, {}, "phi3:mini was asked for by name", id="another was named"),
        pytest.param({}, {"pinned_model": "qwen2.5:7b"}, "qwen2.5:7b is pinned", id="another is pinned"),
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
        pytest.param({"vision", "tools"}, LLAMA, "cannot do vision; its features: json, tools", id="it lacks one of two"),
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
    assert (
        "unavailable",
        "would have to be started, and the engine cannot be asked: Docker gave no answer within 5 s",
    ) == refused(decision, QWEN)


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


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def memory_world(available_gib: float | None, *views, profiles: Profiles | None = None, **snapshot):
    return a_world(
        snapshot=a_snapshot(
            readings={"host_memory_available_bytes": None if available_gib is None else available_gib * GIB}, **snapshot
        ),
        fleet=a_fleet(*(views or (a_place_view(QWEN),))),
        profiles=profiles or fixed_footprints(qwen=5.4),
    )


def test_memory_short_reads_like_the_contract_says():
    """contract.md's own example: needs 5.4 GiB, 3.9 GiB free, short 1.5 GiB, and the lease by name and end."""
    until_14_02_10 = 1_700_056_930.0
    leased = a_ready_view(
        LLAMA, leases=1, busy=True, leased_until_seconds=until_14_02_10, budget_bytes=round(2.5 * GIB)
    )
    decision = decided(memory_world(4.9, leased, a_place_view(QWEN)))

    assert (
        "memory_short",
        "needs 5.4 GiB, 3.9 GiB free after the reserve, short 1.5 GiB; llama3.2:3b (2.5 GiB) is leased until 14:02:10",
    ) == refused(decision, QWEN)
    assert candidate(decision, QWEN).rejection.leases_only
    assert (LLAMA,) == candidate(decision, QWEN).rejection.blockers


@pytest.mark.parametrize(
    ("available_gib", "latched", "fits"),
    [
        pytest.param(1 + 5.4 * 1.10 + 0.001, False, True, id="just above need × 1.10"),
        pytest.param(1 + 5.4 * 1.10 - 0.001, False, False, id="just below need × 1.10"),
        pytest.param(1 + 5.4 * 1.25 - 0.001, True, False, id="latched: just below need × 1.25"),
        pytest.param(1 + 5.4 * 1.25 + 0.001, True, True, id="latched: just above need × 1.25"),
    ],
)
def test_a_latched_memory_shortage_leaves_at_125_and_enters_at_110(available_gib, latched, fits):
    latches = frozenset({"memory_short:docker:qwen/qwen2.5:7b"} if latched else ())
    decision = decided(memory_world(available_gib, latches=latches))

    assert fits == (refused(decision, QWEN) is None)


def test_the_latch_of_one_place_is_no_matter_of_another():
    decision = decided(
        memory_world(1 + 5.4 * 1.2, latches=frozenset({"memory_short:docker:llama/llama3.2:3b"}))
    )

    assert None is refused(decision, QWEN)


def test_enough_but_not_enough_to_be_safe_says_what_would_be():
    decision = decided(memory_world(6.5))  # 5.5 free, 5.4 needed, 5.94 wanted

    assert ("memory_short", "needs 5.4 GiB, 5.5 GiB free after the reserve, 5.9 GiB wanted to be safe") == refused(
        decision, QWEN
    )


def test_what_the_containers_limit_cannot_hold_is_memory_short_whatever_is_free():
    view = a_place_view(QWEN, limit_bytes=5 * GIB)

    assert (
        "memory_short",
        "needs 5.4 GiB at 4,096 tokens of context, its container is limited to 5.0 GiB",
    ) == refused(decided(memory_world(14, view)), QWEN)


def test_small_numbers_are_told_in_mebibytes():
    decision = decided(memory_world(1.2, profiles=fixed_footprints(qwen=0.5)))

    assert (
        "memory_short",
        "needs 512 MiB, 205 MiB free after the reserve, short 307 MiB",
    ) == refused(decision, QWEN)


def test_the_ledger_counts_when_measurement_sees_more():
    """16 GiB capacity, 1 reserve, 11 promised to others: 4 left, though 12 are measured free."""
    world = memory_world(12.0)
    world = replace(world, fleet=replace(world.fleet, reserved_bytes=11 * GIB))

    assert ("memory_short", "needs 5.4 GiB, 4.0 GiB free after the reserve, short 1.4 GiB") == refused(
        decided(world), QWEN
    )
    assert 4 * GIB == candidate(decided(world), QWEN).free_bytes


NOT_EVICTABLE = {
    "leased": {"leases": 1, "busy": True, "leased_until_seconds": NOW + 60},
    "in flight": {"in_flight": 1, "busy": True},
    "busy by its CPU": {"busy": True},
    "pinned": {"pinned": True},
    "in its dwell": {"dwell_until_seconds": NOW + 1},
    "already taken": {"taken_by": PHI},
    "claimed by another": {"claimed_by": "d-9", "claimed_for": PHI, "claimed_until_seconds": NOW + 60},
}


@pytest.mark.parametrize("changes", NOT_EVICTABLE.values(), ids=NOT_EVICTABLE.keys())
def test_what_is_in_use_is_never_a_victim(changes):
    decision = decided(memory_world(4.0, a_ready_view(LLAMA, **changes), a_place_view(QWEN)))

    found = refused(decision, QWEN)
    assert "memory_short" == (found and found[0])


def test_an_idle_place_is_the_victim_and_memory_short_keeps_silent():
    decision = decided(memory_world(4.4, a_ready_view(LLAMA), a_place_view(QWEN)), model="qwen2.5:7b")

    assert QWEN == decision.chosen.place
    assert (LLAMA,) == decision.chosen.evicts
    assert decision.chosen.because.startswith("stopped, evicts docker:llama, ")


def test_only_as_many_are_evicted_as_are_needed_and_the_least_worth_keeping_first():
    views = (
        a_ready_view(LLAMA, keep_priority=5.0),
        a_ready_view(PHI, keep_priority=1.0),
        a_place_view(QWEN),
    )
    decision = decided(memory_world(4.4, *views), model="qwen2.5:7b")

    assert (PHI,) == decision.chosen.evicts


def test_a_victim_that_turns_out_not_to_be_needed_is_spared():
    """The lowest priority goes first; when the next one alone frees enough, the first may stay."""
    tiny = Place(server="docker:tiny", model="phi3:mini")
    views = (
        a_ready_view(tiny, keep_priority=0.0, budget_bytes=100 * MIB),
        a_ready_view(PHI, keep_priority=1.0),
        a_place_view(QWEN),
    )
    decision = decided(memory_world(4.4, *views), model="qwen2.5:7b")

    assert (PHI,) == decision.chosen.evicts


def test_leases_are_all_that_is_in_the_way_only_when_their_memory_would_be_enough():
    big = memory_world(2.0, a_ready_view(LLAMA, leases=1, busy=True, budget_bytes=1 * GIB), a_place_view(QWEN))
    rejection = candidate(decided(big), QWEN).rejection

    assert not rejection.leases_only
    assert () == rejection.blockers
    assert "it is ready and has been used" in rejection.because  # its time has not begun


# ── the gates of starting ───────────────────────────────────────────────────────────────────────────────────────────

GATES = {
    "cpu_busy": (
        a_snapshot(latches=frozenset({"cpu_busy"}), readings={"host_cpu_busy_ratio": 0.93}),
        ("cpu_busy", "would have to be started while others keep the CPU busy (host at 93%); below 70% it may"),
    ),
    "cpu_busy, nobody knows how much": (
        a_snapshot(latches=frozenset({"cpu_busy"}), readings={"host_cpu_busy_ratio": None}),
        (
            "cpu_busy",
            "would have to be started while others keep the CPU busy (host at an unknown load); below 70% it may",
        ),
    ),
    "memory pressure": (
        a_snapshot(latches=frozenset({"pressure_high"})),
        ("pressure_high", "would have to be started, and the host is under memory pressure (12.0 GiB available)"),
    ),
    "stalls on memory": (
        a_snapshot(latches=frozenset({"pressure_full"})),
        ("pressure_high", "would have to be started, and the host stalls on memory (12.0 GiB available)"),
    ),
    "hard limit": (
        a_snapshot(latches=frozenset({"memory_hard"})),
        ("pressure_high", "would have to be started, and the host is at its hard memory limit (12.0 GiB available)"),
    ),
    "stale": (
        a_snapshot(freshness=Freshness.STALE, at_seconds=NOW),
        ("signal_unknown", "would have to be started, and the host's free memory is stale (0.0 s)"),
    ),
    "blind": (
        a_snapshot(freshness=Freshness.BLIND, readings={"host_memory_available_bytes": None}),
        ("signal_unknown", "would have to be started, and the host's free memory is blind (0.0 s)"),
    ),
}


@pytest.mark.parametrize(("snapshot", "expected"), GATES.values(), ids=GATES.keys())
def test_a_gate_refuses_what_would_have_to_be_started_and_nothing_else(snapshot, expected):
    fleet = a_fleet(a_ready_view(PHI), a_place_view(LLAMA))
    decision = decided(a_world(snapshot=snapshot, fleet=fleet))

    assert expected == refused(decision, LLAMA)
    assert PHI == decision.chosen.place


@pytest.mark.parametrize(("snapshot", "expected"), GATES.values(), ids=GATES.keys())
def test_a_gate_refuses_a_reload_too(snapshot, expected):
    decision = decided(a_world(snapshot=snapshot, fleet=a_fleet(a_ready_view(LLAMA))), prompt_tokens=6000)

    assert expected == refused(decision, LLAMA)


@pytest.mark.parametrize(("snapshot", "expected"), GATES.values(), ids=GATES.keys())
def test_a_gate_lets_a_start_under_way_be_waited_for(snapshot, expected):
    view = a_place_view(LLAMA, state=PlaceState.STARTING, num_ctx=4096, budget_bytes=3 * GIB, eta_seconds=3.0)

    assert None is refused(decided(a_world(snapshot=snapshot, fleet=a_fleet(view))), LLAMA)


def test_stale_memory_says_how_old_it_is():
    snapshot = a_snapshot(freshness=Freshness.STALE)
    decision = decided(a_world(snapshot=snapshot), now_seconds=NOW + 90, at_seconds=NOW + 90)

    assert (
        "signal_unknown",
        "would have to be started, and the host's free memory is stale (90.0 s)",
    ) == refused(decision, LLAMA)


def test_unknown_memory_says_why_it_is_unknown():
    memory = a_reading(None, unknown=UnknownReason.PROM_UNREACHABLE)
    snapshot = a_snapshot()
    snapshot = replace(snapshot, readings={**snapshot.readings, ("host_memory_available_bytes", ""): memory})

    assert ("signal_unknown", "free memory is unknown (prom_unreachable)") == refused(
        decided(a_world(snapshot=snapshot)), LLAMA
    )


def test_an_unknown_capacity_starts_nothing():
    fleet = a_fleet(capacity_bytes=None)

    assert ("signal_unknown", "free memory is unknown (the host's total memory is unknown)") == refused(
        decided(a_world(fleet=fleet)), LLAMA
    )


def test_a_number_that_is_none_is_no_memory_to_start_on():
    for absurd in (float("nan"), float("inf")):
        decision = decided(a_world(snapshot=a_snapshot(readings={"host_memory_available_bytes": absurd})))

        found = refused(decision, LLAMA)
        assert "signal_unknown" == (found and found[0])


# ── deadline and reservation ────────────────────────────────────────────────────────────────────────────────────────


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
    world = a_world(lost={LLAMA: "docker:phi may no longer be stopped"})

    assert ("reservation_lost", "docker:phi may no longer be stopped") == refused(decided(world), LLAMA)
    assert None is refused(decided(world), PHI)


def test_words_with_braces_do_not_break_a_sentence():
    world = a_world(lost={LLAMA: "500 {'error': 'x'}"})

    assert ("reservation_lost", "500 {'error': 'x'}") == refused(decided(world), LLAMA)


# ── order ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_filters_stand_in_the_order_the_architecture_gives():
    assert (
        "not_allowed lacks_capability context_too_long reservation_lost unavailable quarantined breaker_open "
        "memory_short cpu_busy pressure_high signal_unknown"
    ).split() == [one.__name__ for one in FILTERS]


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
    lost = {QWEN: "no"}
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
