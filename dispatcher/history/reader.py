"""Reading, on a read-only connection of its own, in a thread of its own: a long look never delays a record."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from dispatcher.errors import HistoryUnavailable
from dispatcher.history.file import Identity, identity, is_broken, open_to_read
from dispatcher.history.looking_thread import LookingThread, Refusing
from dispatcher.history.rows import (
    DecisionHead,
    read_acted,
    read_completed,
    read_experiment,
    read_failed,
    read_lease,
)
from dispatcher.vocabulary.event import Acted, Completed, Failed
from dispatcher.vocabulary.experiment import ExperimentState
from dispatcher.vocabulary.fleet import Lease, Place

READ_SECONDS = 5.0
CLOSE_SECONDS = 2.0
STEPS = 10_000  # of SQLite's machine between two looks at whether anybody still waits: well below a millisecond

T = TypeVar("T")


class Reader:
    """Every question may raise HistoryUnavailable. The synchronous ones are for starting up.

    suspect: told which file that was read and found broken, from whichever thread read it.
    """

    def __init__(self, path: Path, suspect: Callable[[Identity], None]) -> None:
        self._path = path
        self._suspect = suspect
        self._connection: sqlite3.Connection | None = None
        self._file: Identity | None = None
        self._lock = threading.Lock()  # start-up asks from the caller's thread, everything else from ours
        self._thread = LookingThread("history-read")

    @property
    def abandoned_threads(self) -> int:
        return 1 if self._thread.abandoned else 0

    def close(self) -> None:
        if self._thread.close(CLOSE_SECONDS):  # else the disk holds it: its connection is left as it is
            self._disconnect()

    async def later(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        """The answer, from the reading thread. A look past its deadline, or that nobody waits for, is interrupted; what
        even that does not end (a disk that does not answer) is counted as abandoned, and refuses those that follow."""
        try:
            look = self._thread.begin(partial(self.now, ask))
        except Refusing as why:
            raise HistoryUnavailable(f"the history {self._path} cannot be asked now: {why}") from why
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await asyncio.wrap_future(look.done)
        except TimeoutError:
            raise HistoryUnavailable(
                f"the history {self._path} gave no answer within {READ_SECONDS:g} s; ask for fewer decisions"
            ) from None
        finally:
            look.leave()

    def now(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                return ask(self._connected())
            except (sqlite3.Error, OSError) as error:
                self._disconnect()
                if is_broken(error) and self._file is not None:
                    self._suspect(self._file)
                raise HistoryUnavailable(f"the history {self._path} cannot be read ({error})") from error

    def let_go(self) -> None:
        """For the writer's thread: no look holds on to the files; the next one opens them anew."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.interrupt()
        if self._lock.acquire(timeout=CLOSE_SECONDS):
            try:
                self._disconnect()
            finally:
                self._lock.release()

    def _connected(self) -> sqlite3.Connection:
        file = identity(self._path)
        if self._connection is None or file != self._file:  # set aside and begun anew meanwhile
            self._disconnect()
            self._connection, self._file = open_to_read(self._path), file
            self._connection.set_progress_handler(self._thread.unwanted, STEPS)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def decisions(
    connection: sqlite3.Connection, limit: int, model: str | None, since_seconds: float | None
) -> list[bytes]:
    """JSON objects as they were written, newest first. A row that is none any more (damaged) is passed over."""
    wanted, values = ["kind = 'decided'"], list[object]()
    if model is not None:
        wanted.append("model = ?")
        values.append(model)
    if since_seconds is not None:
        wanted.append("at_seconds >= ?")
        values.append(since_seconds)
    where = " AND ".join(wanted)
    cursor = connection.execute(
        f"SELECT CAST(body AS BLOB) FROM event WHERE {where} ORDER BY at_seconds DESC, id DESC LIMIT ?",
        (*values, limit),
    )
    return [body for (body,) in cursor if _is_object(body)]


def decision(connection: sqlite3.Connection, decision_id: str) -> bytes | None:
    found = connection.execute(
        "SELECT CAST(body AS BLOB) FROM event WHERE decision_id = ? AND kind = 'decided' ORDER BY id DESC LIMIT 1",
        (decision_id,),
    ).fetchone()
    return None if found is None or not _is_object(found[0]) else bytes(found[0])


def _is_object(body: object) -> bool:
    """Checked here, in the reading thread, and without building anything; what is told is the bytes."""
    if not isinstance(body, bytes) or not body.startswith(b"{"):
        return False
    try:
        body.decode()
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def head(connection: sqlite3.Connection, decision_id: str) -> DecisionHead | None:
    found = connection.execute(
        "SELECT model, server, task, agent, predicted_seconds FROM event"
        " WHERE decision_id = ? AND kind = 'decided' AND model IS NOT NULL ORDER BY id DESC LIMIT 1",
        (decision_id,),
    ).fetchone()
    if found is None:
        return None
    model, server, task, agent, predicted_seconds = found
    return DecisionHead(model, Place(server=server, model=model), task, agent, predicted_seconds)


def recent_completed(connection: sqlite3.Connection, limit: int) -> list[Completed]:
    """Oldest first, as they would be told again. A row of another shape is passed over."""
    rows = _recent(connection, "completed", limit)
    return _each(lambda row: read_completed(row[1]), rows)


def recent_failed(connection: sqlite3.Connection, limit: int) -> list[Failed]:
    """Oldest first: attempts of the gateway that ended badly."""
    return _each(lambda row: read_failed(row[1]), _recent(connection, "failed", limit))


def recent_acted(connection: sqlite3.Connection, limit: int) -> list[Acted]:
    """Oldest first: starts and stops, for load and stop seconds."""
    return _each(lambda row: read_acted(*row), _recent(connection, "acted", limit))


def leases(connection: sqlite3.Connection) -> list[Lease]:
    rows = [(0.0, body) for (body,) in connection.execute("SELECT body FROM lease ORDER BY id")]
    return _each(lambda row: read_lease(row[1]), rows)


def experiments(connection: sqlite3.Connection) -> list[ExperimentState]:
    """In the order they began."""
    found = connection.execute("SELECT body FROM experiment ORDER BY started_at_seconds, id")
    return _each(lambda row: read_experiment(row[1]), [(0.0, body) for (body,) in found])


def facts(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, value FROM fact").fetchall())


def _recent(connection: sqlite3.Connection, kind: str, limit: int) -> list[tuple[float, str]]:
    rows = connection.execute(
        "SELECT at_seconds, body FROM event WHERE kind = ? ORDER BY at_seconds DESC, id DESC LIMIT ?", (kind, limit)
    ).fetchall()
    return [(at_seconds, body) for at_seconds, body in reversed(rows)]


def _each(read: Callable[[tuple[float, str]], T], rows: list[tuple[float, str]]) -> list[T]:
    kept = []
    for row in rows:
        with contextlib.suppress(msgspec.MsgspecError):
            kept.append(read(row))
    return kept
