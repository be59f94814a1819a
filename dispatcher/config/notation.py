"""How durations, sizes and numbers are written. Each reader raises ValueError with the words a person reads."""

from __future__ import annotations

import math
import re
from decimal import Decimal

_NUMBER = r"\d+(?:\.\d+)?"
_DURATION = re.compile(rf"(?:({_NUMBER})h)?(?:({_NUMBER})m(?!s))?(?:({_NUMBER})s)?(?:({_NUMBER})ms)?")
_DURATION_UNITS_SECONDS = (Decimal(3600), Decimal(60), Decimal(1), Decimal("0.001"))
_SIZE = re.compile(rf"({_NUMBER}) ?([A-Za-z]*)")
_SIZE_UNITS_BYTES = {
    "TiB": 1024**4,
    "GiB": 1024**3,
    "MiB": 1024**2,
    "KiB": 1024,
    "TB": 1000**4,
    "GB": 1000**3,
    "MB": 1000**2,
    "KB": 1000,
    "B": 1,
}
_INTEGER = re.compile(r"[+-]?(?:0|[1-9]\d*(?:_\d+)*)")
_LONGEST_NUMBER = 40
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def _refuse_endless(text: str) -> None:
    if text.lower().lstrip("+-.") in ("inf", "infinity", "nan"):
        raise ValueError(f"{text} is not a finite number; write the largest value you mean")
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"{text[:_LONGEST_NUMBER]}… is too long for a number")


def duration_seconds(text: str) -> float:
    """`5s`, `1m30s`, `2h`, `250ms`, or a number of seconds."""
    _refuse_endless(text)
    if re.fullmatch(_NUMBER, text):
        return float(text)
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError(f"{text!r} is not a duration; write it like 5s, 1m30s, 2h or 250ms")
    parts = zip(match.groups(), _DURATION_UNITS_SECONDS, strict=True)
    return float(sum((Decimal(number) * unit for number, unit in parts if number), Decimal(0)))


def duration_text(seconds: float) -> str:
    """The shortest notation that reads back as exactly these seconds."""
    whole = int(seconds)
    if seconds == whole:
        hours, rest = divmod(whole, 3600)
        minutes, rest = divmod(rest, 60)
        parts = [f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if n]
        return "".join(parts) or "0s"
    exact = Decimal(repr(seconds))
    return f"{exact * 1000:f}".rstrip("0").rstrip(".") + "ms" if seconds < 1 else f"{exact:f}s"


def size_bytes(text: str) -> int:
    """`3GiB`, `512MiB`, `1.5GiB`, `10GB`, or a whole number of bytes. A fraction is rounded to whole bytes."""
    _refuse_endless(text)
    match = _SIZE.fullmatch(text.replace("_", "") if _INTEGER.fullmatch(text) else text)
    units = {unit.lower(): factor for unit, factor in _SIZE_UNITS_BYTES.items()}
    unit = match.group(2).lower() if match else ""
    if match is not None and unit in ("k", "m", "g", "t", "ki", "mi", "gi", "ti"):
        meant = f"{match.group(1)}{unit[0].upper()}"
        raise ValueError(f"{text!r} is not a size; write {meant}iB (powers of 1024) or {meant}B (powers of 1000)")
    if match is None or (unit and unit not in units):
        raise ValueError(f"{text!r} is not a size; write it like 3GiB, 512MiB, 1.5GiB, 10GB or a number of bytes")
    if not unit and "." in match.group(1):
        raise ValueError(f"{text!r} is no whole number of bytes; add a unit, like {text}GiB")
    return round(Decimal(match.group(1)) * units.get(unit, 1))


def size_text(size: int) -> str:
    """The shortest notation, of at most three decimals, that reads back as exactly these bytes."""
    texts = []
    for unit, factor in _SIZE_UNITS_BYTES.items():
        candidates = (f"{Decimal(size) / factor:.{decimals}f}{unit}" for decimals in range(4) if 1 < factor <= size)
        texts += [text for text in candidates if size_bytes(text) == size]
    return min([*texts, str(size)], key=len)


def integer(text: str) -> int:
    _refuse_endless(text)
    if _INTEGER.fullmatch(text) is None:
        leading = ", without leading zeros" if re.fullmatch(r"0\d+", text) else ""
        raise ValueError(f"{text!r} is not a whole number; write it in digits{leading}")
    return int(text)


def number(text: str) -> float:
    _refuse_endless(text)
    if re.fullmatch(rf"{_NUMBER} ?%", text):
        share = Decimal(text.rstrip(" %")) / 100
        raise ValueError(f"{text!r} is a percentage; write the ratio, {share.normalize():f}")
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number; write it like 0.85") from None
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number; write the largest value you mean")
    return value


def boolean(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(f"{text!r} is neither true nor false; write one of them")
    return text.lower() in _TRUE
