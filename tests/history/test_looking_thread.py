"""A disk that does not answer: what hangs is counted, what follows is refused, and all is well when it returns."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

import pytest

from dispatcher.errors import HistoryUnavailable
from dispatcher.history import looking_thread, reader, writer
from dispatcher.history.looking_thread import WAITING_LOOKS, LookingThread, Refusing
from tests.builders import a_lease
from tests.history.some_events import a_completed, a_decided
from tests.history.stores import an_open_store
from tests.realparts import eventually


def test_so_many_looks_wait_and_no_more():
    thread, gate = LookingThread("test"), threading.Event()
    try:
        thread.begin(gate.wait)
        eventually(lambda: thread._current, deadline_seconds=10, what="the first to be under way")
        for _ in range(WAITING_LOOKS):
            thread.begin(lambda: None)
        with pytest.raises(Refusing, match="64 looks are waiting"):
            thread.begin(lambda: None)
    finally:
        gate.set()
    assert thread.close(10)
    with pytest.raises(Refusing, match="closed"):
        thread.begin(lambda: None)


async def test_a_look_that_hangs_is_counted_refuses_those_that_follow_and_is_forgiven(path, monkeypatch):
    monkeypatch.setattr(reader, "READ_SECONDS", 0.05)
    monkeypatch.setattr(looking_thread, "HANGS_SECONDS", 0.0)
    gate = threading.Event()

    def hangs(_connection: sqlite3.Connection) -> None:
        gate.wait()  # as a read on a disk that is gone: nothing reaches it

    with an_open_store(path) as store:
        with pytest.raises(HistoryUnavailable, match="no answer within"):
            await store._reader.later(hangs)
        assert 1 == store.abandoned_threads
        with pytest.raises(HistoryUnavailable, match="does not answer an earlier look"):
            await store.decisions(1)

        gate.set()
        eventually(lambda: store.abandoned_threads == 0 or None, deadline_seconds=10, what="the thread to return")
        assert [] == await store.decisions(1)


async def test_a_look_that_nobody_waits_for_any_more_is_interrupted(path):
    def endless(connection: sqlite3.Connection) -> object:
        return connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        ).fetchone()

    with an_open_store(path) as store:
        waiting = asyncio.create_task(store._reader.later(endless))
        await asyncio.sleep(0)  # it is begun; how far it comes until it is left must not matter
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

        assert [] == await store.decisions(1)


async def test_a_commit_that_hangs_is_counted_and_what_is_awaited_is_refused_at_once(path, monkeypatch):
    monkeypatch.setattr(writer, "HANGS_SECONDS", 0.05)
    gate, hanging = threading.Event(), threading.Event()

    def hangs(_connection: sqlite3.Connection) -> bool:
        hanging.set()
        gate.wait()
        return True

    with an_open_store(path) as store:
        store.append(a_decided("d-1"))
        store._writer.owe("test", hangs)
        eventually(lambda: hanging.is_set() or None, deadline_seconds=10, what="the commit")
        eventually(lambda: store.abandoned_threads or None, deadline_seconds=10, what="it to be counted")
        with pytest.raises(HistoryUnavailable, match="does not answer"):
            await store.record_outcome(a_completed("d-1"))
        with pytest.raises(HistoryUnavailable, match="does not answer"):
            await store.record_lease(a_lease(id="l-1"))

        gate.set()
        eventually(lambda: store.abandoned_threads == 0 or None, deadline_seconds=10, what="the thread to return")
        assert await store.record_outcome(a_completed("d-1"))
        assert ["l-1"] == [lease.id for lease in store.leases()]  # owed, and paid


async def test_a_store_whose_disk_hangs_closes_all_the_same(path, monkeypatch):
    monkeypatch.setattr(reader, "READ_SECONDS", 0.05)
    monkeypatch.setattr(reader, "CLOSE_SECONDS", 0.05)
    gate = threading.Event()
    try:
        with an_open_store(path) as store:
            with pytest.raises(HistoryUnavailable):
                await store._reader.later(lambda _connection: gate.wait())
            store.append(a_decided("d-1"))
        with an_open_store(path) as store:
            assert 1 == len(await store.decisions(10))
    finally:
        gate.set()


async def test_a_lease_that_ended_while_its_record_was_awaited_is_not_owed(path, monkeypatch):
    with an_open_store(path) as store:
        with sqlite3.connect(path, isolation_level=None) as shell:
            shell.execute("BEGIN EXCLUSIVE")
            recording = asyncio.create_task(store.record_lease(a_lease(id="l-1")))
            await asyncio.sleep(0)
            store.forget_lease("l-1")
            with pytest.raises(HistoryUnavailable):
                await recording
            shell.execute("ROLLBACK")
        shell.close()
        await store.flush()

        assert [] == store.leases()
