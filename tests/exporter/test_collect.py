"""What each event and each gauge adds to the exposition."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.event import Erred, Reloaded, Turned
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.profile import Success
from dispatcher.vocabulary.settings import GIB
from dispatcher.vocabulary.signal import HOST, Freshness, UnknownReason
from tests.builders import (
    LLAMA,
    NOW,
    PHI,
    QWEN,
    a_fleet,
    a_place_view,
    a_reading,
    a_ready_view,
    a_snapshot,
    some_profiles,
)
from tests.exporter.worlds import ANSWERED, a_busy_world
from tests.history.some_events import (
    a_completed,
    a_decided,
    a_leased,
    a_sampled,
    a_start,
    a_stop,
)

# ── events ──


def test_a_decision_counts_with_its_model_and_its_refusals_by_rule(world):
    world.tell(a_decided(), a_decided(), a_decided(place=None))

    labels = {"task": "coding", "complexity": "moderate"}
    chosen = world.value("dispatcher_decisions_total", model="llama3.2:3b", outcome="chosen", **labels)
    none = world.value("dispatcher_decisions_total", model="_none", outcome="none", **labels)
    assert (2.0, 1.0) == (chosen, none)
    assert 3.0 == world.value("dispatcher_rejections_total", model="qwen2.5:7b", rule="memory_short")
    assert 3.0 == world.value("dispatcher_decision_duration_seconds_count")
    assert 0.0 == world.value("dispatcher_decision_duration_seconds_bucket", le="0.00025")
    assert 3.0 == world.value("dispatcher_decision_duration_seconds_bucket", le="0.0005")


def test_survivors_beyond_those_kept_are_no_refusals(world):
    decided = a_decided()
    uncounted = (("fallback", 8), ("unavailable", 7))
    world.tell(replace(decided, decision=replace(decided.decision, uncounted=uncounted)))

    refused = {
        key: value for key, value in world.samples().items() if key[0] == "dispatcher_rejections_total" and value
    }
    assert 7.0 + len([one for one in decided.decision.candidates if one.rejection]) == sum(refused.values())
    assert not [key for key in refused if "rule=_other" in key]


def test_tokens_a_caller_reports_are_divided_by_the_seconds_of_its_whole_request(world):
    model = {"model": "llama3.2:3b"}
    world.tell(a_completed("d-1", timings=ANSWERED))
    world.tell(a_completed("d-2", prompt_tokens=1000, output_tokens=99, duration_seconds=9.0))
    world.tell(a_completed("d-3", output_tokens=10, duration_seconds=0.0))  # not timed at all

    speed = [
        world.value(f"ollama_{what}", **model) for what in ("generated_tokens_total", "eval_duration_seconds_total")
    ]
    assert [210.0, 14.0] == speed
    assert 1300.0 == world.value("ollama_prompt_tokens_total", **model)
    assert 1.5 == world.value("ollama_prompt_eval_duration_seconds_total", **model)


@pytest.mark.parametrize(
    ("event", "error_type", "count"),
    [
        pytest.param(a_sampled(failures={"prometheus": "prom_unreachable"}), "prometheus_unreachable", 1, id="poll"),
        pytest.param(a_sampled(failures={"prometheus": "prom_error"}), "prometheus_refused", 1, id="refused"),
        pytest.param(a_sampled(failures={"host": "host_unreadable"}), "host_unreadable", 1, id="host"),
        pytest.param(a_sampled(failures={"x": "a fault of ours"}), "internal", 1, id="unheard of"),
        pytest.param(
            Turned(at_seconds=NOW, what="provider", subject="docker", before="answers", after="failing"),
            "engine_unreachable",
            1,
            id="engine",
        ),
        pytest.param(Reloaded(at_seconds=NOW, ok=False), "configuration_invalid", 1, id="reload"),
        pytest.param(
            Erred(at_seconds=NOW, error_type="history_unavailable", count=3), "history_unavailable", 3, id="drops"
        ),
        pytest.param(Erred(at_seconds=NOW, error_type="a typo"), "_other", 1, id="no word of ours"),
    ],
)
def test_every_error_counts_once_under_its_word(world, event, error_type, count):
    world.tell(event)

    counted = {key[1]: value for key, value in world.samples().items() if key[0] == "dispatcher_errors_total" and value}
    assert {f"error_type={error_type}": float(count)} == counted


def test_refusals_that_were_only_counted_count_too(world):
    decided = a_decided()
    world.tell(replace(decided, decision=replace(decided.decision, uncounted=(("unavailable", 7),))))

    assert 7.0 == world.value("dispatcher_rejections_total", model="_other", rule="unavailable")


def test_an_end_feeds_requests_tokens_and_the_engines_durations(world):
    world.tell(a_completed(timings=ANSWERED, duration_seconds=8.0, predicted_seconds=10.0))
    model = {"model": "llama3.2:3b"}

    assert 1.0 == world.value("ollama_requests_total", status="ok", **model)
    assert 8.0 == world.value("ollama_request_duration_seconds_sum", **model)
    assert 3.0 == world.value("ollama_time_to_first_token_seconds_sum", **model)
    assert 1.0 == world.value("ollama_queue_wait_seconds_sum", **model)
    assert 0.5 == world.value("ollama_load_duration_seconds_sum", **model)
    tokens = [world.value(f"ollama_{what}_tokens_total", **model) for what in ("prompt", "generated")]
    assert [300.0, 101.0] == tokens
    assert 5.0 == world.value("ollama_eval_duration_seconds_total", **model)
    assert 1.5 == world.value("ollama_prompt_eval_duration_seconds_total", **model)
    assert 0.25 == world.value("dispatcher_predicted_error_ratio_sum")


def test_what_an_end_does_not_say_is_not_observed_as_zero(world):
    world.tell(a_completed(status="error", duration_seconds=float("nan"), predicted_seconds=None))

    assert 0.0 == world.value("ollama_request_duration_seconds_count", model="llama3.2:3b")
    assert 0.0 == world.value("ollama_time_to_first_token_seconds_count", model="llama3.2:3b")
    assert 0.0 == world.value("dispatcher_predicted_error_ratio_count")


def test_starts_and_stops_count_by_place_and_loading_is_time_lost(world):
    world.tell(
        a_start(seconds=5.0, load_seconds=4.0),
        a_start(QWEN, ok=False, seconds=30.0, error_type="load_timeout"),
        a_stop(cause="evicted"),
    )
    llama = {"model": "llama3.2:3b", "place": "docker:llama"}

    assert 1.0 == world.value("dispatcher_model_starts_total", **llama)
    assert 1.0 == world.value("dispatcher_model_stops_total", reason="evicted", **llama)
    assert 4.0 == world.value("dispatcher_model_load_seconds_sum", model="llama3.2:3b")
    assert 35.0 == world.value("dispatcher_swap_seconds_total")
    assert 1.0 == world.value("dispatcher_errors_total", error_type="load_timeout")


def test_polls_their_failures_and_missed_ticks_count(world):
    world.tell(a_sampled(poll_seconds=0.25, failures={"prometheus": "prom_unreachable"}, missed_ticks=3))

    assert 0.25 == world.value("dispatcher_poll_duration_seconds_sum")
    assert 1.0 == world.value("dispatcher_poll_failures_total", reason="prom_unreachable")
    assert 3.0 == world.value("dispatcher_ticks_missed_total")


def test_a_broken_reload_shows_until_a_good_one(world):
    seen = [world.value("dispatcher_config_last_reload_successful")]
    for ok in (False, True):
        world.tell(Reloaded(at_seconds=NOW, ok=ok))
        seen.append(world.value("dispatcher_config_last_reload_successful"))

    assert [1.0, 0.0, 1.0] == seen


def test_memory_held_by_unused_models_is_integrated_over_time(world):
    idle, used = a_ready_view(LLAMA, budget_bytes=2 * GIB), a_ready_view(PHI, budget_bytes=4 * GIB, busy=True, leases=1)
    world.fleet = a_fleet(idle, used)
    world.tell(a_leased(place=PHI))
    world.clock.advance(10)
    assert 20.0 * GIB == world.value("dispatcher_idle_model_byte_seconds_total")

    world.clock.advance(5)  # 10 GiB s more; now phi is free, too
    world.fleet = a_fleet(idle, replace(used, busy=False, leases=0))
    world.tell(a_leased("ended", PHI))
    world.clock.advance(10)  # 60 GiB s more; then llama stops
    world.fleet = a_fleet(a_place_view(LLAMA), replace(used, busy=False, leases=0))
    world.tell(Turned(at_seconds=NOW, what="place", subject="docker:llama", before="ready", after="stopped"))
    world.clock.advance(1)  # 4 GiB s more

    assert 94.0 * GIB == world.value("dispatcher_idle_model_byte_seconds_total")


def test_between_two_looks_leases_alone_say_who_is_idle_and_a_poll_looks_again(world):
    idle_total = "dispatcher_idle_model_byte_seconds_total"
    world.fleet = a_fleet(a_ready_view(LLAMA, budget_bytes=2 * GIB))
    world.tell(a_sampled())
    world.clock.advance(1)  # 2 GiB s
    world.tell(a_leased(id="a"), a_leased(id="b"))
    world.clock.advance(10)  # leased: nothing
    world.tell(a_leased("ended", id="a"))
    world.clock.advance(10)  # still
    world.tell(a_leased("ended", id="b"))
    world.clock.advance(1)  # 2 GiB s more
    world.fleet = a_fleet(a_ready_view(LLAMA, budget_bytes=2 * GIB, busy=True))
    world.tell(a_sampled())  # its CPU is busy
    world.clock.advance(10)

    assert 4.0 * GIB == world.value(idle_total)


# ── gauges ──


def test_places_are_shown_as_the_owner_holds_them(world):
    world.fleet = a_fleet(
        a_ready_view(LLAMA, measured_bytes=3 * GIB, leases=2, version="0.17.4"),
        a_place_view(QWEN, state=PlaceState.QUARANTINED, breaker="open"),
        a_place_view(PHI, breaker="half_open", version="<script>"),
        capacity_bytes=None,
        reserved_bytes=5,
    )
    llama, qwen = {"model": LLAMA.model, "place": "docker:llama"}, {"model": QWEN.model, "place": "docker:qwen"}

    assert [1.0, 0.0] == [world.value("ollama_up", place=place) for place in ("docker:llama", "docker:qwen")]
    assert [1.0, 0.0] == [world.value("ollama_model_loaded", **labels) for labels in (llama, qwen)]
    assert 3.0 * GIB == world.value("ollama_model_memory_usage_bytes", **llama)
    assert world.value("ollama_model_memory_usage_bytes", **qwen) is None
    assert 1.0 == world.value("ollama_info", place="docker:llama", version="0.17.4")
    assert 1.0 == world.value("ollama_info", place="docker:phi", version="_other")
    assert 1.0 == world.value("dispatcher_model_state", state="quarantined", **qwen)
    assert 0.0 == world.value("dispatcher_model_state", state="ready", **qwen)
    assert [0.0, 2.0] == [world.value("dispatcher_breaker_state", **labels) for labels in (llama, qwen)]
    healths = [world.value("dispatcher_model_health", model=place.model) for place in (LLAMA, QWEN, PHI)]
    assert [1.0, 0.0, 0.5] == healths
    assert [2.0, 5.0] == [world.value(f"dispatcher_{name}") for name in ("leases", "memory_reserved_bytes")]
    assert world.value("dispatcher_memory_capacity_bytes") is None


def test_a_shared_server_is_up_while_its_models_are_not_loaded(world):
    shared = Place(server="ollama:127.0.0.1:11434", model="phi3:mini")
    world.fleet = a_fleet(a_place_view(shared, shared=True))

    assert 1.0 == world.value("ollama_up", place="ollama:127.0.0.1:11434/phi3:mini")
    assert 0.0 == world.value("ollama_models_loaded", place="ollama:127.0.0.1:11434/phi3:mini")


def test_poor_success_over_enough_samples_is_degraded(world):
    world.profiles = some_profiles(success={(LLAMA.model, "coding"): Success(ok=8, n=10)})

    assert 0.5 == world.value("dispatcher_model_health", model=LLAMA.model)


def test_signals_show_their_age_or_why_they_are_unknown(world):
    world.snapshot = a_snapshot(
        readings={"host_cpu_busy_ratio": None}, failing={"prometheus": UnknownReason.PROM_UNREACHABLE}
    )
    stale = a_reading(None, unknown=UnknownReason.PROM_STALE)
    readings = {**world.snapshot.readings, ("host_cpu_busy_ratio", HOST): stale, ("random_signal", HOST): stale}
    world.snapshot = replace(world.snapshot, readings=readings)
    world.clock.advance(7)

    assert 7.0 == world.value("dispatcher_signal_age_seconds", signal="host_memory_available_bytes")
    assert world.value("dispatcher_signal_age_seconds", signal="host_cpu_busy_ratio") is None
    unknown = {
        key[2].removeprefix("signal="): key[1].removeprefix("reason=")
        for key, value in world.samples().items()
        if key[0] == "dispatcher_signal_unknown" and value == 1.0
    }
    never = ("host_memory_pressure_ratio", "host_memory_pressure_full_ratio", "host_cpu_pressure_ratio")
    assert {"host_cpu_busy_ratio": "prom_stale", **dict.fromkeys(never, "never_seen")} == unknown
    assert 1.0 == world.value("dispatcher_degraded", reason="prom_unreachable")
    assert 0.0 == world.value("dispatcher_degraded", reason="engine_unreachable")


def test_memory_that_is_not_fresh_is_degraded_for_its_own_reason(world):
    seen = []
    for freshness, unknown in ((Freshness.STALE, None), (Freshness.BLIND, UnknownReason.NEVER_SEEN)):
        memory = a_reading(None if unknown else 1.0, unknown=unknown)
        readings = {("host_memory_available_bytes", HOST): memory}
        world.snapshot = replace(a_snapshot(freshness=freshness), readings=readings)
        reasons = ("prom_stale", "never_seen")
        seen.append([world.value("dispatcher_degraded", reason=reason) for reason in reasons])

    assert [[1.0, 0.0], [0.0, 1.0]] == seen


def test_queues_and_the_process_speak_through_their_callables(world):
    a_busy_world(world)

    assert 3.0 == world.value("ollama_queue_depth", place="docker:llama", priority="high")
    assert 64.0 == world.value("dispatcher_queue_limit", place="docker:llama", priority="high")
    empty = {"place": "docker:qwen", "priority": "normal"}  # nobody has been there yet
    assert [0.0, 256.0] == [world.value(name, **empty) for name in ("ollama_queue_depth", "dispatcher_queue_limit")]
    assert [1.0, 2.0, 0.2] == [
        world.value(f"dispatcher_{name}")
        for name in ("abandoned_threads", "history_dropped_total", "retry_budget_ratio")
    ]
    assert 1.0 == world.value("dispatcher_build_info", version="1.2.3")
    assert 20.0 == world.value("ollama_generation_speed_tokens_per_second", model="llama3.2:3b")
    assert 1.0 == world.value("dispatcher_event_loop_lag_seconds_count")


def test_an_end_that_cannot_be_counts_as_a_request_and_as_no_measurement(world):
    model = {"model": "llama3.2:3b"}
    absurd = Timings(total_seconds=1e308, load_seconds=1e308, prompt_eval_seconds=1e308, eval_seconds=1e-9)
    for duration_seconds in (1e308, 5e-324, 0.0):
        told = {"duration_seconds": duration_seconds, "output_tokens": 10**7, "prompt_tokens": 10**400}
        for _ in range(2):
            world.tell(a_completed(timings=absurd, predicted_seconds=10.0, **told))

    assert 6.0 == world.value("ollama_requests_total", status="ok", **model)
    assert 2.0 == world.value("ollama_request_duration_seconds_count", **model)
    assert 0.0 == world.value("ollama_generated_tokens_total", **model)
    assert 0.0 == world.value("ollama_eval_duration_seconds_total", **model)
    assert 0.0 == world.value("ollama_prompt_tokens_total", **model)
    values = [value for (name, *_), value in world.samples().items() if not name.endswith("_bucket")]
    assert all(abs(value) < 1e15 for value in values)


def test_a_gpu_that_is_not_there_is_no_unknown_signal_and_a_doubtful_one_is(world):
    gpu = "gpu_memory_free_bytes"
    for unknown, told in (
        (UnknownReason.EMPTY, None),
        (UnknownReason.PROM_UNREACHABLE, None),
        (UnknownReason.ABSURD, 1.0),
    ):
        reading = a_reading(None, unknown=unknown)
        world.snapshot = a_snapshot(readings={})
        world.snapshot = replace(world.snapshot, readings={**world.snapshot.readings, (gpu, HOST): reading})

        assert told == world.value("dispatcher_signal_unknown", signal=gpu, reason=unknown.value)
