from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest

from dispatcher.config.preference_checks import disagreements
from dispatcher.experiments.assign import patched
from dispatcher.experiments.lifetime import ended, started
from dispatcher.experiments.specification import conflicts, parsed, problems
from dispatcher.vocabulary.experiment import ArmSpecification, Guardrail, Specification
from dispatcher.vocabulary.preference_settings import PreferenceSettings, TaskPreference
from dispatcher.vocabulary.settings import Settings
from tests.builders import NOW
from tests.experiments.simulation import a_specification

SETTINGS = Settings()
MARGIN = {"policy": {"margin_ratio": 0.1}}


def written(**changes) -> dict[str, object]:
    return {"id": "wider", "b": MARGIN, **changes}


def refused(document: object) -> tuple[str, ...]:
    found = parsed(document, SETTINGS)
    assert isinstance(found, tuple), found
    return found


def test_little_is_enough():
    expected = Specification(id="wider", a=ArmSpecification(), b=ArmSpecification(policy={"margin_ratio": 0.1}))

    assert expected == parsed(written(), SETTINGS)


def test_everything_that_can_be_said():
    document = written(
        a={"models": ["phi3:mini"]},
        b={"policy": {"recover_after": 60, "weights_simple": [0.5, 0.3, 0.2], "degrade_samples": 2}},
        primary="log_latency",
        guardrails=["success", {"metric": "quality", "tolerance": 0.05}],
        mode="shadow",
        layer="margins",
        traffic_ratio=0.5,
        split_ratio=0.1,
        sticky_seconds=3600,
        max_seconds=86400,
        cooldown_seconds=0,
    )
    policy = {"recover_after_seconds": 60.0, "weights_simple": (0.5, 0.3, 0.2), "degrade_samples": 2}
    expected = Specification(
        id="wider",
        a=ArmSpecification(models=("phi3:mini",)),
        b=ArmSpecification(policy=policy),
        primary="log_latency",
        guardrails=(Guardrail(metric="success"), Guardrail(metric="quality", tolerance=0.05)),
        mode="shadow",
        layer="margins",
        traffic_ratio=0.5,
        split_ratio=0.1,
        sticky_seconds=3600.0,
        max_seconds=86400.0,
        cooldown_seconds=0.0,
    )

    assert expected == parsed(document, SETTINGS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"primary": "latency"}, "experiment.primary: expected one of success, log_latency, quality; did you mean"),
        ({"split_ratio": 1}, "experiment.split_ratio: expected more than 0 and less than 1; got 1"),
        ({"split_ratio": 0.0}, "experiment.split_ratio: expected more than 0 and less than 1; got 0.0"),
        ({"split_ratio": nan}, "experiment.split_ratio: expected a finite number; got"),
        ({"split_ratio": True}, "experiment.split_ratio: expected a finite number; got True"),
        ({"split_ratio": 10**5000}, "experiment.split_ratio: expected a finite number; got a number beyond all use"),
        ({"traffic_ratio": 1.5}, "experiment.traffic_ratio: expected more than 0 and at most 1; got 1.5"),
        ({"sticky_seconds": 1}, "experiment.sticky_seconds: expected at least 60 and at most 2.592e+06; got 1"),
        ({"splitt_ratio": 0.3}, "experiment.splitt_ratio: no such setting; did you mean split_ratio?"),
        ({"b": {"models": ["qwen2.5"]}}, "experiment.b.models: 'qwen2.5' is not in the chain; did you mean qwen2"),
        ({"b": {"models": []}}, "experiment.b.models: expected a list of 1 to 64 models; got []"),
        ({"b": {"models": ["phi3:mini"] * 2}}, "experiment.b.models: phi3:mini is there twice; name a model once"),
        ({"b": {"policy": {"margin": 0.1}}}, "experiment.b.policy.margin: no such setting; did you mean m"),
        ({"b": {"policy": {"margin_ratio": nan}}}, "experiment.b.policy.margin_ratio: expected a finite number"),
        ({"b": {"policy": {"margin_ratio": inf}}}, "experiment.b.policy.margin_ratio: expected a finite number"),
        ({"b": {"policy": {"margin_ratio": "much"}}}, "experiment.b.policy.margin_ratio: expected a finite number"),
        ({"b": {"policy": {"name": "other"}}}, "experiment.b.policy.name: no such setting"),
        (
            {"b": {"policy": {"weights_simple": [0.5, 0.5, 0.5]}}},
            "experiment.b.policy.weights_simple: expected numbers that sum to 1; got [0.5, 0.5, 0.5]",
        ),
        (
            {"b": {"policy": {"degrade_samples": 2.5}}},
            "experiment.b.policy.degrade_samples: expected a whole number from 0 to 10000; got 2.5",
        ),
        ({"a": MARGIN}, "experiment.b: decides exactly as a does; change something"),
        ({"b": {}}, "experiment.b: decides exactly as a does; change something"),
        ({"b": {"policy": {"margin_ratio": 0.05}}}, "experiment.b: decides exactly as a does"),  # the value in force
        ({"b": 7}, "experiment.b: expected an object with policy, models, or neither; got 7"),
        ({"id": "../x"}, "experiment.id: expected up to 63 letters, digits, -, _ and ., beginning with"),
        ({"id": None}, "experiment.id: expected up to 63 letters, digits, -, _ and ., beginning with"),
        ({"guardrails": []}, "experiment.guardrails: expected a list of 1 to 3 of success, log"),
        ({"guardrails": ["success", "success"]}, "experiment.guardrails[1]: success is there twice; name"),
        ({"guardrails": [{"metric": ["success"]}]}, "experiment.guardrails[0]: expected one of success"),
        (
            {"primary": "log_latency", "guardrails": ["quality"]},
            "experiment.guardrails: success is missing; with log_latency alone, failing fast would look like speed",
        ),
    ],
)  # fmt: skip
def test_a_problem_names_the_key_the_value_and_what_was_expected(changes, words):
    found = refused(written(**changes))

    assert 1 == len(found), found
    assert found[0].startswith(words)


