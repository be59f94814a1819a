"""The heartbeat of all loops is that of the slowest, beyond what it may take."""

from __future__ import annotations

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

    assert (0.0, 0.0, 0.0) == (pulse.age_of("loop"), pulse.late_seconds("loop"), pulse.age_seconds())


def test_a_loop_that_stops_turning_is_late_once_it_took_longer_than_it_may():
    turning = Turning()

    assert 0.0 == turning.after(5.0, turned=False).age_seconds()
    assert 31.0 == turning.after(31.0, turned=False).age_seconds()
    assert 0.0 == turning.after(1.0, turned=True).age_seconds()


def test_an_event_loop_that_stands_still_ages_whatever_else_turned():
    turning = Turning()

    assert 40.0 == turning.after(40.0, turned=True, beaten=False).age_seconds()
    assert 40.0 == turning.pulse.loop_age_seconds()
