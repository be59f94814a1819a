"""Leaving: told once, what is open finishes first; told twice, who waits is answered with what was promised so far. And
the last bound: whatever still hangs after it (a name that does not resolve, a disk that does not answer) is named in
the log and left behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Sequence

from dispatcher.api.exchange import LEAVING
from dispatcher.daemon.notify import Notifier
from dispatcher.daemon.servers import CLOSE_SECONDS, DRAIN_SECONDS, Server, until_idle

ANSWER_SECONDS = 3.0  # for those who waited to be answered, once nobody is to wait any longer; and once more when cut
LEAVE_SECONDS = 30.0  # from the end of the drain to the end of the process
EX_FORCED = 70  # as EX_SOFTWARE: it left, but not in order
SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger("dispatcher")


class Leaving:
    """begun: called at the first signal; from then on new requests are refused. answer: told when nobody is to wait any
    longer, so that whoever does is answered now."""

    def __init__(self, *, begun: Callable[[], None], answer: Callable[[], None], notifier: Notifier) -> None:
        self._begun = begun
        self._answer = answer
        self._notifier = notifier
        self._last_bound = LastBound()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.stop)

    def stop(self) -> None:
        """The first time: drain. The second time: leave now."""
        if self._stopping.is_set():
            self._hurry.set()
            return
        self._stopping.set()
        self._begun()
        self._last_bound.within(DRAIN_SECONDS + LEAVE_SECONDS)
        self._notifier.stopping(
            "stopping: open requests finish, models keep running", DRAIN_SECONDS + 2 * LEAVE_SECONDS
        )

    async def told(self) -> None:
        await self._stopping.wait()

    async def unless_told(self, work: Coroutine[object, object, None]) -> bool:
        """True: it was done. False: told to leave meanwhile, and it was cancelled. Nobody is answered yet, so nothing
        is drained, and what hangs is left behind all the sooner."""
        doing = asyncio.create_task(work, name="first-look")
        leaving = asyncio.create_task(self._stopping.wait(), name="told-to-leave")
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if doing.done():
            doing.result()
            return True
        self._last_bound.within(LEAVE_SECONDS)
        doing.cancel()
        await asyncio.wait((doing,), timeout=LEAVE_SECONDS / 2)
        return False

    async def drain(self, servers: Sequence[Server], serving: Sequence[asyncio.Task[None]]) -> None:
        """Open requests finish while new ones are told 503; then, or when hurried, who still waits is answered with
        what was promised so far, and the servers close."""
        _log.info("stopping: open requests finish, models keep running (again to leave at once)")
        await until_idle(servers[0], DRAIN_SECONDS, self._hurry)
        self._last_bound.within(LEAVE_SECONDS)
        self._answer()
        await until_idle(servers[0], ANSWER_SECONDS, asyncio.Event())
        for one in servers:
            for request in list(one.server_state.tasks):
                request.cancel(msg=LEAVING)
            await until_idle(one, ANSWER_SECONDS, asyncio.Event())
            one.should_exit = True
        await asyncio.gather(*serving, return_exceptions=True)

    async def bounded(self, work: Coroutine[object, object, None], what: str) -> None:
        """Hanging up politely is worth a few seconds, and no more."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await work
        except Exception as trouble:
            _log.warning("closing=%s given_up_because=%r", what, trouble)

    def end(self) -> None:
        """The last thing the loop does: a signal that comes while the interpreter closes changes nothing any more."""
        self._last_bound.within(LEAVE_SECONDS)
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


class LastBound:
    """within(): from now on the process has so long to live; told again, the earlier end counts."""

    def __init__(self) -> None:
        self._until_seconds = float("inf")
        self._told = threading.Condition()
        self._thread: threading.Thread | None = None

    def within(self, seconds: float) -> None:
        with self._told:
            self._until_seconds = min(self._until_seconds, time.monotonic() + seconds)
            self._told.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="last-bound", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        with self._told:
            while (left_seconds := self._until_seconds - time.monotonic()) > 0:
                self._told.wait(left_seconds)
        alive = sorted(thread.name for thread in threading.enumerate() if thread is not threading.current_thread())
        _log.error(
            'leaving=forced because="something did not end in time" threads="%s" exit=%s', ", ".join(alive), EX_FORCED
        )
        os._exit(EX_FORCED)
