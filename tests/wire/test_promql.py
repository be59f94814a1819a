from __future__ import annotations

import math
import re
import subprocess
from shutil import which

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.vocabulary.settings import SignalSettings, TelemetrySettings
from dispatcher.vocabulary.signal import CONTAINER_SIGNALS, HOST_SIGNALS, SIGNALS, Sample, UnknownReason
from dispatcher.wire.promql import (
    DEFAULT_SIGNALS,
    PRESETS,
    effective_signals,
    quoted,
    samples,
    single_query,
    union_query,
    with_host,
)
from tests.builders import NOW

SIGNALS_ASKED = effective_signals(TelemetrySettings())


def a_row(signal: str, value: object, *, at: float = NOW, **labels: str) -> dict[str, object]:
    return {"metric": {"signal": signal, **labels}, "value": [at, str(value)]}


def an_age(signal: str, seconds: float, **labels: str) -> dict[str, object]:
    return a_row(f"age:{signal}", seconds, **labels)


def the_sample(rows: list[dict[str, object]], signal: str, subject: str = "", now: float = NOW) -> Sample:
    found = [one for one in samples(rows, SIGNALS_ASKED, now) if (one.signal, one.subject) == (signal, subject)]
    assert len(found) == 1
    return found[0]


def test_every_signal_has_a_default_expression_and_no_other_has():
    assert set(SIGNALS) == set(DEFAULT_SIGNALS)


def test_presets_name_known_signals_only():
    assert set() == {name for preset in PRESETS.values() for name in preset} - set(SIGNALS)


def test_a_configured_signal_wins_over_the_preset_and_an_empty_one_is_not_asked():
    mine = SignalSettings(expr="my_seconds", age_of="my_seconds")
    telemetry = TelemetrySettings(
        preset="frcooper",
        signals={"model_request_seconds_p50": mine, "gpu_memory_free_bytes": SignalSettings(expr=" ", age_of="x")},
    )

    chosen = effective_signals(telemetry)

    assert mine == chosen["model_request_seconds_p50"]
    assert PRESETS["frcooper"]["model_tokens_per_second"] == chosen["model_tokens_per_second"]
    assert "gpu_memory_free_bytes" not in chosen


@pytest.mark.parametrize(
    ("promql", "instance", "expected"),
    [
        ("a{$host}", None, "a{}"),
        ('a{mode="idle",$host}', None, 'a{mode="idle"}'),
        ('a{$host,mode="idle"}', None, 'a{mode="idle"}'),
        ('a{x="1", $host , mode="idle"}', None, 'a{x="1" , mode="idle"}'),
        ("a{$host}", "box:9100", 'a{instance="box:9100"}'),
        ('a{mode="idle",$host}', 'we"ird\\', 'a{mode="idle",instance="we\\"ird\\\\"}'),
        ("rate(a[$window])", None, "rate(a[60s])"),
    ],
)
def test_the_host_placeholder_leaves_valid_braces(promql, instance, expected):
    assert expected == with_host(promql, instance)


