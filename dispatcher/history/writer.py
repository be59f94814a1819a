"""The one thread that writes. Everything to be kept comes through its queue; nobody else holds a writing connection.

Group commit: plain events wait up to `commit_interval_seconds` for company; an awaited record is committed at once,
with whatever is queued by then. A batch fails whole, and the thread goes on: the next batch tries again on a new
connection, so that nothing needs a restart when space returns.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from dispatcher.errors import HistoryUnavailable
from dispatcher.history.file import Broken, Identity, identity, is_broken, open_to_write, set_aside
from dispatcher.history.retention import sweep
from dispatcher.history.rows import write_fact
from dispatcher.vocabulary.settings import HistorySettings

QUEUE_ENTRIES = 10_000  # events beyond are dropped; awaited records may use as much again
BATCH_ENTRIES = 2_000
IDLE_SECONDS = 1.0  # between looks at what is still owed, and at retention
EXAMINE_SECONDS = 60.0  # between two looks at a file that readers call broken and that is found sound
HANGS_SECONDS = 3.0  # a commit that takes longer is not coming soon: what is awaited is refused at once
OWED_ENTRIES = 20_000  # beyond, the oldest are given up and counted
RETRY_SECONDS = 0.5  # after a failure plain events are dropped untried for so long: a full disk is not hammered
_ROW_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.NotSupportedError,
)

Write = Callable[[sqlite3.Connection], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """done: who waits for the commit. key: tried again until written, the newest per key. Neither: droppable.
    synced: on the disk, and not only with the system, before it is told."""

    write: Write
    done: Future[bool] | None = None
    key: str | None = None
    synced: bool = False


class Writer:
    """Started once, stopped once. offer() and owe() never block or raise; submit() hands back a future."""

    def __init__(self, path: Path, settings: HistorySettings, now_seconds: Callable[[], float]) -> None:
        self.set_aside: list[Path] = []  # broken files moved out of the way, oldest first
        self.failing: str | None = None  # why the last batch was not written; None: it was
        self._path = path
        self._settings = settings
        self._now_seconds = now_seconds
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._urgent = threading.Event()
        self._held: list[Entry] = []  # events of a batch that found the file locked
        self._owed: dict[str, Write] = {}
        self.begun_anew = (
            0  # how often another file took the place of the one in use: what must not be lost is told again
        )
        self._committing_since: float | None = None  # of time.monotonic
        self._connection: sqlite3.Connection | None = None
        self._file: Identity | None = None
        self._dropped_full = 0  # counted by the callers' thread
        self._dropped_failed = 0  # counted by the writer's
        self._unswept = 0
        self._retry_at = 0.0
        self._suspected: Identity | None = None  # the file that a reader found broken
        self._examine_at = 0.0
        self._running = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="history-write", daemon=True)

    def apply(self, settings: HistorySettings) -> None:
        """From the next batch on; the path is the one it was made with."""
        self._settings = settings

    @property
    def dropped_total(self) -> int:
        return self._dropped_full + self._dropped_failed

    @property
    def hangs(self) -> bool:
        """The disk has not answered for so long that nobody waits for it any more."""
        since = self._committing_since
        return since is not None and time.monotonic() - since > HANGS_SECONDS

    def open(self) -> None:
        """First connection and the thread. Raises HistoryUnavailable, but the thread runs and goes on trying."""
        try:
            self._connect()
        except (sqlite3.Error, OSError, Broken) as error:
            self.failing = self._words(error)
            raise HistoryUnavailable(self.failing) from error
        finally:
            self._running = True
            self._thread.start()

    def close(self, timeout_seconds: float) -> None:
        """Writes what is queued and ends the thread."""
        if not self._running:
            return
        self._running = False
        self._queue.put(None)
        self._urgent.set()
        self._thread.join(timeout_seconds)

    def offer(self, write: Write) -> None:
        if not self._running or self._queue.qsize() >= QUEUE_ENTRIES:
            self._dropped_full += 1
        else:
            self._queue.put(Entry(write=write))

    def owe(self, key: str, write: Write) -> None:
        """Not awaited, but not lost either: a failed one is written with a later batch."""
        if self._queue.qsize() >= 3 * QUEUE_ENTRIES:
            self._dropped_full += 1
        else:
            self._queue.put(Entry(write=write, key=key))

    def submit(self, write: Write, *, synced: bool) -> Future[bool]:
        """The future ends with the commit. Cancelled before its batch begins, nothing is written."""
        done: Future[bool] = Future()
        if not self._running:
            done.set_exception(HistoryUnavailable(f"the history {self._path} is closed; nothing was recorded"))
        elif self.hangs:
            done.set_exception(HistoryUnavailable(f"the history {self._path} does not answer; nothing was recorded"))
        elif self._queue.qsize() >= 2 * QUEUE_ENTRIES:
            done.set_exception(HistoryUnavailable(f"the history {self._path} is too far behind; nothing was recorded"))
        else:
            self._queue.put(Entry(write=write, done=done, synced=synced))
            self._urgent.set()
        return done

    def suspect(self, file: Identity) -> None:
        """A reader found this file broken: it is looked over soon, and set aside if so. Never blocks or raises."""
        self._suspected = file
        self._queue.put(Entry(write=_nothing))
        self._urgent.set()

    def _run(self) -> None:
        while not self._stopping:
            batch = self._collect()
            self._examine()
            if batch or self._owed or self.failing is not None:
                self._commit(batch)
            self._sweep()
        while batch := self._collect():  # what came in while stopping
            self._commit(batch)
        self._disconnect()

    def _collect(self) -> list[Entry]:
        batch, self._held = self._held, []
        try:
            first = self._queue.get(timeout=0 if self._stopping else IDLE_SECONDS)
        except queue.Empty:
            return batch
        if not self._stopping and first is not None and first.done is None:
            self._urgent.wait(self._settings.commit_interval_seconds)
        self._urgent.clear()  # before draining: what comes after sets it again
        with contextlib.suppress(queue.Empty):
            entry: Entry | None = first
            while True:
                if entry is None:
                    self._stopping = True
                else:
                    batch.append(entry)
                if len(batch) >= BATCH_ENTRIES:
                    break
                entry = self._queue.get_nowait()
        return batch

    def _commit(self, batch: list[Entry]) -> None:
        entries = [entry for entry in batch if entry.done is None or entry.done.set_running_or_notify_cancel()]
        awaited = any(entry.done is not None for entry in entries)
        if not awaited and time.monotonic() < self._retry_at:
            self._let_go(entries)
            return
        try:
            self._committing_since = time.monotonic()
            results = self._transaction_or_anew(entries, synced=any(entry.synced for entry in entries))
        except Exception as error:  # whatever it is: this thread must outlive it
            self._failed(entries, error)
            return
        finally:
            self._committing_since = None
        self.failing = None
        self._owed.clear()
        self._unswept += len(entries)
        for entry, result in results:
            if isinstance(result, bool):
                if entry.done is not None:
                    entry.done.set_result(result)
            elif entry.done is not None:
                entry.done.set_exception(HistoryUnavailable(f"it cannot be stored ({result!r}); nothing was recorded"))
            else:
                self._dropped_failed += 1

    def _transaction_or_anew(self, entries: list[Entry], *, synced: bool) -> list[tuple[Entry, bool | Exception]]:
        """A file that turns out broken is set aside, and the batch goes into the new one."""
        try:
            return self._transaction(entries, synced=synced)
        except sqlite3.Error as error:
            if not is_broken(error):
                raise
            self._disconnect()
            self._begin_anew()
        return self._transaction(entries, synced=synced)

    def _transaction(self, entries: list[Entry], *, synced: bool) -> list[tuple[Entry, bool | Exception]]:
        if self._connection is None or not self._still_there():
            self._connect()
        connection = self._connection
        assert connection is not None
        # A killed process loses nothing with either; FULL keeps outcomes through a power cut as well.
        connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if self.failing is not None:  # something must reach the disk: an empty commit succeeds on a full one
                write_fact(connection, name="probed_at_seconds", value=str(self._now_seconds()))
            for write in self._owed.values():  # from before: what came since may replace it
                _written(connection, write)
            results = [(entry, _written(connection, entry.write)) for entry in entries]
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        return results

    def _failed(self, entries: list[Entry], error: Exception) -> None:
        self.failing = self._words(error)
        self._retry_at = time.monotonic() + RETRY_SECONDS
        locked = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
        for entry in entries:
            if entry.done is not None:
                entry.done.set_exception(HistoryUnavailable(self.failing))
        if locked and not self._stopping:  # somebody's lock passes; the queue's bound holds meanwhile
            self._held = [entry for entry in entries if entry.done is None]
        else:
            self._let_go(entries)
        if locked:
            self._retry_at = 0.0
        else:
            self._disconnect()
        if is_broken(error):
            self._begin_anew()

    def _let_go(self, entries: list[Entry]) -> None:
        """Not written: what has a key is owed, in its newest form; an event is lost and counted."""
        for entry in entries:
            if entry.key is not None:
                self._owed.pop(entry.key, None)
                self._owed[entry.key] = entry.write
                if len(self._owed) > OWED_ENTRIES:
                    del self._owed[next(iter(self._owed))]
                    self._dropped_failed += 1
            elif entry.done is None:
                self._dropped_failed += 1

    def _connect(self, *, whole: bool = False) -> None:
        self._disconnect()
        try:
            self._connection = open_to_write(self._path, whole=whole)
        except Exception as error:
            if not is_broken(error):
                raise
            self._begin_anew()
            self._connection = open_to_write(self._path)
        file = identity(self._path)
        if self._file not in (None, file):
            self.begun_anew += 1
        self._file = file

    def _examine(self) -> None:
        """On a new connection, because the old one's pages in memory may be sounder than the disk."""
        file, self._suspected = self._suspected, None
        if file is None or file != self._file or time.monotonic() < self._examine_at:
            return
        try:
            self._connect(whole=True)
        except Exception as error:  # as in a commit: this thread must outlive it
            self.failing = self._words(error)
        if self._file == file:
            self._examine_at = time.monotonic() + EXAMINE_SECONDS

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _begin_anew(self) -> None:
        with contextlib.suppress(OSError):
            self.set_aside.append(set_aside(self._path, self._now_seconds()))

    def _still_there(self) -> bool:
        """A file somebody deleted would take every further record with it, unnoticed."""
        try:
            return identity(self._path) == self._file
        except OSError:
            return False

    def _sweep(self) -> None:
        """One small step of retention, when enough was written since the last."""
        if self._unswept < 200 or self._connection is None or self._stopping:
            return
        try:
            more = sweep(self._connection, self._settings, rows=max(500, 2 * self._unswept))
            self._unswept = 200 if more else 0
        except sqlite3.Error:  # tried again with the next batch; writing says what is wrong with the disk
            self._unswept = 0

    def _words(self, error: Exception) -> str:
        if isinstance(error, HistoryUnavailable):
            return str(error)
        return (
            f"the history {self._path} cannot be written ({error}); nothing was recorded. Choosing goes on without it. "
            f"Free space or unlock it; it is tried again by itself."
        )


def _nothing(_connection: sqlite3.Connection) -> bool:
    return True


def _written(connection: sqlite3.Connection, write: Write) -> bool | Exception:
    """A row that cannot be stored is its own loss; a disk that fails is the whole batch's (raised)."""
    try:
        return write(connection)
    except _ROW_ERRORS as error:
        return error
    except sqlite3.Error:
        raise
    except Exception as error:
        return error
