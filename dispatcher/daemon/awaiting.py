"""Decisions of an experiment whose outcome is still to come: whose share they are, and what they had to wait for.

Bounded, the oldest goes first and is counted: most who never report an outcome never will.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from dispatcher.vocabulary.event import Completed
from dispatcher.vocabulary.experiment import Arm, Observation, ObservedStatus, Share
from dispatcher.vocabulary.fleet import Place


@dataclass(slots=True, kw_only=True)
class Awaited:
    """One request. ids: of all decisions on it. began_seconds: when it came. ready_seconds: when its place was ready,
    as far as is known. loads: the place it waits for. switch_arms: experiment → who caused that load. refused_seconds:
    since when nothing is chosen for it."""

    shares: tuple[Share, ...]
    began_seconds: float
    ready_seconds: float
    ids: list[str] = field(default_factory=list)
    loads: Place | None = None
    switch_seconds: float = 0.0
    switch_arms: dict[str, Arm] = field(default_factory=dict)
    refused_seconds: float | None = None


class Awaiting:
    def __init__(self) -> None:
        self._by_id: OrderedDict[str, Awaited] = OrderedDict()
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Awaited]:
        """A request with several decisions comes several times."""
        return iter(list(self._by_id.values()))

    def of(self, decision_id: str) -> Awaited | None:
        return self._by_id.get(decision_id)

    def put(self, decision_id: str, awaited: Awaited, most: int) -> None:
        """Under one more id."""
        if decision_id in self._by_id:
            return
        awaited.ids.append(decision_id)
        self._by_id[decision_id] = awaited
        while len(self._by_id) > most:
            self.taken(next(iter(self._by_id)))
            self.forgotten += 1

    def taken(self, decision_id: str) -> Awaited | None:
        """It is not awaited any more, under none of its ids."""
        awaited = self._by_id.get(decision_id)
        for known in () if awaited is None else awaited.ids:
            self._by_id.pop(known, None)
        return awaited

    def clear(self) -> None:
        """Nobody waits for any of them."""
        self._by_id.clear()

    def ready(self, decision_id: str, at_seconds: float) -> None:
        """Its lease's place is ready: what the caller measures begins here."""
        if (awaited := self._by_id.get(decision_id)) is not None:
            awaited.ready_seconds = max(awaited.ready_seconds, at_seconds)

    def loaded(self, place: Place, seconds: float, at_seconds: float) -> None:
        """A start of the place has ended. Who came in its midst waited for what was left of it."""
        for awaited in self._by_id.values():
            if awaited.loads == place:
                awaited.loads = None
                awaited.switch_seconds = max(0.0, min(seconds, at_seconds - awaited.began_seconds))

    def refused_before(self, at_seconds: float) -> list[Awaited]:
        """Those for whom nothing has been chosen for so long that nothing will be."""
        late = [one for one in self._by_id.values() if one.refused_seconds is not None]
        return [one for one in late if one.refused_seconds is not None and one.refused_seconds <= at_seconds]


def observation_of(awaited: Awaited, share: Share, status: ObservedStatus, completed: Completed | None) -> Observation:
    """completed None: there is no more to it than its status."""
    return Observation(
        arm=share.arm,
        unit=share.unit,
        shared=share.shared,
        status=status,
        duration_seconds=None if completed is None else _seconds(awaited, completed),
        quality=None if completed is None else completed.quality,
        switch_seconds=awaited.switch_seconds,
        switch_arm=awaited.switch_arms.get(share.experiment_id),
    )


def status_of(completed: Completed) -> ObservedStatus:
    """An answer that came from outside of the machine: the arm had none."""
    outside = completed.relayed and completed.place is None and completed.status == "ok"
    return "refused" if outside else completed.status


def _seconds(awaited: Awaited, completed: Completed) -> float:
    """From the request to the last byte. A caller times the model's answer alone, so its waits before that are added;
    what was not timed (0) ends with the report."""
    if completed.relayed or completed.duration_seconds <= 0:
        return max(0.0, completed.at_seconds - awaited.began_seconds)
    return completed.duration_seconds + max(0.0, awaited.ready_seconds - awaited.began_seconds)
