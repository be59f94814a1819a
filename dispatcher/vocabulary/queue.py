"""The queue of one place as others see it: GET /queue, and the gauges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.request import Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One place's queue at one moment. slots: how many may run there at once."""

    place: Place
    running: int
    draining: int  # slots still taken by prompts that were cancelled: the engine may be working on them
    slots: int
    waiting: Mapping[Priority, int]
    limits: Mapping[Priority, int]  # how many of each class may wait
    oldest_wait_seconds: float | None = None  # None: nobody waits
    estimated_wait_seconds: float | None = None  # of somebody of class normal who came now; None: unknown
