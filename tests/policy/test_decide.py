"""The choice: the best, a ready place's margin, ties, fallbacks, the stored few, and that deciding is a function."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings

from dispatcher.policy.decide import decide, policy_hash
from dispatcher.vocabulary.decision import MAX_CANDIDATES
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.profile import Measured, Rates
from dispatcher.vocabulary.settings import GIB, PolicySettings, Settings
from dispatcher.vocabulary.signal import Freshness
from tests.builders import (
    LLAMA,
    NOW,
    PHI,
    QWEN,
    a_fleet,
    a_place_view,
    a_ready_view,
    a_snapshot,
    a_world,
    some_profiles,
)
from tests.policy.asking import decided, short_of_memory
from tests.policy.worlds import requests, worlds

FAST = {place: Rates(decode_tokens_per_second=Measured(value=1000.0, n=10**6)) for place in (PHI, LLAMA, QWEN)}
KNOWN = {place: Rates(decode_tokens_per_second=Measured(value=30.0, n=50)) for place in (PHI, LLAMA, QWEN)}


# ── a function ────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(request=requests(), world=worlds())
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_deciding_never_raises_never_mutates_and_never_changes_its_mind(request, world):
    before = repr((request, world))
    first = decide(request, world, Settings(), NOW)
    second = decide(request, world, Settings(), NOW)

    assert repr(first) == repr(second)  # repr, for NaN is not even equal to itself
    assert before == repr((request, world))
    told = [(one.because, one.verdict) for one in first.candidates]  # rendered when read: must not raise either
    assert first.sentence
    assert 1 <= first.retry_after_seconds <= 120
    assert [] == [verdict for _, verdict in told[1:] if verdict == "chosen"]
    assert (first.chosen is None) == ("chosen" not in [verdict for _, verdict in told])
    known = [view for view in world.fleet.places if view.place.model != "outside:1b"]
    assert len(known) == len(first.candidates)
    for candidate in first.candidates:
        assert candidate.place not in candidate.evicts
        assert candidate.score is None or 0 <= candidate.score <= 1


@given(request=requests(), world=worlds())
@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_chosen_can_be_had(request, world):
    """Whatever the world: not what is refused by its state, never a victim that is in use, never blind."""
    decision = decide(request, world, Settings(), NOW)
    views = {view.place: view for view in world.fleet.places}
    for one in (decision.chosen, *decision.fallbacks):
        if one is None:
            continue
        view = views[one.place]
        assert view.state in (PlaceState.STOPPED, PlaceState.STARTING, PlaceState.READY)
        assert view.breaker != "open"
        assert request.model in ("auto", "", one.place.model)
        assert all(views[victim].evictable(NOW) for victim in one.evicts)
        assert not (one.evicts and world.snapshot.freshness is not Freshness.FRESH)
        assert one.num_ctx >= request.context_tokens


def test_equal_settings_have_equal_hashes_and_other_ones_another():
    assert policy_hash(PolicySettings()) == policy_hash(PolicySettings())
    assert policy_hash(PolicySettings()) != policy_hash(PolicySettings(margin_ratio=0.06))
    assert f"default@{policy_hash(PolicySettings())}" == decided(a_world()).policy
    assert 4 == len(policy_hash(PolicySettings()))


# ── the choice ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("complexity", "prefer", "expected"),
    [
        pytest.param("complex", "quality", QWEN, id="what is hard and must be good goes to the most capable"),
        pytest.param("simple", "speed", LLAMA, id="what is simple and must be quick goes to the fastest"),
    ],
)
def test_the_chain_is_climbed_as_far_as_the_task_is_worth(complexity, prefer, expected):
    world = a_world(fleet=a_fleet(a_ready_view(PHI), a_ready_view(LLAMA), a_ready_view(QWEN)))

    assert expected == decided(world, complexity=complexity, prefer=prefer, task="coding").chosen.place


def test_the_most_capable_wins_where_all_are_equally_fast():
    world = a_world(
        fleet=a_fleet(a_ready_view(PHI), a_ready_view(LLAMA), a_ready_view(QWEN)), profiles=some_profiles(rates=FAST)
    )

    assert QWEN == decided(world, complexity="simple").chosen.place


def test_no_place_at_all_is_a_decision_too():
    decision = decided(a_world(fleet=a_fleet(a_place_view(Place(server="docker:x", model="outside:1b")))))

    assert None is decision.chosen
    assert () == decision.candidates
    assert "No model for this moderate general request: no place of the chain is known here." == decision.sentence
    assert 10 == decision.retry_after_seconds


HARD = {"complexity": "complex", "prefer": "quality"}  # capability is nearly all that counts


def with_margin(margin_ratio: float) -> Settings:
    return replace(Settings(), policy=PolicySettings(margin_ratio=margin_ratio))


def lead_of(cold: Place, ready: Place, world, settings: Settings) -> float:
    """By how much the cold place's score is ahead."""
    found = {one.place: one.score for one in decided(world, settings, **HARD).candidates}
    return found[cold] - found[ready]


