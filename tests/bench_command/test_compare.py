"""Slower, faster, or no difference seen: the bound holds for chance, and sees a real change."""

from __future__ import annotations

import random
from dataclasses import replace

from dispatcher.bench.compare import METRICS, compare
from tests.bench_command.aids import a_sample

PROMPTS = [f"p{number}" for number in range(12)]


def a_run(seed: int, factor: float = 1.0, iterations: int = 8):
    """Heavy-tailed by a fifth, as a machine that does something else, too."""
    chance = random.Random(seed)
    found = []
    for iteration in range(iterations):
        for number, prompt in enumerate(PROMPTS):
            seconds = (1 + number) * factor * chance.lognormvariate(0.0, 0.15) * (5 if chance.random() < 0.03 else 1)
            rate = 20 / factor * chance.lognormvariate(0.0, 0.1)
            found.append(a_sample(seconds, prompt=prompt, iteration=iteration, tokens_per_second=rate))
    return found


def verdicts(now, earlier):
    return {each.metric: each.verdict for each in compare(["phi3:mini"], now, earlier)}


def test_two_runs_of_the_same_are_told_apart_in_less_than_one_of_fifty():
    told = [word for seed in range(25) for word in verdicts(a_run(seed), a_run(1000 + seed)).values()]

    assert sum(word != "no difference seen" for word in told) <= len(told) / 50


def test_a_quarter_slower_is_seen_in_every_metric_and_the_other_way_round():
    slow, quick = a_run(1, factor=1.25), a_run(2)

    assert {"slower"} == {word for metric, word in verdicts(slow, quick).items() if metric != "load_seconds"}
    assert {"faster"} == {word for metric, word in verdicts(quick, slow).items() if metric != "load_seconds"}


def test_a_change_below_the_least_one_is_not_told_however_sure():
    exact = [a_sample(1.0, iteration=at) for at in range(30)]
    slower = [a_sample(1.05, iteration=at) for at in range(30)]

    [whole, *_] = compare(["phi3:mini"], slower, exact)

    assert ("no difference seen", 1.05) == (whole.verdict, round(whole.ratio or 0.0, 4))


def test_too_little_is_said_and_is_no_difference():
    few = [a_sample(1.0, iteration=at) for at in range(4)]
    many = [a_sample(9.0, iteration=at) for at in range(9)]

    told = compare(["phi3:mini"], many, few)

    assert {"no difference seen"} == {each.verdict for each in told}
    assert "fewer than 5 answers of one prompt on both sides" == told[0].because
    assert all(each.ratio is None for each in told)


def test_only_prompts_of_both_runs_are_compared():
    other = [replace(each, prompt=f"other-{each.prompt}", seconds=99.0) for each in a_run(3)]

    assert verdicts(a_run(3), a_run(4)) == verdicts([*a_run(3), *other], a_run(4))
    assert "not measured in both" == compare(["phi3:mini"], other, a_run(4))[0].because


def test_loads_are_compared_without_regard_to_the_prompt():
    def loads(seconds):
        return [a_sample(9.0, cold=True, load_seconds=seconds + at / 100, prompt=f"p{at}") for at in range(6)]

    told = {each.metric: each for each in compare(["phi3:mini"], loads(4.0), loads(2.0))}

    assert "slower" == told["load_seconds"].verdict
    assert set(METRICS) == set(told)


def test_the_same_samples_give_the_same_interval():
    assert compare(["phi3:mini"], a_run(5), a_run(6)) == compare(["phi3:mini"], a_run(5), a_run(6))
