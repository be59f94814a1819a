"""How the history fares becomes events, once per turn; what a new file must know is told to it again."""

from __future__ import annotations

from dispatcher.clock import ManualClock
from dispatcher.daemon.keeping import Keeping
from dispatcher.vocabulary.event import Erred, Turned
from tests.builders import NOW, a_lease
from tests.history.some_events import a_completed
from tests.history.stores import an_open_store
from tests.realparts import eventually


async def test_each_turn_is_told_once(tmp_path):
    told: list[object] = []
    folder = tmp_path / "state"
    with an_open_store(folder / "history.db") as store:
        keeping = Keeping(store=store, leases=lambda: [a_lease(id="l-1")], emit=told.append, clock=ManualClock(NOW))
        keeping.look()
        keeping.look()
        assert [] == told

        for path in folder.iterdir():
            path.unlink()
        (folder / "history.db").write_bytes(b"no database" * 1000)
        assert await store.record_outcome(a_completed())
        keeping.look()
        keeping.look()
        await store.flush()

        errors = [one.error_type for one in told if isinstance(one, Erred)]
        turns = [(one.what, one.before, one.after) for one in told if isinstance(one, Turned)]
        assert ["history_broken"] == errors
        assert [("history", "sound", "set_aside")] == turns
        assert ["l-1"] == [lease.id for lease in store.leases()]


async def test_a_disk_that_fails_and_heals_by_itself_is_told_twice(tmp_path):
    told: list[object] = []
    folder = tmp_path / "state"
    with an_open_store(folder / "history.db") as store:
        keeping = Keeping(store=store, leases=list, emit=told.append, clock=ManualClock(NOW))
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        folder.write_text("in the way")
        store.set_flag("something to write")
        eventually(lambda: store.failing, deadline_seconds=10, what="it to fail")
        keeping.look()
        folder.unlink()
        eventually(lambda: store.failing is None or None, deadline_seconds=10, what="it to heal, with nothing to write")
        keeping.look()

        turns = [(one.before, one.after) for one in told if isinstance(one, Turned)]
        assert [("writing", "failing"), ("failing", "writing")] == turns
