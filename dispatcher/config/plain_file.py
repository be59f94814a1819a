"""The bytes of a file that somebody named. Nothing that can block or never ends is read, whatever it is named."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Stamp = tuple[int, int, int, int, int]


class NotPlain(Exception):
    """It is no file of a few kilobytes. Its words say what it is instead."""


def read_plain(path: Path, most_bytes: int) -> bytes:
    """Raises OSError and NotPlain. Opened first and looked at then: what is looked at by name may be another by now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:  # a NUL in it
        raise OSError(errno.EINVAL, "no file can be called that") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise NotPlain(f"{_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(most_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > most_bytes:
        raise NotPlain(f"more than {most_bytes} bytes")
    return content


def stamp_of(path: Path) -> Stamp | None:
    """Changes when the file does: rewritten, replaced, its link switched, its rights given. None: it cannot be seen."""
    try:
        seen = os.stat(path)
    except (OSError, ValueError):
        return None
    return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
