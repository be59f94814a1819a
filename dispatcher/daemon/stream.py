"""The one `emit` (law 3): every fact, once, to everybody who reads the stream. Synchronous and bounded."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dispatcher.clock import Clock
from dispatcher.control.tally import Tally
from dispatcher.history.store import Store
from dispatcher.vocabulary.action import Start
from dispatcher.vocabulary.event import Acted, Erred, Event, Leased, Sampled, Turned
from dispatcher.vocabulary.experiment import ExperimentTurned
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.words import printable
from exporter.collect import Collector

_log = logging.getLogger("dispatcher")


class Stream:
    """tally first: who reads profiles because of an event finds them learned from it."""

    def __init__(self, *, tally: Tally, store: Store, settings: Callable[[], Settings], clock: Clock) -> None:
        self._tally = tally
        self._store = store
        self._settings = settings
        self._clock = clock
        self._dropped = 0  # history events, as last counted
        self.collector: Collector | None = None  # set by the composition: it reads the rooms that emit
        self.listeners: tuple[Callable[[Event], None], ...] = ()  # likewise; told of everything

    def emit(self, event: Event) -> None:
        self._tally.on_event(event, self._clock.now_seconds())
        if self.collector is not None:
            self.collector.on_event(event)
        for listener in self.listeners:
            listener(event)
        if isinstance(event, Erred):
            return
        self._store.append(event)
        match event:
            case Sampled():
                self._count_dropped()
            case Acted(action=Start() as start, error_type="oom_killed"):
                self._tally.learn_oom(start.place.model, start.num_ctx, self._settings().lifecycle.num_parallel)
            case Leased(what="ended", lease=lease) if lease.durable:
                self._store.forget_lease(lease.id)
            case Leased(what="ready", lease=lease) if lease.durable:
                self._store.owe_lease(lease)
        tell(event)

    def erred(self, error_type: str) -> None:
        """What rooms say of errors that are no event of theirs."""
        self.emit(Erred(at_seconds=self._clock.now_seconds(), error_type=error_type))

    def _count_dropped(self) -> None:
        """The history's writer is a thread of its own: what it had to drop is told here, once per poll."""
        dropped = self._store.dropped_total
        if dropped > self._dropped:
            count, self._dropped = dropped - self._dropped, dropped
            self.emit(Erred(at_seconds=self._clock.now_seconds(), error_type="history_unavailable", count=count))


def _quoted(words: str) -> str:
    """Words from outside, in one line and within their quotes."""
    return printable(words).replace('"', "'")


def tell(event: Event) -> None:
    """Log once, when it happens; weighing is silent, and telemetry tells its own turns."""
    if isinstance(event, Turned) and event.what in ("place", "provider", "breaker"):
        because = f' because="{_quoted(event.because)}"' if event.because else ""
        _log.info("%s=%s before=%s after=%s%s", event.what, event.subject, event.before, event.after, because)
    elif isinstance(event, ExperimentTurned):
        level = logging.WARNING if event.after == "rolled_back" else logging.INFO
        words = (event.experiment_id, event.before, event.after, _quoted(event.because))
        _log.log(level, 'experiment=%s before=%s after=%s because="%s"', *words)
    elif isinstance(event, Acted):
        verb = type(event.action).__name__.lower()
        load = f" load_seconds={event.load_seconds:.2f}" if event.load_seconds is not None else ""
        outcome = "ok" if event.ok else f'failed because="{_quoted(event.because)}"'
        _log.log(
            logging.INFO if event.ok else logging.WARNING,
            "action=%s place=%s cause=%s seconds=%.2f%s result=%s",
            verb,
            event.action.place,
            event.action.cause,
            event.seconds,
            load,
            outcome,
        )
