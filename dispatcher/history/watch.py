"""Whether the files are still as they were left: what others do to them, SQLite does not see, and confirms records into
a file that has no name any more, or into a log that nobody can read again.

The database and its -shm are only looked at by name here, never opened: closing such a descriptor would end the locks
that SQLite holds on them for this process (POSIX). The -wal has none, and may be read.
"""

from __future__ import annotations

import os
import sys
from array import array
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from dispatcher.history.file import Identity

HEADER_BYTES = 32
FRAME_BYTES = 24  # before each page
CHECKED_LOG_BYTES = 32 * 1024**2  # of a log that somebody touched, summed up here; a larger one is not believed
_MAGIC = {0x377F0682: "little", 0x377F0683: "big"}  # https://www.sqlite.org/walformat.html: byte order of its sums
_WORD = (1 << 32) - 1

Marks = tuple[int, int]  # size in bytes, mtime in nanoseconds; not ctime: as root, SQLite changes it at every opening


class Seen(NamedTuple):
    """One look. log None: there is no -wal."""

    file: Identity
    marks: Marks
    log: Identity | None
    log_marks: Marks | None


def look_at(path: Path) -> Seen:
    """Raises OSError when there is no such file."""
    file, marks = _told(path)
    try:
        log, log_marks = _told(log_of(path))
    except FileNotFoundError:
        return Seen(file, marks, None, None)
    return Seen(file, marks, log, log_marks)


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def is_begun(path: Path) -> bool:
    """Whether the log has a header. One that was emptied under a writer goes on behind a hole."""
    try:
        with log_of(path).open("rb") as log:
            return int.from_bytes(log.read(4), "big") in _MAGIC
    except OSError:
        return False


def sound_frames(path: Path) -> int:
    """How many frames from the beginning of the log carry the sums they must; 0 for no log, or none of SQLite's."""
    with log_of(path).open("rb") as log:
        content = log.read(CHECKED_LOG_BYTES)
    order = _MAGIC.get(int.from_bytes(content[:4], "big"))
    if order is None or len(content) < HEADER_BYTES:
        return 0
    page_bytes = int.from_bytes(content[8:12], "big")
    sums = _summed(content[:24], (0, 0), order)
    if sums != _pair(content[24:32]) or page_bytes < 512:
        return 0
    salt, count, start = content[16:24], 0, HEADER_BYTES
    while start + FRAME_BYTES + page_bytes <= len(content):
        head = content[start : start + FRAME_BYTES]
        page = content[start + FRAME_BYTES : start + FRAME_BYTES + page_bytes]
        sums = _summed(page, _summed(head[:8], sums, order), order)
        if head[8:16] != salt or sums != _pair(head[16:24]):
            break
        count += 1
        start += FRAME_BYTES + page_bytes
    return count


def _told(path: Path) -> tuple[Identity, Marks]:
    told = os.stat(path)
    return (told.st_dev, told.st_ino), (told.st_size, told.st_mtime_ns)


def _pair(eight: bytes) -> tuple[int, int]:
    return int.from_bytes(eight[:4], "big"), int.from_bytes(eight[4:8], "big")


def _summed(content: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    words = array("I", content)
    if order != sys.byteorder:
        words.byteswap()
    one, other = sums
    for even, odd in zip(islice(words, 0, None, 2), islice(words, 1, None, 2), strict=True):
        one = (one + even + other) & _WORD
        other = (other + odd + one) & _WORD
    return one, other
