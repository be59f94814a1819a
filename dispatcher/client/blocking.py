"""The client without await: AsyncDispatcher on a loop of its own, in a thread of its own.

So a deadline is one here, too: a blocking socket only has timeouts per read, which a slow drip never meets. It works
inside of a running loop (a notebook) and may be shared by threads, but not carried over a fork.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar, Unpack, overload

from .answers import Choice, Generated, Health, Lease, Model, Recommendations
from .asynchronous import DEFAULT_URL, AsyncDispatcher
from .generating import TextStream
from .troubles import Status
from .wishes import Ask, Generation, Report, Wishes

LEAVING_SECONDS = 3.0
T = TypeVar("T")


class Dispatcher:
    """As AsyncDispatcher; what its methods take, answer and raise is said there."""

    def __init__(self, base_url: str = DEFAULT_URL, key: str | None = None, *, timeout_seconds: float = 30.0) -> None:
        self._asynchronous = AsyncDispatcher(base_url, key, timeout_seconds=timeout_seconds)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dispatcher client", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return repr(self._asynchronous).removeprefix("Async")

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._run(self._ended())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LEAVING_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    @overload
    def select(self, *, soft: Literal[False] = False, **ask: Unpack[Ask]) -> Choice: ...

    @overload
    def select(self, *, soft: bool, **ask: Unpack[Ask]) -> Choice | None: ...

    def select(self, *, soft: bool = False, **ask: Unpack[Ask]) -> Choice | None:
        return self._run(self._asynchronous.select(soft=soft, **ask))

    def outcome(self, decision_id: str, status: Status, duration_seconds: float, **report: Unpack[Report]) -> None:
        self._run(self._asynchronous.outcome(decision_id, status, duration_seconds, **report))

    def lease(self, lease_id: str) -> Lease:
        return self._run(self._asynchronous.lease(lease_id))

    def renew(self, lease_id: str) -> Lease:
        return self._run(self._asynchronous.renew(lease_id))

    def give_back(self, lease_id: str) -> None:
        self._run(self._asynchronous.give_back(lease_id))

    def recommend(self, prompt: str | None = None, **wishes: Unpack[Wishes]) -> Recommendations:
        return self._run(self._asynchronous.recommend(prompt, **wishes))

    def health(self) -> Health:
        return self._run(self._asynchronous.health())

    def models(self) -> tuple[Model, ...]:
        return self._run(self._asynchronous.models())

    def generate(self, prompt: str, **said: Unpack[Generation]) -> Generated:
        return self._run(self._asynchronous.generate(prompt, **said))

    def stream(self, prompt: str, **said: Unpack[Generation]) -> TextStream:
        return TextStream(self._asynchronous.stream(prompt, **said), self._run)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Whoever is interrupted here (Ctrl-C) waits until the work has told the dispatcher so, but not for long."""
        over = threading.Event()
        if self._loop.is_closed():
            work.close()
            raise RuntimeError(f"{self!r} is closed; make another")
        future = asyncio.run_coroutine_threadsafe(_until_over(work, over), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                over.wait(LEAVING_SECONDS)
            raise

    async def _ended(self) -> None:
        """What other threads still have under way is cancelled, and tells the dispatcher so."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=LEAVING_SECONDS)
        await self._loop.shutdown_asyncgens()
        await self._asynchronous.aclose()


async def _until_over(work: Coroutine[Any, Any, T], over: threading.Event) -> T:
    try:
        return await work
    finally:
        over.set()
