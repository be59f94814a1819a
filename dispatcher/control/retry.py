"""What to do about a failed attempt: a table of causes, and the budget that bounds repeats on the same model.

Dry. The causes are a closed vocabulary: they are labels of dispatcher_fallbacks_total and dispatcher_retries_total.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dispatcher.vocabulary.relay import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Handling:
    """fails_place: its breaker counts it. same_again: another try at the same place may help. moves_on: another model
    may. Neither: what the server said goes to the caller as it is."""

    fails_place: bool
    same_again: bool
    moves_on: bool


def _handling(fails_place: bool, same_again: bool, moves_on: bool) -> Handling:
    return Handling(fails_place=fails_place, same_again=same_again, moves_on=moves_on)


HANDLING: Mapping[Cause, Handling] = {
    "connect": _handling(True, True, True),
    "reset": _handling(True, True, True),
    "silent": _handling(True, False, True),
    "stalled": _handling(True, False, True),
    "truncated": _handling(True, True, True),
    "malformed": _handling(True, True, True),
    "empty": _handling(True, True, True),
    "too_long": _handling(False, False, True),
    "server_error": _handling(True, True, True),
    "redirect": _handling(True, False, True),
    "busy": _handling(False, False, True),
    "memory": _handling(False, False, True),
    "rate_limited": _handling(False, False, True),
    "not_found": _handling(False, False, True),
    "context_exceeded": _handling(False, False, True),
    "wrong_option": _handling(False, False, False),
    "caller_error": _handling(False, False, False),
    "not_ready": _handling(False, False, True),
    "no_slot": _handling(False, False, True),
}

BUDGET_WINDOW_SECONDS = 30.0
BUCKETS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """buckets: (number, requests, repeats) of the window, oldest first."""

    buckets: tuple[tuple[int, int, int], ...] = ()


def counted(budget: Budget, now_seconds: float, *, requests: int = 0, repeats: int = 0) -> Budget:
    number = int(now_seconds // (BUDGET_WINDOW_SECONDS / BUCKETS))
    kept = budget.buckets
    if kept and kept[-1][0] == number:
        last = (number, kept[-1][1] + requests, kept[-1][2] + repeats)
        return Budget(buckets=(*kept[:-1], last))
    return Budget(buckets=(*(one for one in kept if one[0] > number - BUCKETS), (number, requests, repeats)))


def left(budget: Budget, now_seconds: float, ratio: float) -> float:
    """Repeats still allowed: a share of the requests of the last 30 s, at least one."""
    allowed, repeats = _allowed_and_spent(budget, now_seconds, ratio)
    return allowed - repeats


def used_ratio(budget: Budget, now_seconds: float, ratio: float) -> float:
    """0..1 of the budget spent: dispatcher_retry_budget_ratio."""
    allowed, repeats = _allowed_and_spent(budget, now_seconds, ratio)
    return min(1.0, repeats / allowed)


def _allowed_and_spent(budget: Budget, now_seconds: float, ratio: float) -> tuple[float, int]:
    oldest = int(now_seconds // (BUDGET_WINDOW_SECONDS / BUCKETS)) - BUCKETS
    recent = [one for one in budget.buckets if one[0] > oldest]
    return max(1.0, ratio * sum(one[1] for one in recent)), sum(one[2] for one in recent)


def delay_seconds(attempt: int, jitter: float, first_seconds: float, longest_seconds: float) -> float:
    """Full jitter over first × 2ⁿ. attempt: 1 for the first repeat. jitter: 0..1, the caller's randomness."""
    bounded: float = min(longest_seconds, first_seconds * 2.0 ** (attempt - 1))
    return jitter * bounded
