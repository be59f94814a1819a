"""What is seen of memory: what a shared server says that it holds, and what an end gives back."""

from __future__ import annotations

from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.settings import GIB
from tests.builders import LLAMA, a_seen, some_profiles
from tests.lifecycle.looked import UNLOADED, UP, Looked, ready_house

S = PlaceState


# ── a shared server says what it holds ──────────────────────────────────────────────────────────────────────────────


SHARED = {**UP, "shared": True}


def test_in_a_shared_server_a_place_counts_with_what_the_server_says_that_it_takes():
    house = Looked()
    house.look(a_seen(LLAMA, **SHARED, loaded_size_bytes=5 * GIB))
    assert (S.READY, 5.0) == (house.state(LLAMA), house.reserved_gib())

    house.look(a_seen(LLAMA, **SHARED, loaded_size_bytes=4 * GIB))
    assert 4.0 == house.reserved_gib()


def test_in_a_shared_server_that_does_not_say_it_the_footprint_counts():
    house = Looked()
    house.look(a_seen(LLAMA, **SHARED))

    assert 2.6 == house.reserved_gib()


def test_a_reload_counts_with_its_footprint_until_the_server_has_said_what_it_takes():
    house = Looked()
    house.look(a_seen(LLAMA, **SHARED, loaded_size_bytes=2 * GIB))
    house.clock.advance(60.0)
    footprint = some_profiles().footprint_bytes(LLAMA.model, 8192)

    assert None is house.tenancy.take(LLAMA, 8192, (), "asked")
    assert footprint == house.tenancy.view().reserved_bytes


# ── what an end gives back ──────────────────────────────────────────────────────────────────────────────────────────


def test_what_never_came_to_be_loaded_gives_nothing_back():
    house = Looked()
    house.look(a_seen(LLAMA))
    assert None is house.tenancy.take(LLAMA, 4096, (), "asked")
    house.look(a_seen(LLAMA, running=True, answers=True, loaded=False, memory_used_bytes=GIB // 8))
    house.tenancy.start_failed(LLAMA, "it could not be loaded")
    house.look(a_seen(LLAMA))

    assert (S.STOPPED, 0) == (house.state(LLAMA), house.tenancy.residents[LLAMA].released_bytes)


def test_what_was_loaded_gives_back_what_it_was_measured_to_hold_since_it_was_ready():
    house = Looked()
    house.look(a_seen(LLAMA, **UP, memory_used_bytes=1 * GIB))
    ready_at = house.clock.now_seconds()
    house.tenancy.stop(LLAMA, "asked", "")
    house.look(a_seen(LLAMA))

    resident = house.tenancy.residents[LLAMA]
    assert (1 * GIB, ready_at) == (resident.released_bytes, resident.released_since_seconds)


def test_what_was_unloaded_by_others_and_then_stopped_gives_nothing_back():
    house = ready_house()
    house.look(a_seen(LLAMA, **UNLOADED))
    house.tenancy.stop(LLAMA, "asked", "")
    house.look(a_seen(LLAMA))

    assert 0 == house.tenancy.residents[LLAMA].released_bytes
