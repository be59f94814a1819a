"""The queues of all places: who runs, who waits for his turn there, and who is told at once that waiting is in vain.

Whose turn it is says control.admission; this owns the waiting itself. A slot is granted to a waiter by the one who gave
it back, in one step: there is no moment at which it belongs to nobody, and no way to leave that forgets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from dispatcher.clock import Clock
from dispatcher.control.admission import next_class
from dispatcher.gateway.line import (
    Limit,
    NoSlot,
    PlaceLine,
    Slot,
    Waiter,
    believed_seconds,
    entries_of,
    limit_of,
    shares_of,
)
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.gateway_settings import QueueSettings
from dispatcher.vocabulary.queue import Line
from dispatcher.vocabulary.request import Priority
from dispatcher.vocabulary.settings import Settings

__all__ = ["NoSlot", "Queues", "Slot"]

LOOKS_SECONDS = 0.25  # between looks at what drains, and at slots that a reload or a start added
LOOKS_AGAIN_SECONDS = 1.0  # whether another place has become free, by one whose patience is over
MAX_LINES = 256  # of places; idle ones beyond it are dropped


class Queues:
    """One for all places. slots: how many requests a place takes at once, 0 while it takes none. idle_since: whether
    the engine there was seen without work at a look that began after that moment."""

    def __init__(
        self,
        *,
        settings: Callable[[], Settings],
        clock: Clock,
        slots: Callable[[Place], int],
        idle_since: Callable[[Place, float], bool],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._slots = slots
        self._idle_since = idle_since
        self._lines: dict[Place, PlaceLine] = {}
        self._sent_seconds = float("-inf")  # when somebody last went elsewhere
        self._looks: asyncio.TimerHandle | None = None

    # ── what is asked of it ──

    def take(self, place: Place, *, expected_seconds: float) -> Slot | None:
        """A slot, when one is free and nobody waits for it."""
        line = self._lines.get(place) or self._new_line(place)
        if line.waiting or line.taken >= self._slots(place):
            return None
        return self._granted(line, believed_seconds(expected_seconds), self._clock.now_seconds())

    async def enter(
        self,
        place: Place,
        priority: Priority,
        *,
        until_seconds: float,
        expected_seconds: float,
        patience_seconds: float | None = None,
        elsewhere: Callable[[], bool] | None = None,
        may_move: Callable[[], bool] | None = None,
    ) -> Slot:
        """Waits for its turn, first come first served within the class. Raises NoSlot.

        until_seconds: the moment of the caller's deadline. patience_seconds: it has alternatives and waits no longer;
        with `elsewhere`, whether one of them would serve it at once, it waits on while none would.
        may_move: whether, when the place fails, it is better off elsewhere and leaves at once; None: never.
        """
        rules, now = self._settings().gateway.queue, self._clock.now_seconds()
        limit = limit_of(rules, priority, now, until_seconds, patience_seconds if elsewhere is None else None)
        if limit.at_seconds > now:
            slot = self.take(place, expected_seconds=expected_seconds)
            if slot is not None:
                return slot
        line = self._lines.get(place) or self._new_line(place)
        waiter = self._admitted(line, priority, limit, believed_seconds(expected_seconds), may_move)
        if elsewhere is not None and patience_seconds is not None:
            waiter.elsewhere = elsewhere
            self._look_elsewhere_in(line, waiter, patience_seconds)
        try:
            self._serve(line)
            outcome = await waiter.future
        except BaseException:
            if waiter.future.done() and not waiter.future.cancelled():  # granted in the very step that cancels it
                outcome = waiter.future.result()
                if isinstance(outcome, Slot):
                    outcome.release()
            raise
        finally:
            self._leave(line, waiter)
        if isinstance(outcome, NoSlot):
            raise outcome
        return outcome

    def expel(self, place: Place, words: str) -> None:
        """The place is failing: those who wait there and are better off elsewhere go now. The others stay in line: one
        failure says little of the next request, and to refuse them is to fail them all."""
        line = self._lines.get(place)
        if line is None:
            return
        movable = [one for waiting in line.classes.values() for one in waiting if one.may_move and one.may_move()]
        for waiter in movable:
            self._refuse(line, waiter, NoSlot(words, wait_seconds=None, moved=True))

    def dismiss(self, words: str) -> None:
        """Nobody is to wait any longer, anywhere."""
        for line in self._lines.values():
            for waiter in [one for waiting in line.classes.values() for one in waiting]:
                self._refuse(line, waiter, NoSlot(words, wait_seconds=None, moved=True))

    def running(self, place: Place) -> int:
        """Requests with a slot there, without those that drain."""
        line = self._lines.get(place)
        return 0 if line is None else len(line.running)

    def draining(self, place: Place) -> int:
        line = self._lines.get(place)
        return 0 if line is None else len(line.draining)

    def is_free(self, place: Place) -> bool:
        """Whether somebody who came now would have a slot at once."""
        line = self._lines.get(place)
        return self._slots(place) > 0 if line is None else not line.waiting and line.taken < self._slots(place)

    def lines(self) -> tuple[Line, ...]:
        """Of the places somebody was at, in their order."""
        return tuple(self._shown(line) for _, line in sorted(self._lines.items(), key=lambda item: item[0]))

    def forget(self, declared: Collection[Place]) -> None:
        """Drops what is kept of places that are gone, as soon as nobody is there any more."""
        for place in [place for place, line in self._lines.items() if place not in declared and line.idle]:
            del self._lines[place]

    # ── waiting ──

    def _new_line(self, place: Place) -> PlaceLine:
        if len(self._lines) >= MAX_LINES:
            self.forget(())
        return self._lines.setdefault(place, PlaceLine(place))

    def _granted(self, line: PlaceLine, expected_seconds: float, now_seconds: float) -> Slot:
        slot = Slot(line.place, expected_seconds=expected_seconds, at_seconds=now_seconds, give_back=self._released)
        line.running.add(slot)
        return slot

    def _released(self, slot: Slot, draining_until_seconds: float | None) -> None:
        line, now = self._lines[slot.place], self._clock.now_seconds()
        line.running.discard(slot)
        if draining_until_seconds is not None and now < draining_until_seconds:
            line.draining[slot] = (now, draining_until_seconds)
            self._look_later()
            return
        line.learn(slot, now)
        self._serve(line)

    def _admitted(
        self,
        line: PlaceLine,
        priority: Priority,
        limit: Limit,
        expected_seconds: float,
        may_move: Callable[[], bool] | None,
    ) -> Waiter:
        """In the line, with its timer. Raises NoSlot where waiting is not allowed, or in vain."""
        rules, now = self._settings().gateway.queue, self._clock.now_seconds()
        wait = line.wait_seconds(priority, shares_of(rules), self._slots(line.place), now)
        if (words := self._no_room(rules, line, priority)) is not None:
            raise NoSlot(words, wait_seconds=wait)
        left = limit.at_seconds - now
        if not left > 0:
            raise NoSlot(
                f"its turn at {line.place} has not come, and it waits no longer: {limit.because}", wait_seconds=wait
            )
        if wait is not None and wait * line.surely > left:
            words = f"its turn at {line.place} would come in about {wait:.0f} s; it waits {left:.0f} s: {limit.because}"
            raise NoSlot(words, wait_seconds=wait)
        loop = asyncio.get_running_loop()
        waiter = Waiter(
            future=loop.create_future(),
            priority=priority,
            expected_seconds=expected_seconds,
            may_move=may_move,
            since_seconds=now,
            limit=limit,
        )
        waiter.timer = loop.call_later(left, self._late, line, waiter)
        line.join(waiter)
        self._look_later()
        return waiter

    def _no_room(self, rules: QueueSettings, line: PlaceLine, priority: Priority) -> str | None:
        count, most = len(line.classes[priority]), entries_of(rules)[priority]
        if count >= most:
            return (
                f"{count} requests of class {priority} wait at {line.place}: gateway.queue.{priority}_entries is {most}"
            )
        return None

    def _leave(self, line: PlaceLine, waiter: Waiter) -> None:
        line.leave(waiter)
        if waiter.timer is not None:
            waiter.timer.cancel()
            waiter.timer = None

    def _refuse(self, line: PlaceLine, waiter: Waiter, refusal: NoSlot) -> None:
        self._leave(line, waiter)
        if not waiter.future.done():
            waiter.future.set_result(refusal)

    def _late(self, line: PlaceLine, waiter: Waiter) -> None:
        """Its limit is reached."""
        self._leave(line, waiter)
        rules, now = self._settings().gateway.queue, self._clock.now_seconds()
        wait = line.wait_seconds(waiter.priority, shares_of(rules), self._slots(line.place), now)
        waited = now - waiter.since_seconds
        words = f"its turn at {line.place} did not come within {waited:.0f} s: {waiter.limit.because}"
        self._refuse(line, waiter, NoSlot(words, wait_seconds=wait))

    def _look_elsewhere_in(self, line: PlaceLine, waiter: Waiter, seconds: float) -> None:
        """Or at its limit, if that is sooner."""
        if waiter.timer is not None:
            waiter.timer.cancel()
        left = waiter.limit.at_seconds - self._clock.now_seconds()
        after_seconds, then = (seconds, self._look_elsewhere) if seconds < left else (max(0.0, left), self._late)
        waiter.timer = asyncio.get_running_loop().call_later(after_seconds, then, line, waiter)

    def _look_elsewhere(self, line: PlaceLine, waiter: Waiter) -> None:
        """Its patience is over. One leaves at a time: the others would all go for the same free slot."""
        self._look_elsewhere_in(line, waiter, LOOKS_AGAIN_SECONDS)
        now = self._clock.now_seconds()
        if now - self._sent_seconds >= LOOKS_SECONDS and waiter.elsewhere is not None and waiter.elsewhere():
            self._sent_seconds = now
            words = f"after {now - waiter.since_seconds:.0f} s in line at {line.place}: another model is free"
            self._refuse(line, waiter, NoSlot(words, wait_seconds=None, moved=True))

    def _serve(self, line: PlaceLine) -> None:
        """Grants what is free."""
        if not line.waiting:
            return
        now, shares, slots = (
            self._clock.now_seconds(),
            shares_of(self._settings().gateway.queue),
            self._slots(line.place),
        )
        while line.taken < slots:
            found = next_class(line.turns, [name for name, waiting in line.classes.items() if waiting], shares)
            if found is None:
                return
            waiter = next(iter(line.classes[found[0]]))
            if now >= waiter.limit.at_seconds:  # the machine slept, or the loop was late: its timer was, too
                self._late(line, waiter)
                continue
            self._leave(line, waiter)
            if not waiter.future.done():  # else its task is being cancelled in this step
                line.turns = found[1]
                waiter.future.set_result(self._granted(line, waiter.expected_seconds, now))

    # ── looking ──

    def _look_later(self) -> None:
        if self._looks is None and any(line.draining or line.waiting for line in self._lines.values()):
            self._looks = asyncio.get_running_loop().call_later(LOOKS_SECONDS, self._look)

    def _look(self) -> None:
        """What drained, and slots that were added: nobody gives those back."""
        self._looks = None
        try:
            now = self._clock.now_seconds()
            for line in tuple(self._lines.values()):
                for slot, (cancelled_at, until) in tuple(line.draining.items()):
                    if now >= until or self._idle_since(line.place, cancelled_at):
                        del line.draining[slot]
                        line.learn(slot, now)
                self._serve(line)
        finally:
            self._look_later()

    def _shown(self, line: PlaceLine) -> Line:
        rules, now, slots = self._settings().gateway.queue, self._clock.now_seconds(), self._slots(line.place)
        since = [next(iter(waiting)).since_seconds for waiting in line.classes.values() if waiting]
        return Line(
            place=line.place,
            running=len(line.running),
            draining=len(line.draining),
            slots=slots,
            waiting={name: len(waiting) for name, waiting in line.classes.items()},
            limits=entries_of(rules),
            oldest_wait_seconds=max(0.0, now - min(since)) if since else None,
            estimated_wait_seconds=line.wait_seconds("normal", shares_of(rules), slots, now),
        )
