"""The history of the laboratory: the real rows in a database in memory, committed in batches of virtual time.

The real store writes from a thread, which virtual time cannot wait for; so its group commit is played here, and what it
writes and reads is history.rows' and history.reader's own. What was not committed when the process is killed is lost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from dispatcher.clock import ManualClock
from dispatcher.errors import HistoryUnavailable
from dispatcher.history import reader, rows
from dispatcher.history.file import open_to_write
from dispatcher.history.rows import DecisionHead
from dispatcher.vocabulary.event import Completed, Decided, Event, Sampled
from dispatcher.vocabulary.fleet import Lease
from dispatcher.wire.decision import encode, kept

COMMIT_SECONDS = 0.05
PINNED = "pinned_model"
Write = Callable[[sqlite3.Connection], bool]
T = TypeVar("T")


class Disk:
    """What outlives a process. full: nothing can be written."""

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            self.connection = sqlite3.connect(":memory:", isolation_level=None)
            self.connection.executescript((Path(rows.__file__).with_name("schema.sql")).read_text(encoding="utf-8"))
        else:
            self.connection = open_to_write(folder / "history.sqlite")
        self.full = False

    def count(self, kind: str) -> int:
        return int(self.connection.execute("SELECT count(*) FROM event WHERE kind = ?", (kind,)).fetchone()[0])

    def ids(self) -> list[int]:
        return [number for (number,) in self.connection.execute("SELECT id FROM event ORDER BY id")]

    def close(self) -> None:
        self.connection.close()


class Notebook:
    """One process's door to the disk, as history.store.Store. killed: from now on nothing it does reaches the disk."""

    def __init__(self, disk: Disk, steady: ManualClock) -> None:
        self._disk = disk
        self._steady = steady
        self._pending: list[tuple[str | None, Write]] = []
        self._owed: dict[str, Write] = {}
        self._since_seconds = steady.now_seconds()
        self._heads: dict[str, DecisionHead] = {}
        self._facts = self._read(reader.facts)
        self.killed = False
        self.dropped_total = 0
        self.appended = 0

    @property
    def failing(self) -> str | None:
        return "the disk is full" if self._disk.full else None

    def append(self, event: Event) -> None:
        if self.killed or isinstance(event, Sampled):
            return
        if isinstance(event, Decided) and (head := rows.head_of(event.decision)) is not None:
            self._heads[event.decision.id] = head
        self.appended += 1
        self._put(partial(rows.write_event, event=event, encode_decision=lambda decision: encode(kept(decision))))

    async def record_outcome(self, completed: Completed) -> bool:
        return self._now(partial(rows.write_outcome, completed=completed))

    async def record_lease(self, lease: Lease) -> None:
        self._now(partial(rows.write_lease, lease=lease))

    async def renew_lease(self, lease: Lease) -> None:
        self._now(partial(rows.write_lease, lease=lease))

    async def knows_decision(self, decision_id: str) -> DecisionHead | None:
        known = self._heads.get(decision_id)
        return known if known is not None else self._read(partial(reader.head, decision_id=decision_id))

    async def pin(self, model: str | None) -> None:
        self._now(partial(rows.write_fact, name=PINNED, value=model))
        self._facts.pop(PINNED, None)
        if model is not None:
            self._facts[PINNED] = model

    def forget_lease(self, lease_id: str) -> None:
        self._owe(f"lease:{lease_id}", partial(rows.erase_lease, lease_id=lease_id))

    def owe_lease(self, lease: Lease) -> None:
        self._owe(f"lease:{lease.id}", partial(rows.write_lease, lease=lease))

    def leases(self) -> list[Lease]:
        return self._read(reader.leases)

    def pinned_model(self) -> str | None:
        return self._facts.get(PINNED)

    def settle(self) -> None:
        """What is due is committed; the laboratory calls it as time passes."""
        if self._steady.now_seconds() - self._since_seconds >= COMMIT_SECONDS:
            self._commit()

    def _read(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        return ask(self._disk.connection)

    def _put(self, write: Write, key: str | None = None) -> None:
        self.settle()
        if not self._pending:
            self._since_seconds = self._steady.now_seconds()
        self._pending.append((key, write))

    def _owe(self, key: str, write: Write) -> None:
        self._put(write, key)

    def _now(self, write: Write) -> bool:
        if self.killed:
            return False
        if self._disk.full:
            raise HistoryUnavailable("the disk is full; nothing was recorded")
        self._commit()
        return write(self._disk.connection)

    def _commit(self) -> None:
        if self.killed:
            return
        pending, self._pending = self._pending, []
        if self._disk.full:
            for key, write in pending:
                if key is None:
                    self.dropped_total += 1
                else:
                    self._owed[key] = write
            return
        owed, self._owed = self._owed, {}
        for write in (*owed.values(), *(write for _, write in pending)):
            write(self._disk.connection)
