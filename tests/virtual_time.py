"""Time that jumps: an event loop whose clock is a ManualClock, and which never waits.

When every task of a test waits for a later moment, the clock is set to that moment. A day of virtual time passes in the
time its events take to compute, in an order that is the same at every run.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import selectors
from collections.abc import Awaitable, Callable

from dispatcher.clock import ManualClock


class _Jump(selectors.DefaultSelector):
    """Where a loop would sleep, the clock jumps instead."""

    clock: ManualClock

    def select(self, timeout: float | None = None):
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        assert timeout is not None, "every task waits for something that no timer and nobody else will bring"
        self.clock.advance(timeout)
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """time() is the clock's: Unix seconds, as the code under test sees them. No threads, no sockets."""

    def __init__(self, clock: ManualClock) -> None:
        selector = _Jump()
        selector.clock = clock
        self._virtual = clock
        super().__init__(selector)
        self._clock_resolution = 1e-6  # what a float of Unix seconds can hold

    def time(self) -> float:
        return self._virtual.now_seconds()


def in_virtual_time(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The async test, run to its end on a virtual loop; it is given that loop's clock as its argument `clock`."""

    @functools.wraps(test)
    def run(*args, **kwargs) -> None:
        clock = ManualClock()
        with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
            runner.run(test(*args, clock=clock, **kwargs))

    own = [one for one in inspect.signature(test).parameters.values() if one.name != "clock"]
    run.__signature__ = inspect.Signature(own)
    del run.__wrapped__
    return run
