"""The breaker of each place, and the budget for repeats: control's tables, kept, timed and told.

A breaker that opens or closes leaves as one event. An open one half opens by time: a timer sees to it that this is told
when it happens, and not when somebody next asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dispatcher.clock import Clock
from dispatcher.control import breaker as table
from dispatcher.control import retry
from dispatcher.control.breaker import Breaker, BreakerState
from dispatcher.vocabulary.event import Turned
from dispatcher.vocabulary.fleet import NOT_BREAKING, Breaking, Place
from dispatcher.vocabulary.settings import Settings

MAX_PLACES = 1000  # containers may come and go under new names


class Breakers:
    """emit: told of every breaker that opens or closes."""

    def __init__(
        self,
        *,
        settings: Callable[[], Settings],
        clock: Clock,
        emit: Callable[[Turned], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._emit = emit
        self._breakers: dict[Place, Breaker] = {}
        self._timers: dict[Place, asyncio.TimerHandle] = {}
        self._budget = retry.Budget()

    # --- asked ---------------------------------------------------------------------------------------------------

    def seen(self, place: Place) -> Breaking:
        """As deciding should see it: half open with its one probe out is as good as open."""
        if place not in self._breakers:
            return NOT_BREAKING
        breaker, now, rules = self._now(place), self._clock.now_seconds(), self._settings().gateway.breaker
        if table.refusal(breaker, now, rules) is not None:
            until = table.retry_at_seconds(breaker, rules) or breaker.probing_until_seconds
            return Breaking(state="open", until_seconds=until, because=breaker.because)
        if breaker.state is BreakerState.HALF_OPEN:
            return Breaking(state="half_open", because=breaker.because)
        return NOT_BREAKING

    def is_open(self, place: Place) -> bool:
        return self.seen(place).state == "open"

    def used_ratio(self) -> float:
        """Of the budget for repeats, 0..1."""
        rules = self._settings().gateway.retries
        return retry.used_ratio(self._budget, self._clock.now_seconds(), rules.budget_ratio)

    # --- told ----------------------------------------------------------------------------------------------------

    def requested(self) -> None:
        """A request came: a share of them may be repeated."""
        self._budget = retry.counted(self._budget, self._clock.now_seconds(), requests=1)

    def may_repeat(self) -> bool:
        """Takes it from the budget when it may."""
        now, ratio = self._clock.now_seconds(), self._settings().gateway.retries.budget_ratio
        if retry.left(self._budget, now, ratio) < 1.0:
            return False
        self._budget = retry.counted(self._budget, now, repeats=1)
        return True

    def goes(self, place: Place, until_seconds: float, probe: int = table.NO_PROBE) -> int:
        """A request goes there; of a half-open breaker it is the probe. The number that its end presents: of an end
        without it nobody could say whether it is the probe's. probe: the one it has already, of a claim."""
        if place not in self._breakers:
            return table.NO_PROBE
        after, probe = table.probed(self._now(place), self._clock.now_seconds(), until_seconds, probe)
        self._put(place, after)
        return probe

    def passed(self, place: Place, probe: int = table.NO_PROBE) -> None:
        if place in self._breakers:
            now, rules = self._clock.now_seconds(), self._settings().gateway.breaker
            self._put(place, table.passed(self._now(place), now, rules, probe))

    def failed(self, place: Place, because: str, probe: int = table.NO_PROBE) -> None:
        now, rules = self._clock.now_seconds(), self._settings().gateway.breaker
        self._put(place, table.failed(self._now(place), now, because, rules, probe))

    def says_nothing(self, place: Place, probe: int = table.NO_PROBE) -> None:
        """Its request ended in a way that is no news of the place: the client left, or was at fault."""
        if place in self._breakers:
            self._put(place, table.released(self._now(place), probe))

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    # --- kept ----------------------------------------------------------------------------------------------------

    def _now(self, place: Place) -> Breaker:
        breaker = self._breakers.get(place, table.CLOSED)
        after = table.as_of(self._clock.now_seconds(), breaker, self._settings().gateway.breaker)
        if after is not breaker:
            self._put(place, after)
        return after

    def _put(self, place: Place, after: Breaker) -> None:
        before = self._breakers.get(place, table.CLOSED)
        if after is before:
            return
        if place not in self._breakers and len(self._breakers) >= MAX_PLACES:
            self._forget(next(iter(self._breakers)))
        self._breakers[place] = after
        if after.state is not before.state:
            self._turned(place, before, after)

    def _turned(self, place: Place, before: Breaker, after: Breaker) -> None:
        now = self._clock.now_seconds()
        if (timer := self._timers.pop(place, None)) is not None:
            timer.cancel()
        if after.state is BreakerState.OPEN:
            wait = max(0.0, table.retry_at_seconds(after, self._settings().gateway.breaker) - now) + 0.01
            self._timers[place] = asyncio.get_running_loop().call_later(wait, self._look, place)
        self._emit(
            Turned(
                at_seconds=now,
                what="breaker",
                subject=str(place),
                before=before.state.value,
                after=after.state.value,
                because=after.because,
                place=place,
            )
        )

    def _look(self, place: Place) -> None:
        self._timers.pop(place, None)
        self._now(place)

    def _forget(self, place: Place) -> None:
        del self._breakers[place]
        if (timer := self._timers.pop(place, None)) is not None:
            timer.cancel()
