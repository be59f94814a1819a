"""What is chosen among those that will do: with a quality target by time, and now and then another, to learn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.policy.choose import KNOWN_ANSWERS
from dispatcher.vocabulary.profile import Belief, Measured, Rates, Success
from dispatcher.vocabulary.settings import PolicySettings, Settings
from tests.builders import LLAMA, PHI, QWEN, a_fleet, a_place_view, a_ready_view, a_world, some_profiles
from tests.policy.asking import decided

ALL_READY = (a_ready_view(PHI), a_ready_view(LLAMA), a_ready_view(QWEN))
GOOD, POOR = Belief(good=90, poor=10), Belief(good=10, poor=90)


def rated(**tokens_per_second: float):
    rates = {
        place: Rates(decode_tokens_per_second=Measured(value=value, n=100))
        for place, value in zip((PHI, LLAMA, QWEN), tokens_per_second.values(), strict=True)
    }
    return {"rates": rates}


FASTER_IF_SMALLER = rated(phi=40.0, llama=20.0, qwen=8.0)


def chosen(*views, target: float | None = None, explore: float = 0.0, task: str = "coding", asked=None, **profiles):
    settings = Settings(policy=PolicySettings(quality_target=target, explore_ratio=explore))
    world = a_world(fleet=a_fleet(*(views or ALL_READY)), profiles=some_profiles(**{**FASTER_IF_SMALLER, **profiles}))
    return decided(world, settings, **{"task": task, **(asked or {})})


def model(decision) -> str:
    return decision.chosen.place.model


def codes(decision) -> set[str]:
    return {reason.code for reason in decision.reasons}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param(0.0, PHI, id="any will do: the fastest"),
        pytest.param(0.55, LLAMA, id="the fastest of those that are good enough"),
        pytest.param(0.65, QWEN, id="only the most capable is"),
    ],
)
def test_with_a_target_the_soonest_of_the_able_is_chosen(target, expected):
    decision = chosen(target=target)

    assert expected.model == model(decision)
    assert not codes(decision) & {"below_target", "kept_ready"}


def test_where_none_reaches_the_target_the_most_capable_is_chosen_and_it_is_said():
    decision = chosen(target=0.99)

    assert QWEN.model == model(decision)
    (told,) = [reason.detail for reason in decision.reasons if reason.code == "below_target"]
    assert "no usable model is believed to reach 0.99 here; qwen2.5:7b comes nearest with 0." in told


def test_what_callers_reported_outweighs_what_was_declared():
    beliefs = {("phi3:mini", "coding"): GOOD, ("qwen2.5:7b", "coding"): POOR}

    assert PHI.model == model(chosen(target=0.65, beliefs=beliefs))
    assert QWEN.model == model(chosen(target=0.65, beliefs=beliefs, task="planning")), "each task for itself"


def test_a_cold_model_is_chosen_when_even_with_its_load_it_answers_sooner():
    cold_phi = (a_place_view(PHI), a_ready_view(LLAMA), a_ready_view(QWEN))
    loads = {**FASTER_IF_SMALLER["rates"]}
    loads[PHI] = replace(loads[PHI], load_seconds=Measured(value=1.0, n=100))
    short, long = {"prompt_tokens": 20, "output_tokens": 10}, {"output_tokens": 500}

    assert LLAMA.model == model(chosen(*cold_phi, target=0.0, rates=loads, asked=short))
    assert PHI.model == model(chosen(*cold_phi, target=0.0, rates=loads, asked=long))


def test_a_model_that_fails_is_not_the_soonest():
    failing = {("phi3:mini", "coding"): Success(ok=10, n=100)}

    assert LLAMA.model == model(chosen(target=0.0, success=failing))


def test_without_a_target_the_weights_decide_as_ever():
    assert QWEN.model == model(chosen(asked={"complexity": "complex", "prefer": "quality"}))


# ── exploring ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# phi is not known, and may be as good; qwen is known
JUDGED = {("llama3.2:3b", "coding"): Belief(good=60, poor=40), ("qwen2.5:7b", "coding"): Belief(good=80, poor=20)}


def test_a_model_that_is_known_too_little_gets_a_request_and_it_is_said():
    decision = chosen(target=0.55, explore=0.5, beliefs=JUDGED, asked={"id": _explorer(0.5)})

    assert PHI.model == model(decision)
    (told,) = [reason.detail for reason in decision.reasons if reason.code == "explored"]
    assert "phi3:mini instead of llama3.2:3b, to learn: only 0 of its answers were judged" == told


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"explore": 0.0}, id="switched off"),
        pytest.param({"beliefs": {}}, id="nobody judges answers"),
        pytest.param({"beliefs": {("llama3.2:3b", "planning"): GOOD}}, id="nobody judges answers to this task"),
        pytest.param({"asked": {"priority": "high"}}, id="high priority"),
        pytest.param({"asked": {"dry_run": True}}, id="a dry run"),
        pytest.param({"asked": {"model": "llama3.2:3b"}}, id="it was asked for by name"),
        pytest.param({"beliefs": {**JUDGED, ("phi3:mini", "coding"): POOR}}, id="it is known to be worse"),
        pytest.param(
            {"beliefs": {**JUDGED, ("phi3:mini", "coding"): Belief(good=KNOWN_ANSWERS)}}, id="it is known well enough"
        ),
        pytest.param({"views": (a_place_view(PHI), a_ready_view(LLAMA), a_ready_view(QWEN))}, id="it is not ready"),
        pytest.param({"views": (a_ready_view(PHI, breaker="half_open"), *ALL_READY[1:])}, id="it is not well"),
    ],
)
def test_nobody_is_explored_on_who_should_not_be(changed):
    asked = {"id": _explorer(0.5), **changed.get("asked", {})}
    told = {"target": 0.55, "explore": 0.5, "beliefs": JUDGED, **changed, "asked": asked}

    assert "explored" not in codes(chosen(*told.pop("views", ()), **told))


def test_about_the_share_that_was_set_explores():
    explored = sum(
        "explored" in codes(chosen(target=0.55, explore=0.1, beliefs=JUDGED, asked={"id": f"d-{number}"}))
        for number in range(1000)
    )

    assert 70 <= explored <= 130


def _explorer(share: float) -> str:
    """The id of a request that explores."""
    return next(
        name
        for name in (f"d-{number}" for number in range(100))
        if "explored" in codes(chosen(target=0.55, explore=share, beliefs=JUDGED, asked={"id": name}))
    )