@pytest.mark.parametrize("cold_state", [PlaceState.STOPPED, PlaceState.STARTING])
def test_a_ready_place_is_kept_within_the_margin_and_left_beyond_it(cold_state):
    """The margin: 0.05 (set so that the lead is just inside, then just outside) plus load seconds / 600."""
    world = a_world(
        fleet=a_fleet(a_ready_view(PHI), a_place_view(QWEN, state=cold_state, num_ctx=4096)),
        profiles=some_profiles(rates=FAST),
    )
    settings = with_margin(0.0)
    lead = lead_of(QWEN, PHI, world, settings)
    load = next(one for one in decided(world).candidates if one.place == QWEN).prediction.load_seconds
    assert lead > 0
    assert (load > 0) == (cold_state is PlaceState.STOPPED)

    assert PHI == decided(world, with_margin(lead - load / 600 + 1e-6), **HARD).chosen.place
    assert QWEN == decided(world, with_margin(lead - load / 600 - 1e-6), **HARD).chosen.place


def test_between_two_ready_places_there_is_no_margin():
    world = a_world(fleet=a_fleet(a_ready_view(PHI), a_ready_view(QWEN)), profiles=some_profiles(rates=FAST))

    assert QWEN == decided(world, with_margin(0.9)).chosen.place


def test_a_ready_place_that_would_have_to_be_reloaded_has_no_advantage():
    ready = a_ready_view(PHI)
    world = a_world(fleet=a_fleet(ready, a_place_view(QWEN)), profiles=some_profiles(rates=FAST))

    assert PHI == decided(world, with_margin(0.9)).chosen.place
    assert QWEN == decided(world, with_margin(0.9), prompt_tokens=6000).chosen.place


def test_equal_models_tie_by_chain_order():
    llama, phi = Settings().models[1], Settings().models[0]
    twin = replace(llama, name="twin")
    settings = replace(Settings(), models=(phi, llama, twin))
    facts = {model.name: model.facts() for model in settings.models}
    twins = Place(server="docker:twin", model="twin")
    for views in (
        (a_place_view(LLAMA), a_place_view(twins)),
        (a_place_view(twins), a_place_view(LLAMA)),
    ):
        decision = decided(a_world(fleet=a_fleet(*views), profiles=some_profiles(facts=facts)), settings)
        assert LLAMA == decision.chosen.place


def test_equal_places_share_the_work_by_a_stable_hash_of_the_request():
    places = [Place(server=f"docker:llama-{index}", model="llama3.2:3b") for index in range(3)]
    world = a_world(fleet=a_fleet(*(a_ready_view(place) for place in places)))
    chosen = [decided(world, id=f"d-{number}").chosen.place for number in range(60)]
    again = [decided(world, id=f"d-{number}").chosen.place for number in range(60)]

    assert chosen == again
    assert set(places) == set(chosen)
    assert min(chosen.count(place) for place in places) >= 10


def test_fallbacks_stand_in_order_of_health_then_performance():
    slow = {
        PHI: Rates(decode_tokens_per_second=Measured(value=200.0, n=10**6)),
        LLAMA: Rates(decode_tokens_per_second=Measured(value=5.0, n=10**6)),
    }
    other = Place(server="docker:phi-2", model="phi3:mini")
    views = (
        a_ready_view(QWEN),
        a_ready_view(PHI, breaker="half_open"),  # quick, not well
        a_ready_view(LLAMA),  # well, slow
        a_ready_view(other),  # well, between
    )
    world = a_world(fleet=a_fleet(*views), profiles=some_profiles(rates=slow))
    decision = decided(world, complexity="complex", prefer="quality")

    assert QWEN == decision.chosen.place
    assert [other, LLAMA, PHI] == [one.place for one in decision.fallbacks]
    assert decision.chosen is decision.candidates[0]


def test_at_most_32_candidates_are_stored_and_the_rest_is_counted_by_rule():
    ready = [a_ready_view(Place(server=f"docker:r-{n}", model="llama3.2:3b"), budget_bytes=1) for n in range(20)]
    tripped = [a_place_view(Place(server=f"docker:b-{n}", model="llama3.2:3b"), breaker="open") for n in range(15)]
    draining = [
        a_place_view(Place(server=f"docker:d-{n}", model="llama3.2:3b"), state=PlaceState.DRAINING) for n in range(10)
    ]
    decision = decided(a_world(fleet=a_fleet(*draining, *tripped, *ready)))

    assert MAX_CANDIDATES == len(decision.candidates)
    assert 19 == len(decision.fallbacks)
    assert ["chosen"] + ["fallback"] * 19 + ["rejected"] * 12 == [one.verdict for one in decision.candidates]
    assert (("breaker_open", 13),) == decision.uncounted


