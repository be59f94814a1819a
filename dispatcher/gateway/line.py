"""One place's queue: who runs there, who waits, how fast it has been, and so how long somebody who came now would wait.

Values and sums. Who gets what, and the waiting itself: gateway.queue.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dispatcher.control.admission import FIRST_TO_LAST, Turns, joined
from dispatcher.errors import NotNow
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.gateway_settings import QueueSettings
from dispatcher.vocabulary.request import Priority
from dispatcher.wire.problem import within_limits

LONGEST_SECONDS = 3600.0  # believed of one request's expected time
FORGETS_RATIO = 0.9  # how much of what was learned of a place's pace one more request leaves
TRUSTED_AFTER = 3  # requests; before that a prediction may be wrong by …
UNTRUSTED_FACTOR = 3.0  # … so much, and nobody is refused on its word alone
UNKNOWN_RETRY_SECONDS = 5.0
SMALLEST_SHARE = 0.01  # a class configured to get nothing still comes last, not never


class NoSlot(NotNow):
    """It did not get its turn, or would not in time. retry_after_seconds: 1..120, from the estimated wait. moved: it
    is sent elsewhere, or away; no verdict on how long the queue is."""

    def __init__(self, words: str, *, wait_seconds: float | None, moved: bool = False) -> None:
        after = within_limits(UNKNOWN_RETRY_SECONDS if wait_seconds is None else wait_seconds + 0.5)
        super().__init__(words, status=503, retry_after_seconds=after)
        self.words = words
        self.moved = moved


class Slot:
    """The right to have one request at the place's engine. at_seconds: since when. probe: its request's number at the
    place's breaker; 0: it is none."""

    __slots__ = ("_give_back", "at_seconds", "expected_seconds", "place", "probe")

    def __init__(
        self,
        place: Place,
        *,
        expected_seconds: float,
        at_seconds: float,
        give_back: Callable[[Slot, float | None], None],
    ) -> None:
        self.place = place
        self.expected_seconds = expected_seconds
        self.at_seconds = at_seconds
        self.probe = 0
        self._give_back: Callable[[Slot, float | None], None] | None = give_back

    def release(self, draining_until_seconds: float | None = None) -> None:
        """Once; again does nothing. draining_until_seconds: the prompt was cancelled and the engine may still work on
        it; the slot stays taken until the engine is seen idle, or until that moment."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(self, draining_until_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Until when a request waits, and in words, why not longer."""

    at_seconds: float
    because: str


@dataclass(slots=True, kw_only=True, eq=False)
class Waiter:
    future: asyncio.Future[Slot | NoSlot]
    priority: Priority
    expected_seconds: float
    may_move: Callable[[], bool] | None
    since_seconds: float
    limit: Limit
    elsewhere: Callable[[], bool] | None = None  # looked at once its patience is over; None: it then leaves anyway
    timer: asyncio.TimerHandle | None = None


