"""The state machine that plays schedules in the fault laboratory, and the figures of what it came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dispatcher.vocabulary.request import Asked
from tests.faultlab.engine import PLACES
from tests.faultlab.moves import Moves
from tests.faultlab.sources import TROUBLES

STEPS = 48  # of one schedule
RARE = 4  # a crash, or a step of the clock, at one step of so many at most: else schedules are made of little else
MODELS = ("auto", *(place.model for place in PLACES))
places = st.sampled_from(PLACES)
asks = st.builds(
    Asked,
    text=st.just("do something"),
    model=st.sampled_from(MODELS),
    context_tokens=st.sampled_from((300, 300, 6000)),
    complexity=st.sampled_from(("simple", "complex")),
    wait_seconds=st.sampled_from((0.0, 20.0, 60.0)),
    start=st.sampled_from((True, True, True, False)),
    lease_seconds=st.sampled_from((None, 5.0, 60.0)),
)
which = st.integers(0, 7)


@dataclass
class Figures:
    """Of all schedules that came to their end or to a failure."""

    steps: list[int] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)

    def told(self) -> str:
        lines = [f"{len(self.steps)} schedules, {sum(self.steps)} steps, median {median(self.steps):g} per schedule"]
        for title, counts in (("faults", self.faults), ("came to", self.seen)):
            lines.append(f"{title}: " + ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())))
        return "\n".join(lines)


class Machine(RuleBasedStateMachine):
    """One schedule: callers, hands, time and faults in any order; every invariant after every step."""

    figures = Figures()
    lab: Moves | None = None

    @initialize(total_gib=st.sampled_from((7.0, 9.0, 12.0)), jitter=st.integers(0, 3))
    def begins(self, total_gib: float, jitter: int) -> None:
        self.steps = 0
        self.sound = True
        self.lab = Moves(total_gib, jitter)

    def go(self, move: Callable[..., object], *given: object) -> None:
        """One step: a move, and whoever may go on in that moment does."""
        self.steps += 1
        self.sound = False
        move(*given)
        self.lab.settle()

    @invariant()
    def holds(self) -> None:
        if self.lab is not None:
            self.sound = False
            self.lab.check()
            self.sound = True

    def teardown(self) -> None:
        """Also after a failure: then what is left is only put away."""
        lab = self.lab
        if lab is None:
            return
        self.figures.steps.append(self.steps)
        try:
            if self.sound:
                lab.converge()
        finally:
            self.figures.faults += lab.faults
            self.figures.seen += lab.truth.seen
            lab.close()

    # ── time ──

    @rule(seconds=st.sampled_from((0.05, 0.4, 1.0, 3.0, 6.0)))
    def a_moment(self, seconds: float) -> None:
        self.go(self.lab.advance, seconds)

    @rule(seconds=st.sampled_from((8.0, 15.0, 30.0, 70.0)))
    def a_while(self, seconds: float) -> None:
        self.go(self.lab.advance, seconds)

    @rule()
    def a_load(self) -> None:
        self.go(self.lab.advance, 5.0)

    @rule()
    def a_dwell(self) -> None:
        self.go(self.lab.advance, 16.0)

    # ── callers ──

    @rule(asked=asks)
    def select(self, asked: Asked) -> None:
        self.go(self.lab.ask, asked)

    @rule(asked=st.lists(asks, min_size=2, max_size=5))
    def crowd(self, asked: list[Asked]) -> None:
        self.go(self.lab.crowd, asked)

    @rule(asked=st.lists(asks, min_size=2, max_size=4), after_seconds=st.sampled_from((0.0, 0.0, 5.0, 20.0)))
    def old_advice(self, asked: list[Asked], after_seconds: float) -> None:
        self.go(self.lab.reserve_on_old_advice, asked, after_seconds)

    @precondition(lambda self: self.lab.process.clients)
    @rule()
    def caller_leaves(self) -> None:
        self.go(self.lab.caller_leaves)

    @precondition(lambda self: self.lab.truth.held)
    @rule(which=which, how=st.sampled_from(("return", "outcome", "renew")))
    def ends_or_renews_its_lease(self, which: int, how: str) -> None:
        held = self.lab.held()
        one = held[which % len(held)]
        match how:
            case "return":
                self.go(self.lab.give_back, one)
            case "outcome":
                self.go(self.lab.report_outcome, one)
            case _:
                self.go(self.lab.renew, one)

    @precondition(lambda self: self.lab.truth.held)
    @rule(which=which, by_gateway=st.booleans(), ends=st.booleans())
    def works(self, which: int, by_gateway: bool, ends: bool) -> None:
        """ends: it is given back while the work goes on."""
        held = self.lab.held()
        one = held[which % len(held)]
        self.go(lambda: self.lab.work(one, by_gateway=by_gateway))
        if ends and one.lease.id in self.lab.truth.held:
            self.lab.give_back(one)

    @precondition(lambda self: self.lab.working or self.lab.in_flight)
    @rule(which=which)
    def work_ends(self, which: int) -> None:
        busy = sorted({*self.lab.working, *self.lab.in_flight})
        self.go(self.lab.rest, busy[which % len(busy)])

    @rule(what=st.sampled_from(("start", "stop", "pin", "unpin", "unpin")), place=places)
    def by_hand(self, what: str, place) -> None:
        self.go(self.lab.by_hand, what, place)

    @rule(place=places, by_gateway=st.booleans())
    def used_without_lease(self, place, by_gateway: bool) -> None:
        self.go(lambda: self.lab.used_without_lease(place, by_gateway=by_gateway))

    # ── faults ──

    @rule()
    def all_heals(self) -> None:
        self.go(self.lab.heal)

    @rule(place=places, hangs=st.booleans(), seconds=st.sampled_from((1.0, 20.0)))
    def stop_fails(self, place, hangs: bool, seconds: float) -> None:
        self.go(lambda: self.lab.stop_fails(place, hangs=hangs, seconds=seconds))

    @rule(place=places)
    def keeps_failing(self, place) -> None:
        self.go(self.lab.keeps_failing, place)

    @rule(how=st.sampled_from(("refused", "broken", "hangs", "", "", "")))
    def engine(self, how: str) -> None:
        if how:
            self.go(self.lab.engine_trouble, how)
        else:
            self.go(self.lab.engine_heals)

    @rule(
        place=places,
        how=st.sampled_from(("start_fails", "start_hangs", "load_fails", "never_ready", "oom_while_loading")),
    )
    def coming_up_fails(self, place, how: str) -> None:
        self.go(getattr(self.lab, how), place)

    @rule(place=places, how=st.sampled_from(("stop_hangs", "stop_refused", "falls_silent", "paused", "vanishes")))
    def place_misbehaves(self, place, how: str) -> None:
        self.go(getattr(self.lab, how), place)

    @rule(place=places)
    def place_heals(self, place) -> None:
        self.go(self.lab.place_heals, place)

    @rule(place=places, exit_code=st.sampled_from((0, 1, 137, 143, -1)))
    def goes_down(self, place, exit_code: int) -> None:
        """-1: killed by the kernel."""
        if exit_code < 0:
            self.go(self.lab.killed_for_memory, place)
        else:
            self.go(self.lab.exits, place, exit_code)

    @rule(place=places, how=st.sampled_from(("start", "empty", "stop", "reload", "unload")))
    def somebody_else(self, place, how: str) -> None:
        match how:
            case "start":
                self.go(self.lab.others_start, place, 4096)
            case "empty":
                self.go(self.lab.others_start, place, None)
            case "stop":
                self.go(self.lab.others_stop, place)
            case "reload":
                self.go(self.lab.others_reload, place, 8192)
            case _:
                self.go(self.lab.others_reload, place, None)

    @rule(how=st.sampled_from((*TROUBLES, "host", "clock", "", "", "", "", "")))
    def samples(self, how: str) -> None:
        match how:
            case "":
                self.go(self.lab.samples_heal)
            case "host":
                self.go(self.lab.host_unreadable)
            case "clock":
                self.go(self.lab.prometheus_clock, 3600.0)
            case _:
                self.go(self.lab.samples_fail, how)

    @rule(how=st.sampled_from(("short", "hard", "stalls", "cpu", "", "", "")))
    def host(self, how: str) -> None:
        match how:
            case "":
                self.go(self.lab.host_calms)
            case "stalls":
                self.go(self.lab.stalls, 0.2)
            case "cpu":
                self.go(self.lab.others_compute, 4.0)
            case _:
                self.go(self.lab.memory, how)

    @rule(full=st.booleans())
    def disk(self, full: bool) -> None:
        self.go(self.lab.disk_full, full)

    @precondition(lambda self: self.steps % RARE == 0)
    @rule(seconds=st.sampled_from((-3600.0, -30.0, 30.0, 3600.0)))
    def clock(self, seconds: float) -> None:
        self.go(self.lab.clock_steps, seconds)

    @precondition(lambda self: self.steps % RARE == 1)
    @rule()
    def crash(self) -> None:
        self.go(self.lab.crash)


def play(schedules: int, seed_number: int, *, shrink: bool = True, steps: int = STEPS) -> Figures:
    """So many schedules; raises what the first broken one did, with its steps as a program. The seed says which."""

    class Played(Machine):
        figures = Figures()

    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    run_state_machine_as_test(
        seed(seed_number)(Played),
        settings=settings(
            max_examples=schedules,
            stateful_step_count=steps,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=phases,
            report_multiple_bugs=False,
            print_blob=False,
        ),
    )
    return Played.figures
