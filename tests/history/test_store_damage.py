"""What somebody does to the files under the open store: nothing is confirmed that a kill -9 right after would lose."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from dispatcher.errors import HistoryUnavailable
from dispatcher.history.store import Store
from dispatcher.history.watch import is_begun, log_of, sound_frames
from tests.builders import a_lease
from tests.history.some_events import a_completed, a_decided
from tests.history.stores import an_open_store, overwrite_middle, rows


def after_a_kill(path: Path, folder: Path) -> set[str]:
    """The outcomes that a successor would find: of the files as they are now, by their names."""
    shutil.copytree(path.parent, folder)
    with an_open_store(folder / path.name) as store:
        return {completed.decision_id for completed in store.recent_completed(1000)}


async def a_lived_in(store: Store, path: Path, *, emptied: bool) -> set[str]:
    """Outcomes in the file, and in its log. emptied: the log was once, and the file is all there is."""
    ids = {f"before-{number}" for number in range(30)}
    for one in sorted(ids):
        store.append(a_decided(one))
        await store.record_outcome(a_completed(one))
    await store.decisions(5)  # a reader has it open, too
    if emptied:
        rows(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        await store.record_outcome(a_completed("before-30"))
        ids.add("before-30")
    return ids


def overwrite_all(path: Path) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(0)
        file.write(b"\xa5" * size)


def cut_in_half(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)


def replace_with_nothing(path: Path) -> None:
    path.unlink()
    path.touch()


def empty(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(0)


@pytest.mark.parametrize("emptied", [False, True], ids=["", "after a checkpoint"])
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        pytest.param("-wal", Path.unlink, id="log deleted"),
        pytest.param("-wal", replace_with_nothing, id="log replaced"),
        pytest.param("-wal", empty, id="log emptied"),
        pytest.param("-wal", cut_in_half, id="log cut"),
        pytest.param("-wal", overwrite_all, id="log overwritten"),
        pytest.param("-wal", overwrite_middle, id="log overwritten within"),
        pytest.param("", empty, id="file emptied"),
        pytest.param("", cut_in_half, id="file cut"),
        pytest.param("", overwrite_all, id="file overwritten"),
        pytest.param("", overwrite_middle, id="file overwritten within"),
    ],
)
async def test_what_was_confirmed_survives_what_is_done_to_the_files(path, tmp_path, file, damage, emptied):
    with an_open_store(path) as store:
        ids = await a_lived_in(store, path, emptied=emptied)
        damage(path.with_name(path.name + file))

        assert await store.record_outcome(a_completed("after"))
        await store.record_lease(a_lease(id="after"))

        assert ids | {"after"} == after_a_kill(path, tmp_path / "killed")
        assert store.failing is None
        harmless = damage is not empty and not (file or emptied)  # all of the file is in the log, and newer
        assert (0 if harmless else 1) == len(store.set_aside) + len(store.mended)
        assert {"after"} <= {completed.decision_id for completed in store.recent_completed(1000)}
        store.append(a_decided("goes on"))
        assert await store.decision("goes on") is not None
    assert [("ok",)] == rows(path, "PRAGMA integrity_check")


async def test_a_deleted_log_is_saved_although_nothing_more_is_recorded(path, tmp_path):
    with an_open_store(path) as store:
        ids = await a_lived_in(store, path, emptied=False)
        log_of(path).unlink()
        store._writer.ground.idle()

        assert ids == after_a_kill(path, tmp_path / "killed")
        assert 1 == len(store.mended)


async def test_a_file_deleted_during_a_commit_is_written_again_before_it_is_confirmed(path, tmp_path):
    with an_open_store(path) as store:
        await store.record_outcome(a_completed("before"))
        done = threading.Event()

        def deletes_it(connection):
            if not done.is_set():
                done.set()
                path.unlink()
            return True

        store._writer.offer(deletes_it)
        assert await store.record_outcome(a_completed("after"))

        assert {"after"} == after_a_kill(path, tmp_path / "killed")
        assert ["it was deleted; what was recorded in it is not known any more"] == list(store.mended)


async def test_a_log_emptied_during_a_commit_is_noticed_before_it_is_confirmed(path, tmp_path):
    with an_open_store(path) as store:
        await store.record_outcome(a_completed("before"))
        done = threading.Event()

        def empties_it(connection):
            if not done.is_set():
                done.set()
                empty(log_of(path))
            return True

        store._writer.offer(empties_it)
        assert await store.record_outcome(a_completed("after"))

        assert {"before", "after"} == after_a_kill(path, tmp_path / "killed")
        assert 1 == len(store.set_aside)


async def test_a_file_that_is_taken_away_again_and_again_confirms_nothing(path):
    with an_open_store(path) as store:

        def deletes_it(connection):
            path.unlink()
            return True

        store._writer.offer(deletes_it)
        with pytest.raises(HistoryUnavailable, match="again and again"):
            await store.record_outcome(a_completed())


async def test_another_program_may_write_and_empty_the_log(path):
    with an_open_store(path) as store:
        for number in range(3):
            await store.record_outcome(a_completed(f"d-{number}"))
            rows(path, "INSERT INTO fact (name, value) VALUES (?, '1') RETURNING name", f"theirs-{number}")
            await store.record_outcome(a_completed(f"e-{number}"))
            rows(path, "PRAGMA wal_checkpoint(TRUNCATE)")

        assert 6 == len(store.recent_completed(100))
        assert ((), ()) == (store.set_aside, store.mended)


async def test_the_log_of_a_replaced_file_is_not_read_as_the_new_ones(path, tmp_path):
    other = tmp_path / "other.db"
    with an_open_store(other) as store:
        await store.record_outcome(a_completed("theirs"))
    with an_open_store(path) as store:
        await a_lived_in(store, path, emptied=False)
        other.replace(path)
        assert await store.record_outcome(a_completed("after"))

        assert {"theirs", "after"} == after_a_kill(path, tmp_path / "killed")
        assert () == store.set_aside


async def test_a_log_is_summed_up_as_sqlite_does(path):
    with an_open_store(path) as store:
        await a_lived_in(store, path, emptied=False)
        (busy, frames, _), *_ = rows(path, "PRAGMA wal_checkpoint(PASSIVE)")

        assert (0, True, True) == (busy, is_begun(path), frames > 30)
        assert frames <= sound_frames(path)
