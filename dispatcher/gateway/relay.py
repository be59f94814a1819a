"""The gateway: one request from its arrival to its one outcome. Decide, wait for a turn, try, and where that failed,
decide again without what failed.

It chooses nothing and starts nothing: the desk decides and promises, the controller loads (a client that leaves never
aborts a load that others may wait for). What it owns is the attempt, the queues, the breakers and the cache.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from dispatcher.clock import Clock
from dispatcher.control.deadlines import Deadlines
from dispatcher.errors import AskInvalid
from dispatcher.gateway.answering import Answering
from dispatcher.gateway.attempt import Ended
from dispatcher.gateway.breakers import Breakers
from dispatcher.gateway.cache import Cache, Kept
from dispatcher.gateway.errand import Errand, Given
from dispatcher.gateway.gate import Gate
from dispatcher.gateway.queue import NoSlot, Queues, Slot
from dispatcher.gateway.refusing import give_up
from dispatcher.gateway.trying import Trying
from dispatcher.gateway.upstream import Upstreams
from dispatcher.vocabulary.decision import Decision, Selected
from dispatcher.vocabulary.event import Cached, Event, Status, Turned
from dispatcher.vocabulary.fleet import FleetView, Place, PlaceState
from dispatcher.vocabulary.queue import Line
from dispatcher.vocabulary.relay import Arrived, Client
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import Settings
from dispatcher.wire import surface

log = logging.getLogger("dispatcher.gateway")
LEASE_SECONDS = 900.0  # given back at the end of each attempt; this is for one that never ends
PATIENCE_SECONDS = 2.0  # before a request looks whether it would be served elsewhere, at least


class Select(Protocol):
    """Desk.select."""

    async def __call__(self, asked: Asked, *, without: Mapping[Place, str], durable: bool) -> Selected: ...


class Gateway:
    """One per daemon, on its loop. recommend: as select, without any effect. jitter: 0..1, anew each time."""

    def __init__(
        self,
        *,
        select: Select,
        recommend: Callable[[Asked], Decision],
        end_lease: Callable[[str], None],
        fleet: Callable[[], FleetView],
        settings: Callable[[], Settings],
        clock: Clock,
        emit: Callable[[Event], None],
        jitter: Callable[[], float],
    ) -> None:
        self._select, self._recommend, self._end_lease = select, recommend, end_lease
        self._fleet, self._settings, self._clock, self._emit = fleet, settings, clock, emit
        self._upstreams = Upstreams()
        self._cache = Cache(settings=settings, clock=clock)
        self._gate = Gate(settings=settings, clock=clock)
        self._queues = Queues(settings=settings, clock=clock, slots=self._slots, idle_since=self._idle_since)
        self.breakers = Breakers(settings=settings, clock=clock, emit=self._on_breaker)
        self._trying = Trying(
            upstreams=self._upstreams,
            deadlines=Deadlines(),
            breakers=self.breakers,
            expel=self._queues.expel,
            elsewhere=self._ready_elsewhere,
            settings=settings,
            clock=clock,
            emit=emit,
            jitter=jitter,
        )

    # --- one request ---------------------------------------------------------------------------------------------

    async def relay(self, arrived: Arrived, client: Client) -> None:
        """Answers, always: with the model's bytes, or with a failure that can be seen. Raises only for cancellation."""
        rules, now = self._settings().gateway, self._clock.now_seconds()
        endpoint = arrived.endpoint
        try:
            told = surface.told(endpoint, arrived.body, surface.wishes(arrived.headers))
        except AskInvalid as problem:
            answering = Answering(client, endpoint, arrived.request_id, stream=False, heartbeat_seconds=0.0)
            await answering.fail("invalid_request", str(problem), [])
            return
        answering = Answering(
            client,
            endpoint,
            arrived.request_id,
            stream=told.stream,
            heartbeat_seconds=rules.timeouts.heartbeat_seconds,
        )
        deadline = told.asked.deadline_seconds
        told = self._named(told)
        errand = Errand(
            arrived=arrived,
            told=told,
            named=None if told.asked.model == surface.AUTO else told.asked.model,
            answering=answering,
            began_seconds=now,
            until_seconds=None if deadline is None else now + deadline,
        )
        status: Status = "error"
        try:
            async with asyncio.timeout(deadline):
                status = await self._answered(errand)
        except TimeoutError:
            status = "timeout"
            await answering.fail(
                "upstream_timeout",
                f"the deadline of {deadline:g} s passed before the answer was whole",
                errand.headers(),
            )
        except asyncio.CancelledError:
            status = "cancelled" if client.left else "drained"
            if not client.left:
                await answering.fail("draining", "the dispatcher is shutting down", [(b"retry-after", b"2")])
            raise
        finally:
            answering.hush()
            self._emit(errand.completed(status, self._clock.now_seconds()))

    def _named(self, told: surface.Told) -> surface.Told:
        """Embeddings of `auto` always come from the same model; a chain's name is said as the chain says it."""
        asked, settings = told.asked, self._settings()
        chain = [model.name for model in settings.models]
        name = asked.model
        if name == surface.AUTO and told.endpoint.kind == "embed":
            name = settings.gateway.embedding_model or chain[0]
        else:
            name = surface.same_model(name, chain) or name
        return replace(told, asked=replace(asked, model=name, wait_seconds=settings.lifecycle.load_timeout_seconds))

    async def _answered(self, errand: Errand) -> Status:
        key = self._cache_key(errand)
        if key is not None:
            kept = self._cache.get(key)
            self._emit(
                Cached(at_seconds=self._clock.now_seconds(), model=errand.told.asked.model, hit=kept is not None)
            )
            if kept is not None:
                content_type = kept.content_type.encode("latin-1")
                await errand.answering.whole(200, kept.body, content_type, errand.headers_of_kept(kept.model))
                return "ok"
        self.breakers.requested()
        errand.answering.listen()
        if errand.told.asked.priority == "batch":
            return await self._grouped(errand, key)
        return await self._tried(errand, key)

    async def _grouped(self, errand: Errand, key: bytes | None) -> Status:
        """Batch requests go model by model, so that the models are not swapped for each of them."""
        chosen = self._recommend(errand.told.asked).chosen
        if chosen is None:
            return await self._tried(errand, key)
        until = self._clock.now_seconds() + self._settings().gateway.queue.batch_wait_seconds
        if errand.until_seconds is not None:
            until = min(until, errand.until_seconds)
        try:
            async with self._gate.pass_for(
                chosen.place.model, ready=chosen.state is PlaceState.READY, until_seconds=until
            ):
                return await self._tried(errand, key)
        except NoSlot as full:
            errand.queue_retry_seconds = full.retry_after_seconds
            errand.tells(chosen.place, full.words)
            return await give_up(errand)

    async def _tried(self, errand: Errand, key: bytes | None) -> Status:
        """Until one answers, or content began, or nothing is left to try."""
        rules = self._settings().gateway
        while errand.attempts < rules.retries.attempts:
            given = await self._given(errand)
            if given is None:
                break
            try:
                slot = await self._slot(errand, given)
                if slot is None:
                    continue
                ended = await self._trying.attempt(errand, given, slot, cached=key is not None)
            finally:
                self._end_lease(given.lease.id)
            if ended.cause is None:
                self._keep(key, errand, ended)
                return "ok"
            if errand.answering.begun:
                await errand.answering.fail(
                    "upstream_failed", f"the answer of {given.place.model} was cut: {ended.words}", []
                )
                return "timeout" if ended.cause == "stalled" else "error"
            if not await self._trying.goes_on(errand, given, ended.cause):
                break
        if await self._trying.last_resort(errand):
            return "ok"
        return await give_up(errand)

    # --- deciding ------------------------------------------------------------------------------------------------

    async def _given(self, errand: Errand) -> Given | None:
        """A place that is ready, and a lease on it; None when nothing is left. A named model comes first; the chain is
        its fallback, unless the caller said otherwise."""
        while True:
            selected = await self._select(self._asked(errand), without=errand.lost, durable=False)
            lease, origin = selected.lease, selected.endpoint
            if lease is not None and selected.state is PlaceState.READY and origin is not None:
                errand.decision = selected.decision
                errand.given = Given(selected=selected, lease=lease, origin=origin.rstrip("/"))
                return errand.given
            errand.refused = selected.decision
            if lease is not None:
                self._end_lease(lease.id)
                errand.gives_up_on(lease.place, "not_ready", "it did not become ready in time")
            elif errand.named is None or not errand.told.fallback or not self._is_known(errand.named):
                return None
            else:
                errand.named = None

    def _asked(self, errand: Errand) -> Asked:
        """As it was asked, less the time that has passed, and without a name that nothing is left of."""
        places = [view.place for view in self._fleet().places if view.place.model == errand.named]
        if errand.told.fallback and places and all(place in errand.lost for place in places):
            errand.named = None
        left = None if errand.until_seconds is None else max(0.001, errand.until_seconds - self._clock.now_seconds())
        model = surface.AUTO if errand.named is None else errand.named
        return replace(errand.told.asked, model=model, deadline_seconds=left, lease_seconds=LEASE_SECONDS)

    def _is_known(self, model: str) -> bool:
        return any(known.name == model for known in self._settings().models)

    # --- waiting for a turn --------------------------------------------------------------------------------------

    async def _slot(self, errand: Errand, given: Given) -> Slot | None:
        """Its turn at the place; None when it is to look elsewhere."""
        slot = self._queues.take(given.place, expected_seconds=given.work_seconds)
        if slot is not None:
            return slot
        began = self._clock.now_seconds()
        prediction = given.prediction
        wait_seconds = 0.0 if prediction is None else prediction.wait_seconds
        try:
            return await self._queues.enter(
                given.place,
                errand.told.asked.priority,
                until_seconds=float("inf") if errand.until_seconds is None else errand.until_seconds,
                size_bytes=len(errand.arrived.body),
                expected_seconds=given.work_seconds,
                patience_seconds=max(PATIENCE_SECONDS, 2 * (wait_seconds + given.work_seconds)),
                elsewhere=lambda: self._free_elsewhere(errand, given),
                may_move=errand.told.fallback,
            )
        except NoSlot as full:
            errand.gives_up_on(given.place, "no_slot", full.words)
            errand.queue_retry_seconds = full.retry_after_seconds
            return None
        finally:
            errand.queue_seconds += self._clock.now_seconds() - began

    def _free_elsewhere(self, errand: Errand, given: Given) -> bool:
        """Whether another place would serve it at once."""
        if not errand.told.fallback:
            return False
        return any(
            other.state is PlaceState.READY
            and other.place not in errand.lost
            and self.breakers.seen(other.place).state == "closed"
            and self._queues.running(other.place) < self._slots(other.place)
            for other in given.decision.fallbacks
        )

    def _ready_elsewhere(self, errand: Errand, given: Given) -> bool:
        """Whether another place is ready and has not failed this request. What was decided for a model by its name
        knows of no other."""
        others = list(given.decision.fallbacks)
        if errand.named is not None:
            decision = self._recommend(replace(self._asked(errand), model=surface.AUTO))
            others = [*decision.fallbacks] if decision.chosen is None else [decision.chosen, *decision.fallbacks]
        return any(
            other.state is PlaceState.READY
            and other.place != given.place
            and other.place not in errand.lost
            and not self.breakers.is_open(other.place)
            for other in others
        )

    # --- the cache -----------------------------------------------------------------------------------------------

    def _cache_key(self, errand: Errand) -> bytes | None:
        told, arrived = errand.told, errand.arrived
        rules = self._settings().gateway.cache
        wanted = told.deterministic if told.cache is None else told.cache
        if not (wanted and rules.enabled and rules.size_bytes):
            return None
        varies = f"{told.asked.task} {told.asked.complexity} {told.asked.prefer}".encode()
        return self._cache.key(arrived.key_name, arrived.endpoint.path, arrived.body, varies)

    def _keep(self, key: bytes | None, errand: Errand, ended: Ended) -> None:
        if key is None or ended.body is None or errand.given is None:
            return
        self._cache.put(
            key,
            Kept(
                body=ended.body,
                content_type=ended.content_type.decode("latin-1"),
                model=errand.given.place.model,
                place=errand.given.place,
                stream=errand.told.stream,
            ),
        )

    # --- what others see -----------------------------------------------------------------------------------------

    def lines(self) -> tuple[Line, ...]:
        return self._queues.lines()

    def running(self, place: Place) -> int:
        return self._queues.running(place)

    @property
    def cache_bytes(self) -> int:
        return self._cache.size_bytes

    async def close(self) -> None:
        self.breakers.close()
        await self._upstreams.close()

    def _slots(self, place: Place) -> int:
        return self._settings().lifecycle.num_parallel

    def _idle_since(self, place: Place, at_seconds: float) -> bool:
        """Whether its engine was seen idle after that moment."""
        view = self._fleet().find(place)
        if view is None or view.state is not PlaceState.READY:
            return True
        reading = view.cpu_cores
        return (
            reading.value is not None
            and reading.at_seconds > at_seconds
            and reading.value <= self._settings().lifecycle.busy_cores
        )

    def _on_breaker(self, event: Turned) -> None:
        """A model that turned unhealthy is not answered for from memory."""
        if event.after == "open" and event.place is not None:
            self._cache.drop(event.place.model)
        self._emit(event)
