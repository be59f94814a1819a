"""Whether a place is worth another request just now: a circuit breaker as a table, one per place (model and server).

Pure: the caller owns the clock and keeps the value. What counts as a failure is control.retry's to say. Nothing here
knows of requests, only of how the last ones ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from dispatcher.vocabulary.gateway_settings import BreakerSettings


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


Happening = Literal["tripped", "cooled_off", "probe_failed", "recovered"]

S = BreakerState
TABLE: Mapping[tuple[BreakerState, Happening], BreakerState] = {
    (S.CLOSED, "tripped"): S.OPEN,
    (S.OPEN, "cooled_off"): S.HALF_OPEN,
    (S.HALF_OPEN, "probe_failed"): S.OPEN,
    (S.HALF_OPEN, "recovered"): S.CLOSED,
}

BUCKETS = 6  # of the window: an end is forgotten within a sixth of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """recent: (bucket number, ends, failures) of the window, oldest first. openings: how often in a row it opened
    without having recovered between; the n of its cool-off. probing_until_seconds: while one probe is out. probe: the
    number of the last one; only its own end moves a half-open breaker."""

    state: BreakerState = BreakerState.CLOSED
    since_seconds: float = 0.0
    because: str = ""
    failures_in_row: int = 0
    recent: tuple[tuple[int, int, int], ...] = ()
    openings: int = 0
    passes: int = 0  # of probes, while half open
    probing_until_seconds: float = 0.0
    probe: int = 0


CLOSED = Breaker()
NO_PROBE = 0


def retry_at_seconds(breaker: Breaker, rules: BreakerSettings) -> float:
    """When an open breaker lets a probe through; 0.0 when it is not open."""
    if breaker.state is not BreakerState.OPEN:
        return 0.0
    return breaker.since_seconds + min(rules.open_seconds * breaker.openings, rules.open_max_seconds)


def as_of(now_seconds: float, breaker: Breaker, rules: BreakerSettings) -> Breaker:
    """The breaker as it stands at this moment: an open one half opens by time alone."""
    if breaker.state is BreakerState.OPEN and now_seconds >= retry_at_seconds(breaker, rules):
        return _turned(
            replace(breaker, passes=0), "cooled_off", now_seconds, "its cool-off is over; one probe at a time"
        )
    return breaker


def refusal(breaker: Breaker, now_seconds: float, rules: BreakerSettings) -> str | None:
    """Why no request may go there now, in words; None when one may. Ask of a breaker `as_of` now."""
    if breaker.state is BreakerState.OPEN:
        wait = max(0.0, retry_at_seconds(breaker, rules) - now_seconds)
        return f"its breaker is open for another {wait:.0f} s: {breaker.because}"
    if breaker.state is BreakerState.HALF_OPEN and now_seconds < breaker.probing_until_seconds:
        return "its breaker is half open, and the one probe is out"
    return None


def probed(breaker: Breaker, now_seconds: float, until_seconds: float, probe: int = NO_PROBE) -> tuple[Breaker, int]:
    """A request goes there; of a half-open breaker it is the probe, and the only one until it ends or that moment.

    probe: the number it has been given here before, when it only claimed its turn; the answer has the number that its
    end must present. NO_PROBE: it is none, as of a closed breaker, or where another is out."""
    if breaker.state is not BreakerState.HALF_OPEN:
        return breaker, NO_PROBE
    if not _is_its(breaker, probe):
        if now_seconds < breaker.probing_until_seconds:
            return breaker, NO_PROBE
        probe = breaker.probe + 1
    return replace(breaker, probe=probe, probing_until_seconds=until_seconds), probe


def _is_its(breaker: Breaker, probe: int) -> bool:
    """Whether this is the probe that a half-open breaker waits for."""
    return probe != NO_PROBE and probe == breaker.probe and breaker.probing_until_seconds > 0.0


def released(breaker: Breaker, probe: int) -> Breaker:
    """Its request ended without saying anything of the place: cancelled, or the caller's own fault."""
    return replace(breaker, probing_until_seconds=0.0) if _is_its(breaker, probe) else breaker


def passed(breaker: Breaker, now_seconds: float, rules: BreakerSettings, probe: int = NO_PROBE) -> Breaker:
    """A request there ended well. One that was under way when the breaker opened is no news of what is there now."""
    if breaker.state is BreakerState.HALF_OPEN:
        if not _is_its(breaker, probe):
            return breaker
        breaker = replace(breaker, passes=breaker.passes + 1, probing_until_seconds=0.0)
        if breaker.passes < rules.probe_passes:
            return breaker
        whole = _turned(breaker, "recovered", now_seconds, f"{breaker.passes} probes in a row were answered")
        return replace(whole, openings=0, failures_in_row=0, recent=())
    return replace(breaker, failures_in_row=0, recent=_counted(breaker, now_seconds, 0, rules))


def failed(
    breaker: Breaker, now_seconds: float, because: str, rules: BreakerSettings, probe: int = NO_PROBE
) -> Breaker:
    """A request there failed in a way that says something of the place. because: of the last failure, in words."""
    if breaker.state is BreakerState.HALF_OPEN:
        if not _is_its(breaker, probe):
            return breaker
        return _opened(breaker, "probe_failed", now_seconds, f"its probe failed: {because}")
    row, recent = breaker.failures_in_row + 1, _counted(breaker, now_seconds, 1, rules)
    breaker = replace(breaker, failures_in_row=row, recent=recent)
    if breaker.state is BreakerState.OPEN:
        return breaker  # of a request that was under way when it opened
    ends, failures = sum(one[1] for one in recent), sum(one[2] for one in recent)
    if row >= rules.failures_in_row:
        return _opened(breaker, "tripped", now_seconds, f"{row} failures in a row, the last: {because}")
    if ends >= rules.window_min_requests and failures >= rules.failure_ratio * ends:
        told = f"{failures} of {ends} requests failed within {rules.window_seconds:g} s, the last: {because}"
        return _opened(breaker, "tripped", now_seconds, told)
    return breaker


def _counted(
    breaker: Breaker, now_seconds: float, failure: int, rules: BreakerSettings
) -> tuple[tuple[int, int, int], ...]:
    number = int(now_seconds // (rules.window_seconds / BUCKETS))
    kept = breaker.recent
    if kept and kept[-1][0] == number:
        return (*kept[:-1], (number, kept[-1][1] + 1, kept[-1][2] + failure))
    return (*(one for one in kept if one[0] > number - BUCKETS), (number, 1, failure))


def _opened(breaker: Breaker, event: Happening, now_seconds: float, because: str) -> Breaker:
    opened = _turned(breaker, event, now_seconds, because)
    return replace(opened, openings=breaker.openings + 1, failures_in_row=0, recent=(), probing_until_seconds=0.0)


def _turned(breaker: Breaker, event: Happening, now_seconds: float, because: str) -> Breaker:
    return replace(breaker, state=TABLE[breaker.state, event], since_seconds=now_seconds, because=because)
