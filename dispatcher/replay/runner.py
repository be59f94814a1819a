"""The process that holds one model inside the simulated server, and what the memory guard says when it cannot."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from dispatcher.replay.models import RehearsalModel
from dispatcher.replay.progress import Request, Running

FOR_EVER_SECONDS = 2**63 / 1e9  # Go's longest duration: keep_alive -1 reads as the year 2319 (rule 19)


class RunnerState(Enum):
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    DEAD = "dead"  # killed; listed until a request finds out (rule 10)


@dataclass(slots=True, kw_only=True, eq=False)
class Runner:
    """The process that holds one model. Mutable: the engine's book-keeping. Read it through Engine.loaded only."""

    model: RehearsalModel
    num_ctx: int
    resident_bytes: int
    owner: Request | None  # whose load it is; that client leaving aborts it (rule 13)
    keep_alive_seconds: float
    state: RunnerState = RunnerState.LOADING
    changes_at_seconds: float = math.inf  # end of loading or unloading
    dies_loading: bool = False
    expires_at_seconds: float = math.inf  # moved only when idle begins: while busy it may lie in the past (rule 19)
    cached: list[str | None] = field(default_factory=list)  # last prompt of each slot
    running: dict[int, Running] = field(default_factory=dict)  # by slot
    waiting: deque[Request] = field(default_factory=deque)  # READY: for a slot; LOADING: for that load

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def expiry_from(self, now_seconds: float) -> float:
        return now_seconds + (self.keep_alive_seconds if self.keep_alive_seconds >= 0 else FOR_EVER_SECONDS)


def memory_guard_text(needed_bytes: int, available_bytes: int) -> str:
    """The guard's words, as captured in memory_guard_500_generate."""
    return f"model requires more system memory ({_binary(needed_bytes)}) than is available ({_binary(available_bytes)})"


def _binary(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
