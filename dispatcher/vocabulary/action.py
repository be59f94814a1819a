"""What is to be done to a place. Planned by control.plan, done by lifecycle.controller through a provider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dispatcher.vocabulary.fleet import Place

StopCause = Literal["idle", "evicted", "asked", "pressure", "failed", "unwanted"]

BLIND = "blind"  # the cause of a start on memory that nobody knows, because nothing else would answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Bring the place up with this context, from stopped, or by reloading it in place."""

    place: Place
    num_ctx: int
    cause: str  # leased | asked | adopted | pinned | blind


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    place: Place
    cause: StopCause
    detail: str = ""


Action = Start | Stop
