"""Whose heart beats: the event loop's alone is what /livez asks; the others are each late by themselves."""

from __future__ import annotations

import asyncio

from dispatcher.daemon.pulse import Pulse


class Turning:
    """A loop that turns when told to, and the clock."""

    def __init__(self) -> None:
        self.now_seconds = 1000.0
        self.rounds = 0
        self.pulse = Pulse(lambda: self.now_seconds)
        self.pulse.watch("loop", lambda: self.rounds, lambda: 5.0)

    def after(self, seconds: float, *, turned: bool, beaten: bool = True) -> Pulse:
        self.now_seconds += seconds
        self.rounds += turned
        if beaten:
            self.pulse.beat()
        return self.pulse


def test_a_loop_that_turns_has_no_age_of_its_own():
    turning = Turning()
    for _ in range(10):
        pulse = turning.after(4.0, turned=True)

    assert (0.0, 0.0, 0.0) == (pulse.age_of("loop"), pulse.late_seconds("loop"), pulse.loop_age_seconds())


def test_a_loop_that_stops_turning_is_late_once_it_took_longer_than_it_may():
    turning = Turning()

    assert 0.0 == turning.after(5.0, turned=False).late_seconds("loop")
    assert 31.0 == turning.after(31.0, turned=False).late_seconds("loop")
    assert 0.0 == turning.after(1.0, turned=True).late_seconds("loop")


def test_a_loop_that_stops_turning_does_not_age_the_event_loop():
    turning = Turning()

    assert 0.0 == turning.after(3600.0, turned=False).loop_age_seconds()


def test_an_event_loop_that_stands_still_ages_whatever_else_turned():
    turning = Turning()

    assert 40.0 == turning.after(40.0, turned=True, beaten=False).loop_age_seconds()


async def test_what_goes_wrong_at_a_beat_is_told_once_and_stops_no_heart(caplog):
    pulse, beats = Pulse(), 0
    enough = asyncio.Event()

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats == 3:
            enough.set()
        raise OSError("the service manager is gone")

    beating = asyncio.create_task(pulse.run(lambda lag_seconds: None, beat))
    async with asyncio.timeout(60):
        await enough.wait()
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)

    assert beating.cancelled()
    assert 1 == caplog.text.count("beat=failed")
