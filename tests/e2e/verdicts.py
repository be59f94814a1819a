"""What must hold whatever breaks, judged from outside: by Docker's own events, by the calls that reached Docker, and by
what the API acknowledged. Nothing of the dispatcher is imported or believed.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.e2e.schedules import EXPECTED, Notes
from tests.faultproxy import Passed

_CALL = re.compile(r"/containers/([^/?]+)/(start|stop|kill|restart|pause|unpause)\b")
HAND_SECONDS = 5.0  # Docker tells of what was done by hand within this


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """One event of Docker's: start, die, kill, stop, … of a container of this test."""

    at_seconds: float
    container: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """One call that reached Docker, and changes something. heard: the daemon got its answer."""

    at_seconds: float
    container: str
    what: str
    status: int | None
    heard: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """limits: container → its memory limit. models: model → container. room_bytes: what they may have in all."""

    events: Sequence[Happened]
    calls: Sequence[Called]
    notes: Notes
    limits: Mapping[str, int]
    models: Mapping[str, str]
    strangers: frozenset[str]
    running_before: frozenset[str]
    room_bytes: int

    def by_hand(self, container: str, what: str, until_seconds: float) -> bool:
        return any(
            self.models[model] == container and done == what and at <= until_seconds <= at + HAND_SECONDS
            for at, done, model in self.notes.by_hand
        )


def events_of(client: Any, label: str, since_seconds: float) -> list[Happened]:
    """Of all containers with that label, from Docker's own log."""
    told = client.events(
        since=f"{since_seconds:.6f}",
        until=f"{time.time():.6f}",
        decode=True,
        filters={"type": "container", "label": label},
    )
    return [
        Happened(
            at_seconds=event["timeNano"] / 1e9, container=event["Actor"]["Attributes"]["name"], what=event["Action"]
        )
        for event in told
    ]


def calls_of(passed: Sequence[Passed]) -> list[Called]:
    """The calls that change something, in the order in which they came."""
    return [
        Called(at_seconds=one.began_seconds, container=found[1], what=found[2], status=one.status, heard=one.heard)
        for one in passed
        if one.sent and one.asked.method == "POST" and (found := _CALL.search(one.asked.path))
    ]


def violations(evidence: Evidence) -> list[str]:
    """Each in a sentence; empty: all promises were kept."""
    return [
        *_answers(evidence),
        *_started_twice(evidence),
        *_leased_stopped(evidence),
        *_strangers(evidence),
        *_over_budget(evidence),
    ]


def _answers(evidence: Evidence) -> list[str]:
    told = [f"no answer to {one}" for one in evidence.notes.broken]
    for what, status, text in evidence.notes.answers:
        if status not in EXPECTED[what]:
            told.append(f"{what} was answered {status}: {text}")
    return told


def _started_twice(evidence: Evidence) -> list[str]:
    """A start of what runs already is Docker's 304: explained by a start by hand that Docker told of a moment ago, or
    by an earlier start of ours whose answer got lost."""
    told = []
    for call in evidence.calls:
        if call.what != "start" or call.status != 304:
            continue
        died = max((one.at_seconds for one in evidence.events if _before(one, call, "die")), default=float("-inf"))
        lost = any(
            one.what == "start" and one.container == call.container and died < one.at_seconds < call.at_seconds
            for one in evidence.calls
            if not (one.heard and one.status in (204, 304))
        )
        if not lost and not evidence.by_hand(call.container, "start", call.at_seconds):
            told.append(f"{call.container} was started at {call.at_seconds:.3f} though it ran, and we knew")
    periods: Counter[str] = Counter(evidence.running_before)
    for event in evidence.events:
        if event.what == "start":
            periods[event.container] += 1
        elif event.what == "die":
            periods[event.container] = 0
        if periods[event.container] > 1:
            told.append(f"{event.container} was started twice within one running period, at {event.at_seconds:.3f}")
    return told


def _before(event: Happened, call: Called, what: str) -> bool:
    return event.container == call.container and event.what == what and event.at_seconds < call.at_seconds


def _leased_stopped(evidence: Evidence) -> list[str]:
    """Of what its holder was told is ready, and has not given back, whose time has not run out, and which has not died
    of something else meanwhile."""
    told = []
    for call in evidence.calls:
        if call.what not in ("stop", "kill"):
            continue
        for promise in evidence.notes.promises:
            ready = promise.ready_seconds
            if evidence.models[promise.model] != call.container or ready is None or ready >= call.at_seconds:
                continue
            ends = min(promise.given_back_seconds or float("inf"), promise.expires_seconds or float("inf"))
            died = any(_before(one, call, "die") and one.at_seconds > ready for one in evidence.events)
            if call.at_seconds < ends and not died:
                told.append(
                    f"{call.container} was told to {call.what} at {call.at_seconds:.3f} under lease {promise.id}"
                )
    return told


def _strangers(evidence: Evidence) -> list[str]:
    told = [
        f"{one.what} of {one.container}, not ours" for one in evidence.events if one.container in evidence.strangers
    ]
    told += [f"a call to {one.what} {one.container}" for one in evidence.calls if one.container in evidence.strangers]
    return told


def _over_budget(evidence: Evidence) -> list[str]:
    """At every start of ours, the limits of all that runs, where nobody has started one of them by hand."""
    told = []
    runs, by_hand = set(evidence.running_before), set[str]()
    for event in evidence.events:
        if event.container not in evidence.limits:
            continue
        if event.what == "die":
            runs.discard(event.container)
            by_hand.discard(event.container)
        elif event.what == "start":
            runs.add(event.container)
            if evidence.by_hand(event.container, "start", event.at_seconds):
                by_hand.add(event.container)
            held_bytes = sum(evidence.limits[name] for name in runs)
            if held_bytes > evidence.room_bytes and not by_hand:
                told.append(
                    f"{sorted(runs)} run at {event.at_seconds:.3f}: {held_bytes} of {evidence.room_bytes} bytes"
                )
    return told
