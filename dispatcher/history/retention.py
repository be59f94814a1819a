"""Forgetting, oldest first, in steps small enough to fit between two commits."""

from __future__ import annotations

import contextlib
import math
import sqlite3

from dispatcher.vocabulary.settings import HistorySettings

FREED_PAGES = 256  # given back to the file system per step


def sweep(connection: sqlite3.Connection, settings: HistorySettings, *, rows: int) -> bool:
    """One step of at most `rows` events. True: there is more to forget. Raises sqlite3.Error, changing nothing."""
    oldest, newest = connection.execute("SELECT min(id), max(id) FROM event").fetchone()
    if oldest is None:
        return False
    kept_rows = newest - oldest + 1  # ids only vanish at the old end
    used = used_bytes(connection)
    surplus_rows = max(
        kept_rows - settings.retention_rows,
        math.ceil(kept_rows * (used - settings.retention_bytes) / used),  # the rows' share of what is too much
    )
    if surplus_rows <= 0:
        return False
    last = oldest + min(rows, surplus_rows) - 1
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("DELETE FROM event WHERE id <= ?", (last,))
        connection.execute(
            "DELETE FROM outcome WHERE decision_id IN (SELECT decision_id FROM outcome WHERE at_seconds <"
            " coalesce((SELECT at_seconds FROM event ORDER BY id LIMIT 1), 0) ORDER BY at_seconds LIMIT ?)",
            (rows,),
        )
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute(f"PRAGMA incremental_vacuum({FREED_PAGES})").fetchall()
    return bool(surplus_rows > rows)


def used_bytes(connection: sqlite3.Connection) -> int:
    """Pages in use; free ones are used again before the file grows."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
