"""Text of /proc → numbers. Tolerant: what is not there or cannot be read is None, never 0. No file is opened here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """One file of /proc/pressure. avg10, avg60: the kernel's own running means, 0..1; total: since boot. `full` of the
    CPU means nothing for a whole host and is 0 or missing there."""

    some_avg10_ratio: float | None = None
    some_avg60_ratio: float | None = None
    some_total_seconds: float | None = None
    full_avg10_ratio: float | None = None
    full_avg60_ratio: float | None = None
    full_total_seconds: float | None = None


def parse_pressure(text: str) -> Pressure:
    """`some avg10=0.00 avg60=0.04 avg300=0.03 total=4013288` (percent, microseconds), then perhaps `full …`."""
    found: dict[str, float | None] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        fields = dict(part.partition("=")[::2] for part in rest.split())
        if kind in ("some", "full"):
            found[f"{kind}_avg10_ratio"] = _scaled(fields.get("avg10"), 100)
            found[f"{kind}_avg60_ratio"] = _scaled(fields.get("avg60"), 100)
            found[f"{kind}_total_seconds"] = _scaled(fields.get("total"), 1e6)
    return Pressure(**found)


def parse_meminfo(text: str) -> Mapping[str, int]:
    """/proc/meminfo as bytes by name: `MemAvailable:   24266508 kB`. Lines without kB (huge page
    counts) are left out."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        parts = rest.split()
        if len(parts) == 2 and parts[1] == "kB" and parts[0].isdigit():
            found[name] = int(parts[0]) * 1024
    return found


def parse_nvidia_smi(text: str) -> int | None:
    """Free video memory of all GPUs from `free, total` lines in MiB. None when one of them does not say ([N/A]) or
    cannot be: the sum of what is known would be a wrong sum."""
    free_bytes = 0
    lines = [line for line in text.splitlines() if line.strip()]
    for line in lines:
        free, total = ([part.strip() for part in line.split(",")] + [""])[:2]
        if not (free.isascii() and free.isdigit() and total.isascii() and total.isdigit() and int(free) <= int(total)):
            return None
        free_bytes += int(free) * 1024 * 1024
    return free_bytes if lines else None


def _scaled(text: str | None, divisor: float) -> float | None:
    try:
        return float(text) / divisor if text is not None else None
    except ValueError:
        return None
