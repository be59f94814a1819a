"""The rules that refuse a start: memory, in numbers and with its victims; the gates; and what nobody knows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.settings import GIB, MIB
from dispatcher.vocabulary.signal import Freshness, UnknownReason
from dispatcher.wire.decision import insufficient_memory
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
from tests.policy.asking import candidate, decided, fixed_footprints, refused

# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────────


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


def video_world(free_gib: float | None, *views):
    snapshot = a_snapshot(readings={"gpu_memory_free_bytes": None if free_gib is None else free_gib * GIB})
    return a_world(snapshot=snapshot, fleet=a_fleet(*views), profiles=fixed_footprints(qwen=5.4))


@pytest.mark.parametrize(
    ("free_gib", "video_gib", "fits"),
    [
        pytest.param(4.0, 5.0, False, id="its model lives in video memory, and there is too little"),
        pytest.param(5.0, 5.0, True, id="exactly enough"),
        pytest.param(None, 5.0, True, id="nobody says what is free"),
        pytest.param(0.0, 0.0, True, id="it lives in the host's memory"),
        pytest.param(0.0, None, True, id="nobody ever said where it lives: never guessed"),
    ],
)
def test_a_model_that_lives_in_video_memory_needs_it_free(free_gib, video_gib, fits):
    video_bytes = None if video_gib is None else round(video_gib * GIB)
    decision = decided(video_world(free_gib, a_place_view(QWEN, video_bytes=video_bytes)), model=QWEN.model)

    if fits:
        assert decision.chosen is not None
    else:
        assert ("memory_short", "needs 5.0 GiB of video memory, 4.0 GiB free, short 1.0 GiB") == refused(decision, QWEN)


def test_a_larger_context_needs_more_video_memory_than_it_held_before():
    held = a_ready_view(QWEN, num_ctx=4096, video_bytes=5 * GIB)
    decision = decided(video_world(0.1, held), prompt_tokens=7000, model=QWEN.model)

    rule, because = refused(decision, QWEN)
    assert "memory_short" == rule
    assert "of video memory, 5.1 GiB free" in because  # its own counts as free: a reload gives it back first


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


def test_a_dwell_in_the_way_is_told_with_its_end_and_passes():
    until_14_02_10 = 1_700_056_930.0
    started = a_ready_view(LLAMA, dwell_until_seconds=until_14_02_10, budget_bytes=round(2.5 * GIB))
    decision = decided(memory_world(4.9, started, a_place_view(QWEN)), model=QWEN.model)

    short = "needs 5.4 GiB, 3.9 GiB free after the reserve, short 1.5 GiB"
    told = f"{short}; llama3.2:3b (2.5 GiB) was started a moment ago and stays until 14:02:10"
    assert ("memory_short", told) == refused(decision, QWEN)
    rejection = candidate(decision, QWEN).rejection
    assert (False, True, until_14_02_10) == (rejection.leases_only, rejection.passing, rejection.until_seconds)
    assert until_14_02_10 == decision.pause_until_seconds


@pytest.mark.parametrize(
    ("held", "passes"),
    [
        pytest.param({"busy": True}, True, id="it works for somebody who has no lease: that ends"),
        pytest.param({"pinned": True}, False, id="pinned it stays"),
        pytest.param({"dwell_until_seconds": NOW + 30, "pinned": True}, False, id="pinned, whatever its dwell"),
        pytest.param({"dwell_until_seconds": NOW + 30, "budget_bytes": GIB}, False, id="it holds too little"),
    ],
)
def test_what_is_in_the_way_without_a_lease_passes_or_stays(held, passes):
    holder = a_ready_view(LLAMA, **{"budget_bytes": round(2.5 * GIB), **held})
    decision = decided(memory_world(4.9, holder, a_place_view(QWEN)), model=QWEN.model)

    rejection = candidate(decision, QWEN).rejection
    assert (passes, None) == (rejection.passing, rejection.until_seconds)
    assert passes == (None is insufficient_memory(decision))


def test_the_latch_of_one_place_is_no_matter_of_another():
    decision = decided(memory_world(1 + 5.4 * 1.2, latches=frozenset({"memory_short:docker:llama/llama3.2:3b"})))

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
    """Were it evictable, 3.4 GiB free and its 2.6 would do: the next test."""
    decision = decided(memory_world(4.4, a_ready_view(LLAMA, **changes), a_place_view(QWEN)))

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


# ── the gates of starting ─────────────────────────────────────────────────────────────────────────────────────────────

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


def test_a_second_request_joins_a_leased_place_that_is_down_on_the_memory_it_holds():
    """Crashed and not yet started again: its budget is in the ledger, and asks for no more memory than that."""
    need = round(5.4 * GIB)
    down = a_place_view(QWEN, leases=1, num_ctx=4096, budget_bytes=need, stopped_at_seconds=NOW - 5)
    world = memory_world(12.0, down)
    fleet = replace(world.fleet, capacity_bytes=7 * GIB, reserve_bytes=GIB, reserved_bytes=need)

    assert None is refused(decided(replace(world, fleet=fleet)), QWEN)
    without = replace(fleet, places=(replace(down, budget_bytes=0),))
    assert "memory_short" == refused(decided(replace(world, fleet=without)), QWEN)[0]
