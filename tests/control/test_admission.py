from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.control.admission import Grouped, Turns, joined, next_class, next_in_group
from dispatcher.vocabulary.request import PRIORITIES

SHARES = {"high": 0.6, "normal": 0.3, "batch": 0.1}
T = 1_700_000_000.0


def served(turns: Turns, waiting: tuple[str, ...], rounds: int) -> tuple[Counter[str], Turns]:
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        found = next_class(turns, waiting, SHARES)
        assert found is not None
        counts[found[0]] += 1
        turns = found[1]
    return counts, turns


def everyone_waits() -> Turns:
    turns = Turns()
    for priority in PRIORITIES:
        turns = joined(turns, priority)
    return turns


def test_saturated_each_class_gets_its_share():
    counts, _ = served(everyone_waits(), PRIORITIES, 1000)

    assert {"high": 600, "normal": 300, "batch": 100} == counts


def test_what_a_class_does_not_use_is_lent_to_the_others_in_proportion():
    counts, _ = served(everyone_waits(), ("normal", "batch"), 1000)

    assert {"normal": 750, "batch": 250} == counts


def test_what_was_not_used_is_not_owed_when_the_class_comes_back():
    _, turns = served(everyone_waits(), ("batch",), 1000)
    turns = joined(joined(turns, "high"), "normal")

    counts, _ = served(turns, PRIORITIES, 100)
    assert 60 == pytest.approx(counts["high"], abs=1)
    assert 10 == pytest.approx(counts["batch"], abs=1)


def test_nobody_waits_then_nobody_is_served():
    assert next_class(everyone_waits(), (), SHARES) is None


@given(st.lists(st.sets(st.sampled_from(PRIORITIES), min_size=1), min_size=1, max_size=300))
def test_whoever_waits_on_is_served_within_the_turns_of_his_share(rounds):
    turns, waited = everyone_waits(), dict.fromkeys(PRIORITIES, 0)
    for waiting in rounds:
        for priority in waiting:
            if waited[priority] == 0:
                turns = joined(turns, priority)
        found = next_class(turns, waiting, SHARES)
        assert found is not None
        chosen, turns = found
        assert chosen in waiting
        for priority in PRIORITIES:
            waited[priority] = waited[priority] + 1 if priority in waiting and priority != chosen else 0

    assert max(waited.values()) <= 20


def test_batch_requests_of_one_model_go_together():
    waiting = [Grouped(model=model, since_seconds=T + at) for at, model in enumerate("BCABC")]
    order, current = [], "A"
    while waiting:
        index = next_in_group(waiting, current, T + 10, 60.0)
        assert index is not None
        current = waiting.pop(index).model
        order.append(current)

    assert ["A", "B", "B", "C", "C"] == order


def test_one_that_waits_beyond_the_bound_goes_first_whatever_its_model():
    waiting = [Grouped(model="B", since_seconds=T), Grouped(model="A", since_seconds=T + 50)]

    assert 1 == next_in_group(waiting, "A", T + 59, 60.0)
    assert 0 == next_in_group(waiting, "A", T + 60, 60.0)


def test_nobody_waits_in_the_group():
    assert next_in_group([], "A", T, 60.0) is None
