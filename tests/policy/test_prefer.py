"""What users prefer is chosen whenever it can be; else it is decided as ever, and the reasons say why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.policy.classify import classify
from dispatcher.policy.decide import decide
from dispatcher.policy.prefer import completed, fingerprint
from dispatcher.policy.scorers import TASK_NEEDS, capability_asked
from dispatcher.vocabulary.decision import Decision
from dispatcher.vocabulary.preference_settings import (
    NO_OPTIONS,
    AgentPreference,
    GenerationOptions,
    ModelPreference,
    PreferenceSettings,
    TaskPreference,
)
from dispatcher.vocabulary.profile import Success
from dispatcher.vocabulary.request import TASKS, Asked
from dispatcher.vocabulary.settings import GIB, PolicySettings, Settings
from tests.builders import (
    LLAMA,
    NOW,
    PHI,
    QWEN,
    a_fleet,
    a_place_view,
    a_ready_view,
    a_request,
    a_snapshot,
    a_world,
    some_profiles,
)
from tests.policy.asking import fixed_footprints

ALL_READY = (a_ready_view(PHI), a_ready_view(LLAMA), a_ready_view(QWEN))
SIMPLE = {"task": "coding", "complexity": "simple", "prefer": "speed"}  # as ever: not qwen


def preferring(**preferences) -> Settings:
    return Settings(preferences=PreferenceSettings(**preferences), policy=PolicySettings(explore_ratio=0.5))


FOR_REVIEWER = preferring(agents={"reviewer": AgentPreference(model=QWEN.model)})


def decided(settings: Settings, *views, fleet=None, profiles=None, snapshot=None, **asked) -> Decision:
    world = a_world(
        fleet=fleet or a_fleet(*(views or ALL_READY)),
        profiles=profiles or some_profiles(),
        snapshot=snapshot or a_snapshot(),
    )
    return decide(a_request(**{**SIMPLE, **asked}), world, settings, NOW)


def model(decision: Decision) -> str:
    assert decision.chosen is not None
    return decision.chosen.place.model


def told(decision: Decision) -> list[tuple[str, str]]:
    return [(one.code, one.detail) for one in decision.reasons if one.code.startswith("preferred")]


# ── which model ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_preferred_model_is_chosen_for_its_agent_and_for_nobody_else():
    mine, others = decided(FOR_REVIEWER, agent="reviewer"), decided(FOR_REVIEWER, agent="writer")

    assert QWEN.model == model(mine)
    assert [("preferred", "qwen2.5:7b is preferred for agent reviewer")] == told(mine)
    assert QWEN.model != model(others)
    assert [] == told(others)


def test_the_agents_preference_goes_before_the_tasks():
    tasks = {"coding": TaskPreference(model=LLAMA.model)}
    both = preferring(tasks=tasks, agents={"reviewer": AgentPreference(model=QWEN.model), "other": AgentPreference()})

    assert QWEN.model == model(decided(both, agent="reviewer"))
    assert [("preferred", "llama3.2:3b is preferred for task coding")] == told(decided(both, agent="other"))
    assert LLAMA.model == model(decided(both, agent=""))


def test_a_model_named_in_the_request_goes_before_every_preference():
    decision = decided(FOR_REVIEWER, agent="reviewer", model=PHI.model)

    assert (PHI.model, []) == (model(decision), told(decision))


def test_a_pinned_model_goes_before_every_preference():
    decision = decided(FOR_REVIEWER, agent="reviewer", fleet=a_fleet(*ALL_READY, pinned_model=PHI.model))

    assert (PHI.model, []) == (model(decision), told(decision))


def test_a_preferred_model_is_started_although_another_is_ready():
    decision = decided(FOR_REVIEWER, a_ready_view(PHI), a_place_view(QWEN), agent="reviewer")

    assert QWEN == decision.chosen.place  # type: ignore[union-attr]
    assert PHI.model in [one.place.model for one in decision.fallbacks]


def test_a_request_that_starts_nothing_gets_what_is_ready():
    decision = decided(FOR_REVIEWER, a_ready_view(PHI), a_place_view(QWEN), agent="reviewer", start=False)

    assert PHI.model == model(decision)
    ((code, detail),) = told(decision)
    assert ("preferred_unusable", True) == (code, detail.endswith("it is not ready, and this request starts nothing"))


def test_a_preferred_model_that_does_not_fit_is_replaced_and_the_filters_words_say_why():
    small = a_snapshot(readings={"host_memory_available_bytes": 3.0 * GIB})
    profiles = fixed_footprints(phi=2.0, llama=2.0, qwen=30.0)
    decision = decided(
        FOR_REVIEWER, a_ready_view(PHI), a_place_view(QWEN), profiles=profiles, snapshot=small, agent="reviewer"
    )

    assert PHI.model == model(decision)
    ((code, detail),) = told(decision)
    assert "preferred_unusable" == code
    assert detail.startswith("qwen2.5:7b is preferred for agent reviewer, and is not chosen: needs 30.0 GiB")


def test_a_preferred_model_that_has_no_place_is_replaced_and_it_is_said():
    decision = decided(FOR_REVIEWER, a_ready_view(PHI), agent="reviewer")

    assert PHI.model == model(decision)
    assert told(decision)[0][1].endswith("no place that runs it is known here")


def test_nobody_is_explored_in_the_place_of_a_preferred_model():
    models = {
        model(decided(FOR_REVIEWER, agent="reviewer", id=f"d-{number}", prefer="quality")) for number in range(50)
    }

    assert {QWEN.model} == models


# ── thresholds that switch ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ok", "n", "chosen"),
    [
        pytest.param(7, 10, PHI, id="too little success"),
        pytest.param(8, 10, QWEN, id="just enough"),
        pytest.param(0, 9, QWEN, id="too few answers to know"),
        pytest.param(0, 0, QWEN, id="no answers at all"),
    ],
)
def test_a_preferred_model_that_fails_too_often_is_not_preferred(ok, n, chosen):
    settings = preferring(agents={"reviewer": AgentPreference(model=QWEN.model)}, switch_below_success_ratio=0.8)
    profiles = some_profiles(success={(QWEN.model, "coding"): Success(ok=ok, n=n)})
    decision = decided(settings, a_ready_view(PHI), a_ready_view(QWEN), profiles=profiles, agent="reviewer")

    assert chosen.model == model(decision)
    if chosen is PHI:
        ((code, detail),) = told(decision)
        assert "preferred_unusable" == code
        assert detail.endswith("0.70 of its last 10 answers to this task succeeded, below 0.80")


def test_a_preferred_model_that_is_predicted_to_be_too_slow_is_not_preferred():
    def limited(seconds: float) -> Settings:
        agent = AgentPreference(model=QWEN.model, switch_above_seconds=seconds)
        return preferring(agents={"reviewer": agent}, switch_above_seconds=0.001)

    usual = decided(limited(1000.0), agent="reviewer")
    seconds = usual.chosen.prediction.total_seconds  # type: ignore[union-attr]
    slow, just = decided(limited(seconds * 0.99), agent="reviewer"), decided(limited(seconds), agent="reviewer")

    assert (QWEN.model, QWEN.model) == (model(usual), model(just))
    assert QWEN.model != model(slow)
    ((code, detail),) = told(slow)
    assert ("preferred_unusable", True) == (code, "predicted, above" in detail)


# ── what is usual of an agent ─────────────────────────────────────────────────────────────────────────────────────────

USUAL = PreferenceSettings(
    tasks={"analysis": TaskPreference(options=GenerationOptions(num_predict=90))},
    agents={"reviewer": AgentPreference(task="analysis", prefer="quality", priority="batch")},
)


def test_what_an_agent_does_not_say_is_as_usual():
    asked = completed(Asked(agent="reviewer", unsaid=frozenset({"prefer", "priority"})), USUAL)
    request = classify(asked, request_id="d-1", at_seconds=0.0)

    assert ("analysis", "quality", "batch") == (request.task, request.prefer, request.priority)
    assert "task analysis: usual of its agent (preferences)" == request.evidence[0]
    assert "heuristic" == request.classified_by
    assert 90 == asked.max_output_tokens, "the bound of its answers bounds what is expected of them"
    assert asked == completed(asked, USUAL), "once is enough"


def test_what_an_agent_says_counts():
    asked = completed(
        Asked(agent="reviewer", task="coding", prefer="balanced", priority="normal", max_output_tokens=7), USUAL
    )
    request = classify(asked, request_id="d-1", at_seconds=0.0)

    assert ("coding", "balanced", "normal", 7) == (
        request.task,
        request.prefer,
        request.priority,
        asked.max_output_tokens,
    )


def test_who_has_no_preferences_is_left_alone():
    asked = Asked(agent="writer", unsaid=frozenset({"prefer", "priority"}))

    assert completed(asked, USUAL) is asked


def test_answers_are_kept_apart_where_the_preferences_differ_and_only_there():
    mine, other = Asked(agent="reviewer"), Asked(agent="writer")
    warmer = replace(USUAL, agents={"reviewer": AgentPreference(options=GenerationOptions(temperature=0.9))})

    assert "" == fingerprint(mine, PreferenceSettings())
    assert fingerprint(mine, USUAL) != fingerprint(other, USUAL)
    assert fingerprint(mine, USUAL) != fingerprint(mine, warmer)
    assert fingerprint(other, USUAL) == fingerprint(other, warmer)


# ── how it is to write ────────────────────────────────────────────────────────────────────────────────────────────────


def test_options_are_the_agents_then_the_tasks_then_the_models():
    settings = preferring(
        agents={"reviewer": AgentPreference(options=GenerationOptions(temperature=0.0, stop=("END",)))},
        tasks={"coding": TaskPreference(options=GenerationOptions(temperature=0.1, seed=0))},
        models={QWEN.model: ModelPreference(options=GenerationOptions(temperature=0.2, seed=9, num_predict=64))},
    )

    mine = decided(settings, agent="reviewer", model=QWEN.model)
    assert {"temperature": 0.0, "seed": 0, "num_predict": 64, "stop": ["END"]} == mine.options.given()
    assert {"temperature": 0.1, "seed": 0} == decided(settings, model=PHI.model).options.given()
    assert decided(FOR_REVIEWER, agent="writer").options is NO_OPTIONS


# ── what is asked of a model ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task", TASKS)
def test_without_needs_and_agent_the_task_asks_what_it_always_did(task):
    assert TASK_NEEDS[task] == capability_asked(a_request(task=task))


def test_a_need_of_speed_asks_for_no_capability_for_it_is_predicted():
    assert TASK_NEEDS["coding"] == capability_asked(a_request(task="coding", needs=frozenset({"speed"})))


def test_what_an_agent_is_there_for_moves_the_capability_of_every_candidate():
    agent = AgentPreference(capabilities=("creativity", "speed"))
    settings = preferring(agents={"poet": agent})
    shares = capability_asked(a_request(task="coding"), agent.capabilities)

    assert pytest.approx(1.0) == sum(shares.values())
    assert (0.2, 0.2) == (pytest.approx(shares["creativity"]), pytest.approx(shares["speed"]))
    plain, moved = (
        {one.place.model: one.scores.capability for one in decided(settings, agent=name).candidates if one.scores}
        for name in ("", "poet")
    )
    assert moved[QWEN.model] < plain[QWEN.model], "which is neither creative nor fast for what it is"
    assert moved[PHI.model] > plain[PHI.model]
