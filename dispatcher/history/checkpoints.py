"""Moving the log into the file, beside the writer and not within its commits.

SQLite does it inside of whichever commit makes the log long enough, and with ids that come in no order nearly every row
is another page: measured, the one lease in a hundred that met it waited 4 ms at 20 MiB and 15 ms at 240 MiB, the disk's
sync included. A checkpoint of a second connection hinders no commit. What is left to the commits is a log that grows
faster than this empties it, and then there is little left to move.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path

from dispatcher.history.file import BUSY_SECONDS, Identity, identity

EVERY_ENTRIES = 500  # written, before it is begun: some 1,000 pages, SQLite's own measure


class Checkpoints:
    """One thread that sleeps until it is told to begin. `turn` is odd while it works, and never the same twice."""

    def __init__(self, path: Path) -> None:
        self.turn = 0
        self._path = path
        self._file: Identity | None = None
        self._wanted = threading.Event()
        self._settled = threading.Event()
        self._settled.set()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="history-checkpoint", daemon=True)
        self._thread.start()

    def begin(self, file: Identity | None) -> None:
        """Never blocks. file: the one that is meant, should another be in its place by then."""
        if self._settled.is_set() and not self._closed:
            self._file = file
            self._settled.clear()
            self.turn += 1
            self._wanted.set()

    def settle(self, timeout_seconds: float) -> bool:
        """True: nothing of it is under way."""
        return self._settled.wait(timeout_seconds)

    def close(self, timeout_seconds: float) -> None:
        self._closed = True
        self._wanted.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if not self._settled.is_set():
                with contextlib.suppress(sqlite3.Error, OSError):  # the writer meets the cause, and says it
                    self._checkpoint()
                self.turn += 1
                self._settled.set()
            if self._closed:
                return

    def _checkpoint(self) -> None:
        if identity(self._path) != self._file:
            return
        uri = f"{self._path.absolute().as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as own:
            own.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
