from __future__ import annotations

import itertools
from math import inf, isfinite, nan

import pytest

from dispatcher.control.footprints import OOM_FACTOR
from dispatcher.control.tally import SETTLED_EVERY_SECONDS, Tally
from dispatcher.vocabulary.engine import InstalledModel, ModelShape, Timings
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.profile import HostSpeed, Measured, Success
from dispatcher.vocabulary.settings import DEFAULT_CHAIN, GIB
from tests.builders import LLAMA, NOW, PHI, QWEN
from tests.history.some_events import a_completed, a_decided, a_leased, a_start, a_stop

DAY = 86400.0
LLAMA_MODEL = "llama3.2:3b"


def a_tally(*events) -> Tally:
    tally = Tally({model.name: model.facts() for model in DEFAULT_CHAIN})
    for event in events:
        tally.on_event(event, event.at_seconds)
    return tally


def timed(rate: float = 20.0, *, prompt_tokens: int = 500, prefill: float = 160.0, output_tokens: int = 101, **changes):
    """An answer with the engine's own durations: `rate` tokens per second decoded."""
    timings = Timings(
        prompt_eval_seconds=prompt_tokens / prefill,
        eval_seconds=(output_tokens - 1) / rate,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
    )
    return a_completed(**{"timings": timings, **changes})


def rates(tally: Tally, place: Place = LLAMA, now_seconds: float = NOW):
    return tally.profiles(now_seconds).rates[place]


# ── rates ──


def test_rates_are_medians_of_the_engines_own_durations():
    tally = a_tally(*(timed(rate, prompt_tokens=500 + index) for index, rate in enumerate((18, 20, 22))))

    assert Measured(value=20.0, n=3) == rates(tally).decode_tokens_per_second
    assert pytest.approx(160.0) == rates(tally).prefill_tokens_per_second.value
    assert Measured(value=8.0, n=3) == rates(tally).request_seconds


def test_one_outlier_does_not_move_anything():
    ordinary = [timed(20.0, prompt_tokens=500 + index) for index in range(21)]
    tally = a_tally(*ordinary)
    before = tally.profiles(NOW)
    for outlier in (
        timed(0.01, prompt_tokens=900, prefill=0.5, duration_seconds=403.0),
        timed(9000.0, prompt_tokens=901, prefill=9e6, duration_seconds=0.01),
    ):
        tally.on_event(outlier, NOW)
    after = tally.profiles(NOW + 2 * SETTLED_EVERY_SECONDS)
    assert 23 == after.rates[LLAMA].request_seconds.n

    for name in ("decode_tokens_per_second", "prefill_tokens_per_second", "request_seconds"):
        assert pytest.approx(getattr(before.rates[LLAMA], name).value) == getattr(after.rates[LLAMA], name).value
    expected = pytest.approx(before.host_speed.bandwidth_bytes_per_second, rel=0.1)
    assert expected == after.host_speed.bandwidth_bytes_per_second


def test_a_repeated_prompt_does_not_teach_a_prefill_rate():
    fresh = timed(prompt_tokens=309, prefill=309 / 5.128)
    again = [timed(prompt_tokens=309, prefill=309 / 0.023) for _ in range(50)]
    tally = a_tally(fresh, *again)

    assert Measured(value=309 / 5.128, n=1) == rates(tally).prefill_tokens_per_second


def test_prompts_cached_in_part_do_not_teach_either():
    fresh = [timed(prompt_tokens=500 + index, prefill=160.0) for index in range(10)]
    partly = [timed(prompt_tokens=700 + index, prefill=3000.0) for index in range(20)]

    assert pytest.approx(160.0) == rates(a_tally(*fresh, *partly)).prefill_tokens_per_second.value


def test_a_caller_that_gives_only_totals_teaches_the_decode_rate_less_the_predicted_prefill():
    with_prior = a_tally(a_completed(duration_seconds=8.0, prompt_tokens=800, output_tokens=100))
    prefill_known = a_tally(
        *(timed(prompt_tokens=500 + index, output_tokens=1) for index in range(5)),
        a_completed(duration_seconds=10.0, prompt_tokens=800, output_tokens=101),
    )

    assert pytest.approx(99 / 4.0) == rates(with_prior).decode_tokens_per_second.value  # 100 + 800/8 tokens' time
    assert pytest.approx(100 / 5.0) == rates(prefill_known).decode_tokens_per_second.value  # 800/160 = 5 s of prefill
    assert rates(with_prior).prefill_tokens_per_second.value is None


