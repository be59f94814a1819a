"""Numbers as a person reads them. They become text when a sentence is read, not when a candidate is weighed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from datetime import UTC, datetime

from dispatcher.vocabulary.settings import GIB, MIB

MAX_COMPARED = 64


class Bytes(int):
    """`5.4 GiB`, or `312 MiB` below one."""

    def __str__(self) -> str:
        return f"{self / GIB:.1f} GiB" if abs(self) >= GIB else f"{self / MIB:.0f} MiB"


class Moment(float):
    """Unix seconds as `14:02:10` (UTC)."""

    def __str__(self) -> str:
        return datetime.fromtimestamp(float(self), UTC).strftime("%H:%M:%S")

    def __format__(self, spec: str) -> str:
        return str(self)


class Seconds(float):
    """`6.1 s`, or `4 min` from two minutes on."""

    def __str__(self) -> str:
        return f"{self / 60:.0f} min" if self >= 120 else f"{float(self):.1f} s"

    def __format__(self, spec: str) -> str:
        return str(self)


def printable(text: str, instead: str = "·") -> str:
    """In one line, and without what steers a terminal. instead: of each character that cannot be shown."""
    return "".join(letter if letter.isprintable() else instead for letter in text)


def shortened(text: str, letters: int = 60) -> str:
    """Printable, and cut after so many letters; of a longer text no more than that is looked at."""
    return printable(text) if len(text) <= letters else f"{printable(text[:letters])}…"


def meant(name: str, known: Sequence[str]) -> str:
    """`; did you mean …?` where one of them is like it, else nothing."""
    near = difflib.get_close_matches(name[:60].lower(), known[:MAX_COMPARED], n=1)
    return f"; did you mean {near[0]}?" if near else ""
