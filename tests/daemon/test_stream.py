"""The one emit: what rooms drop and meet is counted from the stream."""

from __future__ import annotations

from typing import Any

from dispatcher.clock import ManualClock
from dispatcher.control.tally import Tally
from dispatcher.daemon.stream import Stream
from dispatcher.errors import (
    DispatcherError,
    EngineUnreachable,
    HistoryUnavailable,
    NotNow,
    OutOfMemory,
    Refused,
    error_type_of,
)
from dispatcher.history.store import Store
from dispatcher.vocabulary.event import Erred
from dispatcher.vocabulary.settings import HistorySettings, Settings
from exporter.labels import ERROR_TYPES
from tests.builders import NOW
from tests.history.some_events import a_sampled, a_start


class Heard:
    """Stands where the exporter does."""

    def __init__(self) -> None:
        self.errors: list[Erred] = []

    def on_event(self, event: Any) -> None:
        if isinstance(event, Erred):
            self.errors.append(event)


def test_what_the_history_drops_is_counted_at_the_next_poll_and_once(tmp_path):
    store = Store(tmp_path / "history.sqlite", HistorySettings(), ManualClock(NOW), lambda decision: b"{}")
    stream = Stream(tally=Tally({}), store=store, settings=Settings, clock=ManualClock(NOW))
    heard = stream.collector = Heard()  # type: ignore[assignment]
    # never opened: everything appended is dropped
    stream.emit(a_start())
    stream.emit(a_start())
    stream.emit(a_sampled())
    stream.emit(a_sampled())

    counted = sum(one.count for one in heard.errors)
    assert {"history_unavailable"} == {one.error_type for one in heard.errors}
    assert store.dropped_total - counted in (0, 1)  # the last sample's own drop is for the next poll


def test_every_error_of_the_tree_has_a_word_that_is_counted_and_a_callers_own_has_none():
    def below(kind: type[DispatcherError]) -> list[type[DispatcherError]]:
        return [kind, *(one for sub in kind.__subclasses__() for one in below(sub))]

    words = {kind: error_type_of(kind.__new__(kind)) for kind in below(DispatcherError)}

    assert set() == {word for word in words.values() if word is not None} - set(ERROR_TYPES)
    assert {None} == {word for kind, word in words.items() if issubclass(kind, Refused)}
    assert ("engine_unreachable", "history_unavailable", "oom_killed", None) == (
        words[EngineUnreachable],
        words[HistoryUnavailable],
        words[OutOfMemory],
        words[NotNow],
    )
    assert "internal" == error_type_of(ZeroDivisionError())
