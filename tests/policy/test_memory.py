"""Whose memory a start may take: video memory counted like the host's; what a closed latch says of our own leases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.vocabulary.fleet import PlaceState, PlaceView
from dispatcher.vocabulary.settings import GIB
from dispatcher.wire.decision import no_model
from tests.builders import LLAMA, NOW, PHI, QWEN, a_fleet, a_place_view, a_reading, a_ready_view, a_snapshot, a_world
from tests.policy.asking import candidate, decided, fixed_footprints, refused

IN_VIDEO = {"video_bytes": 5 * GIB}
LEASED = {"leases": 1, "busy": True, "leased_until_seconds": NOW + 42}
LATCHED = frozenset({"memory_short:docker:qwen/qwen2.5:7b"})


def video_world(free_gib: float, *views: PlaceView, sampled_at: float = NOW, available_gib: float = 12.0):
    snapshot = a_snapshot(readings={"host_memory_available_bytes": available_gib * GIB})
    free = a_reading(free_gib * GIB, at_seconds=sampled_at)
    snapshot = replace(snapshot, readings={**snapshot.readings, ("gpu_memory_free_bytes", ""): free})
    return a_world(snapshot=snapshot, fleet=a_fleet(*views), profiles=fixed_footprints(qwen=5.4))


def asked_of(world):
    return decided(world, model=QWEN.model)


# ── video memory ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_idle_place_gives_up_its_video_memory_though_the_hosts_is_enough():
    world = video_world(
        2.0, a_ready_view(LLAMA, video_bytes=3 * GIB), a_ready_view(PHI), a_place_view(QWEN, **IN_VIDEO)
    )

    assert (QWEN, (LLAMA,)) == (asked_of(world).chosen.place, asked_of(world).chosen.evicts)


def test_of_two_that_could_go_for_video_memory_the_least_worth_keeping_goes_and_no_more():
    views = (a_ready_view(LLAMA, keep_priority=5.0, video_bytes=3 * GIB), a_ready_view(PHI, video_bytes=4 * GIB))

    assert (PHI,) == asked_of(video_world(2.0, *views, a_place_view(QWEN, **IN_VIDEO))).chosen.evicts


def test_a_victim_for_the_hosts_memory_is_spared_when_one_frees_both():
    views = (
        a_ready_view(PHI, keep_priority=1.0, video_bytes=0, budget_bytes=3 * GIB),
        a_ready_view(LLAMA, keep_priority=2.0, video_bytes=5 * GIB, budget_bytes=3 * GIB),
        a_place_view(QWEN, **IN_VIDEO),
    )

    assert (LLAMA,) == asked_of(video_world(0.0, *views, available_gib=4.5)).chosen.evicts


def test_a_lease_that_holds_the_video_memory_is_waited_for_and_named():
    leased = a_ready_view(LLAMA, video_bytes=3 * GIB, **LEASED)
    decision = asked_of(video_world(2.0, leased, a_place_view(QWEN, **IN_VIDEO)))

    assert (
        "memory_short",
        "needs 5.0 GiB of video memory, 2.0 GiB free, short 3.0 GiB; llama3.2:3b (3.0 GiB) is leased until 22:14:02",
    ) == refused(decision, QWEN)
    assert (QWEN, (LLAMA,)) == (decision.wait_for.place, decision.wait_for.rejection.blockers)
    shape = no_model(decision, "r-1")
    assert ("urn:dispatcher:no_usable_model", True) == (shape.type, shape.should_retry)


def test_too_little_video_memory_whatever_ends_is_told_in_numbers_of_video_memory():
    leased = a_ready_view(LLAMA, video_bytes=1 * GIB, **LEASED)
    idle = a_ready_view(PHI, video_bytes=1 * GIB)
    decision = asked_of(video_world(2.0, leased, idle, a_place_view(QWEN, **IN_VIDEO)))

    assert None is decision.wait_for
    assert (5 * GIB, 3 * GIB) == (candidate(decision, QWEN).need_bytes, candidate(decision, QWEN).free_bytes)
    shape = no_model(decision, "r-1")
    assert ("urn:dispatcher:insufficient_memory", False) == (shape.type, shape.should_retry)
    assert (5 * GIB, 3 * GIB) == (shape.needed_bytes, shape.available_bytes)
    assert "of video memory, 3.0 GiB free" in shape.detail


def test_a_wait_for_the_hosts_memory_also_asks_for_the_leases_that_hold_the_video_memory():
    """PHI's lease ends first and frees the host's memory; without LLAMA's that would have been waited for in vain."""
    phi = a_ready_view(PHI, budget_bytes=5 * GIB, **LEASED)
    llama = a_ready_view(LLAMA, video_bytes=3 * GIB, **{**LEASED, "leased_until_seconds": NOW + 90})
    place = a_place_view(QWEN, **IN_VIDEO)
    both = asked_of(video_world(2.0, phi, llama, place, available_gib=3.0))
    without = asked_of(video_world(2.0, phi, replace(llama, video_bytes=0), place, available_gib=3.0))

    assert (PHI, LLAMA) == both.wait_for.rejection.blockers
    assert None is without.wait_for


