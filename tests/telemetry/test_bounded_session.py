from __future__ import annotations

import asyncio
import threading

import pytest

from dispatcher.telemetry.bounded_session import BoundedThreads, TooManyAbandoned
from tests.telemetry.sick_servers import becomes_true


async def test_work_is_done_in_a_thread_and_its_result_or_error_comes_back():
    threads = BoundedThreads("test")

    assert "test" == await threads.run(lambda: threading.current_thread().name, 20, lambda: None)
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0, 20, lambda: None)
    assert 0 == threads.abandoned


async def test_hung_threads_are_counted_never_pile_up_and_are_forgotten_when_they_end():
    threads, released, told = BoundedThreads("test", most=2), threading.Event(), []
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await threads.run(lambda: released.wait(60), 0.05, lambda: told.append("give up"))

    with pytest.raises(TooManyAbandoned):
        await threads.run(lambda: told.append("ran"), 20, lambda: None)
    assert (2, ["give up", "give up"]) == (threads.abandoned, told)

    released.set()
    await becomes_true(lambda: threads.abandoned == 0)
    assert 7 == await threads.run(lambda: 7, 20, lambda: None)


async def test_a_waiter_that_leaves_tells_the_thread_to_give_up():
    threads, started, released = BoundedThreads("test"), threading.Event(), threading.Event()

    def work() -> bool:
        started.set()
        return released.wait(60)

    waiter = asyncio.create_task(threads.run(work, 60, released.set))
    await becomes_true(started.is_set)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter

    assert released.is_set()
    await becomes_true(lambda: threads.abandoned == 0)
