"""A second attempt beside the first, for an answer that is not streamed from a place that has not proved itself.

The first byte of such an answer is the answer: from outside nothing tells a long generation from a server that hangs,
and to wait for the longest possible generation is to lose every caller with a timeout of its own. Cancelling at the
first-token deadline would be worse: no long answer would ever come from a cold start. So a place that answers is
believed, however long it takes, and nothing is spent on it; beside one that never answered, or failed last, another
place that is ready is asked, too, once its first token is overdue. The first whole answer wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dispatcher.control.retry import HANDLING
from dispatcher.gateway.attempt import Ended
from dispatcher.gateway.errand import Errand, Given
from dispatcher.gateway.queue import Slot
from dispatcher.gateway.trying import Trying

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
        self._trying, self._elsewhere, self._end_lease = trying, elsewhere, end_lease

    async def attempt(self, errand: Errand, given: Given, slot: Slot, *, cached: bool) -> Ended:
        """As Trying.attempt. Whose end it is, errand.given says: another place may have been first. A place that is
        believed when it begins is not watched: a task per request is a tenth of what a request costs."""
        if errand.told.stream or not errand.told.fallback or not self._trying.proofs.is_doubtful(given):
            return await self._trying.attempt(errand, given, slot, cached=cached)
        own = asyncio.create_task(self._trying.attempt(errand, given, slot, cached=cached), name="gateway.attempt")
        try:
            errand.given, ended = await self._first(errand, given, own)
        finally:
            await _ended(own)
            slot.release()  # of a task that was cancelled before it began; else it is given back already
        errand.ended, errand.decision = ended, errand.given.decision
        return ended

    async def _first(self, errand: Errand, given: Given, own: asyncio.Task[Ended]) -> tuple[Given, Ended]:
        """That came whole, or its own refusal of what no other place may be asked; else how its own attempt ended."""
        beside: asyncio.Task[tuple[Given, Ended] | None] | None = None
        wait_seconds: float | None = self._trying.overdue_seconds(given)
        try:
            while True:
                running = (own,) if beside is None else (own, beside)
                await asyncio.wait(running, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED)
                if own.done() and _settles(own.result()):
                    errand.answered_by = given.place
                    return given, own.result()
                if beside is not None and beside.done():
                    found, beside = beside.result(), None
                    if found is not None and found[1].cause is None:
                        return found
                    wait_seconds = LOOKS_SECONDS
                elif beside is None and not own.done() and self._may(errand, given):
                    beside = asyncio.create_task(self._beside(errand, given), name="gateway.hedge")
                    wait_seconds = None
                if own.done() and beside is None:
                    return given, own.result()
        finally:
            if beside is not None:
                await _ended(beside)

    def _may(self, errand: Errand, given: Given) -> bool:
        return errand.attempts < self._trying.most(errand) and self._trying.proofs.is_doubtful(given)

    async def _beside(self, errand: Errand, given: Given) -> tuple[Given, Ended] | None:
        found = await self._elsewhere(errand, given)
        if found is None:
            return None
        other, slot = found
        try:
            if not self._may(errand, given):
                return None
            errand.moved_from, errand.moved_for = given.place, "silent"
            ended = await self._trying.attempt(errand, other, slot, cached=False)
        finally:
            slot.release()
            self._end_lease(other.lease.id)
        if ended.cause is None:
            errand.answered_by = other.place
        else:
            errand.gives_up_on(other.place, ended.cause, *ended.told())
        return other, ended


def _settles(ended: Ended) -> bool:
    if ended.cause is None:
        return True
    handling = HANDLING[ended.cause]
    return not (handling.moves_on or handling.same_again)


async def _ended(task: asyncio.Task[object]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
