from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from dispatcher.clock import ManualClock
from dispatcher.errors import HistoryUnavailable
from dispatcher.history.store import Store
from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.event import Relayed, Reloaded, Turned
from dispatcher.vocabulary.settings import MIB, HistorySettings
from tests.builders import LLAMA, NOW, PHI, QWEN, a_lease
from tests.history.some_events import (
    a_completed,
    a_decided,
    a_leased,
    a_sampled,
    a_start,
    a_stop,
    as_json,
)

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def a_store(path: Path, encode_decision=as_json, **settings):
    store = Store(path, HistorySettings(**settings), ManualClock(NOW), encode_decision)
    store.open()
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.db"


def rows(path: Path, statement: str, *values: object) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement, values).fetchall()


# ── the file ──


def test_folder_and_file_are_made_and_nobody_else_may_look_in(path):
    with a_store(path):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert [("wal",)] == rows(path, "PRAGMA journal_mode")
        assert [(1,)] == rows(path, "PRAGMA user_version")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(b"this is no database, but a letter" * 100), id="not a database"),
        pytest.param(lambda path: overwrite_middle(path), id="damaged pages"),
    ],
)
async def test_a_broken_file_is_set_aside_and_a_new_one_begun(path, damage):
    with a_store(path) as store:
        for number in range(300):
            store.append(a_decided(f"d-{number}"))
    damage(path)

    store = Store(path, HistorySettings(), ManualClock(NOW), as_json)
    moved = store.open()

    assert path.with_name(f"history.db.corrupt-{int(NOW)}") == moved
    assert moved.exists()
    assert (moved,) == store.set_aside
    assert await store.record_outcome(a_completed())
    store.close()
    assert [("ok",)] == rows(path, "PRAGMA integrity_check")


def overwrite_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096 * 4)


