"""A second attempt beside the first, for an answer that is not streamed and is overdue.

The first byte of such an answer is the answer: from outside nothing tells a long generation from a server that hangs,
and to wait for the longest possible generation is to lose every caller with a timeout of its own. Cancelling at the
first-token deadline would be worse: no long answer would ever come from a cold start. So another place that is ready is
asked, too: beside one that never answered, or failed last, once its first token is overdue; beside one that answers,
and is believed, once the whole is, by far. The first whole answer wins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeGuard

from dispatcher.control.retry import HANDLING
from dispatcher.gateway.attempt import Ended
from dispatcher.gateway.errand import Errand, Given
from dispatcher.gateway.patience import EARLY_SECONDS
from dispatcher.gateway.queue import Slot
from dispatcher.gateway.trying import Trying

log = logging.getLogger("dispatcher.gateway")
LOOKS_SECONDS = 1.0  # between looks for a place to ask as well, once there was none


class Hedging:
    """One per gateway. elsewhere: another place that is ready, with a turn there; None: there is none now."""

    def __init__(
        self,
        *,
        trying: Trying,
        elsewhere: Callable[[Errand, Given], Awaitable[tuple[Given, Slot] | None]],
        end_lease: Callable[[str], None],
    ) -> None:
        self.trying, self.elsewhere, self.end_lease = trying, elsewhere, end_lease

    async def attempt(self, errand: Errand, given: Given, slot: Slot, *, cached: bool) -> Ended:
        """As Trying.attempt. Whose end it is, errand.given says: another place may have been first."""
        own = self.trying.attempt(errand, given, slot, cached=cached)
        if errand.told.stream or not errand.told.fallback:
            return await own
        errand.given, ended = await _Second(self, errand, given).beside(own)
        errand.ended, errand.decision = ended, errand.given.decision
        return ended


class _Second:
    """What watches one attempt: a timer, for a task per request would be a tenth of what a request costs. The attempt
    stays in the task of its request, which is cancelled out of it when the second has won."""

    __slots__ = (
        "_began_at",
        "_cancelling",
        "_cut",
        "_errand",
        "_given",
        "_hedging",
        "_loop",
        "_own",
        "_second",
        "_timer",
        "_watching",
    )

    def __init__(self, hedging: Hedging, errand: Errand, given: Given) -> None:
        own = asyncio.current_task()
        assert own is not None
        self._hedging, self._errand, self._given, self._own = hedging, errand, given, own
        self._cancelling = own.cancelling()
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._second: asyncio.Task[tuple[Given, Ended] | None] | None = None
        self._watching = True
        self._cut = False  # by us
        self._timer = self._loop.call_later(hedging.trying.overdue_seconds(given), self._ring)

    async def beside(self, first: Coroutine[Any, Any, Ended]) -> tuple[Given, Ended]:
        """That came whole, or the first's refusal of what no other place may be asked; else how the first ended."""
        try:
            own = await self._first(first)
            if own is not None and _settles(own):
                self._errand.answered_by = self._given.place
                return self._given, own
            if self._second is not None:
                await asyncio.wait((self._second,))
                found = self._second.result()
                if _is_whole(found):
                    return found
            assert own is not None, "it is cut only for an answer that came whole"
            return self._given, own
        finally:
            if self._second is not None and not self._second.done():
                self._second.cancel()
                await asyncio.wait((self._second,))

    async def _first(self, first: Coroutine[Any, Any, Ended]) -> Ended | None:
        """None: it was cut. Whoever else cancelled it at the same moment is not kept from it."""
        try:
            return await first
        except asyncio.CancelledError:
            if not self._cut or self._own.cancelling() > self._cancelling + 1:
                raise
            return None
        finally:
            self._watching = False
            self._timer.cancel()
            if self._cut:
                self._own.uncancel()

    def _ring(self) -> None:
        """What it is overdue by may have changed meanwhile."""
        left_seconds = self._left_seconds()
        if left_seconds > EARLY_SECONDS:
            self._timer = self._loop.call_later(left_seconds, self._ring)
        elif self._has_attempts():
            self._second = asyncio.create_task(self._ask(), name="gateway.hedge")
            self._second.add_done_callback(self._on_end)

    def _left_seconds(self) -> float:
        return self._began_at + self._hedging.trying.overdue_seconds(self._given) - self._loop.time()

    def _has_attempts(self) -> bool:
        return self._errand.attempts < self._hedging.trying.most(self._errand)

    def _on_end(self, second: asyncio.Task[tuple[Given, Ended] | None]) -> None:
        if second.cancelled():
            return
        if (error := second.exception()) is not None:
            log.error("a second attempt broke", exc_info=error)
        elif self._watching and _is_whole(second.result()):
            self._cut = True
            self._own.cancel()
        elif self._watching:
            self._second, self._timer = None, self._loop.call_later(LOOKS_SECONDS, self._ring)

    async def _ask(self) -> tuple[Given, Ended] | None:
        errand, hedging = self._errand, self._hedging
        found = await hedging.elsewhere(errand, self._given)
        if found is None:
            return None
        other, slot = found
        try:
            if self._left_seconds() > EARLY_SECONDS or not self._has_attempts():
                return None
            errand.moved_from, errand.moved_for = self._given.place, "silent"
            ended = await hedging.trying.attempt(errand, other, slot, cached=False)
        finally:
            slot.release()
            hedging.end_lease(other.lease.id)
        if ended.cause is None:
            errand.answered_by = other.place
        else:
            errand.gives_up_on(other.place, ended.cause, *ended.told())
        return other, ended


def _is_whole(found: tuple[Given, Ended] | None) -> TypeGuard[tuple[Given, Ended]]:
    return found is not None and found[1].cause is None


def _settles(ended: Ended) -> bool:
    if ended.cause is None:
        return True
    handling = HANDLING[ended.cause]
    return not (handling.moves_on or handling.same_again)
