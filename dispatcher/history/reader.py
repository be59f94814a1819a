"""Reading, on a read-only connection of its own, in a thread of its own: a long look never delays a record."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dispatcher.errors import HistoryUnavailable
from dispatcher.history.file import is_broken, open_to_read
from dispatcher.history.rows import DecisionHead, read_acted, read_completed, read_lease
from dispatcher.vocabulary.event import Acted, Completed
from dispatcher.vocabulary.fleet import Lease, Place

READ_SECONDS = 5.0

T = TypeVar("T")


class Reader:
    """Every question may raise HistoryUnavailable. The synchronous ones are for starting up.

    suspect: told the inode of a file that was read and found broken, from whichever thread read it.
    """

    def __init__(self, path: Path, suspect: Callable[[int], None]) -> None:
        self._path = path
        self._suspect = suspect
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._lock = threading.Lock()  # start-up asks from the caller's thread, everything else from ours
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="history-read")

    def close(self) -> None:
        self._interrupt()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._disconnect()

    async def later(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        """The answer, from the reading thread. A look past its deadline is interrupted, not abandoned."""
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._pool, self.now, ask)
        except TimeoutError:
            self._interrupt()
            raise HistoryUnavailable(
                f"the history {self._path} gave no answer within {READ_SECONDS:g} s; ask for fewer decisions"
            ) from None
        except RuntimeError as error:  # the pool is shut down
            raise HistoryUnavailable(f"the history {self._path} is closed") from error

    def now(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                return ask(self._connected())
            except (sqlite3.Error, OSError) as error:
                self._disconnect()
                if is_broken(error) and self._inode is not None:
                    self._suspect(self._inode)
                raise HistoryUnavailable(f"the history {self._path} cannot be read ({error})") from error

    def _connected(self) -> sqlite3.Connection:
        inode = os.stat(self._path).st_ino
        if self._connection is None or inode != self._inode:  # set aside and begun anew meanwhile
            self._disconnect()
            self._connection, self._inode = open_to_read(self._path), inode
        return self._connection

    def _interrupt(self) -> None:
        if (connection := self._connection) is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.interrupt()

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def decisions(
    connection: sqlite3.Connection, limit: int, model: str | None, since_seconds: float | None
) -> list[dict[str, Any]]:
    """Newest first."""
    wanted, values = ["kind = 'decided'"], list[object]()
    if model is not None:
        wanted.append("model = ?")
        values.append(model)
    if since_seconds is not None:
        wanted.append("at_seconds >= ?")
        values.append(since_seconds)
    where = " AND ".join(wanted)
    cursor = connection.execute(
        f"SELECT body FROM event WHERE {where} ORDER BY at_seconds DESC, id DESC LIMIT ?", (*values, limit)
    )
    return [json.loads(body) for (body,) in cursor]


def decision(connection: sqlite3.Connection, decision_id: str) -> dict[str, Any] | None:
    found = connection.execute(
        "SELECT body FROM event WHERE decision_id = ? AND kind = 'decided' ORDER BY id DESC LIMIT 1", (decision_id,)
    ).fetchone()
    if found is None:
        return None
    whole: dict[str, Any] = json.loads(found[0])
    return whole


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


def recent_acted(connection: sqlite3.Connection, limit: int) -> list[Acted]:
    """Oldest first: starts and stops, for load and stop seconds."""
    return _each(lambda row: read_acted(*row), _recent(connection, "acted", limit))


def leases(connection: sqlite3.Connection) -> list[Lease]:
    rows = [(0.0, body) for (body,) in connection.execute("SELECT body FROM lease ORDER BY id")]
    return _each(lambda row: read_lease(row[1]), rows)


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
