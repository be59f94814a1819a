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
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from dispatcher.errors import HistoryUnavailable
from dispatcher.history.checkpoints import EVERY_ENTRIES
from dispatcher.history.file import Broken, Identity, is_broken
from dispatcher.history.ground import Ground
from dispatcher.history.retention import sweep
from dispatcher.history.rows import write_fact
from dispatcher.vocabulary.settings import HistorySettings

QUEUE_ENTRIES = 10_000  # events beyond are dropped; awaited records may use as much again
BATCH_ENTRIES = 2_000
IDLE_SECONDS = 1.0  # between looks at what is still owed, and at retention
HANGS_SECONDS = 3.0  # a commit that takes longer is not coming soon: what is awaited is refused at once
CHECKPOINT_SECONDS = 2.0  # for the last one to end, when closing
OWED_ENTRIES = 20_000  # beyond, the oldest are given up and counted
PROMISED_ENTRIES = 5_000  # the newest that were confirmed as durable, for the file that takes a broken one's place
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
        self.ground = Ground(path, now_seconds)
        self.failing: str | None = None  # why the last batch was not written; None: it was
        self._path = path
        self._settings = settings
        self._now_seconds = now_seconds
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._urgent = threading.Event()
        self._held: list[Entry] = []  # events of a batch that found the file locked
        self._owed: dict[str, Write] = {}
        self._promised: deque[Write] = deque(maxlen=PROMISED_ENTRIES)
        self._promised_to: Identity | None = None
        self._aside = 0  # broken files, as last counted
        self._committing_since: float | None = None  # of time.monotonic
        self._dropped_full = 0  # counted by the callers' thread
        self._dropped_failed = 0  # counted by the writer's
        self._unswept = 0
        self._unmoved = 0  # entries since the last checkpoint was begun
        self._retry_at = 0.0
        self._suspected: Identity | None = None  # the file that a reader found broken
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
            self.ground.connect()
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
            else:
                self._look_idle()
            self._sweep()
        while batch := self._collect():  # what came in while stopping
            self._commit(batch)
        self.ground.checkpoints.close(CHECKPOINT_SECONDS)
        self.ground.disconnect()

    def _look_idle(self) -> None:
        try:
            self.ground.idle()
        except Exception as error:  # as in a commit: this thread must outlive it
            self._failed([], error)

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
        self._unmoved += len(entries)
        if self._unmoved >= EVERY_ENTRIES:
            self._unmoved = 0
            self.ground.checkpoints.begin(self.ground.file)
        self._remember_promised(entries)
        for entry, result in results:
            if isinstance(result, bool):
                if entry.done is not None:
                    entry.done.set_result(result)
            elif entry.done is not None:
                entry.done.set_exception(HistoryUnavailable(f"it cannot be stored ({result!r}); nothing was recorded"))
            else:
                self._dropped_failed += 1

    def _transaction_or_anew(self, entries: list[Entry], *, synced: bool) -> list[tuple[Entry, bool | Exception]]:
        """A file that turns out broken is set aside, and the batch goes into the new one; so it does when its file was
        taken away while it was written."""
        try:
            results = self._transaction(entries, synced=synced)
            if self.ground.stood():
                return results
        except (sqlite3.Error, Broken) as error:
            if not is_broken(error):
                raise
            self.ground.begin_anew()
        results = self._transaction(entries, synced=synced)
        if not self.ground.stood():
            raise HistoryUnavailable(f"the history {self._path} is taken away again and again; nothing was recorded")
        return results

    def _transaction(self, entries: list[Entry], *, synced: bool) -> list[tuple[Entry, bool | Exception]]:
        connection = self.ground.stand()
        # A killed process loses nothing with either; FULL keeps outcomes through a power cut as well.
        connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if self.failing is not None:  # something must reach the disk: an empty commit succeeds on a full one
                write_fact(connection, name="probed_at_seconds", value=str(self._now_seconds()))
            for write in self._to_be_repeated():
                _written(connection, write)
            for write in self._owed.values():  # from before: what came since may replace it
                _written(connection, write)
            results = [(entry, _written(connection, entry.write)) for entry in entries]
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        return results

    def _to_be_repeated(self) -> tuple[Write, ...]:
        """What was confirmed to the file that broke, as far as memory goes. A file that somebody deleted or replaced is
        not filled again: that may be what was wanted."""
        if self._promised_to in (None, self.ground.file):
            return ()
        if len(self.ground.set_aside) == self._aside:
            self._promised.clear()
        return tuple(self._promised)

    def _remember_promised(self, entries: list[Entry]) -> None:
        self._to_be_repeated()  # forgets what is not to be
        self._promised.extend(entry.write for entry in entries if entry.synced)
        self._promised_to, self._aside = self.ground.file, len(self.ground.set_aside)

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
            self.ground.disconnect()
        if is_broken(error):
            self.ground.begin_anew()

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

    def _examine(self) -> None:
        file, self._suspected = self._suspected, None
        try:
            self.ground.examine(file)
        except Exception as error:  # as in a commit: this thread must outlive it
            self.failing = self._words(error)

    def _sweep(self) -> None:
        """One small step of retention, when enough was written since the last."""
        connection = self.ground.connection
        if self._unswept < 200 or connection is None or self._stopping:
            return
        try:
            more = sweep(connection, self._settings, rows=max(500, 2 * self._unswept))
            self._unswept = 200 if more else 0
        except sqlite3.Error:  # tried again with the next batch; writing says what is wrong with the disk
            self._unswept = 0
        self.ground.leave()

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
