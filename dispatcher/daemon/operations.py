"""What the API may ask that concerns more than one room: outcomes, actions by hand, readiness."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from dispatcher.api.doors import OutcomeReport
from dispatcher.clock import Clock
from dispatcher.desk import Desk
from dispatcher.errors import HistoryUnavailable, NotFound, NotNow
from dispatcher.history.store import Store
from dispatcher.lifecycle.controller import Controller
from dispatcher.vocabulary.event import Completed, Event, Turned
from dispatcher.vocabulary.fleet import LeaseStatus, PlaceState, PlaceView
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.words import Moment, meant

_log = logging.getLogger("dispatcher")


class Operations:
    def __init__(
        self,
        *,
        desk: Desk,
        controller: Controller,
        store: Store,
        settings: Callable[[], Settings],
        clock: Clock,
        emit: Callable[[Event], None],
    ) -> None:
        self._desk = desk
        self._controller = controller
        self._store = store
        self._settings = settings
        self._clock = clock
        self._emit = emit

    async def record_outcome(self, report: OutcomeReport) -> None:
        """Durable, then an event, then its lease ends. A second one for the same decision changes nothing."""
        head = await self._store.knows_decision(report.decision_id)
        if head is None:
            raise NotFound(f"no decision {report.decision_id} named a model here; outcomes are kept for those that did")
        completed = Completed(
            at_seconds=self._clock.now_seconds(),
            decision_id=report.decision_id,
            model=head.model,
            place=head.place,
            task=head.task,
            agent=head.agent,
            status=report.status,
            duration_seconds=report.duration_seconds,
            prompt_tokens=report.prompt_tokens,
            output_tokens=report.output_tokens,
            quality=report.quality,
            judged_by=None if report.quality is None else "caller",
            predicted_seconds=head.predicted_seconds,
        )
        try:
            if await self._store.record_outcome(completed):
                self._emit(completed)
        finally:  # recorded or not, the request is over: a full disk must not pin its model for the lease's rest
            lease_id = self._controller.tenancy.promises.of_decision(report.decision_id)
            if lease_id is not None:
                self._controller.tenancy.end(lease_id, "outcome")

    async def decisions(self, limit: int, model: str | None, since_seconds: float | None) -> list[bytes]:
        return await self._store.decisions(limit, model, since_seconds)

    async def decision(self, decision_id: str) -> bytes | None:
        return await self._store.decision(decision_id)

    async def renew_lease(self, lease_id: str) -> LeaseStatus:
        lease = self._controller.tenancy.renew(lease_id)
        try:
            await self._store.renew_lease(lease)
        except HistoryUnavailable as trouble:  # renewed in memory all the same; only /outcomes promises the disk
            _log.warning('lease=%s renewed="from memory only" because="%s"', lease_id, trouble)
        status = self._controller.tenancy.lease(lease_id)
        if status is None:
            raise NotFound(f"no lease {lease_id}")
        return status

    async def act(self, model: str, what: str) -> dict[str, Any]:
        """start | stop | pin | unpin | forget, by hand. NotFound for a model that has no place here, NotNow with the
        reason."""
        views = [view for view in self._controller.view().places if view.place.model == model]
        if not views and what != "unpin":
            known = sorted({view.place.model for view in self._controller.view().places})
            near, listed = meant(model, known), ", ".join(known) or "none"
            raise NotFound(f"no place runs {model}{near or ';'} models with a place here: {listed}")
        if what == "stop":
            return self._stop(model, views)
        if what == "start":
            return self._start(model, "asked")
        if what == "forget":
            return await self._forget(model)
        if what == "pin":
            chain = [each.name for each in self._settings().models]
            if model not in chain:
                raise NotNow(
                    f"{model} is not in the chain ({', '.join(chain)}): auto never means it; add it to models:"
                )
            await self._pin(model)
            return self._pinned(model)
        because = await self._unpin(model)
        return {"model": model, "action": "unpin", "state": self._state_of(model), "because": because}

    async def _forget(self, model: str) -> dict[str, Any]:
        """Durable, then an event; whoever learned from the model unlearns it there, and what is written because of it
        is on the disk, too, when this returns: kill -9 afterwards brings no footprint back."""
        now = self._clock.now_seconds()
        await self._store.forget(model, now)
        because = "forgotten by hand"
        self._emit(
            Turned(at_seconds=now, what="profile", subject=model, before="learned", after="forgotten", because=because)
        )
        try:
            await self._store.flush()
        except HistoryUnavailable as trouble:  # it is forgotten all the same, and the rest is owed
            _log.warning('forgotten=%s footprints="not on the disk yet" because="%s"', model, trouble)
        return {"model": model, "action": "forget", "state": self._state_of(model), "because": because}

    async def _pin(self, model: str | None) -> None:
        await self._store.pin(model)
        self._controller.tenancy.pinned_model = model
        self._controller.tenancy.changed()

    async def _unpin(self, model: str) -> str:
        """Only its own pin is taken away; why there was nothing to do, else nothing."""
        pinned = self._controller.tenancy.pinned_model
        if pinned == model:
            await self._pin(None)
            return ""
        return f"{model} is not pinned" + (f"; {pinned} is" if pinned is not None else "")

    def _pinned(self, model: str) -> dict[str, Any]:
        """It is pinned from now on, also when there is no room for it yet: then it is tried again and again."""
        try:
            return {**self._start(model, "pinned"), "action": "pin"}
        except NotNow as trouble:
            state = self._state_of(model)
            return {"model": model, "action": "pin", "state": state, "because": f"{trouble}; tried again every 15 s"}

    def _state_of(self, model: str) -> str | None:
        """Of its first place."""
        views = (view for view in self._controller.view().places if view.place.model == model)
        return next((view.state.value for view in views), None)

    def _stop(self, model: str, views: list[PlaceView]) -> dict[str, Any]:
        up = [view for view in views if view.state in (PlaceState.READY, PlaceState.STARTING, PlaceState.DRAINING)]
        if not up:
            raise NotNow(f"{model} is {views[0].state.value}: there is nothing to stop")
        for view in up:
            self._controller.ask_stop(view.place)
        used = [view for view in up if view.busy and view.state is not PlaceState.STARTING]  # there: withdrawn
        leased = [view for view in used if view.leases]
        leases = sum(view.leases for view in leased)
        because = "waits for what it still computes" if used else "stopping"
        if leases:
            until = max(self._leases_end_at(view) for view in leased)
            because = (
                f"waits for {leases} lease(s) to end, until {until} UTC at the longest unless one is renewed, and for "
                "what it still computes"
            )
        return {"model": model, "action": "stop", "state": self._state_of(model), "because": because}

    def _leases_end_at(self, view: PlaceView) -> Moment:
        """The end of its last lease; one whose time has not begun may take the longest allowed."""
        longest = self._clock.now_seconds() + self._settings().lifecycle.lease_max_seconds
        return Moment(longest if view.leased_until_seconds is None else view.leased_until_seconds)

    def _drain_ends(self, model: str) -> str:
        """When the drain that stands in the way is over, in words; nothing when none does."""
        views = [view for view in self._controller.view().places if view.place.model == model]
        draining = [view for view in views if view.state is PlaceState.DRAINING]
        if not draining:
            return ""
        if not all(view.leases for view in draining):
            return ", until what it computes is done"
        until = min(self._leases_end_at(view) for view in draining)
        return f", until {until} UTC at the latest (its last lease), or until what it then still computes is done"

    def _start(self, model: str, cause: str) -> dict[str, Any]:
        """As a request for it would: the same rules, the same evictions, but no lease."""
        decision = self._desk.recommend(Asked(model=model))
        chosen = decision.chosen
        if chosen is None:
            own = next((one for one in decision.candidates if one.place.model == model), None)
            if own is None or own.rejection is None or own.rejection.rule != "quarantined":
                because = own.because if own is not None else decision.sentence
                raise NotNow(f"{model} cannot be started now: {because}{self._drain_ends(model)}")
            chosen = own  # by hand, and only by hand, a quarantine is overruled
        self._controller.hold(chosen.place, chosen.num_ctx, chosen.evicts, cause)
        view = self._controller.tenancy.view_of(chosen.place)
        state = view.state.value if view else "stopped"
        return {
            "model": model,
            "action": "start",
            "state": state,
            "place": str(chosen.place),
            "evicts": [str(place) for place in chosen.evicts],
            "because": chosen.because,
        }

    def keep_pinned(self) -> None:
        """A pinned model stays resident: started again whenever the rules allow it."""
        model = self._controller.tenancy.pinned_model
        views = [view for view in self._controller.view().places if view.place.model == model]
        if views and all(view.state is PlaceState.STOPPED for view in views):
            decision = self._desk.recommend(Asked(model=model or "auto"))
            if decision.chosen is not None:
                chosen = decision.chosen
                self._controller.hold(chosen.place, chosen.num_ctx, chosen.evicts, "pinned")