def test_a_timed_out_call_counts_as_at_least_its_timeout_and_teaches_no_rate():
    slow = [a_completed(status="timeout", duration_seconds=60.0, output_tokens=50) for _ in range(3)]
    tally = a_tally(a_completed(duration_seconds=5.0), *slow)

    assert Measured(value=60.0, n=4) == rates(tally).request_seconds
    assert rates(tally).decode_tokens_per_second.value is None


def test_only_the_last_hundred_count():
    tally = a_tally(*(timed(10.0) for _ in range(100)), *(timed(30.0) for _ in range(100)))

    assert Measured(value=30.0, n=100) == rates(tally).decode_tokens_per_second


def test_samples_older_than_a_week_fade_out():
    tally = a_tally(*(timed(10.0) for _ in range(20)))

    counts = [rates(tally, now_seconds=NOW + days * DAY).decode_tokens_per_second.n for days in (0, 7, 9, 11, 40)]

    assert [20, 20, 10, 5, 0] == counts
    assert rates(tally, now_seconds=NOW + 40 * DAY).decode_tokens_per_second.value is None


def test_loads_and_stops_are_learned_from_actions_that_worked():
    tally = a_tally(a_start(load_seconds=4.0), a_start(load_seconds=None, seconds=6.0), a_stop(seconds=1.5))
    tally.on_event(a_start(ok=False, load_seconds=300.0), NOW)

    assert Measured(value=5.0, n=2) == rates(tally).load_seconds
    assert Measured(value=1.5, n=1) == rates(tally).stop_seconds


def test_success_is_counted_per_model_and_task_and_what_was_broken_off_is_not():
    statuses = ("ok", "ok", "error", "timeout", "cancelled", "shed", "drained")
    tally = a_tally(*(a_completed(status=status) for status in statuses), a_completed(place=None, model=LLAMA_MODEL))

    assert {(LLAMA_MODEL, "coding"): Success(ok=3, n=5)} == tally.profiles(NOW).success


def test_a_model_outside_the_chain_teaches_nothing():
    stranger = Place(server="ollama:127.0.0.1:11434", model="stranger")
    tally = a_tally(a_completed(place=stranger), a_start(stranger), a_decided(place=stranger), a_leased(place=stranger))
    tally.learn_peak("stranger", 4096, 1, GIB)
    tally.learn_oom("stranger", 4096, 1)
    profiles = tally.profiles(NOW)

    assert ({}, {}, {}) == (profiles.rates, profiles.success, profiles.peaks)
    assert [model.name for model in DEFAULT_CHAIN] == list(profiles.facts)


# ── what models are ──


def test_sizes_and_shapes_the_server_says_replace_the_priors():
    tally = a_tally()
    tally.learn_facts(
        ModelShape(
            model=LLAMA_MODEL, layers=28, kv_heads=8, head_dim=128, context_max=8192, features=frozenset({"vision"})
        ),
        InstalledModel(model=LLAMA_MODEL, size_bytes=2_019_393_189, digest="a80c"),
    )
    facts = tally.profiles(NOW).facts[LLAMA_MODEL]

    assert (2_019_393_189, 112 * 1024, 8192) == (facts.file_bytes, facts.kv_bytes_per_token, facts.context_max)
    assert {"tools", "json", "vision"} == facts.features


def test_what_the_server_does_not_say_stays_as_configured():
    tally = a_tally()
    before = tally.profiles(NOW).facts
    shape = ModelShape(model=LLAMA_MODEL, layers=28, kv_heads=None, head_dim=128, context_max=None)
    tally.learn_facts(shape, None)
    tally.learn_facts(None, InstalledModel(model="stranger", size_bytes=1, digest=""))

    assert before == tally.profiles(NOW).facts


def test_a_peak_rises_at_once_and_falls_slowly():
    tally = a_tally()
    for size_bytes in (3 * GIB, 4 * GIB, 2 * GIB):
        tally.learn_peak(LLAMA_MODEL, 4096, 1, size_bytes)
    peak = tally.profiles(NOW).peaks[(LLAMA_MODEL, 4096, 1)]

    assert 3 == peak.n
    assert 3.99 * GIB < peak.value < 4 * GIB


