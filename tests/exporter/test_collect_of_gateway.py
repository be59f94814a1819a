"""What the gateway's own events add to the exposition."""

from __future__ import annotations

import pytest

from dispatcher.vocabulary.event import STATUSES, Cached
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.relay import CAUSES
from tests.builders import LLAMA, NOW, PHI, QWEN
from tests.exporter.worlds import ANSWERED
from tests.history.some_events import a_completed, a_relayed, a_relayed_end


def test_an_attempt_after_another_is_a_repeat_on_the_same_model_or_a_fallback_to_the_next(world):
    other = Place(server="docker:qwen-2", model="qwen2.5:7b")
    world.tell(
        a_relayed(QWEN, decision_id="a"),
        a_relayed(QWEN, before=QWEN, cause="connect", decision_id="b"),  # each attempt is a decision of its own
        a_relayed(other, before=QWEN, cause="connect", decision_id="c"),
        a_relayed(PHI, before=other, cause="server_error", decision_id="d"),
        a_relayed(LLAMA, before=PHI, cause="no_slot", attempt=1),  # nothing was tried there: its queue was full
    )

    assert 2.0 == world.value("dispatcher_retries_total", cause="connect")
    moved = {key[1:]: value for key, value in world.samples().items() if key[0] == "dispatcher_fallbacks_total"}
    assert {
        ("cause=server_error", "from=qwen2.5:7b", "to=phi3:mini"): 1.0,
        ("cause=no_slot", "from=phi3:mini", "to=llama3.2:3b"): 1.0,
    } == {key: value for key, value in moved.items() if value}


def test_every_cause_of_the_gateway_is_a_label_and_another_word_is_other(world):
    for cause in (*CAUSES, "a typo"):
        world.tell(a_relayed(QWEN, before=QWEN, cause=cause))

    counted = {key[1]: value for key, value in world.samples().items() if key[0] == "dispatcher_retries_total"}
    assert dict.fromkeys((f"cause={word}" for word in (*CAUSES, "_other")), 1.0) == counted


def test_a_look_into_the_cache_is_a_hit_or_a_miss(world):
    world.tell(*(Cached(at_seconds=NOW, model="auto", hit=hit) for hit in (True, False, False)))

    assert [1.0, 2.0] == [world.value(f"dispatcher_cache_{what}_total") for what in ("hits", "misses")]


@pytest.mark.parametrize("status", STATUSES)
def test_all_six_ends_count_under_the_model_or_other_where_no_model_was_come_to(world, status):
    world.tell(a_relayed_end(status=status), a_relayed_end(place=None, model="auto", status=status))

    counted = {key[1:]: value for key, value in world.samples().items() if key[0] == "ollama_requests_total" and value}
    assert dict.fromkeys(((f"model={name}", f"status={status}") for name in ("llama3.2:3b", "_other")), 1.0) == counted


def test_the_gateways_own_first_token_comes_before_the_engines(world):
    world.tell(
        a_relayed_end("1", timings=ANSWERED, first_token_seconds=3.25),
        a_relayed_end("2", first_token_seconds=0.5),  # a surface that tells no durations
        a_completed("3", timings=ANSWERED),
    )

    assert 3.25 + 0.5 + 3.0 == world.value("ollama_time_to_first_token_seconds_sum", model="llama3.2:3b")
    assert 3.0 == world.value("ollama_time_to_first_token_seconds_count", model="llama3.2:3b")


def test_the_wait_is_the_gateways_queue_and_what_the_engine_kept_it_waiting(world):
    world.tell(
        a_relayed_end("1", timings=ANSWERED, queue_seconds=4.0),  # 1 s more in the engine
        a_relayed_end("2", queue_seconds=2.0),
        a_completed("3", timings=ANSWERED),
        a_completed("4"),  # nobody knows
        a_relayed_end("5", status="shed"),  # sent away at once
    )

    assert 5.0 + 2.0 + 1.0 == world.value("ollama_queue_wait_seconds_sum", model="llama3.2:3b")
    assert 3.0 == world.value("ollama_queue_wait_seconds_count", model="llama3.2:3b")


def test_tokens_without_the_engines_durations_took_what_followed_the_first_one(world):
    world.tell(a_relayed_end(output_tokens=41, duration_seconds=5.0, first_token_seconds=1.0))

    assert 41.0 == world.value("ollama_generated_tokens_total", model="llama3.2:3b")
    assert 4.0 == world.value("ollama_eval_duration_seconds_total", model="llama3.2:3b")


def test_an_answer_from_the_cache_is_a_request_and_no_models_time(world):
    world.tell(a_relayed_end(place=None, model="llama3.2:3b", duration_seconds=0.0004))

    assert 1.0 == world.value("ollama_requests_total", model="llama3.2:3b", status="ok")
    for what in ("request_duration", "queue_wait", "time_to_first_token"):
        assert 0.0 == world.value(f"ollama_{what}_seconds_count", model="llama3.2:3b")


def test_what_was_not_measured_makes_no_series(world):
    before = set(world.samples())
    world.tell(a_relayed_end(place=None, model="auto", status="shed", duration_seconds=0.0))

    assert before == set(world.samples())
