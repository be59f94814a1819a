"""What state a place is in: a table, state × event → state, and why. Dry; docs/reference/states.md is drawn from TABLE.

Only the controller turns a place; what is seen (a container runs, a model answers) arrives here as an event like what
was asked or what time did. An event that a state does not know changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.settings import LifecycleSettings

Happening = Literal[
    "start_asked",  # a lease, a person or a pin wants it
    "seen_running",  # the engine says it runs, and nobody here started it: adopted
    "loaded",  # our own load request was answered: the model is there and answers
    "unloaded",  # it runs, but its model is gone
    "seen_stopped",  # the engine says it does not run
    "start_failed",  # the start or the load ended in an error
    "withdrawn",  # its grant is: a victim is stuck, and nothing was started yet
    "drain_asked",  # stop, after what is leased or in flight has ended
    "stop_asked",  # stop now: nobody uses it
    "stop_overdue",  # not seen stopped by its deadline
    "quarantine_over",
]

S = PlaceState
TABLE: Mapping[tuple[PlaceState, Happening], PlaceState] = {
    (S.STOPPED, "start_asked"): S.STARTING,
    (S.STOPPED, "seen_running"): S.STARTING,
    (S.STOPPED, "loaded"): S.READY,
    (S.STARTING, "loaded"): S.READY,
    (S.STARTING, "start_failed"): S.STOPPING,
    (S.STARTING, "withdrawn"): S.STOPPED,
    (S.STARTING, "stop_asked"): S.STOPPING,
    (S.READY, "start_asked"): S.STARTING,  # a reload with another context
    (S.READY, "unloaded"): S.STARTING,
    (S.READY, "seen_stopped"): S.STOPPED,
    (S.READY, "drain_asked"): S.DRAINING,
    (S.READY, "stop_asked"): S.STOPPING,
    (S.DRAINING, "stop_asked"): S.STOPPING,
    (S.DRAINING, "seen_stopped"): S.STOPPED,
    (S.STOPPING, "seen_stopped"): S.STOPPED,
    (S.STOPPING, "stop_overdue"): S.STUCK,
    (S.STUCK, "seen_stopped"): S.STOPPED,
    (S.QUARANTINED, "quarantine_over"): S.STOPPED,
    (S.QUARANTINED, "start_asked"): S.STARTING,  # by hand only: the policy never chooses it
    (S.QUARANTINED, "loaded"): S.READY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """The state of one place, since when and why, and its record of failures."""

    state: PlaceState = PlaceState.STOPPED
    since_seconds: float = 0.0
    because: str = ""
    failures_at_seconds: tuple[float, ...] = ()  # failed starts and crashes within the restart window
    quarantines: int = 0
    quarantined_until_seconds: float = 0.0
    retry_at_seconds: float = 0.0
    failure: str = ""  # of the last start or run, in words; "" once it has been ready since


def turned(residency: Residency, event: Happening, now_seconds: float, because: str = "") -> Residency:
    """The residency after `event`; the same object when the state does not know it."""
    after = TABLE.get((residency.state, event))
    if after is None:
        return residency
    return replace(residency, state=after, since_seconds=now_seconds, because=because)


def failed(
    residency: Residency, now_seconds: float, lifecycle: LifecycleSettings, *, jitter_ratio: float, because: str
) -> Residency:
    """After a failed start or a crash: a backoff with full jitter, and quarantine after too many in the window.

    jitter_ratio: 0..1, drawn by the caller. Quarantine: 3 in 10 min, 10 min, doubling to 1 h (numbers.md).
    """
    window = [at for at in residency.failures_at_seconds if now_seconds - at < lifecycle.restart_window_seconds]
    window.append(now_seconds)
    backoff = min(lifecycle.backoff_max_seconds, lifecycle.backoff_min_seconds * 2 ** (len(window) - 1))
    after = replace(
        residency,
        failures_at_seconds=tuple(window),
        retry_at_seconds=now_seconds + max(lifecycle.backoff_min_seconds, backoff * jitter_ratio),
        because=because,
        failure=because,
    )
    if len(window) < lifecycle.restarts_before_quarantine:
        return after
    lasts = min(lifecycle.quarantine_max_seconds, lifecycle.quarantine_seconds * 2**residency.quarantines)
    return replace(
        after,
        failures_at_seconds=(),
        quarantines=residency.quarantines + 1,
        quarantined_until_seconds=now_seconds + lasts,
    )


def settled_down(residency: Residency, now_seconds: float, lifecycle: LifecycleSettings) -> Residency:
    """A stopped place whose quarantine runs is quarantined; one whose quarantine is over is stopped again.

    Ready for as long as the longest quarantine: its next quarantine is a first one again.
    """
    stable = residency.state is S.READY and now_seconds - residency.since_seconds >= lifecycle.quarantine_max_seconds
    if stable and residency.quarantines:
        return replace(residency, quarantines=0)
    if residency.state is S.STOPPED and now_seconds < residency.quarantined_until_seconds:
        return replace(residency, state=S.QUARANTINED, since_seconds=now_seconds)
    if residency.state is S.QUARANTINED and now_seconds >= residency.quarantined_until_seconds:
        return turned(residency, "quarantine_over", now_seconds, "quarantine is over")
    return residency


def failure_told(residency: Residency, now_seconds: float, *, asked: bool) -> str:
    """Why a place that is seen stopped now was stopped, when that was a failure, or may not start again yet because of
    one; else "". asked: it was told to stop for another reason."""
    if residency.state not in (PlaceState.STOPPING, PlaceState.STUCK):
        return ""
    waits = now_seconds < max(residency.retry_at_seconds, residency.quarantined_until_seconds)
    return residency.failure if waits or not asked else ""
