"""What a run is remembered by: its events in short, and what the dispatcher logged as a fault of its own."""

from __future__ import annotations

import logging

from dispatcher.vocabulary.event import Acted, Event, Leased, Turned


class Errors(logging.Handler):
    """What the dispatcher calls a fault of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def begin(self) -> None:
        logger = logging.getLogger("dispatcher")
        self._level, self._propagate = logger.level, logger.propagate
        logger.addHandler(self)
        logger.setLevel(logging.ERROR)
        logger.propagate = False

    def end(self) -> None:
        logger = logging.getLogger("dispatcher")
        logger.removeHandler(self)
        logger.setLevel(self._level)
        logger.propagate = self._propagate

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(self.format(record))


def in_short(event: Event) -> str:
    match event:
        case Turned(subject=subject, before=before, after=after):
            return f"{subject} {before} {after}"
        case Leased(lease=lease, what=what, cause=cause):
            return f"{lease.place} lease {what} {cause}"
        case Acted(action=action, ok=ok, error_type=error_type):
            return f"{action} {ok} {error_type}"
    return type(event).__name__
