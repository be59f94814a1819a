"""The history's file: made, broken, deleted, of a newer schema, another program's."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.errors import HistoryUnavailable
from dispatcher.history.file import identity
from dispatcher.history.store import Store
from tests.builders import NOW
from tests.history.some_events import a_completed, a_decided
from tests.history.stores import a_store, an_open_store, overwrite_middle, rows


def append_many(store: Store) -> None:
    for number in range(300):
        store.append(a_decided(f"d-{number}"))


async def fill_and_damage(store: Store) -> None:
    """Many decisions, all of them in the file and none in the log, and then some of its pages are gone."""
    append_many(store)
    await store.flush()
    rows(store.path, "PRAGMA wal_checkpoint(TRUNCATE)")
    overwrite_middle(store.path)


def test_folder_and_file_are_made_and_nobody_else_may_look_in(path):
    with an_open_store(path):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert [("wal",)] == rows(path, "PRAGMA journal_mode")
        assert [(1,)] == rows(path, "PRAGMA user_version")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(b"this is no database, but a letter" * 100), id="not a database"),
        pytest.param(overwrite_middle, id="damaged pages"),
    ],
)
async def test_a_broken_file_is_set_aside_and_a_new_one_begun(path, damage):
    with an_open_store(path) as store:
        append_many(store)
    damage(path)

    store = a_store(path)
    moved = store.open()

    assert path.with_name(f"history.db.corrupt-{int(NOW)}") == moved
    assert moved.exists()
    assert (moved,) == store.set_aside
    assert await store.record_outcome(a_completed())
    store.close()
    assert [("ok",)] == rows(path, "PRAGMA integrity_check")


async def test_a_file_that_breaks_while_running_is_set_aside_too(path):
    with an_open_store(path) as store:
        await fill_and_damage(store)
        with contextlib.suppress(HistoryUnavailable):
            for number in range(300):
                store.append(a_decided(f"e-{number}"))
                await store.record_outcome(a_completed(f"e-{number}"))

        assert await store.record_outcome(a_completed("after"))
        assert 1 == len(store.set_aside)


async def test_a_file_deleted_while_running_is_made_again(path):
    with an_open_store(path) as store:
        await store.record_outcome(a_completed("d-1"))
        for name in os.listdir(path.parent):
            (path.parent / name).unlink()

        assert await store.record_outcome(a_completed("d-2"))
        assert [("d-2",)] == rows(path, "SELECT decision_id FROM outcome")
        assert ["d-2"] == [completed.decision_id for completed in store.recent_completed(10)]


@contextlib.contextmanager
def a_store_that_cannot_open(path: Path, because: str) -> Iterator[Store]:
    """It is used all the same: open() is called once, and told why."""
    store = a_store(path)
    with pytest.raises(HistoryUnavailable, match=because):
        store.open()
    try:
        yield store
    finally:
        store.close()


async def test_a_newer_schema_is_refused_in_words_and_left_alone(path):
    with an_open_store(path):
        pass
    rows(path, "PRAGMA user_version = 7")
    before = path.read_bytes()

    with a_store_that_cannot_open(path, r"has schema 7; this version .* knows 1") as store:
        with pytest.raises(HistoryUnavailable, match="schema 7"):
            await store.record_outcome(a_completed())
        store.append(a_decided())

    assert before == path.read_bytes()
    assert 1 == store.dropped_total


def test_another_programs_database_is_not_touched(path):
    path.parent.mkdir()
    rows(path, "CREATE TABLE bookmarks (url TEXT)")

    with a_store_that_cannot_open(path, "another program's database"):
        pass

    assert [("bookmarks",)] == rows(path, "SELECT name FROM sqlite_master")


async def test_a_folder_that_cannot_be_made_is_said_and_heals_without_a_restart(tmp_path):
    (tmp_path / "state").write_text("a file where the folder should be")
    with a_store_that_cannot_open(tmp_path / "state" / "history.db", "cannot be written") as store:
        with pytest.raises(HistoryUnavailable):
            await store.record_outcome(a_completed())

        (tmp_path / "state").unlink()

        assert await store.record_outcome(a_completed())
        assert store.failing is None


async def test_a_file_that_only_a_reader_finds_broken_is_set_aside_too(path):
    with an_open_store(path) as store:
        await fill_and_damage(store)
        with pytest.raises(HistoryUnavailable, match="malformed"):
            await store.decisions(1000)

        await store.flush()  # written after the look that was asked for

        assert [] == await store.decisions(1000)
        assert 1 == len(store.set_aside)


async def test_a_readers_word_against_a_sound_file_changes_nothing(path):
    with an_open_store(path) as store:
        store.append(a_decided("d-1"))
        await store.flush()
        store._writer.suspect(identity(path))
        await store.flush()

        assert () == store.set_aside
        assert 1 == len(await store.decisions(10))