class PlaceLine:
    """What one place runs and who waits there. Mutable; only Queues writes it."""

    __slots__ = ("_learned", "classes", "draining", "expected", "pace_of", "place", "running", "turns", "waiting")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.running: set[Slot] = set()
        self.draining: dict[Slot, tuple[float, float]] = {}  # cancelled at, taken until
        self.classes: dict[Priority, OrderedDict[Waiter, None]] = {name: OrderedDict() for name in FIRST_TO_LAST}
        self.expected: dict[Priority, float] = dict.fromkeys(FIRST_TO_LAST, 0.0)  # seconds of work that waits
        self.waiting = 0
        self.turns = Turns()
        self.pace_of = (0.0, 0.0)  # seconds that slots were held, and were expected to be; both fading
        self._learned = 0

    @property
    def taken(self) -> int:
        return len(self.running) + len(self.draining)

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running or self.draining)

    @property
    def pace(self) -> float:
        """Real time per expected time, as measured here."""
        held, expected = self.pace_of
        return min(20.0, max(0.05, held / expected)) if expected > 0 else 1.0

    @property
    def surely(self) -> float:
        """What to make of an estimate before somebody is refused because of it."""
        return 1.0 if self._learned >= TRUSTED_AFTER else 1.0 / UNTRUSTED_FACTOR

    def learn(self, slot: Slot, now_seconds: float) -> None:
        held, expected = self.pace_of
        held = held * FORGETS_RATIO + now_seconds - slot.at_seconds
        self.pace_of = (held, expected * FORGETS_RATIO + slot.expected_seconds)
        self._learned += 1

    def join(self, waiter: Waiter) -> None:
        if not self.classes[waiter.priority]:
            self.turns = joined(self.turns, waiter.priority)
        self.classes[waiter.priority][waiter] = None
        self.expected[waiter.priority] += waiter.expected_seconds
        self.waiting += 1

    def leave(self, waiter: Waiter) -> None:
        """Again does nothing."""
        mine = self.classes[waiter.priority]
        if waiter not in mine:
            return
        del mine[waiter]
        self.expected[waiter.priority] = self.expected[waiter.priority] - waiter.expected_seconds if mine else 0.0
        self.waiting -= 1

    def wait_seconds(
        self, priority: Priority, shares: Mapping[Priority, float], slots: int, now_seconds: float
    ) -> float | None:
        """Until the turn of somebody of this class who came now. None: nothing runs here, so nobody knows.

        Of the other classes only those count who go before him by their shares.
        """
        if slots <= 0:
            return None
        if not self.waiting and self.taken < slots:
            return 0.0
        left = sorted(self._left_seconds(slot, now_seconds) for slot in (*self.running, *self.draining))
        first_free = left[len(left) - slots] if len(left) >= slots else 0.0
        own = len(self.classes[priority])
        ahead = self.expected[priority]
        for other in FIRST_TO_LAST:
            if other != priority and (count := len(self.classes[other])):
                before = min(count, (own + 1) * shares[other] / shares[priority])
                ahead += before * self.expected[other] / count
        return max(first_free, (sum(left) + ahead * self.pace) / slots) if ahead else first_free

    def _left_seconds(self, slot: Slot, now_seconds: float) -> float:
        """Until this slot is free. One that takes longer than expected will go on for some time: a tenth of it."""
        so_far = now_seconds - slot.at_seconds
        left = max(slot.expected_seconds * self.pace - so_far, so_far / 10)
        return min(left, max(0.0, self.draining[slot][1] - now_seconds)) if slot in self.draining else left


def shares_of(rules: QueueSettings) -> dict[Priority, float]:
    shares: dict[Priority, float] = {"high": rules.high_share, "normal": rules.normal_share, "batch": rules.batch_share}
    return {name: max(SMALLEST_SHARE, share) for name, share in shares.items()}


def entries_of(rules: QueueSettings) -> dict[Priority, int]:
    return {"high": rules.high_entries, "normal": rules.normal_entries, "batch": rules.batch_entries}


def waits_of(rules: QueueSettings) -> dict[Priority, float]:
    return {"high": rules.high_wait_seconds, "normal": rules.normal_wait_seconds, "batch": rules.batch_wait_seconds}


def believed_seconds(expected_seconds: float) -> float:
    """0 for NaN and for what cannot be."""
    return min(LONGEST_SECONDS, expected_seconds) if expected_seconds > 0 else 0.0


def limit_of(
    rules: QueueSettings, priority: Priority, now_seconds: float, until_seconds: float, patience_seconds: float | None
) -> Limit:
    limits = [
        Limit(at_seconds=until_seconds, because="its deadline"),
        Limit(
            at_seconds=now_seconds + waits_of(rules)[priority],
            because=f"as long as class {priority} may wait, gateway.queue.{priority}_wait",
        ),
    ]
    if patience_seconds is not None:
        limits.append(Limit(at_seconds=now_seconds + patience_seconds, because="another model may be sooner"))
    return min(limits, key=lambda limit: limit.at_seconds)