def test_an_out_of_memory_kill_raises_the_footprint_by_a_quarter_known_or_not():
    unknown, known = a_tally(), a_tally()
    for _ in range(20):
        known.learn_peak(LLAMA_MODEL, 4096, 1, 3 * GIB)
    for tally in (unknown, known):
        before = tally.profiles(NOW).footprint_bytes(LLAMA_MODEL, 4096)
        tally.learn_oom(LLAMA_MODEL, 4096, 1)

        after = tally.profiles(NOW).footprint_bytes(LLAMA_MODEL, 4096)
        assert pytest.approx(OOM_FACTOR * before, abs=2) == after


def test_peaks_survive_being_handed_on():
    first, second = a_tally(), a_tally()
    first.learn_peak(LLAMA_MODEL, 4096, 1, 3 * GIB)
    second.restore_peaks(first.profiles(NOW).peaks)

    assert first.profiles(NOW).peaks == second.profiles(NOW).peaks


# ── how often ──


def test_wanted_is_the_request_rate_and_halves_in_six_hours():
    tally = a_tally(*(a_decided(f"d-{n}", at_seconds=NOW + 60 * n) for n in range(24 * 60 * 3)))
    last = NOW + 60 * 24 * 60 * 3

    assert pytest.approx(1 / 60, rel=0.01) == tally.profiles(last).wanted_per_second[LLAMA_MODEL]
    later = tally.profiles(last + 6 * 3600).wanted_per_second
    assert pytest.approx(1 / 120, rel=0.01) == later[LLAMA_MODEL]
    assert 0.0 == later["phi3:mini"]


def test_dry_runs_and_refusals_are_not_wants():
    tally = a_tally(a_decided(request={"dry_run": True}), a_decided(place=None))

    assert {0.0} == set(tally.profiles(NOW).wanted_per_second.values())


def test_an_idle_gap_runs_from_the_last_end_to_the_next_grant():
    tally = a_tally(
        a_leased("granted", at_seconds=NOW, id="a"),
        a_leased("granted", at_seconds=NOW + 1, id="b"),
        a_leased("ended", at_seconds=NOW + 5, id="a"),
        a_leased("granted", at_seconds=NOW + 6, id="c"),  # b is still alive: no gap
        a_leased("ended", at_seconds=NOW + 7, id="b"),
        a_leased("ended", at_seconds=NOW + 10, id="c"),
        a_completed(at_seconds=NOW + 12),
        a_leased("granted", at_seconds=NOW + 42, id="d"),
    )

    assert {LLAMA_MODEL: (30.0,)} == tally.profiles(NOW + 42).idle_gaps_seconds


def test_only_the_last_two_hundred_gaps_are_kept():
    tally = a_tally()
    for number in range(300):
        at_seconds = NOW + 100 * number
        tally.on_event(a_leased("granted", at_seconds=at_seconds, id=f"l-{number}"), NOW)
        tally.on_event(a_leased("ended", at_seconds=at_seconds + 10, id=f"l-{number}"), NOW)

    assert (90.0,) * 200 == tally.profiles(NOW).idle_gaps_seconds[LLAMA_MODEL]


# ── the host ──


def test_a_host_where_nothing_ran_has_the_priors():
    assert HostSpeed() == a_tally().profiles(NOW).host_speed


def test_the_bandwidth_is_fitted_from_what_ran_and_predicts_the_others():
    facts = {model.name: model.facts() for model in DEFAULT_CHAIN}
    bandwidth, t0 = 20e9, 0.035
    samples = []
    for place in (PHI, LLAMA):
        read = facts[place.model].file_bytes + facts[place.model].kv_bytes_per_token * (500 + 50.5)
        rate = 1 / (t0 + read / bandwidth)
        samples += [timed(rate, prompt_tokens=500, place=place, model=place.model) for _ in range(50)]
    speed = a_tally(*samples).profiles(NOW).host_speed

    assert 100 == speed.n
    assert pytest.approx(bandwidth, rel=0.06) == speed.bandwidth_bytes_per_second  # 5 of 105 parts are the prior
    assert t0 == speed.t0_seconds


def test_few_samples_are_blended_with_the_prior():
    facts = {model.name: model.facts() for model in DEFAULT_CHAIN}[QWEN.model]
    read = facts.file_bytes + facts.kv_bytes_per_token * 550.5
    sample = timed(1 / (0.035 + read / 20e9), place=QWEN, model=QWEN.model)
    speed = a_tally(*[sample] * 5, a_start(QWEN, load_seconds=1.5 + facts.file_bytes / 3e9)).profiles(NOW).host_speed

    assert pytest.approx((20e9 + 40e9) / 2) == speed.bandwidth_bytes_per_second
    assert pytest.approx(3e9 / 26 + 1e9 * 25 / 26) == speed.disk_bytes_per_second