def test_an_arm_may_be_without_a_target_that_is_in_force_and_without_nothing_else():
    in_force = replace(SETTINGS, policy=replace(SETTINGS.policy, quality_target=0.6))

    found = parsed(written(b={"policy": {"quality_target": None}}), in_force)

    assert isinstance(found, Specification), found
    assert None is patched(in_force, found.b).policy.quality_target
    assert [] == problems(found, in_force)
    assert refused(written(b={"policy": {"margin_ratio": None}}))


def test_an_arm_may_leave_out_a_model_that_is_preferred():
    preferences = PreferenceSettings(tasks={"coding": TaskPreference(model="qwen2.5:7b")})
    in_force = replace(SETTINGS, preferences=preferences)

    found = parsed(
        written(b={"models": ["llama3.2:3b"]}), in_force, lambda arm: [words for _, words in disagreements(arm)]
    )

    assert isinstance(found, Specification), found


def test_every_problem_is_told_at_once():
    found = refused({"id": "", "primary": "speed", "split_ratio": 2, "b": {"polcy": {}}, "mode": 3, "what": 1})
    told = [words.split(":")[0] for words in found]

    assert [
        "experiment.what", "experiment.id", "experiment.mode", "experiment.primary", "experiment.split_ratio",
        "experiment.b.polcy",
    ] == told  # fmt: skip


@pytest.mark.parametrize("document", [None, [], "text", 7, nan])
def test_what_is_no_object_is_refused(document):
    assert 1 == len(refused(document))


def test_a_huge_document_is_refused_without_being_read_aloud():
    found = refused(written(b={"policy": {f"key {number}\n" * 50: 1 for number in range(10_000)}}))

    assert len(found) < 70
    assert all(len(words) < 2_000 and "\n" not in words for words in found)


def test_what_the_configuration_would_refuse_is_refused_per_arm():
    found = parsed(written(), SETTINGS, lambda settings: [f"margin is {settings.policy.margin_ratio:g}"])

    assert ("experiment.a: margin is 0.05", "experiment.b: margin is 0.1") == found


def test_a_reload_that_takes_an_arms_model_away_is_noticed():
    specification = a_specification(b=ArmSpecification(models=("phi3:mini",)))
    without = replace(SETTINGS, models=SETTINGS.models[1:])

    assert [] == problems(specification, SETTINGS)
    assert "'phi3:mini' is not in the chain" in problems(specification, without)[0]


# ── beside others ──


def test_a_name_is_used_once():
    state, _ = started(a_specification(), (), NOW)
    done, _ = ended(state, "won", "B is better", NOW, winner="B")

    assert "there is, or was, one of that name" in conflicts(a_specification(), [done], NOW)[0]


def test_a_full_layer_takes_no_more():
    states = [started(a_specification(id="first", traffic_ratio=0.7), (), NOW)[0]]

    assert (
        "layer default has no 50% of its traffic free" in conflicts(a_specification(traffic_ratio=0.5), states, NOW)[0]
    )
    assert [] == conflicts(a_specification(traffic_ratio=0.3), states, NOW)


def test_two_layers_do_not_change_the_same_setting():
    states = [started(a_specification(id="first"), (), NOW)[0]]
    found = conflicts(a_specification(layer="other"), states, NOW)

    assert 1 == len(found)
    assert "changes policy.margin_ratio, and so does first in layer default" in found[0]


def test_a_bounded_number_runs_at_once():
    states = []
    for number in range(4):
        states.append(started(a_specification(id=f"e{number}", traffic_ratio=0.1), states, NOW)[0])

    assert "4 run already" in conflicts(a_specification(traffic_ratio=0.1), states, NOW)[0]


def test_what_was_rolled_back_is_not_tried_again_before_its_cooldown_is_over():
    state, _ = started(a_specification(id="first"), (), NOW)
    state, _ = ended(state, "rolled_back", "guardrail success broken", NOW)

    assert "was rolled back as first (guardrail success broken)" in conflicts(a_specification(), [state], NOW + 3599)[0]
    assert [] == conflicts(a_specification(), [state], NOW + 3600)
    other = a_specification(b=ArmSpecification(policy={"margin_ratio": 0.2}))
    assert [] == conflicts(other, [state], NOW)
