"""Faults of the simulated server: what is wrong, to whom, and that it passes."""

from __future__ import annotations

import pytest

from dispatcher.replay.asks import Fault, LoadEnded, Token
from tests.replay.playing import QUIET, A, B, C, an_ask, an_engine, finished, load, play, refused


def test_a_silent_server_stands_still_and_goes_on_where_it_was() -> None:
    engine = an_engine()
    start = load(engine, 0.0, A)
    answering = engine.submit(start, an_ask(), QUIET)
    engine.submit(start, an_ask(B), QUIET)
    engine.set_faults(start + 1.5, (Fault(silent=True),))
    assert engine.next_event_at() is None

    engine.set_faults(start + 101.5, ())
    events = play(engine, 200.0)

    assert pytest.approx(101.0) == finished(events)[answering].eval_seconds
    assert [pytest.approx(start + 102.0)] == [one.at_seconds for one in events if isinstance(one, LoadEnded)]


def test_faults_kill_at_a_token_refuse_loads_and_let_loads_die() -> None:
    engine = an_engine()
    engine.set_faults(0.0, (Fault(model=A, kill_runner_after_tokens=3), Fault(model=B, refuse_loads="busy"),
                            Fault(model=C, fail_loads=1)))  # fmt: skip
    killed, busy, dying = (engine.submit(0.0, an_ask(model, token_events=True), QUIET) for model in (A, B, C))

    events = play(engine, 100.0)

    assert {killed: 500, busy: 503, dying: 500} == {number: status for number, (status, _) in refused(events).items()}
    assert [1, 2, 3] == [event.index for event in events if isinstance(event, Token)]

    again = engine.submit(200.0, an_ask(C), QUIET)
    assert again in finished(play(engine, 300.0))


def test_a_slowed_server_takes_that_many_times_as_long_to_answer() -> None:
    engine = an_engine()
    start = load(engine, 0.0, A)
    engine.set_faults(start, (Fault(slowdown_ratio=3.0),))
    number = engine.submit(start, an_ask(), QUIET)

    assert pytest.approx(6.0) == finished(play(engine, 100.0))[number].total_seconds


def test_a_load_that_ends_outside_waits_to_be_told() -> None:
    engine = an_engine(loads_end_outside=True)
    number = engine.submit(0.0, an_ask(), QUIET)
    assert engine.next_event_at() is None

    engine.end_load(7.0, A, loaded=True)

    assert {number: pytest.approx(7.0)} == {key: one.load_seconds for key, one in finished(play(engine, 100.0)).items()}
