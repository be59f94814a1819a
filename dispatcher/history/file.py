"""The file itself: making it, recognising it, setting a broken one aside. What is in it is not this module's matter."""

from __future__ import annotations

import glob
import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from dispatcher.errors import HistoryUnavailable

SCHEMA_VERSION = 1
MIN_SQLITE = (3, 37, 0)
BUSY_SECONDS = 1.5  # below the 2 s an awaited record may take, so that its own failure says why
CHECKED_BYTES = 32 * 1024**2  # a file up to this is checked whole at start: well below a second
LOG_PAGES = 4096  # a log that grows beyond is emptied within a commit; see history.checkpoints for what comes before
KEPT_ASIDE = 3  # broken files kept for a person to look at; a disk that breaks them for ever must not fill itself
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SCHEMA = Path(__file__).with_name("schema.sql")


Identity = tuple[int, int]


def identity(path: Path) -> Identity:
    """Device and inode: a file moved away, or a disk mounted anew, leaves another file under the same name. Raises
    OSError."""
    told = os.stat(path)
    return told.st_dev, told.st_ino


class Broken(Exception):
    """The file is no database, or a damaged one."""


def is_broken(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, Broken) or (code is not None and code & 0xFF in _BROKEN)


def open_to_write(path: Path, *, whole: bool = False) -> sqlite3.Connection:
    """The writer's connection, schema in place. whole: a large file is checked too.

    Raises Broken, HistoryUnavailable, OSError or sqlite3.Error."""
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        raise HistoryUnavailable(f"SQLite {sqlite3.sqlite_version} is too old for the history; it needs 3.37 or newer")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise HistoryUnavailable(f"the history {path} is no regular file; give history.path the name of one")
    new = not path.exists() or path.stat().st_size == 0
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        if new:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # must precede the first table
        else:
            _look_over(connection, path, whole=whole)
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute(f"PRAGMA journal_size_limit = {LOG_PAGES * 4096}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        connection.execute("PRAGMA temp_store = MEMORY")  # nothing is written beside the file
        _prepare(connection, path)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error) and is_broken(error):
            raise Broken(str(error)) from error
        raise
    return connection


def open_to_read(path: Path) -> sqlite3.Connection:
    """Read-only: a reader can never hold the writer's lock. Raises sqlite3.Error."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def set_aside(path: Path, now_seconds: float) -> Path:
    """Moves the broken file (and what SQLite keeps beside it) out of the way, for a person to look at. The newest few
    are kept."""
    target = path.with_name(f"{path.name}.corrupt-{int(now_seconds)}")
    number = 1
    while target.exists():  # two within one second
        number += 1
        target = path.with_name(f"{path.name}.corrupt-{int(now_seconds)}-{number}")
    os.replace(path, target)
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{target}{suffix}")
    with suppress(OSError):
        _forget_older(path, target)
    return target


def _forget_older(path: Path, newest: Path) -> None:
    aside = [
        one
        for one in path.parent.glob(f"{glob.escape(path.name)}.corrupt-*")
        if not one.name.endswith(("-wal", "-shm"))
    ]
    older = sorted((one for one in aside if one != newest), key=lambda one: one.stat().st_mtime, reverse=True)
    for one in older[KEPT_ASIDE - 1 :]:
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(f"{one}{suffix}")


def _look_over(connection: sqlite3.Connection, path: Path, *, whole: bool) -> None:
    """Raises Broken or sqlite3.DatabaseError when the file is not, or no longer, a sound database."""
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if whole or path.stat().st_size <= CHECKED_BYTES:
        answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if answer != "ok":
            raise Broken(answer)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return
    if version > SCHEMA_VERSION:
        raise HistoryUnavailable(
            f"{path} has schema {version}; this version of the dispatcher knows {SCHEMA_VERSION}. Nothing was read or "
            "changed. Run the newer version again, or set history.path to another file."
        )
    connection.execute("BEGIN IMMEDIATE")  # two daemons may come here at once: the second finds it done
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            _create(connection, path)
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _create(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise HistoryUnavailable(
            f"{path} is another program's database; it was not touched. Set history.path to a file of its own."
        )
    for statement in _statements(_SCHEMA.read_text(encoding="utf-8")):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _statements(script: str) -> list[str]:
    """executescript() would commit before it begins, so the script is run statement by statement."""
    bare = "\n".join(line.split("--")[0] for line in script.splitlines())
    return [statement for statement in bare.split(";") if statement.strip()]
