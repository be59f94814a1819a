"""The file the writer stands on: its one writing connection, and that it is still the file, with its log, that it was.

SQLite goes on happily when somebody deletes, empties or overwrites what it has open, and every record it confirms from
then on is gone with the process. So it is looked at before each batch, again before it is confirmed, and when idle.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from dispatcher.history.checkpoints import Checkpoints
from dispatcher.history.file import Broken, Identity, identity, is_broken, open_to_write, set_aside
from dispatcher.history.watch import Seen, is_begun, log_of, look_at, sound_frames

SETTLE_SECONDS = 2.0
EXAMINE_SECONDS = 60.0  # between two looks at a file that readers call broken and that is found sound


class Ground:
    """Of the writer's thread alone, but for the three lists of what happened. release_readers: ends the looks of this
    process, so that a log which lost its name can be emptied into the file."""

    def __init__(self, path: Path, now_seconds: Callable[[], float]) -> None:
        self.set_aside: list[Path] = []  # broken files moved out of the way, oldest first
        self.mended: list[str] = []  # what else somebody did to the files, and what became of it
        self.begun_anew = 0  # how often another file took the place of the one in use
        self.release_readers: Callable[[], None] = lambda: None
        self.connection: sqlite3.Connection | None = None
        self.file: Identity | None = None
        self._path = path
        self._now_seconds = now_seconds
        self.checkpoints = Checkpoints(path)
        self._left: Seen | None = None  # as the last batch left it
        self._left_at_turn = 0  # of the checkpoints, which write into the file beside us
        self._examine_at = 0.0

    # ── making it, leaving it ──

    def connect(self, *, whole: bool = False) -> None:
        """Raises Broken, HistoryUnavailable, OSError or sqlite3.Error."""
        self.disconnect()
        self._clear_stale_log()
        try:
            self.connection = open_to_write(self._path, whole=whole)
        except Exception as error:
            if not is_broken(error):
                raise
            self.begin_anew()
            self.connection = open_to_write(self._path)
        self._left_at_turn, self._left = self.checkpoints.turn, look_at(self._path)
        if self.file not in (None, self._left.file):
            self.begun_anew += 1
        self.file = self._left.file

    def disconnect(self) -> None:
        if self.connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self.connection.close()
            self.connection = None

    def begin_anew(self) -> None:
        """What is there is moved aside; the next connect() makes a new file."""
        self.disconnect()
        with contextlib.suppress(OSError):
            self.set_aside.append(set_aside(self._path, self._now_seconds()))

    def examine(self, file: Identity | None) -> None:
        """A reader found this file broken. On a new connection, because the old one's pages in memory may be sounder
        than the disk. Raises as connect()."""
        if file is None or file != self.file or time.monotonic() < self._examine_at:
            return
        self.connect(whole=True)
        if self.file == file:
            self._examine_at = time.monotonic() + EXAMINE_SECONDS

    # ── looking ──

    def stand(self) -> sqlite3.Connection:
        """Before a batch. Raises as connect(), and Broken for a file or a log that is not what was left."""
        seen = self._seen()
        if self.connection is None or seen is None or seen.file != self.file:
            had, aside = self.connection, len(self.set_aside)
            self.connect()
            if had is not None and len(self.set_aside) == aside:
                self._tell_lost(seen)
        elif self._left is None or seen != self._left:
            self._look_closer(self._forgiven(seen), self._left)
        assert self.connection is not None
        return self.connection

    def stood(self) -> bool:
        """After a commit, before it is told to anybody. False: it went into a file that is no longer there, and has to
        be written again. Raises Broken."""
        turn = self.checkpoints.turn
        seen = self._seen()
        if seen is None or seen.file != self.file:
            self._tell_lost(seen)
            self.disconnect()
            return False
        if self._log_is_gone(seen):
            self._save_log()
        elif not is_begun(self._path):
            raise Broken("its -wal file was emptied or overwritten")
        else:
            self._left_at_turn, self._left = turn, seen
        return True

    def idle(self) -> None:
        """A log that lost its name is saved at once: until then a crash would lose what is in it."""
        if self.connection is None:
            return
        seen = self._seen()
        if seen is not None and seen.file == self.file and self._log_is_gone(seen):
            self._save_log()

    def leave(self) -> None:
        """After writes of our own that nobody is told of (retention)."""
        self._left_at_turn, self._left = self.checkpoints.turn, self._seen() or self._left

    def _forgiven(self, seen: Seen) -> Seen:
        """What a checkpoint of ours did to the file in the meantime is nobody else's doing. Emptying it is."""
        turn, left = self.checkpoints.turn, self._left
        ours = turn % 2 == 1 or turn != self._left_at_turn
        return seen._replace(marks=left.marks) if ours and left is not None and seen.marks[0] else seen

    def _seen(self) -> Seen | None:
        try:
            return look_at(self._path)
        except OSError:
            return None

    def _log_is_gone(self, seen: Seen) -> bool:
        return self._left is not None and self._left.log is not None and seen.log != self._left.log

    def _look_closer(self, seen: Seen, left: Seen | None) -> None:
        """Somebody touched the files. Another program that writes, or empties the log into the file, is welcome to."""
        if left is None or self._log_is_gone(seen):
            self._save_log()
            return
        if seen.log_marks != left.log_marks:
            self.checkpoints.settle(SETTLE_SECONDS)
            self._sum_up_log()
        if seen.marks != left.marks:
            if seen.marks[0] == 0 < left.marks[0]:
                raise Broken("it was emptied")
            self.connect(whole=True)
        self.leave()

    def _sum_up_log(self) -> None:
        """Raises Broken when there are fewer sound frames in it than SQLite believes."""
        assert self.connection is not None
        try:
            sound = sound_frames(self._path)
            _, frames, _ = self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except (OSError, sqlite3.Error) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
                raise
            raise Broken(f"its -wal file cannot be read any more ({error})") from error
        if frames > sound:
            raise Broken(f"its -wal file was changed: {sound} of {frames} frames are sound")

    def _save_log(self) -> None:
        """Its name is gone, but this connection still has it: all of it goes into the file, and a new one is begun."""
        if self.connection is not None:
            self.checkpoints.settle(SETTLE_SECONDS)
            self.release_readers()  # else their descriptors would go on naming the old log, and its index
            busy, *_ = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise Broken("its -wal file was deleted or replaced while another program read")
        self.connect()
        self.mended.append("its -wal file was deleted or replaced; nothing was lost: it was still open, and was saved")

    def _tell_lost(self, seen: Seen | None) -> None:
        what = "deleted" if seen is None else "replaced by another file"
        self.mended.append(f"it was {what}; what was recorded in it is not known any more")

    def _clear_stale_log(self) -> None:
        """The log of a file that was replaced would be read as the new one's."""
        if self.file is None or self._left is None or self._left.log is None:
            return
        with contextlib.suppress(OSError):
            if identity(self._path) != self.file and identity(log_of(self._path)) == self._left.log:
                for suffix in ("-wal", "-shm"):
                    os.unlink(f"{self._path}{suffix}")