def test_tokens_faster_than_any_cpu_are_video_memorys():
    speed = a_tally(*(timed(100.0) for _ in range(50))).profiles(NOW).host_speed

    assert 0.005 == speed.t0_seconds
    assert speed.bandwidth_bytes_per_second > 100e9


# ── reading is cheap ──


def test_the_same_object_is_read_until_something_changes():
    tally = a_tally(timed())
    first = tally.profiles(NOW)

    assert first is tally.profiles(NOW + 60)
    tally.on_event(timed(10.0), NOW)
    second = tally.profiles(NOW)
    assert first is not second
    assert Measured(value=20.0, n=1) == first.rates[LLAMA].decode_tokens_per_second


def test_a_decision_costs_no_statistics_of_places_again():
    tally = a_tally(timed())
    first = tally.profiles(NOW)
    tally.on_event(a_decided(), NOW)
    second = tally.profiles(NOW)

    assert first.rates is second.rates
    assert first.host_speed is second.host_speed
    assert second.wanted_per_second[LLAMA_MODEL] > 0


@pytest.mark.parametrize("bad", [float("nan"), 0.0, -1.0])
def test_a_duration_that_is_none_teaches_nothing(bad):
    tally = a_tally(a_completed(duration_seconds=bad, output_tokens=100))

    assert {} == tally.profiles(NOW).rates


# ── rows that cannot be ──

ABSURD_SECONDS = (0.0, -1.0, 5e-324, 1e-9, 8.0, 604_801.0, 1e308, inf, -inf, nan)
ABSURD_TOKENS = (None, -5, 0, 1, 100, 10_000_000, 10**12, 10**400)


def numbers_of(profiles) -> list[float]:
    speed = profiles.host_speed
    learned = [getattr(rates, name).value for rates in profiles.rates.values() for name in rates.__slots__]
    host = [speed.t0_seconds, speed.bandwidth_bytes_per_second, speed.prefill_factor, speed.disk_bytes_per_second]
    return [value for value in (*learned, *host) if value is not None]


def test_no_stored_row_makes_the_tally_fail_or_teaches_it_what_cannot_be():
    tally = a_tally(timed(20.0))
    for seconds, tokens, at_seconds in itertools.product(ABSURD_SECONDS, ABSURD_TOKENS, (NOW, 1e308, nan, -1.0)):
        timings = Timings(prompt_eval_seconds=seconds, eval_seconds=seconds, prompt_tokens=tokens, output_tokens=tokens)
        for said in (None, timings):
            told = {"duration_seconds": seconds, "prompt_tokens": tokens, "output_tokens": tokens}
            tally.on_event(a_completed(at_seconds=at_seconds, timings=said, **told), at_seconds)
        tally.on_event(a_start(at_seconds=at_seconds, seconds=seconds), at_seconds)
        tally.on_event(a_stop(at_seconds=at_seconds, seconds=seconds), at_seconds)
        profiles = tally.profiles(NOW)
        assert all(isfinite(value) and value >= 0 for value in numbers_of(profiles)), (seconds, tokens, at_seconds)
        assert profiles.footprint_bytes(LLAMA_MODEL, 4096, 1) > 0

    assert 100_000 >= rates(tally).decode_tokens_per_second.value >= 0.001


@pytest.mark.parametrize("rate", [0.0005, 100_001.0, 1e300])
def test_a_rate_no_machine_has_is_no_sample(rate):
    tally = a_tally(timed(rate, prompt_tokens=500, prefill=rate))

    assert 0 == rates(tally).decode_tokens_per_second.n
    assert 0 == rates(tally).prefill_tokens_per_second.n


def test_a_duration_of_0_is_not_timed():
    assert LLAMA not in a_tally(a_completed(duration_seconds=0.0, output_tokens=100)).profiles(NOW).rates


def test_peaks_that_cannot_be_are_not_restored_and_none_grows_without_end():
    tally = a_tally()
    key = (LLAMA_MODEL, 4096, 1)
    for value in (inf, nan, -1.0, 1e308, None):
        tally.restore_peaks({key: Measured(value=value, n=3)})
        assert key not in tally.profiles(NOW).peaks
    for _ in range(4000):
        tally.learn_oom(*key)

    assert tally.profiles(NOW).footprint_bytes(*key) <= 2**51
