"""The fleet view: built anew for what has changed, and for nothing else."""

from __future__ import annotations

import pytest

from tests.builders import LLAMA, PHI, QWEN, some_profiles
from tests.lifecycle.owned import Owned


def test_the_view_is_built_again_only_for_what_has_changed():
    house = Owned()
    house.up(LLAMA)
    before = {view.place: view for view in house.tenancy.view().places}
    house.reserve(LLAMA)
    after = {view.place: view for view in house.tenancy.view().places}

    assert before[PHI] is after[PHI]
    assert before[LLAMA] is not after[LLAMA]


def test_a_pin_shows_at_once():
    house = Owned()
    assert not house.view(LLAMA).pinned
    house.tenancy.pinned_model = "llama3.2:3b"

    assert house.view(LLAMA).pinned
    assert not house.view(PHI).pinned


def test_the_eta_counts_down():
    house = Owned()
    house.reserve(LLAMA)

    assert 5.0 == house.view(LLAMA).eta_seconds
    house.clock.advance(2.0)
    assert 3.0 == house.view(LLAMA).eta_seconds
    house.clock.advance(60.0)
    assert 0.0 == house.view(LLAMA).eta_seconds


def test_what_was_evicted_with_a_priority_raises_the_floor_for_those_used_later():
    """Greedy-dual's L: what is used after an eviction outranks what was not used since."""
    profiles = some_profiles(wanted_per_second={"llama3.2:3b": 1.0, "phi3:mini": 1.0})
    house = Owned(room_gib=12.0, profiles=profiles)
    house.up(LLAMA)
    house.up(PHI)
    evicted = house.view(LLAMA).keep_priority
    unused = house.view(PHI).keep_priority
    house.tenancy.end(house.reserve(QWEN, LLAMA).id, "returned")
    house.tenancy.end(house.reserve(PHI).id, "outcome")

    assert pytest.approx(unused + evicted) == house.view(PHI).keep_priority
