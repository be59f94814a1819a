"""The faults in force, asked one question each. Faults add up; the first one that speaks wins where they cannot."""

from __future__ import annotations

import math

from dispatcher.replay.asks import Fault


class Troubles:
    """Faults and what is left of those that come a number of times."""

    def __init__(self, faults: tuple[Fault, ...] = ()) -> None:
        self.faults = faults
        self._loads_to_fail = [fault.fail_loads for fault in faults]

    def _of(self, model: str) -> list[tuple[int, Fault]]:
        return [(index, fault) for index, fault in enumerate(self.faults) if fault.model in (None, model)]

    @property
    def stalled(self) -> bool:
        return any(fault.silent for fault in self.faults)

    def slowdown_ratio(self, model: str) -> float:
        return math.prod(fault.slowdown_ratio for _, fault in self._of(model))

    def refusal_of_loads(self, model: str) -> str | None:
        return next((fault.refuse_loads for _, fault in self._of(model) if fault.refuse_loads), None)

    def kill_tokens(self, model: str) -> list[int]:
        """The tokens of an answer at which its runner dies."""
        return [fault.kill_runner_after_tokens for _, fault in self._of(model) if fault.kill_runner_after_tokens]

    def cut_tokens(self, model: str) -> int | None:
        """The token of an answer at which the server's sockets close."""
        return min((fault.cut_after_tokens for _, fault in self._of(model) if fault.cut_after_tokens), default=None)

    def take_load_failure(self, model: str) -> bool:
        """Whether the load that begins now dies; uses one up."""
        for index, _ in self._of(model):
            if self._loads_to_fail[index] > 0:
                self._loads_to_fail[index] -= 1
                return True
        return False