async def test_a_file_that_breaks_while_running_is_set_aside_too(path):
    with a_store(path) as store:
        for number in range(300):
            store.append(a_decided(f"d-{number}"))
        await store.flush()
        rows(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        overwrite_middle(path)
        with contextlib.suppress(HistoryUnavailable):
            for number in range(300):
                store.append(a_decided(f"e-{number}"))
                await store.record_outcome(a_completed(f"e-{number}"))

        assert await store.record_outcome(a_completed("after"))
        assert 1 == len(store.set_aside)


async def test_a_file_deleted_while_running_is_made_again(path):
    with a_store(path) as store:
        await store.record_outcome(a_completed("d-1"))
        for name in os.listdir(path.parent):
            (path.parent / name).unlink()

        assert await store.record_outcome(a_completed("d-2"))
        assert [("d-2",)] == rows(path, "SELECT decision_id FROM outcome")
        assert ["d-2"] == [completed.decision_id for completed in store.recent_completed(10)]


async def test_a_newer_schema_is_refused_in_words_and_left_alone(path):
    with a_store(path):
        pass
    rows(path, "PRAGMA user_version = 7")
    before = path.read_bytes()
    store = Store(path, HistorySettings(), ManualClock(NOW), as_json)

    with pytest.raises(HistoryUnavailable, match=r"has schema 7; this version .* knows 1"):
        store.open()
    with pytest.raises(HistoryUnavailable, match="schema 7"):
        await store.record_outcome(a_completed())
    store.append(a_decided())
    store.close()

    assert before == path.read_bytes()
    assert 1 == store.dropped_total


def test_another_programs_database_is_not_touched(path):
    path.parent.mkdir()
    rows(path, "CREATE TABLE bookmarks (url TEXT)")

    store = Store(path, HistorySettings(), ManualClock(NOW), as_json)
    with pytest.raises(HistoryUnavailable, match="another program's database"):
        store.open()
    store.close()

    assert [("bookmarks",)] == rows(path, "SELECT name FROM sqlite_master")


async def test_a_folder_that_cannot_be_made_is_said_and_heals_without_a_restart(tmp_path):
    (tmp_path / "state").write_text("a file where the folder should be")
    store = Store(tmp_path / "state" / "history.db", HistorySettings(), ManualClock(NOW), as_json)
    with pytest.raises(HistoryUnavailable, match="cannot be written"):
        store.open()
    with pytest.raises(HistoryUnavailable):
        await store.record_outcome(a_completed())

    (tmp_path / "state").unlink()

    assert await store.record_outcome(a_completed())
    assert store.failing is None
    store.close()


# ── events ──


async def test_a_decision_is_kept_whole_and_read_back_newest_first(path):
    with a_store(path) as store:
        store.append(a_decided("old", PHI, at_seconds=NOW - 60))
        store.append(a_decided("new", LLAMA))
        store.append(a_decided("none", None, at_seconds=NOW + 1))
        await store.flush()

        assert ["none", "new", "old"] == [found["decision_id"] for found in await store.decisions(10)]
        assert ["none", "new"] == [found["decision_id"] for found in await store.decisions(10, since_seconds=NOW)]
        assert ["old"] == [found["decision_id"] for found in await store.decisions(10, model="phi3:mini")]
        assert 1 == len(await store.decisions(1))
        assert {"decision_id": "old", "model": "phi3:mini", "task": "coding"} == await store.decision("old")
        assert await store.decision("never") is None


async def test_a_decision_can_be_read_the_moment_it_was_appended(path):
    with a_store(path, commit_interval_seconds=1.0) as store:
        store.append(a_decided("d-1"))

        assert "d-1" == (await store.decision("d-1"))["decision_id"]


async def test_an_outcome_finds_its_decision_before_and_after_a_restart(path):
    expected = ("llama3.2:3b", LLAMA, "coding", "digest", 10.0)
    with a_store(path) as store:
        store.append(a_decided("d-1"))
        store.append(a_decided("d-none", None))

        assert expected == await store.knows_decision("d-1")
        assert await store.knows_decision("d-none") is None
    with a_store(path) as store:
        assert expected == await store.knows_decision("d-1")
        assert await store.knows_decision("d-none") is None
        assert await store.knows_decision("never") is None


async def test_every_kind_of_event_has_its_row(path):
    with a_store(path) as store:
        store.append(a_leased())
        store.append(a_start())
        store.append(a_stop())
        store.append(a_completed())
        store.append(Reloaded(at_seconds=NOW, ok=True))
        store.append(Turned(at_seconds=NOW, what="latch", subject="cpu_busy", before="open", after="closed"))
        store.append(Relayed(at_seconds=NOW, decision_id="d-1", place=LLAMA, attempt=1))
        store.append(Relayed(at_seconds=NOW, decision_id="d-1", place=PHI, attempt=2, cause="connect"))
        await store.flush()

        kinds = ["leased", "acted", "acted", "completed", "reloaded", "turned", "relayed"]
        assert [(kind,) for kind in kinds] == rows(path, "SELECT kind FROM event ORDER BY id")
        assert 0 == store.dropped_total


async def test_host_readings_are_kept_once_a_minute(path):
    with a_store(path) as store:
        for number in range(25):
            store.append(a_sampled(NOW + 5 * number))
        await store.flush()

        assert [(NOW,), (NOW + 60,), (NOW + 120,)] == rows(path, "SELECT at_seconds FROM event")


async def test_what_cannot_be_encoded_is_counted_and_takes_nothing_with_it(path):
    def refuses(decision):
        if decision.id == "bad":
            raise ValueError("no")
        return as_json(decision)

    with a_store(path, refuses) as store:
        store.append(a_decided("good"))
        store.append(a_decided("bad"))
        store.append(a_completed("lone", agent="\ud800"))
        await store.flush()

        assert [("good",)] == rows(path, "SELECT decision_id FROM event")
        assert 2 == store.dropped_total
        with pytest.raises(HistoryUnavailable, match="cannot be stored"):
            await store.record_outcome(a_completed("lone", agent="\ud800"))
        assert await store.record_outcome(a_completed("lone"))


async def test_a_full_queue_drops_and_counts_and_blocks_nobody(path):
    with a_store(path) as store, contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(25_000):
            store.append(a_leased(id=f"l-{number}"))
        assert store.dropped_total >= 10_000
        other.execute("ROLLBACK")
        dropped = store.dropped_total
        store.close()

        assert [(25_000 - dropped,)] == rows(path, "SELECT count(*) FROM event")


# ── promises ──


async def test_the_first_outcome_wins_whoever_brings_it(path):
    with a_store(path) as store:
        first = a_completed("d-1", duration_seconds=1.0)

        assert await store.record_outcome(first)
        assert not await store.record_outcome(a_completed("d-1", duration_seconds=2.0))
        store.append(first)  # the event that follows the commit
        store.append(a_completed("d-2"))  # the gateway's own
        await store.flush()
        assert not await store.record_outcome(a_completed("d-2"))

        assert ["d-1", "d-2"] == [completed.decision_id for completed in store.recent_completed(10)]
        assert first == store.recent_completed(10)[0]


async def test_many_outcomes_at_once_share_commits_and_each_gets_its_answer(path):
    with a_store(path) as store:
        answers = await asyncio.gather(*(store.record_outcome(a_completed(f"d-{n // 2}")) for n in range(200)))

        assert 100 == sum(answers)


async def test_what_warms_the_tally_comes_back_as_it_went_in(path):
    timings = Timings(total_seconds=8.0, eval_seconds=7.0, output_tokens=100)
    completed = a_completed("d-1", QWEN, timings=timings, quality=7.5, output_tokens=100)
    with a_store(path) as store:
        await store.record_outcome(completed)
        store.append(a_start(ok=False, because="no room", error_type="start_failed"))
        store.append(a_stop(cause="evicted"))
    with a_store(path) as store:
        assert [completed] == store.recent_completed(10)
        expected = [a_start(ok=False, because="no room", error_type="start_failed"), a_stop(cause="evicted")]
        assert expected == store.recent_acted(10)


async def test_leases_survive_until_they_are_forgotten(path):
    lease = a_lease(evicts=(PHI,))
    renewed = replace(lease, expires_at_seconds=NOW + 60)
    with a_store(path) as store:
        await store.record_lease(lease)
        await store.record_lease(a_lease(id="l-2"))
        await store.renew_lease(renewed)
        store.forget_lease("l-2")
    with a_store(path) as store:
        assert [renewed] == store.leases()


async def test_what_is_owed_never_overwrites_what_came_later(path):
    ready, renewed = (replace(a_lease(), expires_at_seconds=NOW + seconds) for seconds in (60, 120))
    with a_store(path) as store:
        store.owe_lease(ready)
        await store.renew_lease(renewed)
        assert [renewed] == store.leases()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            store.owe_lease(ready)
            with pytest.raises(HistoryUnavailable):
                await store.record_outcome(a_completed())
            other.execute("ROLLBACK")
        await store.renew_lease(renewed)
        assert [renewed] == store.leases()


async def test_pin_and_flags_survive(path):
    with a_store(path) as store:
        assert store.pinned_model() is None
        await store.pin("phi3:mini")
        store.set_flag("ever_seen_real")
        store.remember("peaks", "[1]")
    with a_store(path) as store:
        assert ("phi3:mini", True, False) == (store.pinned_model(), store.flag("ever_seen_real"), store.flag("other"))
        assert "[1]" == store.recall("peaks")
        await store.pin(None)
        assert store.pinned_model() is None
    with a_store(path) as store:
        assert store.pinned_model() is None


async def test_a_locked_file_refuses_promises_in_time_and_keeps_events_until_it_is_free(path):
    with a_store(path) as store, contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        store.append(a_decided("waits"))
        with pytest.raises(HistoryUnavailable, match=r"locked|did not confirm"):
            await asyncio.wait_for(store.record_outcome(a_completed("refused")), timeout=10)
        other.execute("ROLLBACK")

        assert await store.record_outcome(a_completed("refused"))
        assert "waits" == (await store.decision("waits"))["decision_id"]
        assert 0 == store.dropped_total


async def test_a_closed_store_drops_and_refuses_and_closing_twice_is_no_error(path):
    with a_store(path) as store:
        store.append(a_decided("last"))
        store.close()
        store.append(a_decided("late"))

        assert [("last",)] == rows(path, "SELECT decision_id FROM event")
        assert 1 == store.dropped_total
        with pytest.raises(HistoryUnavailable, match="closed"):
            await store.record_outcome(a_completed())
        with pytest.raises(HistoryUnavailable, match="closed"):
            await store.decisions(1)


def test_a_killed_process_loses_no_acknowledged_outcome_or_lease(path):
    script = """
        import asyncio, sys
        from pathlib import Path
        from dispatcher.clock import SystemClock
        from dispatcher.history.store import Store
        from dispatcher.vocabulary.settings import HistorySettings
        from tests.builders import a_lease
        from tests.history.some_events import a_completed, a_decided, as_json

        async def main():
            store = Store(Path(sys.argv[1]), HistorySettings(), SystemClock(), as_json)
            store.open()
            for number in range(100_000):
                store.append(a_decided(f"d-{number}"))
                await store.record_outcome(a_completed(f"d-{number}"))
                await store.record_lease(a_lease(id=f"l-{number}"))
                print(number, flush=True)

        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        acknowledged = [int(process.stdout.readline()) for _ in range(40)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout.read().splitlines()]

    with a_store(path) as store:
        assert () == store.set_aside
        kept = {completed.decision_id for completed in store.recent_completed(100_000)}
        assert set() == {f"d-{number}" for number in acknowledged} - kept
        assert set() == {f"l-{number}" for number in acknowledged} - {lease.id for lease in store.leases()}


# ── a full disk ──


@pytest.fixture
def small_disk(tmp_path: Path):
    """2 MiB of tmpfs. Needs root; the RLIMIT test below tells the same story without."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if not made or made.returncode != 0:
        pytest.skip("no right to mount a tmpfs here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


async def record_many(store: Store) -> None:
    for number in range(3000):
        store.append(a_decided(f"full-{number}"))
        await store.record_outcome(a_completed(f"full-{number}"))


async def fill_and_free(store: Store, fill, free) -> None:
    store.append(a_decided("before"))
    assert await store.record_outcome(a_completed("before"))
    await store.record_lease(a_lease(id="before"))
    fill()
    with pytest.raises(HistoryUnavailable, match="cannot be written"):
        await record_many(store)
    store.append(a_decided("lost"))
    store.forget_lease("before")
    with pytest.raises(HistoryUnavailable):
        await store.record_outcome(a_completed("refused"))
    assert store.dropped_total >= 1
    assert await store.knows_decision("lost") is not None
    assert await store.decisions(1)

    free()

    assert await store.record_outcome(a_completed("refused"))
    assert not await store.record_outcome(a_completed("before"))
    store.append(a_decided("again"))
    assert "again" == (await store.decision("again"))["decision_id"]
    assert [] == store.leases()
    assert store.failing is None


async def test_a_full_disk_drops_and_refuses_and_heals_when_space_returns(small_disk):
    ballast = small_disk / "ballast"

    def fill():
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(b"\0" * 4096)
                file.flush()

    with a_store(small_disk / "history.db") as store:
        await fill_and_free(store, fill, ballast.unlink)
    assert [("ok",)] == rows(small_disk / "history.db", "PRAGMA integrity_check")


async def test_a_disk_full_from_the_start_heals_too(small_disk):
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(b"\0" * 4096)
            file.flush()
    store = Store(small_disk / "history.db", HistorySettings(), ManualClock(NOW), as_json)
    with pytest.raises(HistoryUnavailable, match="cannot be written"):
        store.open()
    store.set_flag("ever_seen_real")
    with pytest.raises(HistoryUnavailable):
        await store.record_outcome(a_completed())

    ballast.unlink()

    assert await store.record_outcome(a_completed())
    store.close()
    with a_store(small_disk / "history.db") as store:
        assert store.flag("ever_seen_real")


def test_a_file_size_limit_is_survived_like_a_full_disk(path):
    script = """
        import asyncio, resource, sys
        from pathlib import Path
        from dispatcher.clock import SystemClock
        from dispatcher.history.store import Store
        from dispatcher.vocabulary.settings import HistorySettings
        from tests.history.some_events import as_json
        from tests.history.test_store import fill_and_free

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


# ── retention ──


async def test_the_oldest_rows_go_when_there_are_too_many(path):
    with a_store(path, retention_rows=1000) as store:
        for batch in range(12):
            for number in range(500):
                at_seconds = NOW + batch * 500 + number
                store.append(a_decided(f"d-{batch * 500 + number}", at_seconds=at_seconds))
            await store.record_outcome(a_completed(f"d-{batch * 500}", at_seconds=NOW + batch * 500))
        await store.flush()
        store.close()

        assert rows(path, "SELECT count(*) FROM event") <= [(1000 + 1500,)]
        assert [("d-5999",)] == rows(path, "SELECT max(decision_id) FROM event")
        oldest = rows(path, "SELECT min(at_seconds) FROM event")
        assert oldest <= rows(path, "SELECT min(at_seconds) FROM outcome")


async def test_the_oldest_rows_go_when_the_file_is_too_big(path):
    def long(decision):
        return b'{"decision_id": "%b", "padding": "%b"}' % (decision.id.encode(), b"x" * 3000)

    with a_store(path, long, retention_bytes=1 * MIB) as store:
        for batch in range(20):
            for number in range(250):
                store.append(a_decided(f"d-{batch * 250 + number}"))
            await store.flush()
        newest = await store.decisions(1)
        store.close()

        assert path.stat().st_size < 4 * MIB  # 15 MiB were written
        assert "d-4999" == newest[0]["decision_id"]
        assert [("ok",)] == rows(path, "PRAGMA integrity_check")
