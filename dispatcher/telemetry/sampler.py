"""The plain loop that looks: asks every source at once, each under its deadline, lets control.trust judge, and replaces
the Snapshot whole. Whatever a source does, the loop goes on; nothing waits for it but the next tick."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from dispatcher.clock import Clock
from dispatcher.control.latches import public_name
from dispatcher.control.ledger import free_bytes
from dispatcher.control.trust import TrustState, trusted
from dispatcher.errors import LooksAway
from dispatcher.telemetry.source import Source, queries_of
from dispatcher.vocabulary.event import Event, Sampled, Turned
from dispatcher.vocabulary.fleet import FleetView, PlaceView
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.signal import Sample, Snapshot, UnknownReason

LOOKS_UP_SECONDS = 5.0  # from a pause, to see whether it was made shorter
LEAST_SECONDS = 1.0  # what any source may take, however impatient one is with Prometheus
GRACE_SECONDS = 0.5  # over a source's own deadline, which has the better words
OWN_FAULT = {"prometheus": UnknownReason.PROM_ERROR, "host": UnknownReason.HOST_UNREADABLE}
SILENT = {"prometheus": UnknownReason.PROM_UNREACHABLE, "host": UnknownReason.HOST_UNREADABLE}
ANSWERING, UNSEEN, NOT_ASKED = "answering", "unseen", "not_asked"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """One source's part of one poll: samples, or why there are none."""

    name: str
    samples: Sequence[Sample] = ()
    failure: UnknownReason | None = None
    because: str = ""
    queries: int = 0


@dataclass(slots=True, kw_only=True)
class _Told:
    """What was told last, so that only changes are told."""

    sources: Mapping[str, str] = field(default_factory=dict)
    latches: frozenset[str] = frozenset()