@pytest.mark.skipif(which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("preset", ["own", "frcooper"])
@pytest.mark.parametrize("instance", [None, "127.0.0.1:9100", 'we"ird\\\n'])
def test_promtool_takes_the_union_and_each_single_query(tmp_path, preset, instance):
    signals = effective_signals(TelemetrySettings(preset=preset))
    queries = [union_query(signals, instance, 75.0)]
    queries += [single_query(name, setting, instance) for name, setting in signals.items()]
    rules = tmp_path / "rules.yml"
    lines = [f"    - record: r{i}\n      expr: {quoted_yaml(query)}" for i, query in enumerate(queries)]
    rules.write_text("groups:\n- name: g\n  rules:\n" + "\n".join(lines) + "\n")

    checked = subprocess.run(["promtool", "check", "rules", str(rules)], capture_output=True, text=True, check=False)

    assert (0, "") == (checked.returncode, checked.stderr)


def quoted_yaml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def test_a_comment_at_the_end_of_an_expression_does_not_swallow_the_rest():
    query = single_query("host_cpu_count", SignalSettings(expr="count(up) # mine", age_of="up"), None)

    assert re.search(r'# mine\n, "signal"', query)


@pytest.mark.parametrize(
    ("scrape_seconds", "windows"),
    [
        pytest.param(None, ("60s", "60s", "30s", "10s"), id="not known yet"),
        pytest.param(1.0, ("60s", "60s", "30s", "10s"), id="every second"),
        pytest.param(5.0, ("60s", "60s", "30s", "11s"), id="every 5 s: two scrapes and their jitter"),
        pytest.param(30.0, ("120s", "120s", "66s", "66s"), id="too rarely for 10 s: the shortest mean there is"),
    ],
)
def test_a_rate_reaches_back_as_long_as_its_latch_says(scrape_seconds, windows):
    names = ("host_cpu_busy_ratio", "host_cpu_pressure_ratio", "host_memory_pressure_ratio")
    queries = [
        single_query(name, SIGNALS_ASKED[name], None, scrape_seconds)
        for name in (*names, "host_memory_pressure_full_ratio")
    ]

    assert windows == tuple(re.search(r"\[(\d+s)\]", query).group(1) for query in queries)


def test_a_server_whose_clock_is_an_hour_off_is_believed_in_nothing_and_again_once_ours_is_set_right():
    rows = [a_row("host_memory_available_bytes", 5e9), a_row("host_cpu_count", 4, at=NOW), AGED]
    asked = {name: SIGNALS_ASKED[name] for name in ("host_memory_available_bytes", "host_cpu_count")}

    skewed = samples(rows, asked, NOW, NOW + 3600)
    stepped = samples(rows, asked, NOW - 3600, NOW)  # our steady clock was begun an hour wrong, our wall clock is right

    assert {(None, UnknownReason.CLOCK_SKEW)} == {(one.value, one.unknown) for one in skewed}
    memory = next(one for one in stepped if one.signal == "host_memory_available_bytes")
    assert (5e9, NOW - 3600 - 1) == (memory.value, memory.at_seconds)


def test_signals_with_one_age_share_one_question_for_it():
    query = union_query(SIGNALS_ASKED, None)

    assert 1 == query.count("timestamp(node_memory_MemAvailable_bytes")
    assert 1 == query.count("timestamp(container_memory_working_set_bytes")


def test_quoted_text_cannot_leave_its_literal():
    assert r'"a\"b\\c\n"' == quoted('a"b\\c\n')


# ── what came back ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_value_is_as_old_as_the_sample_it_rests_on():
    rows = [a_row("host_memory_available_bytes", 5e9), an_age("host_memory_available_bytes", 7.5)]

    expected = Sample(
        signal="host_memory_available_bytes", value=5e9, at_seconds=NOW - 7.5, source="prometheus", unknown=None
    )
    assert expected == the_sample(rows, "host_memory_available_bytes")


def test_a_shared_age_serves_every_signal_that_has_it():
    rows = [a_row("host_memory_total_bytes", 8e9), an_age("host_memory_available_bytes", 3)]

    assert NOW - 3 == the_sample(rows, "host_memory_total_bytes").at_seconds


def test_each_container_has_its_own_value_and_age():
    rows = [
        a_row("container_memory_bytes", 1e9, name="phi"),
        a_row("container_memory_bytes", 2e9, name="qwen"),
        an_age("container_memory_bytes", 1, name="phi"),
        an_age("container_memory_bytes", 200, name="qwen"),
    ]

    assert (1e9, NOW - 1) == _pair(the_sample(rows, "container_memory_bytes", "phi"))
    assert (2e9, NOW - 200) == _pair(the_sample(rows, "container_memory_bytes", "qwen"))


def test_an_age_without_subject_serves_all_subjects():
    rows = [a_row("model_tokens_per_second", 12, model="phi3:mini"), an_age("model_tokens_per_second", 4)]

    assert (12, NOW - 4) == _pair(the_sample(rows, "model_tokens_per_second", "phi3:mini"))


def _pair(sample: Sample) -> tuple[float | None, float]:
    return sample.value, sample.at_seconds


AGED = an_age("host_memory_available_bytes", 1)


@pytest.mark.parametrize(
    ("rows", "signal", "unknown"),
    [
        pytest.param([], "host_memory_available_bytes", UnknownReason.EMPTY, id="absent"),
        pytest.param(
            [a_row("host_memory_available_bytes", "NaN"), AGED],
            "host_memory_available_bytes",
            UnknownReason.NOT_A_NUMBER,
            id="NaN",
        ),
        pytest.param(
            [a_row("host_memory_available_bytes", "+Inf"), AGED],
            "host_memory_available_bytes",
            UnknownReason.NOT_A_NUMBER,
            id="infinite",
        ),
        pytest.param(
            [{"metric": {"signal": "host_memory_available_bytes"}, "histogram": [NOW, {"count": "1"}]}, AGED],
            "host_memory_available_bytes",
            UnknownReason.NOT_A_NUMBER,
            id="native histogram",
        ),
        pytest.param(
            [
                a_row("host_memory_available_bytes", 1, instance="a"),
                a_row("host_memory_available_bytes", 2, instance="b"),
                AGED,
            ],
            "host_memory_available_bytes",
            UnknownReason.MULTI_SERIES,
            id="two hosts",
        ),
        pytest.param(
            [a_row("host_memory_available_bytes", -1), AGED],
            "host_memory_available_bytes",
            UnknownReason.ABSURD,
            id="negative",
        ),
        pytest.param(
            [a_row("host_memory_available_bytes", 2.0**61), AGED],
            "host_memory_available_bytes",
            UnknownReason.ABSURD,
            id="two exbibytes",
        ),
        pytest.param(
            [a_row("host_memory_available_bytes", 9e9), a_row("host_memory_total_bytes", 8e9), AGED],
            "host_memory_available_bytes",
            UnknownReason.ABSURD,
            id="more than there is",
        ),
        pytest.param(
            [a_row("host_cpu_busy_ratio", 1.2), an_age("host_cpu_busy_ratio", 1)],
            "host_cpu_busy_ratio",
            UnknownReason.ABSURD,
            id="ratio",
        ),
        pytest.param(
            [a_row("host_cpu_count", 0), an_age("host_cpu_busy_ratio", 1)],
            "host_cpu_count",
            UnknownReason.ABSURD,
            id="no CPU",
        ),
        pytest.param(
            [a_row("host_memory_available_bytes", 5e9)],
            "host_memory_available_bytes",
            UnknownReason.PROM_STALE,
            id="of unknown age",
        ),
        pytest.param(
            [a_row("host_memory_available_bytes", 5e9), an_age("host_memory_available_bytes", -30)],
            "host_memory_available_bytes",
            UnknownReason.CLOCK_SKEW,
            id="from the future",
        ),
        pytest.param(
            [a_row("host_memory_available_bytes", 5e9, at=NOW - 90), AGED],
            "host_memory_available_bytes",
            UnknownReason.CLOCK_SKEW,
            id="another clock",
        ),
    ],
)
def test_what_cannot_be_believed_is_unknown_and_says_why(rows, signal, unknown):
    sample = the_sample(rows, signal)

    assert (None, unknown) == (sample.value, sample.unknown)


def test_the_rounding_of_a_rate_is_cut_off():
    rows = [a_row("host_cpu_busy_ratio", 1.03), an_age("host_cpu_busy_ratio", 1)]

    assert 1.0 == the_sample(rows, "host_cpu_busy_ratio").value


def test_every_signal_is_spoken_of_even_when_nothing_came():
    told = samples([], SIGNALS_ASKED, NOW)

    assert set(SIGNALS) == {sample.signal for sample in told}
    assert {UnknownReason.EMPTY} == {sample.unknown for sample in told}


def test_a_series_nobody_asked_for_is_not_read():
    told = samples([a_row("up", 1), a_row("host_nonsense", 1)], SIGNALS_ASKED, NOW)

    assert set(SIGNALS) == {sample.signal for sample in told}


@pytest.mark.parametrize(
    "vector",
    [
        "x",
        None,
        {"a": 1},
        [1],
        [[NOW, "1"]],
        [{}],
        [{"metric": {}}],
        [{"metric": {}, "value": [1]}],
        [{"metric": {}, "value": [NOW, "one"]}],
        [{"metric": {}, "value": [None, "1"]}],
        [{"metric": [], "value": [NOW, "1"]}],
        [NOW, "1"],
    ],
)
def test_what_is_no_vector_is_refused_whole(vector):
    with pytest.raises(ValueError):
        samples(vector, SIGNALS_ASKED, NOW)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.sampled_from(SIGNALS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["metric", "value", "signal"]), inner),
    max_leaves=12,
)


@given(_JSON)
def test_no_answer_whatever_makes_it_raise_anything_else(vector):
    try:
        told = samples(vector, SIGNALS_ASKED, NOW)
    except ValueError:
        return
    assert all(one.value is None or math.isfinite(one.value) for one in told)
    assert all((one.value is None) == (one.unknown is not None) for one in told)


def test_host_signals_ask_for_the_configured_instance_and_containers_do_not():
    host = {name: SIGNALS_ASKED[name] for name in HOST_SIGNALS}
    containers = {name: SIGNALS_ASKED[name] for name in CONTAINER_SIGNALS}

    assert 'instance="box:9100"' in union_query(host, "box:9100")
    assert "box:9100" not in union_query(containers, "box:9100")
