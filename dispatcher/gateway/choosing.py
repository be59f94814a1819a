"""Where one request goes next: a place that is ready, a promise that it stays, and a turn there.

The desk decides and promises; this asks it again without what failed this request, and says when waiting for a turn is
worth less than another place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from dispatcher.clock import Clock
from dispatcher.gateway.breakers import Breakers
from dispatcher.gateway.errand import Errand, Given
from dispatcher.gateway.gate import Group
from dispatcher.gateway.proofs import Proofs
from dispatcher.gateway.queue import NoSlot, Queues, Slot
from dispatcher.vocabulary.decision import Decision, Selected
from dispatcher.vocabulary.fleet import FleetView, Place, PlaceState
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import Settings
from dispatcher.wire import surface

LEASE_SECONDS = 900.0  # given back at the end of each attempt; what is in flight is kept without one, too
OPEN = "its breaker is open, or lets one probe through and that is out"
BESIDE = "it is still silent, another was asked beside it"
CLAIM_SECONDS = 1.0  # on a probe, until its attempt has begun
PATIENCE_SECONDS = 2.0  # before a request looks whether it would be served elsewhere, at least


class Select(Protocol):
    """Desk.select."""

    async def __call__(self, asked: Asked, *, without: Mapping[Place, str], again: bool, durable: bool) -> Selected: ...


class Choosing:
    """One per gateway."""

    def __init__(
        self,
        *,
        select: Select,
        recommend: Callable[[Asked], Decision],
        end_lease: Callable[[str], None],
        fleet: Callable[[], FleetView],
        queues: Queues,
        breakers: Breakers,
        proofs: Proofs,
        settings: Callable[[], Settings],
        clock: Clock,
        leaving: Callable[[], bool],
    ) -> None:
        self._select, self._recommend, self._end_lease = select, recommend, end_lease
        self._queues, self._breakers, self._proofs = queues, breakers, proofs
        self._fleet, self._settings, self._clock, self._leaving = fleet, settings, clock, leaving

    async def given(self, errand: Errand) -> Given | None:
        """A place that is ready, and a lease on it; None when nothing is left, or the dispatcher is leaving. A named
        model comes first; the chain is its fallback, unless the caller said otherwise."""
        while not self._leaving():
            again = errand.decision is not None or errand.refused is not None
            selected = await self._selected(errand, again)
            if (given := _ready(selected)) is not None:
                errand.decision, errand.given = selected.decision, given
                return given
            errand.refused = selected.decision
            if (lease := selected.lease) is not None:
                self._end_lease(lease.id)
                errand.gives_up_on(lease.place, "not_ready", "it did not become ready in time")
            elif errand.named is None or not errand.told.fallback or not self._is_known(errand.named):
                return None
            else:
                errand.named = None
        return None

    async def _selected(self, errand: Errand, again: bool) -> Selected:
        """Once something has failed it, a place that failed last is worth trying only where no other is ready: who
        asked may not have the patience for more. Nor is one that said it cannot now, where no model was named."""
        asked = self._asked(errand)
        if avoided := self._avoided(errand):
            ready, without = replace(asked, start=False, wait_seconds=0.0), {**avoided, **errand.lost}
            selected = await self._select(ready, without=without, again=again, durable=False)
            if selected.lease is not None:
                return selected
            again = True
        return await self._select(asked, without=errand.lost, again=again, durable=False)

    def _avoided(self, errand: Errand) -> dict[Place, str]:
        """None, unless that leaves one that is ready."""
        may_rest = errand.named is None and errand.told.fallback and errand.told.endpoint.kind != "embed"
        avoided = self._proofs.resting.now(self._clock.now_seconds()) if may_rest else {}
        failed_once = bool(errand.attempts or errand.lost)
        if not (avoided or failed_once):
            return avoided  # nearly always: the fleet is not looked at for nothing
        views = [view for view in self._fleet().places if view.place not in errand.lost]
        if failed_once:
            failing = (view.place for view in views if self._proofs.is_failing(view.place))
            avoided |= dict.fromkeys(failing, "it failed the last request")
        if not avoided:
            return avoided
        works = any(
            view.state is PlaceState.READY and view.place not in avoided and not self._breakers.is_open(view.place)
            for view in views
        )
        return avoided if works else {}

    def _asked(self, errand: Errand) -> Asked:
        """As it was asked, less the time that has passed, and without a name that nothing is left of. It waits for a
        load as long as one may take."""
        if errand.lost and errand.named is not None and errand.told.fallback:
            places = [view.place for view in self._fleet().places if view.place.model == errand.named]
            if places and all(place in errand.lost for place in places):
                errand.named = None
        left = None if errand.until_seconds is None else max(0.001, errand.until_seconds - self._clock.now_seconds())
        model = surface.AUTO if errand.named is None else errand.named
        return replace(
            errand.told.asked,
            model=model,
            deadline_seconds=left,
            wait_seconds=self._settings().lifecycle.load_timeout_seconds,
            lease_seconds=LEASE_SECONDS,
            decided_before=errand.last_decision_id,
        )

    def _is_known(self, model: str) -> bool:
        return any(known.name == model for known in self._settings().models)

    def group(self, errand: Errand) -> Group | None:
        """Whom it would go with as a batch request, if it went now: the model it would be served by, or would wait for
        until the leases of the group before it have ended. None: no model."""
        decision = self._recommend(self._asked(errand))
        wanted = decision.chosen or decision.wait_for
        return None if wanted is None else Group(model=wanted.place.model, ready=wanted.state is PlaceState.READY)

    def is_spent(self, errand: Errand) -> bool:
        """It is for one model alone, and has lost all places of it: there is nothing left to decide."""
        places = [view.place for view in self._fleet().places if view.place.model == errand.named]
        return bool(places) and not errand.told.fallback and all(place in errand.lost for place in places)

    # --- waiting for a turn --------------------------------------------------------------------------------------

    async def slot(self, errand: Errand, given: Given) -> Slot | None:
        """Its turn at the place; None when it is to look elsewhere: also when, since it was decided, the breaker there
        opened, or another request became the one probe that a half-open breaker lets through."""
        slot = await self._slot(errand, given)
        if slot is None:
            return None
        if not self._claimed(slot):
            errand.gives_up_on(given.place, "no_slot", OPEN)
            return None
        return slot

    def _claimed(self, slot: Slot) -> bool:
        """Before a half-open breaker the slot is the probe's, if it is free; False, and it is given back: no request
        may go there now."""
        if self._breakers.is_open(slot.place):
            slot.release()
            return False
        slot.probe = self._breakers.goes(slot.place, self._clock.now_seconds() + CLAIM_SECONDS)
        return True

    async def _slot(self, errand: Errand, given: Given) -> Slot | None:
        slot = self._queues.take(given.place, expected_seconds=given.work_seconds)
        if slot is not None:
            return slot
        if self._is_hopeless(errand, given):
            errand.gives_up_on(given.place, "no_slot", "it fails, and has no free slot for another try")
            return None
        began = self._clock.now_seconds()
        prediction = given.prediction
        wait_seconds = 0.0 if prediction is None else prediction.wait_seconds
        try:
            return await self._queues.enter(
                given.place,
                errand.told.asked.priority,
                until_seconds=errand.latest_seconds,
                expected_seconds=given.work_seconds,
                patience_seconds=PATIENCE_SECONDS
                if self._proofs.is_new(given)  # what is predicted of it is a guess
                else max(PATIENCE_SECONDS, 2 * (wait_seconds + given.work_seconds)),
                elsewhere=lambda: self._free_elsewhere(errand, given),
                may_move=lambda: self._is_better_off_elsewhere(errand, given),
            )
        except NoSlot as full:
            errand.gives_up_on(given.place, "no_slot", full.words)
            if not full.moved:
                errand.queue_retry_seconds = full.retry_after_seconds
            return None
        finally:
            errand.queue_seconds += self._clock.now_seconds() - began

    def _is_hopeless(self, errand: Errand, given: Given) -> bool:
        """To wait there: nothing good has come of it since its last failure, and another place is ready."""
        return (
            errand.told.fallback
            and self._proofs.is_failing(given.place)
            and not self._queues.is_free(given.place)
            and self.ready_elsewhere(errand, given)
        )

    async def beside(self, errand: Errand, given: Given) -> tuple[Given, Slot] | None:
        """Another place that is ready, a lease on it and a turn there, for a second attempt beside the one at `given`;
        None when there is none. Nothing is started for it."""
        asked = replace(self._asked(errand), start=False, wait_seconds=0.0)
        if all(view.place == given.place for view in self._fleet().places if view.place.model == asked.model):
            asked = replace(asked, model=surface.AUTO)
        without = {**self._avoided(errand), **errand.lost, given.place: BESIDE}
        selected = await self._select(asked, without=without, again=True, durable=False)
        lease = selected.lease
        if lease is None:
            return None
        try:
            if (other := _ready(selected)) is not None:
                return other, await self._turn(errand, other)
        except NoSlot:
            pass
        except BaseException:
            self._end_lease(lease.id)
            raise
        self._end_lease(lease.id)
        return None

    async def _turn(self, errand: Errand, given: Given) -> Slot:
        """Raises NoSlot; also when the breaker there opened while it waited, or lets one probe through, and that is
        another's."""
        slot = await self._queues.enter(
            given.place,
            errand.told.asked.priority,
            until_seconds=errand.latest_seconds,
            expected_seconds=given.work_seconds,
            may_move=lambda: True,  # it has its first attempt
        )
        if not self._claimed(slot):
            raise NoSlot(OPEN, wait_seconds=None)
        return slot

    # --- elsewhere -----------------------------------------------------------------------------------------------

    def _free_elsewhere(self, errand: Errand, given: Given) -> bool:
        """Whether another place would serve it at once."""
        return errand.told.fallback and any(map(self._is_free, self._others(errand, given)))

    def _is_free(self, place: Place) -> bool:
        return self._breakers.seen(place).state == "closed" and self._queues.is_free(place)

    def _is_better_off_elsewhere(self, errand: Errand, given: Given) -> bool:
        """Than in line at a place that just failed another request: somebody would serve it at once, or has not failed
        since as this one has, or nobody will here for now and another could be started."""
        if not errand.told.fallback:
            return False
        others = self._others(errand, given)  # once: for a named model it is a decision, and a crowd may be asked
        fails = self._proofs.is_failing(given.place)
        if any(
            self._is_free(place) or (fails and not self._breakers.is_open(place) and not self._proofs.is_failing(place))
            for place in others
        ):
            return True
        return self._breakers.is_open(given.place) and any(
            not self._breakers.is_open(place) for place in self._others(errand, given, ready=False)
        )

    def ready_elsewhere(self, errand: Errand, given: Given) -> bool:
        """Whether another place is ready and has not failed this request."""
        return any(not self._breakers.is_open(place) for place in self._others(errand, given))

    def _others(self, errand: Errand, given: Given, *, ready: bool = True) -> list[Place]:
        """Not lost; and ready, unless others will do. What was decided for a model by its name knows of no other."""
        others = list(given.decision.fallbacks)
        if errand.named is not None:
            decision = self._recommend(replace(self._asked(errand), model=surface.AUTO))
            others = [*decision.fallbacks] if decision.chosen is None else [decision.chosen, *decision.fallbacks]
        return [
            other.place
            for other in others
            if other.place != given.place
            and other.place not in errand.lost
            and (other.state is PlaceState.READY or not ready)
        ]


def _ready(selected: Selected) -> Given | None:
    """None where it came without a lease, an address, or before the place was ready."""
    lease, origin = selected.lease, selected.endpoint
    if lease is None or origin is None or selected.state is not PlaceState.READY:
        return None
    return Given(selected=selected, lease=lease, origin=origin.rstrip("/"))
