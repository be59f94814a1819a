"""What earlier runs left, taken up at start: promises first, then what they learned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from heapq import merge

from dispatcher.control.tally import Tally
from dispatcher.daemon.slow_jobs import SlowJobs, simulated
from dispatcher.errors import HistoryUnavailable
from dispatcher.history.store import Store
from dispatcher.lifecycle.controller import Controller
from dispatcher.vocabulary.event import Completed, Failed

WARM_UP_ROWS = 20_000


class Recollection:
    """rehearsing: this run's models are simulated, too. experiments: recalls them."""

    def __init__(
        self,
        *,
        store: Store,
        controller: Controller,
        slow_jobs: SlowJobs,
        tally: Tally,
        rehearsing: bool,
        experiments: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._controller = controller
        self._slow_jobs = slow_jobs
        self._tally = tally
        self._rehearsing = rehearsing
        self._experiments = experiments
        self._enough = False

    async def recalled(self) -> list[str]:
        """As `recall`, off the loop, so that signals are heard meanwhile. Cancelled, it ends with the part it is at:
        who cancels it waits for that, so that the store is not closed while it is read."""
        recalling = asyncio.get_running_loop().run_in_executor(None, self.recall)
        try:
            return await asyncio.shield(recalling)
        except asyncio.CancelledError:
            self._enough = True
            with suppress(Exception):
                await recalling
            raise

    def recall(self) -> list[str]:
        """Notes for the start-up lines. Each by itself: one that cannot be read is said, and costs no other."""
        notes: list[str] = []
        try:
            aside = self._store.open()
            if aside is not None:
                notes.append(f"the history was not readable and was set aside as {aside}; a new one is begun")
        except HistoryUnavailable as trouble:
            notes.append(f"no history: {trouble}")
        recalls: tuple[tuple[str, Callable[[], None]], ...] = (
            ("leases", self._leases),
            ("the pin", self._pin),
            ("what was forgotten", self._forgotten),
            ("experiments", self._experiments),
            ("footprints", self._slow_jobs.recall),
            ("speeds", self._speeds),
        )
        for what, recall in recalls:
            if self._enough:
                break
            try:
                recall()
            except (HistoryUnavailable, ValueError, KeyError, TypeError) as trouble:
                notes.append(f"{what} of earlier runs cannot be read ({trouble}); going on without")
        return notes

    def _leases(self) -> None:
        self._controller.restore(self._store.leases())

    def _pin(self) -> None:
        self._controller.tenancy.pinned_model = self._store.pinned_model()

    def _forgotten(self) -> None:
        """First, so that nothing older teaches it again."""
        for model, at_seconds in self._store.forgotten().items():
            self._tally.forget(model, at_seconds)

    def _speeds(self) -> None:
        """What simulated models did teaches nothing about real ones."""
        for acted in self._store.recent_acted(WARM_UP_ROWS):
            if self._enough:
                return
            if self._rehearsing or not simulated(acted.action.place):
                self._tally.on_event(acted, acted.at_seconds)
        completed, failed = self._store.recent_completed(WARM_UP_ROWS), self._store.recent_failed(WARM_UP_ROWS)
        ends: Iterable[Completed | Failed] = merge(completed, failed, key=lambda one: one.at_seconds)
        for ended in ends:
            if self._enough:
                return
            if self._rehearsing or ended.place is None or not simulated(ended.place):
                self._tally.on_event(ended, ended.at_seconds)
