"""Leases and claims: what has been promised, to whom, until when. Owned by the controller; no await, no I/O."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import replace

from dispatcher.vocabulary.fleet import Claim, Lease, Place

REMEMBERED_ENDS = 4096  # so that GET /leases/{id} can say how an ended one ended
SPENT_ENTRIES = 256  # of the heap: of leases that ended before their time, as nearly all do


class Promises:
    """Live leases by id and by place, the next to expire first; claims by the waiting decision."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._of_place: dict[Place, dict[str, Lease]] = {}
        self._of_decision: dict[str, str] = {}
        self._until: dict[Place, float] = {}  # the latest end among a place's leases
        self._expiries: list[tuple[float, str]] = []
        self._ended: dict[str, tuple[Lease, str]] = {}
        self._claims: dict[str, Claim] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def get(self, lease_id: str) -> Lease | None:
        return self._leases.get(lease_id)

    def ended(self, lease_id: str) -> tuple[Lease, str] | None:
        return self._ended.get(lease_id)

    def on(self, place: Place) -> Mapping[str, Lease]:
        return self._of_place.get(place, {})

    def of_decision(self, decision_id: str) -> str | None:
        """The id of the live lease that this decision was given."""
        return self._of_decision.get(decision_id)

    def put(self, lease: Lease) -> None:
        """Add it, or replace the one of the same id."""
        self._leases[lease.id] = lease
        self._of_decision[lease.decision_id] = lease.id
        self._of_place.setdefault(lease.place, {})[lease.id] = lease
        if lease.expires_at_seconds is not None:
            heapq.heappush(self._expiries, (lease.expires_at_seconds, lease.id))
            self._until[lease.place] = max(lease.expires_at_seconds, self._until.get(lease.place, 0.0))

    def until_seconds(self, place: Place) -> float | None:
        """When the last of its leases ends; None: none, or their time has not begun."""
        return self._until.get(place)

    def begin(self, place: Place, now_seconds: float) -> list[Lease]:
        """The place is ready: the time of the leases that waited for it runs from now on."""
        begun = []
        for lease in list(self.on(place).values()):
            if lease.expires_at_seconds is None:
                begun.append(replace(lease, expires_at_seconds=now_seconds + lease.seconds))
                self.put(begun[-1])
        return begun

    def end(self, lease_id: str, cause: str) -> Lease | None:
        """None when it is over already: giving back twice is no error."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return None
        self._of_place[lease.place].pop(lease_id)
        if self._of_decision.get(lease.decision_id) == lease_id:
            del self._of_decision[lease.decision_id]
        if not self._of_place[lease.place]:
            del self._of_place[lease.place]
        if lease.expires_at_seconds is not None and lease.expires_at_seconds >= self._until.get(lease.place, 0.0):
            self._refresh_until(lease.place)  # the last to end, mostly: seldom while others live
        if len(self._expiries) > 2 * len(self._leases) + SPENT_ENTRIES:
            live = self._leases.values()
            self._expiries = [(one.expires_at_seconds, one.id) for one in live if one.expires_at_seconds is not None]
            heapq.heapify(self._expiries)
        self._ended[lease_id] = (lease, cause)
        while len(self._ended) > REMEMBERED_ENDS:
            del self._ended[next(iter(self._ended))]
        return lease

    def _refresh_until(self, place: Place) -> None:
        ends = [one.expires_at_seconds for one in self.on(place).values() if one.expires_at_seconds is not None]
        if ends:
            self._until[place] = max(ends)
        else:
            self._until.pop(place, None)

    def overdue(self, now_seconds: float) -> list[str]:
        """The ids whose time is over; a renewed one's old entry in the heap is skipped."""
        over = []
        while self._expiries and self._expiries[0][0] <= now_seconds:
            at, lease_id = heapq.heappop(self._expiries)
            lease = self._leases.get(lease_id)
            if lease is not None and lease.expires_at_seconds == at:
                over.append(lease_id)
        return over

    def next_expiry_seconds(self) -> float | None:
        return self._expiries[0][0] if self._expiries else None

    def claim(self, claim: Claim) -> bool:
        """False when one of the victims is already claimed by another: first come, first served."""
        taken = {
            victim
            for other in self._claims.values()
            if other.decision_id != claim.decision_id
            for victim in other.victims
        }
        if taken & set(claim.victims):
            return False
        if self._claims.get(claim.decision_id) != claim:
            self._claims[claim.decision_id] = claim
        return True

    def claim_of(self, decision_id: str) -> Claim | None:
        return self._claims.get(decision_id)

    def unclaim(self, decision_id: str) -> bool:
        """False when there was none."""
        return self._claims.pop(decision_id, None) is not None

    def claims(self, now_seconds: float) -> tuple[Claim, ...]:
        return tuple(claim for claim in self._claims.values() if claim.until_seconds > now_seconds)
