"""How the history fares, told once at each turn. Its writer is a thread of its own that only counts; here, on the loop,
what it counted becomes events, and what a new file must know is told to it again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from dispatcher.clock import Clock
from dispatcher.history.store import Store
from dispatcher.vocabulary.event import Erred, Event, Turned
from dispatcher.vocabulary.fleet import Lease

WRITING, FAILING, SOUND, SET_ASIDE = "writing", "failing", "sound", "set_aside"

_log = logging.getLogger("dispatcher")


class Keeping:
    """leases: the live ones, which must survive this process whatever became of the file."""

    def __init__(
        self, *, store: Store, leases: Callable[[], Iterable[Lease]], emit: Callable[[Event], None], clock: Clock
    ) -> None:
        self._store = store
        self._leases = leases
        self._emit = emit
        self._clock = clock
        self._set_aside = 0
        self._mended = 0
        self._begun_anew = 0
        self._failing = False

    def look(self) -> None:
        """At every beat: a few comparisons, unless something has turned."""
        store = self._store
        if store.begun_anew != self._begun_anew:
            self._begun_anew = store.begun_anew
            store.tell_again(self._leases())
            _log.warning('history=begun_anew file=%s consequence="live leases and the pin are told again"', store.path)
        for what in store.mended[self._mended :]:
            self._mended += 1
            _log.error('history=%s somebody=touched_it because="%s"', store.path, what)
            self._emit(Erred(at_seconds=self._clock.now_seconds(), error_type="history_broken"))
        if len(store.set_aside) != self._set_aside:
            for moved in store.set_aside[self._set_aside :]:
                _log.error("history=%s before=%s after=%s moved_to=%s", store.path, SOUND, SET_ASIDE, moved)
                self._emit(Erred(at_seconds=self._clock.now_seconds(), error_type="history_broken"))
                self._turned(SOUND, SET_ASIDE, f"it could not be read; it is kept as {moved.name}")
            self._set_aside = len(store.set_aside)
        because = store.failing
        if (because is not None) != self._failing:
            self._failing = because is not None
            before, after = (WRITING, FAILING) if self._failing else (FAILING, WRITING)
            level = logging.WARNING if self._failing else logging.INFO
            _log.log(level, 'history=%s before=%s after=%s because="%s"', store.path, before, after, because or "")
            self._turned(before, after, because or "")

    def _turned(self, before: str, after: str, because: str) -> None:
        at_seconds = self._clock.now_seconds()
        subject = self._store.path.name
        self._emit(
            Turned(at_seconds=at_seconds, what="history", subject=subject, before=before, after=after, because=because)
        )
