"""Values as a person reads them on the page. What nobody knows is said to be unknown, never 0."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from math import isfinite

from dispatcher.api.page.markup import Markup, element
from dispatcher.vocabulary.words import Bytes, Seconds

UNKNOWN = "unknown"
MOST_LETTERS = 240  # of one name or sentence: who writes names of 10,000 letters sees their beginning


def cut(text: str, letters: int = MOST_LETTERS) -> str:
    return text if len(text) <= letters else f"{text[:letters]}…"


def size(count_bytes: float | None) -> str:
    return UNKNOWN if count_bytes is None or not isfinite(count_bytes) else str(Bytes(count_bytes))


def duration(seconds: float | None) -> str:
    if seconds is None or not isfinite(seconds):
        return UNKNOWN
    if seconds == 0:
        return "0 s"
    return f"{seconds * 1000:.0f} ms" if 0 < seconds < 0.1 else str(Seconds(seconds))


def number(value: float | None, unit: str = "") -> str:
    if value is None or not isfinite(value):
        return UNKNOWN
    return f"{value:.3g}{unit}" if abs(value) < 100 else f"{value:,.0f}{unit}"


def score(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def age(seconds: float) -> str:
    """Coarse: a page that is a moment old must not look wrong."""
    seconds = max(0.0, seconds)
    for count, word in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= count:
            return f"{seconds // count:.0f} {word}"
    return f"{seconds:.0f} s"


def moment(text: str | None) -> Markup:
    """An RFC 3339 time of ours as a clock's, UTC; its day where the machine reads it and where the mouse rests."""
    if not text:
        return element("span", UNKNOWN, class_="unknown")
    return element("time", f"{text[11:19]}", datetime=text, title=f"{text[:10]} {text[11:19]} UTC")


def clock_time(at_seconds: float) -> Markup:
    told = datetime.fromtimestamp(at_seconds, UTC).isoformat(timespec="seconds")[:-6] + "Z"
    return moment(told)


def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def told_list(words: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(cut(word, 80) for word in words[:most])
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown
