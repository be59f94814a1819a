"""A disk without space: events are dropped and counted, promises refused, and it heals when space returns."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from dispatcher.errors import HistoryUnavailable
from tests.history.some_events import (
    a_completed,
)
from tests.history.stores import ROOT, a_store, an_open_store, fill_and_free, rows


async def test_a_full_disk_drops_and_refuses_and_heals_when_space_returns(small_disk):
    with an_open_store(small_disk.path / "history.db") as store:
        await fill_and_free(store, small_disk.fill, small_disk.free)
    assert [("ok",)] == rows(small_disk.path / "history.db", "PRAGMA integrity_check")


async def test_a_disk_full_from_the_start_heals_too(small_disk):
    small_disk.fill()
    store = a_store(small_disk.path / "history.db")
    with pytest.raises(HistoryUnavailable, match="cannot be written"):
        store.open()
    store.set_flag("ever_seen_real")
    with pytest.raises(HistoryUnavailable):
        await store.record_outcome(a_completed())

    small_disk.free()

    assert await store.record_outcome(a_completed())
    store.close()
    with an_open_store(small_disk.path / "history.db") as store:
        assert store.flag("ever_seen_real")


def test_a_file_size_limit_is_survived_like_a_full_disk(path):
    script = """
        import asyncio, resource, sys
        from pathlib import Path
        from dispatcher.clock import SystemClock
        from dispatcher.history.store import Store
        from dispatcher.vocabulary.settings import HistorySettings
        from tests.history.some_events import as_json
        from tests.history.stores import fill_and_free

        def limit(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        store = Store(Path(sys.argv[1]), HistorySettings(), SystemClock(), as_json)
        store.open()
        asyncio.run(fill_and_free(store, lambda: limit(200_000), lambda: limit(resource.RLIM_INFINITY)))
        store.close()
        print("healed")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert ("healed\n", "", 0) == (done.stdout, done.stderr, done.returncode)
    assert [("ok",)] == rows(path, "PRAGMA integrity_check")
