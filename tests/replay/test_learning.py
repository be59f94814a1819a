"""What choosing is worth, on a simulated machine in virtual time: the same harness as `scripts/bench learning`, with a
workload made here. Orderings with room to spare, at a fixed seed; the figures themselves: docs/learning.md."""

from __future__ import annotations

from dataclasses import replace

import pytest
from click.testing import CliRunner

from dispatcher.clock import ManualClock
from dispatcher.replay.asks import Noise
from tests.bench.foretelling import settled_error
from tests.bench.learning import learning, reaches
from tests.bench.simulated import Job, Machine, real_models
from tests.bench.simulating import PLACES, Setting, always, by_oracle, by_policy, played
from tests.bench.workload import synthetic
from tests.builders import LLAMA, QWEN
from tests.virtual_time import in_virtual_time

SETTING = Setting(quality_target=0.5, speed_ratio=2.0)
WORKLOAD = synthetic(400, seed=3)


@pytest.fixture(scope="module")
def ours():
    return played(WORKLOAD, SETTING, by_policy)


def test_with_a_quality_target_answers_come_a_fifth_sooner_than_from_the_one_model_that_reaches_it(ours):
    able = [model for model in ("phi3:mini", "llama3.2:3b", "qwen2.5:7b") if reaches(model, 0.5)]
    static = played(WORKLOAD, replace(SETTING, keeps=True), always("qwen2.5:7b"))

    assert able == ["qwen2.5:7b"]
    assert ours.mean_seconds <= 0.8 * static.mean_seconds, (ours.mean_seconds, static.mean_seconds)
    assert ours.able_ratio(0.5) >= 0.75, "a model that was declared better than it is must be found out"


def test_nearly_every_request_is_answered_while_a_tenth_of_one_models_answers_are_errors():
    for model in ("llama3.2:3b", "qwen2.5:7b"):
        run = played(WORKLOAD, replace(SETTING, failing={model: 0.10}), by_policy)

        assert run.success_ratio >= 0.99, (model, run.success_ratio)
        assert any(one.attempts > 1 for one in run.answered), "nothing failed: this proves nothing"


def test_seconds_are_predicted_for_who_finds_nobody_before_it_once_fifty_were_answered(ours):
    assert ours.error_ratio(alone=True) <= 0.30


def test_a_run_is_the_same_again(ours):
    assert ours.answered[:50] == played(WORKLOAD[:], SETTING, by_policy).answered[:50]


@in_virtual_time
async def test_what_the_oracle_expects_of_the_machine_is_what_the_machine_does(clock):
    machine = Machine(clock, {place: real_models()[place.model] for place in PLACES}, seed=1)
    server = machine.servers[QWEN]
    await server.load(4096)
    job = Job(prompt_tokens=100, output_tokens=50, noise=Noise(decode_factor=1.3))
    expected = machine.finish_seconds(QWEN, job, 0.0)
    began = clock.now_seconds()

    await server.answer(job, 4096)

    assert expected == pytest.approx(clock.now_seconds() - began, rel=0.01)


def test_a_model_that_is_not_ready_yet_finishes_later_by_as_much():
    clock = ManualClock()
    machine = Machine(clock, {place: real_models()[place.model] for place in PLACES}, seed=1)
    job = Job(prompt_tokens=100, output_tokens=50, noise=Noise())

    assert 7.0 == pytest.approx(machine.finish_seconds(LLAMA, job, 7.0) - machine.finish_seconds(LLAMA, job, 0.0))


def test_predictions_settle_on_a_server_that_is_as_regular_as_its_model():
    """Sequential calls to one model whose load, prefill and decode rate do not change: nothing is left to be wrong
    about but what the prior still weighs."""
    rows = [
        {
            "at_seconds": 60.0 * number,
            "model": "llama3.2:3b",
            "start": "cold" if number % 10 == 0 else "warm",
            "prompt_eval_count": 60 + number,
            "eval_count": 40 + 3 * number,
            "load_duration": 3e9 if number % 10 == 0 else 2e6,
            "prompt_eval_duration": (60 + number) / 80.0 * 1e9,
            "eval_duration": (39 + 3 * number) / 20.0 * 1e9,
        }
        for number in range(60)
    ]
    for row in rows:
        row["total_duration"] = row["load_duration"] + row["prompt_eval_duration"] + row["eval_duration"]

    assert settled_error(rows) <= 0.10


def test_without_data_the_bench_says_what_it_needs(tmp_path):
    nothing, empty = CliRunner().invoke(learning, []), CliRunner().invoke(learning, ["--data", str(tmp_path)])

    assert (2, 2) == (nothing.exit_code, empty.exit_code)
    assert "mooncake_conversation.jsonl" in nothing.output
    assert "there is no traces/mooncake_conversation.jsonl" in empty.output


def test_what_we_lose_to_the_oracle_has_a_bound(ours):
    """Of time, little, also while it is found out who is worse than declared; of quality nothing once that is known."""
    best = played(WORKLOAD, SETTING, by_oracle)
    taught = played(WORKLOAD, replace(SETTING, taught=300), by_policy)

    assert 1.0 == best.success_ratio
    assert taught.mean_seconds <= 1.15 * best.mean_seconds, (taught.mean_seconds, best.mean_seconds)
    assert ours.mean_seconds <= 1.15 * best.mean_seconds, (ours.mean_seconds, best.mean_seconds)
    assert taught.able_ratio(0.5) >= 0.95 > ours.able_ratio(0.5), "it learned"
