"""Faults of ours that must not end the daemon: each is counted, told once until it is over, and outlived.

For what no error of the tree foresees. What is expected to fail (an engine, a disk) is caught where it happens, with
better words; a cancelled task is no fault, and never comes here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from dispatcher.clock import Clock
from dispatcher.vocabulary.event import Erred, Event

_log = logging.getLogger(__name__)


class Surviving:
    def __init__(self, *, emit: Callable[[Event], None], clock: Clock) -> None:
        self._emit = emit
        self._clock = clock
        self._told: dict[str, str] = {}

    def fault(self, what: str, fault: Exception, consequence: str) -> None:
        """Call it while the fault is handled: the log shows where it comes from."""
        if self._told.get(what) != repr(fault):
            self._told[what] = repr(fault)
            _log.exception('%s=failed fault="%r" consequence="%s"', what, fault, consequence)
        try:
            self._emit(Erred(at_seconds=self._clock.now_seconds(), error_type="internal"))
        except Exception:  # telling of it may be what is broken
            _log.exception('%s=failed consequence="not counted"', what)

    def over(self, what: str) -> None:
        if self._told.pop(what, None) is not None:
            _log.info("%s=goes_on", what)
