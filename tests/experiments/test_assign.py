from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.experiments.assign import arm_of, assigned, fraction, patched, prepared, unit_of
from dispatcher.experiments.lifetime import started, stopped
from dispatcher.policy.decide import decide
from dispatcher.vocabulary.experiment import ArmSpecification, ExperimentState
from dispatcher.vocabulary.request import Request
from dispatcher.vocabulary.settings import Settings
from tests.builders import NOW, a_fleet, a_ready_view, a_request, a_world
from tests.experiments.simulation import a_specification

SETTINGS = Settings()
ONLY_LLAMA = ArmSpecification(models=("llama3.2:3b",))


def running(*specifications) -> list[ExperimentState]:
    states: list[ExperimentState] = []
    for one in specifications:
        states.append(started(one, states, NOW)[0])
    return states


def requests(n: int = 4_000, **changes) -> list[Request]:
    return [a_request(id=f"d-{number}", **changes) for number in range(n)]


def arms(states, asked) -> list[tuple[tuple[str, str], ...]]:
    experiments = prepared(states, SETTINGS)
    return [
        tuple((share.experiment_id, share.arm) for share in assigned(experiments, one, NOW).shares) for one in asked
    ]


def near(expected: float, found: float, n: int) -> bool:
    """Within four standard deviations of a proportion."""
    return abs(found - expected) <= 4 * (expected * (1 - expected) / n) ** 0.5


def test_without_an_experiment_the_settings_in_force_decide():
    found = assigned(prepared([], SETTINGS), a_request(), NOW)

    assert (SETTINGS, (), None) == (found.settings, found.shares, found.label)


def test_an_agent_keeps_its_arm_whatever_it_asks():
    found = set(arms(running(a_specification()), requests(500, agent="daily-digest")))

    assert 1 == len(found)


def test_without_an_agent_every_request_is_dealt_by_itself_in_the_stated_proportion():
    found = [share for ((_, share),) in arms(running(a_specification(split_ratio=0.2)), requests())]

    assert near(0.2, found.count("B") / 4_000, 4_000)


def test_the_hash_is_the_same_on_every_machine_and_in_every_version():
    """A change of it deals running experiments anew, in the middle."""
    assert pytest.approx(0.80074385, abs=1e-8) == fraction("arm", "x", "daily-digest")
    assert fraction("ab", "c") != fraction("a", "bc")
    assert 0 <= fraction("\udc80", "\0", "日報") < 1


def test_an_agent_is_dealt_anew_after_its_time_when_so_specified():
    request, hourly = a_request(agent="n8n"), a_specification(sticky_seconds=3600.0)
    begin = 3600.0 * 1000
    same = {unit_of(hourly, request, begin + minute * 60) for minute in range(60)}
    later = [arm_of("x", unit_of(hourly, request, begin + hour * 3600)[0], 0.5) for hour in range(200)]

    assert {("n8n#1000", True)} == same
    assert 60 < later.count("B") < 140


def test_only_the_stated_share_of_the_traffic_takes_part():
    found = arms(running(a_specification(traffic_ratio=0.25)), requests())

    assert near(0.25, sum(map(bool, found)) / 4_000, 4_000)


def test_experiments_of_one_layer_never_share_a_request():
    states = running(
        a_specification(id="x", traffic_ratio=0.4),
        a_specification(id="y", traffic_ratio=0.6, b=ONLY_LLAMA),
    )
    found = arms(states, requests())

    assert {1} == {len(shares) for shares in found}
    assert near(0.4, sum(shares[0][0] == "x" for shares in found) / 4_000, 4_000)


def test_experiments_of_different_layers_meet_evenly_in_all_four_combinations():
    states = running(a_specification(id="x", layer="margins"), a_specification(id="y", layer="models", b=ONLY_LLAMA))
    found = arms(states, requests())

    for combination in (("A", "A"), ("A", "B"), ("B", "A"), ("B", "B")):
        count = sum(tuple(arm for _, arm in shares) == combination for shares in found)
        assert near(0.25, count / 4_000, 4_000)


def test_both_patches_are_in_the_settings_of_a_request_of_two_layers():
    states = running(a_specification(id="x", layer="margins"), a_specification(id="y", layer="models", b=ONLY_LLAMA))
    experiments = prepared(states, SETTINGS)
    found = next(one for one in (assigned(experiments, r, NOW) for r in requests(100)) if one.label == "x:B,y:B")

    assert 0.1 == found.settings.policy.margin_ratio
    assert ["llama3.2:3b"] == [model.name for model in found.settings.models]
    again = [one for one in (assigned(experiments, r, NOW) for r in requests(100)) if one.label == "x:B,y:B"]
    assert {id(found.settings)} == {id(one.settings) for one in again}  # worked out once: hashing a policy costs


def test_who_names_a_model_takes_no_part():
    assert {()} == set(arms(running(a_specification()), requests(50, model="qwen2.5:7b")))


def test_what_has_ended_or_is_over_its_time_assigns_nothing():
    state = running(a_specification(max_seconds=100.0))[0]
    ended, _ = stopped(state, NOW)
    late = assigned(prepared([state], SETTINGS), a_request(), NOW + 100)

    assert [()] == arms([ended], [a_request()])
    assert () == late.shares


def test_an_arm_of_models_decides_among_them_alone():
    world = a_world(fleet=a_fleet(a_ready_view()))
    only_qwen = patched(SETTINGS, ArmSpecification(models=("qwen2.5:7b",)))
    decision = decide(a_request(), world, only_qwen, NOW)

    assert decision.chosen is None
    assert "llama3.2:3b" == decide(a_request(), world, SETTINGS, NOW).chosen.place.model


def test_a_shadow_leaves_the_decision_to_a_and_hands_out_what_b_would_decide_with():
    state = running(a_specification(mode="shadow"))[0]
    found = assigned(prepared([state], SETTINGS), a_request(), NOW)

    assert (SETTINGS, ()) == (found.settings, found.shares)
    assert [("x", 0.1)] == [(one.experiment_id, one.settings.policy.margin_ratio) for one in found.shadows]


def test_the_order_in_which_experiments_are_listed_does_not_matter():
    states = running(a_specification(id="x", layer="l"), a_specification(id="y", layer="m", b=ONLY_LLAMA))

    assert arms(states, requests(50)) == arms(states[::-1], requests(50))


def test_a_slice_that_begins_further_on_has_its_own_share():
    one, two = running(
        a_specification(id="x", traffic_ratio=0.5), a_specification(id="y", traffic_ratio=0.5, b=ONLY_LLAMA)
    )

    assert (0.0, 0.5) == (one.slice_start_ratio, two.slice_start_ratio)
    assert (
        0.0
        == started(a_specification(id="z", traffic_ratio=0.5), [replace(one, phase="won"), two], NOW)[
            0
        ].slice_start_ratio
    )
