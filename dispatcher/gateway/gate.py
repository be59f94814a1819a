"""Batch requests go grouped by model: AABBCC, not ABCABC, because each change of model costs a load.

A gate before the queues, for class batch only: one group runs, the others wait for its end. A model that is loaded
already causes no change and goes through, unless somebody has waited beyond the bound.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from dispatcher.clock import Clock
from dispatcher.control.admission import Grouped, next_in_group
from dispatcher.gateway.line import NoSlot
from dispatcher.vocabulary.gateway_settings import QueueSettings
from dispatcher.vocabulary.settings import Settings

MOST_CHANGES = 3  # of group, while one request waits; then it goes with whom it is


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiter:
    """future: None when it may go, else why not."""

    grouped: Grouped
    future: asyncio.Future[NoSlot | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Whom a batch request would go with. ready: the model is loaded at this moment."""

    model: str
    ready: bool


class Gate:
    """One for the whole machine: its models compete for the same memory."""

    def __init__(self, *, settings: Callable[[], Settings], clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._current: str | None = None  # whose group it is
        self._waiting: list[_Waiter] = []  # oldest first

    @asynccontextmanager
    async def pass_for(self, group: Callable[[], Group | None], *, until_seconds: float) -> AsyncIterator[None]:
        """group: whom it would go with now; asked again once it is let go, for minutes may have passed, and if that is
        another group it joins that one, as if it had waited there from the beginning. None: it waits for nobody."""
        since_seconds, wanted, changes = self._clock.now_seconds(), group(), 0
        while wanted is not None:
            mine = wanted.model
            waited = await self.enter(
                mine, ready=wanted.ready, until_seconds=until_seconds, since_seconds=since_seconds
            )
            try:
                wanted = group() if waited and changes < MOST_CHANGES else wanted
                if wanted is not None and wanted.model == mine:
                    yield
                    return
                changes += 1
            finally:
                self.leave(mine)
        yield

    async def enter(self, model: str, *, ready: bool, until_seconds: float, since_seconds: float | None = None) -> bool:
        """Waits for the turn of its group; raises NoSlot. Each one that came through leaves once. Whether it waited.

        ready: the model is loaded at this moment. until_seconds: the moment of the caller's deadline. since_seconds:
        when it began to wait, in another group; None: now.
        """
        if self._may_pass(model, ready):
            self._pass(model)
            if ready:
                self._let_go(model)  # those who came while it was not: now they cause no change either
            return False
        waiter = self._admitted(model, until_seconds, since_seconds)
        timer = asyncio.get_running_loop().call_later(
            until_seconds - self._clock.now_seconds(), self._late, waiter, until_seconds
        )
        try:
            refusal = await waiter.future
        except BaseException:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.result() is None:
                self.leave(model)  # let go in the very step that cancels it
            raise
        finally:
            timer.cancel()
            self._forget(waiter)
            self._reopen()
        if refusal is not None:
            raise refusal
        return True

    def dismiss(self, words: str) -> None:
        """Nobody is to wait any longer."""
        for waiter in tuple(self._waiting):
            self._forget(waiter)
            if not waiter.future.done():
                waiter.future.set_result(NoSlot(words, wait_seconds=None, moved=True))

    def leave(self, model: str) -> None:
        assert self._running[model] > 0, f"nobody of {model} came through"
        self._running[model] -= 1
        if not self._running[model]:
            del self._running[model]
            if model == self._current:
                self._next_group()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def running(self, model: str) -> int:
        return self._running.get(model, 0)

    # ── whose group it is ──

    def _rules(self) -> QueueSettings:
        return self._settings().gateway.queue

    def _may_pass(self, model: str, ready: bool) -> bool:
        if self._running.keys() <= {model} and all(one.grouped.model == model for one in self._waiting):
            return True
        if not ready and model != self._current:
            return False
        return not self._starved(model)

    def _starved(self, model: str) -> bool:
        """One of another model has waited beyond the bound."""
        since = next((one.grouped.since_seconds for one in self._waiting if one.grouped.model != model), None)
        return since is not None and self._clock.now_seconds() - since >= self._rules().batch_group_seconds

    def _reopen(self) -> None:
        """Somebody went without his turn: the running group may have waited for him alone."""
        if self._current is not None and not self._starved(self._current):
            self._let_go(self._current)

    def _pass(self, model: str) -> None:
        self._running[model] += 1
        if self._current is None or not self._running.get(self._current):
            self._current = model

    def _next_group(self) -> None:
        """The running group is done: all of the next one go together."""
        bound, now = self._rules().batch_group_seconds, self._clock.now_seconds()
        index = next_in_group([one.grouped for one in self._waiting], self._current, now, bound)
        if index is None:
            self._current = next(iter(self._running), None)  # one that went through because it was ready
            return
        self._current = self._waiting[index].grouped.model
        self._let_go(self._current)
        if not self._running.get(self._current):  # all of them are being cancelled in this step
            self._next_group()

    def _let_go(self, model: str) -> None:
        for waiter in [one for one in self._waiting if one.grouped.model == model]:
            self._forget(waiter)
            if not waiter.future.done():
                self._pass(model)
                waiter.future.set_result(None)

    # ── waiting ──

    def _admitted(self, model: str, until_seconds: float, since_seconds: float | None) -> _Waiter:
        rules, now = self._rules(), self._clock.now_seconds()
        if len(self._waiting) >= rules.batch_entries:
            words = f"{len(self._waiting)} batch requests wait for their model's turn: gateway.queue.batch_entries"
            raise NoSlot(words, wait_seconds=rules.batch_group_seconds)
        if not until_seconds > now:
            raise NoSlot(self._words(model), wait_seconds=rules.batch_group_seconds)
        waiter = _Waiter(
            grouped=Grouped(model=model, since_seconds=now if since_seconds is None else since_seconds),
            future=asyncio.get_running_loop().create_future(),
        )
        insort(self._waiting, waiter, key=lambda one: one.grouped.since_seconds)
        return waiter

    def _late(self, waiter: _Waiter, until_seconds: float) -> None:
        self._forget(waiter)
        if not waiter.future.done():
            words = self._words(waiter.grouped.model)
            waiter.future.set_result(NoSlot(words, wait_seconds=self._rules().batch_group_seconds))

    def _forget(self, waiter: _Waiter) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def _words(self, model: str) -> str:
        running = f"batch requests of {self._current} run" if self._current else "another group runs"
        return f"the turn of batch requests of {model} did not come before its deadline: {running}"
