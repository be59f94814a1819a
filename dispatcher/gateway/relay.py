"""The gateway: one request from its arrival to its one outcome. Decide, wait for a turn, try, and where that failed,
decide again without what failed.

It chooses nothing and starts nothing: the desk decides and promises, the controller loads (a client that leaves never
aborts a load that others may wait for). What it owns is the attempt, the queues, the breakers and the cache.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from dispatcher.clock import Clock
from dispatcher.control.deadlines import Deadlines
from dispatcher.errors import AskInvalid
from dispatcher.gateway.answering import Answering
from dispatcher.gateway.attempt import Ended
from dispatcher.gateway.bodies import Bodies, Body
from dispatcher.gateway.breakers import Breakers
from dispatcher.gateway.cache import Cache, Kept
from dispatcher.gateway.choosing import Choosing, Select
from dispatcher.gateway.errand import REHEARSAL, Errand, unread
from dispatcher.gateway.gate import Gate
from dispatcher.gateway.hedging import Hedging
from dispatcher.gateway.proofs import Proofs
from dispatcher.gateway.queue import NoSlot, Queues
from dispatcher.gateway.refusing import give_up, out_of_time
from dispatcher.gateway.trying import Trying
from dispatcher.gateway.upstream import Upstreams
from dispatcher.policy.prefer import completed, fingerprint
from dispatcher.vocabulary.decision import Decision
from dispatcher.vocabulary.event import Cached, Event, Status, Turned
from dispatcher.vocabulary.fleet import FleetView, Place, PlaceState
from dispatcher.vocabulary.queue import Line
from dispatcher.vocabulary.relay import Arrived, Client
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import Settings
from dispatcher.wire import surface
from dispatcher.wire.views import place_health

log = logging.getLogger("dispatcher.gateway")
LEAVING = "the dispatcher is shutting down"
LOOKS_APART = 1.5  # times the interval, at most: a look may be late


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
        self._end_lease = end_lease
        self._fleet, self._settings, self._clock, self._emit = fleet, settings, clock, emit
        self._leaving = False
        self._upstreams = Upstreams()
        self._cache = Cache(settings=settings, clock=clock)
        self._bodies = Bodies(settings=settings)
        self._gate = Gate(settings=settings, clock=clock)
        self._queues = Queues(settings=settings, clock=clock, slots=self._slots, idle_since=self._idle_since)
        self.breakers = Breakers(settings=settings, clock=clock, emit=self._on_breaker)
        proofs = Proofs()
        self._choosing = Choosing(
            select=select,
            recommend=recommend,
            end_lease=end_lease,
            fleet=fleet,
            queues=self._queues,
            breakers=self.breakers,
            proofs=proofs,
            settings=settings,
            clock=clock,
            leaving=lambda: self._leaving,
        )
        self._trying = Trying(
            upstreams=self._upstreams,
            deadlines=Deadlines(),
            breakers=self.breakers,
            proofs=proofs,
            expel=self._queues.expel,
            elsewhere=self._choosing.ready_elsewhere,
            settings=settings,
            clock=clock,
            emit=emit,
            jitter=jitter,
        )
        self._hedging = Hedging(trying=self._trying, elsewhere=self._choosing.beside, end_lease=end_lease)

    # --- one request ---------------------------------------------------------------------------------------------

    async def relay(self, arrived: Arrived, client: Client) -> None:
        """Answers, always: with the model's bytes, or with a failure that can be seen. Raises only for cancellation."""
        rules, now = self._settings().gateway, self._clock.now_seconds()
        endpoint, began = arrived.endpoint, now if arrived.at_seconds is None else arrived.at_seconds
        try:
            if arrived.unreadable is not None:
                raise AskInvalid(arrived.unreadable)
            told = surface.told(endpoint, arrived.body, surface.wishes(arrived.headers))
        except AskInvalid as problem:
            answering = Answering(client, endpoint, arrived.request_id, stream=False, heartbeat_seconds=0.0)
            self._emit(unread(began, now))
            await answering.fail("invalid_request", str(problem), [])
            return
        answering = Answering(
            client,
            endpoint,
            arrived.request_id,
            stream=told.stream,
            heartbeat_seconds=rules.timeouts.heartbeat_seconds,
            early=lambda: [REHEARSAL] if self._fleet().rehearsal else [],
        )
        deadline = told.asked.deadline_seconds
        told = self._named(told)
        errand = Errand(
            arrived=arrived,
            told=told,
            named=None if told.asked.model == surface.AUTO else told.asked.model,
            answering=answering,
            began_seconds=began,
            until_seconds=None if deadline is None else began + deadline,
        )
        status: Status = "error"
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, began + deadline - now)):
                status = await self._answered(errand)
        except TimeoutError:
            status = "timeout"
            await out_of_time(errand, deadline or 0.0, self._fleet())
        except asyncio.CancelledError:
            status = "cancelled" if client.left else "drained"
            if not client.left:
                await answering.fail("draining", LEAVING, [(b"retry-after", b"2")])
            raise
        finally:
            answering.hush()
            self._emit(errand.completed(status, self._clock.now_seconds()))

    def _named(self, told: surface.Told) -> surface.Told:
        """Embeddings of `auto` always come from the same model; a chain's name is said as the chain says it. And what
        is usual of its agent: a priority counts from here on."""
        settings = self._settings()
        asked = completed(told.asked, settings.preferences)
        chain = [model.name for model in settings.models]
        name = asked.model
        if name != surface.AUTO:
            name = surface.same_model(name, chain) or name
        elif told.endpoint.kind == "embed":
            name = settings.gateway.embedding_model or chain[0]
        asked = asked if name == asked.model else replace(asked, model=name)
        return told if asked is told.asked else replace(told, asked=asked)

    async def _answered(self, errand: Errand) -> Status:
        key = self._cache_key(errand)
        if key is not None:
            kept = self._kept(key)
            self._emit(
                Cached(at_seconds=self._clock.now_seconds(), model=errand.told.asked.model, hit=kept is not None)
            )
            if kept is not None:
                errand.kept_model = kept.place.model
                content_type = kept.content_type.encode("latin-1")
                await errand.answering.whole(200, kept.body, content_type, errand.headers_of_kept(kept.place))
                return "ok"
        self.breakers.requested()
        errand.answering.listen()
        try:
            with self._bodies.waiting(len(errand.arrived.body)) as body:
                if errand.told.asked.priority == "batch":
                    return await self._grouped(errand, key, body)
                return await self._tried(errand, key, body)
        except NoSlot as full:
            if self._leaving:
                return await self._turned_away(errand)
            errand.queue_retry_seconds = full.retry_after_seconds
            errand.story.append(full.words)
            return await give_up(errand)

    async def _grouped(self, errand: Errand, key: bytes | None, body: Body) -> Status:
        """Batch requests go model by model, so that the models are not swapped for each of them. Raises NoSlot."""
        longest = self._clock.now_seconds() + self._settings().gateway.queue.batch_wait_seconds
        until = min(longest, errand.latest_seconds)
        errand.awaits = "the turn of its group of batch requests"
        async with self._gate.pass_for(lambda: self._choosing.group(errand), until_seconds=until):
            return await self._tried(errand, key, body)

    async def _tried(self, errand: Errand, key: bytes | None, body: Body) -> Status:
        """Until one answers, or content began, or nothing is left to try."""
        while errand.attempts < self._trying.most(errand):
            errand.awaits = ""
            given = await self._choosing.given(errand)
            if given is None:
                if self._leaving:
                    return await self._turned_away(errand)
                break
            errand.awaits = f"its turn at {given.place}"
            try:
                slot = await self._choosing.slot(errand, given)
                if slot is None:
                    if errand.queue_retry_seconds is not None and self._choosing.is_spent(errand):
                        break
                    continue
                body.sent()
                errand.awaits = f"an answer of {given.place}"
                ended = await self._hedging.attempt(errand, given, slot, cached=key is not None)
            finally:
                self._end_lease(given.lease.id)
            if ended.cause is None:
                await self._trying.deliver(errand, ended, cached=key is not None)
                self._keep(key, errand, ended)
                return "ok"
            if errand.answering.begun:
                await errand.answering.fail(
                    "upstream_failed", f"the answer of {given.place.model} was cut: {ended.in_full}", errand.headers()
                )
                return "timeout" if ended.cause == "stalled" else "error"
            body.waits()
            if not await self._trying.goes_on(errand, given, ended.cause):
                break
        if await self._trying.last_resort(errand):
            return "ok"
        return await give_up(errand)

    async def _turned_away(self, errand: Errand) -> Status:
        await errand.answering.fail("draining", LEAVING, [(b"retry-after", b"2")])
        return "drained"

    # --- the cache -----------------------------------------------------------------------------------------------

    def _cache_key(self, errand: Errand) -> bytes | None:
        told, arrived = errand.told, errand.arrived
        rules = self._settings().gateway.cache
        wanted = told.deterministic if told.cache is None else told.cache
        if not (wanted and rules.enabled and rules.size_bytes):
            return None
        asked, only = told.asked, "" if told.fallback else " only"  # by whom it may be answered; after a reload, too
        mark = fingerprint(asked, self._settings().preferences)  # who is preferred, and how that is to write
        varies = f"{asked.task} {asked.complexity} {asked.prefer} {asked.model}{only}{mark and f' {mark}'}"
        said = varies.encode("utf-8", "surrogatepass")
        return self._cache.key(arrived.key_name, arrived.endpoint.path, arrived.body, said)

    def _kept(self, key: bytes) -> Kept | None:
        """Nothing from a place that has turned unhealthy, however it is known: so may have been its answers."""
        kept = self._cache.get(key)
        if kept is None:
            return None
        view = self._fleet().find(kept.place)
        if view is not None and place_health(view) == "unhealthy":
            self._cache.drop(kept.place.model)
            return None
        return kept

    def _keep(self, key: bytes | None, errand: Errand, ended: Ended) -> None:
        """Not the answer of a model that stood in for the one that was named: it may be well again in a moment."""
        if key is None or ended.body is None or errand.given is None:
            return
        if errand.told.asked.model not in (surface.AUTO, errand.given.place.model):
            return
        self._cache.put(
            key,
            Kept(
                body=ended.body,
                content_type=ended.content_type.decode("latin-1"),
                place=errand.given.place,
            ),
        )

    # --- what others see -----------------------------------------------------------------------------------------

    def lines(self) -> tuple[Line, ...]:
        self._queues.forget({view.place for view in self._fleet().places})
        return self._queues.lines()

    def in_flight(self, place: Place) -> int:
        """Requests at its engine, and those that are gone, whose prompts it may still work on."""
        return self._queues.running(place) + self._queues.draining(place)

    @property
    def cache_bytes(self) -> int:
        return self._cache.size_bytes

    def leave(self) -> None:
        """Whoever waits, for a load, a turn or a group, is told now that it is in vain here. What is at an engine goes
        on."""
        self._leaving = True
        self._queues.dismiss(LEAVING)
        self._gate.dismiss(LEAVING)

    async def close(self) -> None:
        self.breakers.close()
        await self._upstreams.close()

    def _slots(self, place: Place) -> int:
        return self._settings().lifecycle.num_parallel

    def _idle_since(self, place: Place, at_seconds: float) -> bool:
        """Whether its engine was seen idle at a look that began after that moment: what it did before is no matter."""
        view, rules = self._fleet().find(place), self._settings().lifecycle
        if view is None or view.state is not PlaceState.READY:
            return True
        reading = view.cpu_cores
        return (
            reading.value is not None
            and reading.source == "docker"  # the difference of two looks; others are rates over a minute
            and reading.at_seconds - LOOKS_APART * rules.reconcile_interval_seconds > at_seconds
            and reading.value <= rules.busy_cores
        )

    def _on_breaker(self, event: Turned) -> None:
        """A model that turned unhealthy is not answered for from memory."""
        if event.after == "open" and event.place is not None:
            self._cache.drop(event.place.model)
        self._emit(event)
