from __future__ import annotations

import pytest

from dispatcher.experiments.assign import assigned, prepared
from dispatcher.experiments.shadow import divergence, shadowed
from dispatcher.experiments.switches import NO_SWITCHES, decided
from dispatcher.experiments.verdict import verdict
from dispatcher.policy.decide import decide
from dispatcher.vocabulary.decision import Candidate, Decision
from dispatcher.vocabulary.experiment import ArmSpecification, ShadowTally
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.settings import Settings
from tests.builders import LLAMA, NOW, PHI, QWEN, a_fleet, a_ready_view, a_request, a_world
from tests.experiments.simulation import a_state


def a_decision(place: Place | None = LLAMA, state: PlaceState = PlaceState.READY, evicts=()) -> Decision:
    chosen = None
    if place is not None:
        chosen = Candidate(place=place, verdict="chosen", state=state, endpoint=None, num_ctx=4096, evicts=evicts)
    return Decision(request=a_request(), at_seconds=NOW, chosen=chosen, candidates=(chosen,) if chosen else ())


ELSEWHERE = Place(server="docker:llama-2", model=LLAMA.model)


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        (LLAMA, LLAMA, "same"),
        (LLAMA, ELSEWHERE, "same"),
        (None, None, "same"),
        (LLAMA, QWEN, "different_model"),
        (LLAMA, None, "different_verdict"),
        (None, LLAMA, "different_verdict"),
    ],
)
def test_two_decisions_on_one_request_compared(one, two, expected):
    assert expected == divergence(a_decision(one), a_decision(two))


def test_a_divergence_is_counted_and_told():
    state = a_state(mode="shadow")
    state, events = shadowed(state, a_decision(LLAMA), a_decision(QWEN), NOW)
    state, _ = shadowed(state, a_decision(LLAMA), a_decision(LLAMA), NOW)

    assert ShadowTally(same=1, different_model=1) == state.shadow
    assert ("x", "d-1", "different_model", QWEN.model) == (
        events[0].experiment_id, events[0].decision_id, events[0].divergence, events[0].model,
    )  # fmt: skip
    assert "1 of 2 decisions the same, 1 with another model, 0 where only one found any" == verdict(state).sentence


def test_a_shadow_decides_for_real_and_silently():
    state = a_state(mode="shadow", b=ArmSpecification(models=("phi3:mini",)))
    world = a_world(fleet=a_fleet(a_ready_view(LLAMA), a_ready_view(PHI)))
    found = assigned(prepared([state], Settings()), a_request(), NOW)
    decision = decide(a_request(), world, found.settings, NOW)
    other = decide(a_request(), world, found.shadows[0].settings, NOW)

    assert ("llama3.2:3b", "phi3:mini") == (decision.chosen.place.model, other.chosen.place.model)
    assert "different_model" == divergence(decision, other)


# ── who caused a load ──

COLD = PlaceState.STOPPED


def test_a_load_is_caused_by_the_arm_whose_decision_put_the_model_out():
    switches, cause = decided(NO_SWITCHES, a_decision(QWEN, COLD, evicts=(LLAMA,)), "B")
    assert "B" == cause  # it chose a cold one itself
    switches, cause = decided(switches, a_decision(LLAMA, COLD), "A")
    assert "B" == cause
    _, cause = decided(switches, a_decision(LLAMA, COLD), "A")
    assert "A" == cause  # B's is paid; who stopped it since, nobody knows: its own


def test_a_decision_outside_the_experiment_clears_an_arm():
    switches, _ = decided(NO_SWITCHES, a_decision(QWEN, COLD, evicts=(LLAMA,)), None)

    assert decided(switches, a_decision(LLAMA, COLD), "A")[1] is None


def test_a_place_that_is_ready_costs_nobody_anything_and_forgets_who_put_it_out():
    switches, _ = decided(NO_SWITCHES, a_decision(QWEN, COLD, evicts=(LLAMA, PHI)), "B")
    switches, cause = decided(switches, a_decision(LLAMA), "A")

    assert cause is None
    assert {PHI: "B"} == switches.evicted
    assert (switches, None) == decided(switches, a_decision(None), "A")