class Sampler:
    """The callables are asked anew at every poll: settings, sources and fleet may have changed."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        clock: Clock,
        sources: Callable[[], Sequence[Source]],
        fleet: Callable[[], FleetView],
        profiles: Callable[[], Profiles],
        emit: Callable[[Event], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._sources = sources
        self._fleet = fleet
        self._profiles = profiles
        self._emit = emit
        self._state = TrustState()
        self._snapshot = Snapshot(number=0, at_seconds=clock.now_seconds())
        self._told = _Told()

    def snapshot(self) -> Snapshot:
        """The newest, from memory. Number 0, before the first poll, knows nothing."""
        return self._snapshot

    async def run(self) -> None:
        """Polls until cancelled. A poll that takes longer than the interval costs the ticks that fell in between; they
        are counted, not made up for."""
        loop = asyncio.get_running_loop()
        due, missed = loop.time(), 0
        while True:
            try:
                await self.poll_once(missed_ticks=missed)
            except Exception:
                _log.exception("poll=failed consequence=the last snapshot stays and goes stale")
            interval_seconds = self._settings().telemetry.interval_seconds
            late_seconds = loop.time() - due
            missed = max(0, int(late_seconds / interval_seconds))
            due += (missed + 1) * interval_seconds
            while (left_seconds := due - loop.time()) > 0:
                await asyncio.sleep(min(left_seconds, LOOKS_UP_SECONDS))
                shorter_seconds = self._settings().telemetry.interval_seconds
                if shorter_seconds < interval_seconds:  # reloaded meanwhile: a long old pause would look like a hang
                    due -= interval_seconds - shorter_seconds
                    interval_seconds = shorter_seconds

    async def poll_once(self, *, missed_ticks: int = 0) -> None:
        """One look at everything, one new snapshot, its events. Raises nothing that a source did."""
        started_seconds = self._clock.now_seconds()
        answers = await asyncio.gather(*(self._ask(source, started_seconds) for source in self._sources()))
        now_seconds = self._clock.now_seconds()
        fleet = self._fleet()
        self._state, self._snapshot = trusted(
            self._state,
            {answer.name: answer.samples for answer in answers if answer.failure is None},
            {answer.name: answer.failure for answer in answers if answer.failure is not None},
            fleet,
            self._profiles(),
            self._settings(),
            now_seconds,
            _free_bytes_of(fleet, now_seconds),
        )
        self._tell_sources(answers, now_seconds)
        self._tell_latches(fleet, now_seconds)
        self._emit(
            Sampled(
                at_seconds=now_seconds,
                snapshot=self._snapshot,
                poll_seconds=now_seconds - started_seconds,
                failures={answer.name: answer.failure.value for answer in answers if answer.failure is not None},
                missed_ticks=missed_ticks,
                queries=sum(answer.queries for answer in answers),
            )
        )

    async def _ask(self, source: Source, now_seconds: float) -> _Answer:
        name = source.name
        deadline_seconds = max(self._settings().telemetry.prometheus.timeout_seconds, LEAST_SECONDS) + GRACE_SECONDS
        try:
            async with asyncio.timeout(deadline_seconds):
                samples = await source.sample(now_seconds)
        except LooksAway as away:
            reason = UnknownReason(away.reason)
            return _Answer(name=name, failure=reason, because=str(away), queries=queries_of(source))
        except TimeoutError:
            because = f"no answer within {deadline_seconds:g} s"
            return _Answer(name=name, failure=SILENT.get(name, UnknownReason.NEVER_SEEN), because=because)
        except Exception as fault:  # ours: a source promises LooksAway
            _log.exception("source=%s fault=%s consequence=counted as failing", name, type(fault).__name__)
            failure = OWN_FAULT.get(name, UnknownReason.NEVER_SEEN)
            return _Answer(name=name, failure=failure, because=f"{type(fault).__name__}: {fault}")
        return _Answer(name=name, samples=samples, queries=queries_of(source))

    def _tell_sources(self, answers: Sequence[_Answer], now_seconds: float) -> None:
        before = self._told.sources
        after = {}
        for answer in answers:
            failing = self._snapshot.failing.get(answer.name)
            if failing is not None:
                after[answer.name] = failing.value
            elif answer.failure is None:  # one that failed and was only tried is no news
                after[answer.name] = ANSWERING
        because = {answer.name: answer.because for answer in answers}
        for name in sorted(before.keys() | after.keys()):
            was, is_now = before.get(name, UNSEEN), after.get(name, NOT_ASKED)
            if was != is_now:
                why = because.get(name, "")
                level = logging.INFO if is_now in (ANSWERING, NOT_ASKED) else logging.WARNING
                _log.log(level, "source=%s before=%s after=%s because=%r", name, was, is_now, why)
                self._emit(_turned("source", name, was, is_now, why, now_seconds))
        self._told.sources = after

    def _tell_latches(self, fleet: FleetView, now_seconds: float) -> None:
        because = {
            public_name(name): latch.because
            for name, latch in sorted(
                self._state.latches.items(), key=lambda item: (item[1].closed, item[1].at_seconds)
            )
        }
        places = {f"memory_short:{view.place.server}/{view.place.model}": view.place for view in fleet.places}
        for name in sorted(self._told.latches ^ self._snapshot.latches):
            was, is_now = ("open", "closed") if name in self._snapshot.latches else ("closed", "open")
            why = because.get(name, "it holds memory now, or is no place any more")
            _log.info("latch=%s before=%s after=%s because=%r", name, was, is_now, why)
            turned = _turned("latch", name, was, is_now, why, now_seconds)
            self._emit(turned if name not in places else replace(turned, place=places[name]))
        self._told.latches = self._snapshot.latches


def _turned(
    what: Literal["latch", "source"], subject: str, before: str, after: str, because: str, now_seconds: float
) -> Turned:
    return Turned(at_seconds=now_seconds, what=what, subject=subject, before=before, after=after, because=because)


def _free_bytes_of(fleet: FleetView, now_seconds: float) -> Callable[[PlaceView, Snapshot], int | None]:
    """Memory one place could have: what is free, and the budgets of all that may be stopped for it."""

    def free_bytes_of(view: PlaceView, snapshot: Snapshot) -> int | None:
        evicting = frozenset(
            other.place
            for other in fleet.places
            if other.place != view.place and other.evictable(now_seconds) and other.claimed_for in (None, view.place)
        )
        return free_bytes(fleet, snapshot, now_seconds, evicting=evicting)

    return free_bytes_of
