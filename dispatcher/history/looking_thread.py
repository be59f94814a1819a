"""One thread for blocking looks, one after the other. No executor: its queue has no bound, and its thread is joined at
exit, where one that the disk holds would hold the daemon."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

WAITING_LOOKS = 64
HANGS_SECONDS = 1.0  # after nobody waited for it any more, and it was told so

T = TypeVar("T")


class Refusing(Exception):
    """Why no further look is begun."""


class Look(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self.done: Future[T] = Future()
        self.left_at: float | None = None  # of time.monotonic: nobody waits from then on
        self._work = work

    def leave(self) -> None:
        """Nobody waits for it any more, if anybody still did."""
        if not self.done.done():
            self.left_at = time.monotonic()
            self.done.cancel()

    def run(self) -> None:
        try:
            result = self._work()
        except BaseException as error:
            self.done.set_exception(error)
        else:
            self.done.set_result(result)


class LookingThread:
    def __init__(self, name: str) -> None:
        self._looks: queue.Queue[Look[object] | None] = queue.Queue(maxsize=WAITING_LOOKS)
        self._current: Look[object] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def abandoned(self) -> bool:
        """It is in a look that nobody waits for any more and that does not end: `unwanted` is asked while SQLite works,
        not while it waits for the disk."""
        current = self._current
        left_at = None if current is None else current.left_at
        return left_at is not None and time.monotonic() - left_at > HANGS_SECONDS

    def begin(self, work: Callable[[], T]) -> Look[T]:
        """Raises Refusing."""
        if self._closed:
            raise Refusing("it is closed")
        if self.abandoned:
            raise Refusing("the disk does not answer an earlier look")
        look = Look(work)
        try:
            self._looks.put_nowait(look)  # type: ignore[arg-type]  # the thread does not care what comes of it
        except queue.Full:
            raise Refusing(f"{WAITING_LOOKS} looks are waiting already") from None
        return look

    def unwanted(self) -> bool:
        """Asked from within the look under way: nobody waits for it, it may as well end."""
        current = self._current
        return current is not None and (self._closed or current.left_at is not None)

    def close(self, timeout_seconds: float) -> bool:
        """True: the thread has ended; looks that were waiting are cancelled."""
        self._closed = True
        while True:
            try:
                self._looks.put_nowait(None)
                break
            except queue.Full:
                if (look := self._looks.get()) is not None:
                    look.done.cancel()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (look := self._looks.get()) is not None:
            if self._closed:
                look.done.cancel()
            elif look.done.set_running_or_notify_cancel():
                self._current = look
                look.run()
                self._current = None