@pytest.mark.parametrize(
    ("others", "fits"),
    [
        pytest.param(
            {
                "state": PlaceState.STOPPED,
                "stopped_at_seconds": NOW - 5,
                "released_bytes": GIB,
                "released_since_seconds": NOW - 900,
            },
            True,
            id="stopped since the sample: free by now",
        ),
        pytest.param(
            {"state": PlaceState.STOPPED, "stopped_at_seconds": NOW - 5, "released_since_seconds": 0.0},
            False,
            id="stopped since, and never came to be loaded",
        ),
        pytest.param(
            {
                "state": PlaceState.STOPPED,
                "stopped_at_seconds": NOW - 60,
                "released_bytes": GIB,
                "released_since_seconds": NOW - 900,
            },
            False,
            id="stopped before it: counted in it",
        ),
    ],
)
def test_a_stop_since_the_sample_of_video_memory_counts(others, fits):
    stopped = a_place_view(LLAMA, video_bytes=3 * GIB, **others)
    decision = asked_of(video_world(2.0, stopped, a_place_view(QWEN, **IN_VIDEO), sampled_at=NOW - 30))

    assert fits == (decision.chosen is not None)


@pytest.mark.parametrize(
    ("others", "fits"),
    [
        pytest.param({"started_at_seconds": NOW - 9, "state": PlaceState.STARTING}, False, id="will hold it soon"),
        pytest.param({"started_at_seconds": NOW - 90, "state": PlaceState.STARTING}, False, id="still loading then"),
        pytest.param({"started_at_seconds": NOW - 20, "ready_at_seconds": NOW - 9}, False, id="ready since the sample"),
        pytest.param({"started_at_seconds": NOW - 90, "ready_at_seconds": NOW - 60}, True, id="it is in the sample"),
        pytest.param({"started_at_seconds": None, "ready_at_seconds": NOW - 9}, True, id="found running"),
    ],
)
def test_a_start_since_the_sample_of_video_memory_counts(others, fits):
    other = a_ready_view(LLAMA, busy=True, **{"video_bytes": 3 * GIB, "ready_at_seconds": None, **others})
    decision = asked_of(video_world(6.0, other, a_place_view(QWEN, **IN_VIDEO), sampled_at=NOW - 30))

    assert fits == (decision.chosen is not None)


def test_what_a_starting_place_takes_over_from_its_victim_is_not_counted_twice():
    victim = a_ready_view(PHI, state=PlaceState.STOPPING, video_bytes=3 * GIB, taken_by=LLAMA)
    starting = a_place_view(
        LLAMA,
        state=PlaceState.STARTING,
        num_ctx=4096,
        started_at_seconds=NOW - 1,
        video_bytes=3 * GIB,
        budget_bytes=GIB,
    )

    assert None is not asked_of(video_world(5.0, victim, starting, a_place_view(QWEN, **IN_VIDEO))).chosen


# ── a closed latch and our own leases ─────────────────────────────────────────────────────────────────────────────────


def short_world(available_gib: float, *views: PlaceView, latches=LATCHED):
    snapshot = a_snapshot(readings={"host_memory_available_bytes": available_gib * GIB}, latches=latches)
    return a_world(snapshot=snapshot, fleet=a_fleet(*views, a_place_view(QWEN)), profiles=fixed_footprints(qwen=5.0))


@pytest.mark.parametrize("latches", [frozenset(), LATCHED], ids=["open", "closed"])
def test_a_lease_in_the_way_is_waited_for_whether_the_latch_is_closed_or_not(latches):
    """3.0 free and 2.6 leased: 5.6 is enough at 5.0 × 1.10, and not at × 1.25."""
    decision = asked_of(short_world(4.0, a_ready_view(LLAMA, **LEASED), latches=latches))

    assert (QWEN, (LLAMA,)) == (decision.wait_for.place, decision.wait_for.rejection.blockers)
    shape = no_model(decision, "r-1")
    assert ("urn:dispatcher:no_usable_model", True) == (shape.type, shape.should_retry)


def test_a_lease_that_would_not_be_enough_at_the_enter_ratio_is_not_waited_for():
    decision = asked_of(short_world(3.8, a_ready_view(LLAMA, **LEASED)))

    assert None is decision.wait_for
    assert "urn:dispatcher:insufficient_memory" == no_model(decision, "r-1").type


def test_where_a_latch_alone_is_in_the_way_asking_again_helps_and_the_words_say_when():
    """5.8 free: enough to stay out of the latch, too little to leave it at once."""
    decision = asked_of(short_world(6.8))

    assert (
        "memory_short",
        "needs 5.0 GiB, 5.8 GiB free after the reserve, 6.2 GiB wanted to be safe after it was short, "
        "or 5.5 GiB for 5 min",
    ) == refused(decision, QWEN)
    assert None is decision.wait_for
    shape = no_model(decision, "r-1")
    assert ("urn:dispatcher:no_usable_model", True) == (shape.type, shape.should_retry)