def test_fallbacks_beyond_32_are_counted_too():
    ready = [a_ready_view(Place(server=f"docker:r-{n}", model="llama3.2:3b"), budget_bytes=1) for n in range(40)]
    decision = decided(a_world(fleet=a_fleet(*ready, a_place_view(QWEN, breaker="open"))))

    assert MAX_CANDIDATES == len(decision.candidates)
    assert (("breaker_open", 1), ("fallback", 8)) == decision.uncounted


# ── names, pins, needs ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_named_model_is_used_however_it_scores():
    world = a_world(fleet=a_fleet(a_ready_view(PHI), a_ready_view(LLAMA), a_place_view(QWEN)))
    decision = decided(world, model="qwen2.5:7b", complexity="simple", prefer="speed")

    assert QWEN == decision.chosen.place
    assert () == decision.fallbacks


def test_a_model_nobody_has_is_no_model_and_every_place_says_so():
    decision = decided(a_world(), model="gpt-4")

    assert None is decision.chosen
    assert {"gpt-4 was asked for by name"} == {one.because for one in decision.candidates}


def test_a_pinned_model_is_what_auto_means():
    world = a_world(fleet=a_fleet(a_ready_view(PHI), a_ready_view(LLAMA), pinned_model="phi3:mini"))

    assert PHI == decided(world, complexity="complex").chosen.place


def test_what_is_required_outweighs_every_score():
    world = a_world(fleet=a_fleet(a_ready_view(PHI), a_place_view(LLAMA)), profiles=some_profiles(rates=FAST))

    assert LLAMA == decided(world, requires=frozenset({"tools"}), prefer="speed").chosen.place


# ── context ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompt_tokens", "num_ctx"),
    [
        (0, 4096),
        (3896, 4096),  # 200 more for the answer: exactly
        (3897, 8192),
        (7992, 8192),
        (7993, 16384),
        (16184, 16384),
        (16185, 32768),
        (32568, 32768),
        (32569, 36864),  # beyond the rungs in steps of 4,096: llama takes 131,072
        (130_000, 131_072),
    ],
)
def test_a_request_takes_the_smallest_context_that_holds_prompt_and_answer(prompt_tokens, num_ctx):
    plenty = a_snapshot(readings={"host_memory_available_bytes": 200.0 * GIB})
    world = a_world(snapshot=plenty, fleet=a_fleet(a_place_view(LLAMA), capacity_bytes=256 * GIB))
    decision = decided(world, prompt_tokens=prompt_tokens, output_tokens=200)

    assert num_ctx == decision.chosen.num_ctx


def test_a_model_smaller_than_the_rung_gets_its_own_maximum():
    facts = dict(some_profiles().facts)
    facts["llama3.2:3b"] = replace(facts["llama3.2:3b"], context_max=6000)
    world = a_world(fleet=a_fleet(a_place_view(LLAMA)), profiles=some_profiles(facts=facts))

    assert 6000 == decided(world, prompt_tokens=5000).chosen.num_ctx


@pytest.mark.parametrize(
    ("loaded", "prompt_tokens", "num_ctx", "loads"),
    [
        pytest.param(8192, 300, 8192, False, id="more than enough is kept, not shrunk"),
        pytest.param(4096, 3896, 4096, False, id="exactly enough"),
        pytest.param(4096, 3897, 8192, True, id="one token too few: a reload"),
        pytest.param(2048, 300, 2048, False, id="less than a rung, and enough"),
    ],
)
def test_a_ready_place_is_reloaded_only_for_want_of_context(loaded, prompt_tokens, num_ctx, loads):
    world = a_world(fleet=a_fleet(a_ready_view(LLAMA, num_ctx=loaded)))
    decision = decided(world, prompt_tokens=prompt_tokens)

    assert (num_ctx, loads) == (decision.chosen.num_ctx, decision.chosen.prediction.load_seconds > 0)


def test_a_reload_makes_the_place_its_own_victim():
    """2.6 GiB held and 2.1 free: 8,192 tokens of context (3.1 GiB × 1.1) fit because its own memory comes back."""
    world = short_of_memory(a_ready_view(LLAMA), available_gib=2.1)
    decision = decided(world, prompt_tokens=6000)

    assert LLAMA == decision.chosen.place
    assert () == decision.chosen.evicts
    assert decision.sentence.startswith(
        "llama3.2:3b for this moderate general request: it will reload with 8,192 tokens of context and"
    )


def test_a_place_that_is_down_but_leased_comes_back_with_what_its_leases_were_promised():
    crashed = a_place_view(LLAMA, num_ctx=16384, leases=1, busy=True, budget_bytes=4 * GIB)

    assert 16384 == decided(a_world(fleet=a_fleet(crashed))).chosen.num_ctx
