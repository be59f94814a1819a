"""The simulated server as a state machine, in virtual time: every duration below is exact, nothing waits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dispatcher.replay.asks import (
    Finished,
    LoadEnded,
    LoadStarted,
    Noise,
    RunnerGone,
    Token,
)
from dispatcher.replay.models import GIB
from dispatcher.replay.runner import RunnerState
from tests.replay.playing import QUIET, A, B, C, a_model, an_ask, an_engine, finished, load, loaded, play, refused

TIMELINE = Path(__file__).parent.parent / "fixtures" / "ollama" / "timeline.json"


def test_a_cold_answer_is_load_then_prompt_then_tokens() -> None:
    engine = an_engine()
    number = engine.submit(10.0, an_ask(), QUIET)

    events = play(engine, 20.0)

    assert LoadStarted(at_seconds=10.0, model=A, num_ctx=4096, resident_bytes=GIB, load_seconds=2.0) == events[0]
    assert LoadEnded(at_seconds=12.0, model=A, loaded=True) == events[1]
    assert (
        Finished(
            at_seconds=14.0,
            request=number,
            done_reason="length",
            total_seconds=4.0,
            load_seconds=2.0,
            wait_seconds=0.0,
            prompt_eval_seconds=1.0,
            eval_seconds=pytest.approx(1.0),  # ten steps: the first token belongs to the prompt (rule 5)
            prompt_tokens=100,
            output_tokens=11,
        )
        == events[2]
    )


def test_tokens_come_one_by_one_when_asked_for() -> None:
    engine = an_engine()
    start = load(engine, 0.0, A)
    engine.submit(start, an_ask(num_predict=3, token_events=True), QUIET)

    tokens = [(event.index, event.at_seconds) for event in play(engine, 10.0) if isinstance(event, Token)]

    assert [(1, pytest.approx(3.0)), (2, pytest.approx(3.1)), (3, pytest.approx(3.2))] == tokens


def test_the_wait_for_a_slot_is_in_no_other_duration() -> None:
    engine = an_engine()
    start = load(engine, 0.0, A)
    first, second = (engine.submit(start, an_ask(prompt=text), QUIET) for text in ("aa", "bb"))

    done = finished(play(engine, 100.0))

    assert (0.0, pytest.approx(2.0)) == (done[first].wait_seconds, done[second].wait_seconds)
    assert 0.0 == pytest.approx(done[second].load_seconds)


def test_two_slots_answer_at_once_and_slow_each_other_down() -> None:
    engine = an_engine(num_parallel=2, contention_ratio=0.5)
    start = load(engine, 0.0, A)
    both = [engine.submit(start, an_ask(prompt=text), QUIET) for text in ("aa", "bb")]

    done = finished(play(engine, 100.0))

    assert [pytest.approx(3.0)] * 2 == [done[number].total_seconds for number in both]


def test_the_same_prompt_again_costs_one_token_of_evaluation() -> None:
    engine = an_engine()
    start = load(engine, 0.0, A)
    one = engine.submit(start, an_ask(prompt="the same words"), QUIET)
    two = engine.submit(start, an_ask(prompt="the same words"), QUIET)
    three = engine.submit(start, an_ask(prompt="the same hoard"), QUIET)

    done = finished(play(engine, 100.0))

    evaluated = [done[number].prompt_eval_seconds for number in (one, two, three)]
    assert [pytest.approx(1.0), pytest.approx(0.01), pytest.approx(0.36, abs=0.01)] == evaluated
    assert {100} == {done[number].prompt_tokens for number in (one, two, three)}


def test_another_context_reloads_and_so_does_going_back() -> None:
    engine = an_engine()
    load(engine, 0.0, A)

    for at_seconds, num_ctx in ((10.0, 1024), (20.0, None), (30.0, 10**6)):
        engine.submit(at_seconds, an_ask(num_ctx=num_ctx), QUIET)
        done = next(iter(finished(play(engine, at_seconds + 9)).values()))
        assert pytest.approx(2.1) == done.load_seconds  # 0.1 s of unloading, then the load

    assert [8192] == [runner.num_ctx for runner in engine.loaded()]


def test_a_request_for_a_loaded_model_overtakes_a_waiting_load() -> None:
    engine = an_engine(max_loaded=1)
    start = load(engine, 0.0, A)
    engine.submit(start, an_ask(A), QUIET)
    waiting = engine.submit(start + 0.1, an_ask(B), QUIET)
    overtaking = engine.submit(start + 0.2, an_ask(A, prompt="x"), QUIET)

    done = finished(play(engine, 100.0))

    assert done[overtaking].at_seconds < done[waiting].at_seconds
    assert done[waiting].load_seconds > 4  # the drain of the other model and the load itself (rule 2)


def test_a_full_load_queue_refuses_loads_only() -> None:
    engine = an_engine(max_loaded=1, max_queue=1)
    start = load(engine, 0.0, A)
    engine.submit(start, an_ask(A), QUIET)
    let_in = [engine.submit(start, an_ask(B), QUIET) for _ in range(2)]
    turned_away = engine.submit(start, an_ask(C), QUIET)
    same_model = engine.submit(start, an_ask(A), QUIET)

    events = play(engine, 100.0)

    assert {turned_away: (503, "server busy, please try again.  maximum pending requests exceeded")} == refused(events)
    assert {*let_in, same_model} < set(finished(events))


def test_a_client_that_leaves_aborts_its_load_and_who_shared_it_waits_for_a_new_one() -> None:
    engine = an_engine()
    owner = engine.submit(0.0, an_ask(), QUIET)
    sharer = engine.submit(0.5, an_ask(), QUIET)
    engine.cancel(1.0, owner)

    events = play(engine, 100.0)

    assert {sharer: pytest.approx(2.5)} == {number: done.load_seconds for number, done in finished(events).items()}
    assert [False, True] == [event.loaded for event in events if isinstance(event, LoadEnded)]


def test_a_client_that_leaves_frees_its_slot_at_once() -> None:
    engine = an_engine()
    start = load(engine, 0.0, A)
    long = engine.submit(start, an_ask(num_predict=1000, natural_tokens=1000), QUIET)
    abandoned = engine.submit(start, an_ask(num_predict=1000, natural_tokens=1000), QUIET)
    third = engine.submit(start, an_ask(), QUIET)
    engine.cancel(start + 1, abandoned)
    engine.cancel(start + 2, long)

    done = finished(play(engine, 100.0))

    assert {third: pytest.approx(2.0)} == {number: one.wait_seconds for number, one in done.items()}


def test_a_model_that_does_not_fit_is_refused_in_the_guards_words() -> None:
    engine = an_engine(a_model(A, resident_bytes=round(30.3 * GIB)), memory_bytes=round(22.7 * GIB))
    number = engine.submit(0.0, an_ask(), QUIET)

    words = "model requires more system memory (30.3 GiB) than is available (22.7 GiB)"
    assert {number: (500, words)} == refused(engine.advance(0.0))


def test_the_idle_model_with_the_shortest_keep_alive_makes_room() -> None:
    engine = an_engine(memory_bytes=2 * GIB)
    load(engine, 0.0, A)
    load(engine, 3.0, B, keep_alive_seconds=200)
    engine.submit(10.0, an_ask(C), QUIET)

    play(engine, 20.0)

    assert [C, A] == loaded(engine)
    assert 2 * GIB == engine.held_bytes()


def test_a_model_expires_and_one_kept_for_ever_does_not() -> None:
    engine = an_engine()
    load(engine, 0.0, A, keep_alive_seconds=60)
    load(engine, 2.0, B, keep_alive_seconds=-1)

    gone = [(event.model, event.at_seconds) for event in play(engine, 1e7) if isinstance(event, RunnerGone)]

    assert [(A, pytest.approx(62.1))] == gone
    assert [B] == loaded(engine)


def test_keep_alive_stays_as_it_was_when_a_request_does_not_say() -> None:
    engine = an_engine()
    start = load(engine, 0.0, A, keep_alive_seconds=-1)
    engine.submit(start, an_ask(), QUIET)

    play(engine, 1e7)

    assert [A] == loaded(engine)


def test_unload_waits_for_the_answer_in_progress() -> None:
    engine = an_engine()
    start = load(engine, 0.0, A)
    number = engine.submit(start, an_ask(), QUIET)
    engine.unload(start + 0.5, A)

    events = play(engine, 100.0)

    assert [number] == list(finished(events))
    assert [pytest.approx(start + 2.1)] == [event.at_seconds for event in events if isinstance(event, RunnerGone)]


def test_a_killed_runner_fails_its_requests_stays_listed_and_is_reloaded_by_the_next() -> None:
    engine = an_engine()
    start = load(engine, 0.0, A)
    lost = [engine.submit(start, an_ask(), QUIET) for _ in range(2)]
    engine.kill_runner(start + 1.5, A)

    words = "an error was encountered while running the model: unexpected EOF"
    assert dict.fromkeys(lost, (500, words)) == refused(engine.advance(start + 1.5))
    assert ([A], 0) == (loaded(engine), engine.held_bytes())

    engine.submit(start + 2, an_ask(), QUIET)
    assert [pytest.approx(2.0)] == [done.load_seconds for done in finished(play(engine, 100.0)).values()]


@pytest.mark.parametrize(
    ("ask", "tokens", "reason"),
    [
        pytest.param({"num_predict": 8}, 8, "length", id="limited"),
        pytest.param({"num_predict": 0}, 50, "stop", id="zero is no limit"),
        pytest.param({"num_predict": None}, 50, "stop", id="no limit"),
        pytest.param({"num_predict": 49, "prompt_tokens": 110, "num_ctx": 128}, 49, "length", id="shifted"),
        pytest.param(
            {"prompt_tokens": 110, "num_ctx": 128, "shift": False, "num_predict": 32}, 19, "length", id="edge"
        ),
    ],
)
def test_an_answer_ends_where_it_must(ask: dict[str, Any], tokens: int, reason: str) -> None:
    engine = an_engine()
    engine.submit(0.0, an_ask(natural_tokens=50, **ask), QUIET)

    done = next(iter(finished(play(engine, 100.0)).values()))

    assert (tokens, reason) == (done.output_tokens, done.done_reason)


def test_a_prompt_that_is_too_long_is_cut_silently_or_refused_if_that_was_asked_for() -> None:
    engine = an_engine()
    start = load(engine, 0.0, A)
    cut = engine.submit(start, an_ask(prompt_tokens=5000), QUIET)
    not_cut = engine.submit(start, an_ask(prompt_tokens=5000, truncate=False), QUIET)

    events = play(engine, 100.0)

    assert {cut: 4096} == {number: done.prompt_tokens for number, done in finished(events).items()}
    assert {not_cut: (400, "the input length exceeds the context length")} == refused(events)


def test_embedding_takes_the_prompts_time_and_says_no_token() -> None:
    engine = an_engine()
    start = load(engine, 0.0, A)
    number = engine.submit(start, an_ask(work="embed", token_events=True), QUIET)

    events = play(engine, 100.0)

    assert (0, None, pytest.approx(1.0)) == (
        finished(events)[number].output_tokens,
        finished(events)[number].eval_seconds,
        finished(events)[number].total_seconds,
    )
    assert [] == [event for event in events if isinstance(event, Token)]


def test_noise_stretches_what_it_names() -> None:
    engine = an_engine()
    noise = Noise(load_factor=2.0, prefill_factor=3.0, decode_factor=4.0, scheduler_seconds=0.5)
    number = engine.submit(0.0, an_ask(), noise)

    done = finished(play(engine, 100.0))[number]

    assert (4.5, 3.0, 4.0) == (
        pytest.approx(done.load_seconds),
        pytest.approx(done.prompt_eval_seconds or 0),
        pytest.approx(done.eval_seconds or 0),
    )


def test_sixty_captured_calls_start_cold_warm_or_by_reload_as_they_did() -> None:
    calls = json.loads(TIMELINE.read_text())
    stand_in = a_model(context_max=4096, num_ctx_default=2048, load_seconds=0.3)
    blobs = {A: "sha256-d4", B: "sha256-1", C: "sha256-2"}  # the captured one of phi3:mini begins with d4
    engine = an_engine(*(replace(stand_in, name=name, blob=blob) for name, blob in blobs.items()), max_loaded=2)
    seen = []
    for call in calls:
        engine.advance(call["at_seconds"])
        before = {one.model.name: one.num_ctx for one in engine.loaded() if one.state is RunnerState.READY}
        ask = an_ask(call["model"], num_ctx=call["num_ctx"], num_predict=call["num_predict"], prompt_tokens=1)
        number = engine.submit(call["at_seconds"], ask, Noise(prefill_factor=0.0, decode_factor=0.001))
        events = play(engine, call["at_seconds"] + 0.45)
        assert number in finished(events)
        loads = [event for event in events if isinstance(event, LoadStarted)]
        seen.append("warm" if not loads else "reload" if call["model"] in before else "cold")

    assert [call["start"] for call in calls] == seen
