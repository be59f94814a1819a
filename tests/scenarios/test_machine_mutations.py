"""That the state machine can find what it is there for: with one check taken out of the dispatcher, it does.

Nothing is edited: the check is replaced by one that is always passed, for the length of a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dispatcher.control import ledger as book
from dispatcher.control import plan as planning
from dispatcher.control.ledger import Ledger, Shortage
from dispatcher.lifecycle.acting import Acting
from dispatcher.lifecycle.looking import Looking
from dispatcher.lifecycle.tenancy import Tenancy
from dispatcher.vocabulary.fleet import PlaceState, PlaceView
from tests.scenarios.machine import play

MOST_SCHEDULES = 200  # the machine has to find it within
Patch = pytest.MonkeyPatch
granted, evictable, next_action = book.granted, PlaceView.evictable, planning._next


def no_reserve_check(patch: Patch) -> None:
    """Any promise fits."""

    def without(ledger: Ledger, *rest) -> Ledger | Shortage:
        if ledger.room_bytes is None:
            return granted(ledger, *rest)
        after = granted(replace(ledger, room_bytes=2**60), *rest)
        return replace(after, room_bytes=ledger.room_bytes) if isinstance(after, Ledger) else after

    patch.setattr(book, "granted", without)


def no_busy_check(patch: Patch) -> None:
    """What computes, or has a request in flight, may be stopped."""
    patch.setattr(PlaceView, "evictable", lambda view, now: evictable(replace(view, busy=False), now))


def no_lease_check(patch: Patch) -> None:
    """What is leased may be stopped."""
    patch.setattr(PlaceView, "evictable", lambda view, now: evictable(replace(view, busy=False, leases=0), now))


def no_wait_for_victims(patch: Patch) -> None:
    """A grantee starts while what it evicts still holds its memory."""
    patch.setattr(planning, "_next", lambda view, waits, *rest: next_action(view, False, *rest))


def no_rest_for_stuck_places(patch: Patch) -> None:
    """A place that did not stop in time is never told again."""

    def without(view: PlaceView, *rest):
        return None if view.state is PlaceState.STUCK else next_action(view, *rest)

    patch.setattr(planning, "_next", without)


def lost_events(patch: Patch) -> None:
    """An end that nobody is told of."""
    patch.setattr(Tenancy, "end", lambda tenancy, lease_id, cause: tenancy.promises.end(lease_id, cause))


def two_starts_at_once(patch: Patch) -> None:
    """A task of a place is no reason not to begin another."""
    patch.setattr(Acting, "busy", lambda acting, place: acting._tasks.pop(place, None) and False)


def forgotten_leases(patch: Patch) -> None:
    """A restart honours nothing."""
    patch.setattr(Looking, "restore", lambda looking, leases: None)


BROKEN: dict[Callable[[Patch], None], str] = {
    no_reserve_check: "room for",
    no_busy_check: "is stopped (while|with)",
    no_lease_check: "is stopped (under|while|with)",
    no_wait_for_victims: "truly held",
    no_rest_for_stuck_places: "has not come to rest",
    lost_events: "has no end|given nothing|nobody knows it",
    two_starts_at_once: "during",
    forgotten_leases: "nobody knows it|is gone",
}


@pytest.mark.parametrize(("broken", "words"), BROKEN.items(), ids=[one.__name__ for one in BROKEN])
def test_without_one_check_the_machine_finds_the_broken_promise(monkeypatch, broken, words):
    broken(monkeypatch)

    with pytest.raises(AssertionError, match=words):
        play(MOST_SCHEDULES, 0, shrink=False)
