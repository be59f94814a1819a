"""PromQL out, instant vectors in: the default signals, the one query that asks for all of them, and what came back.

One poll is one query: every expression is relabelled with its signal's name and all are joined with `or`. The age of a
value is asked beside it, because a derived expression only carries the query's time (real-parts.md). Nothing from a
request may ever come in here: label values are not data to PromQL, they are program text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dispatcher.vocabulary.settings import SignalSettings, TelemetrySettings
from dispatcher.vocabulary.signal import (
    CONTAINER_SIGNALS,
    HOST,
    MODEL_SIGNALS,
    SIGNALS,
    USUAL_MEAN_SECONDS,
    Sample,
    UnknownReason,
    window_seconds,
)

SOURCE = "prometheus"
CLOCK_SKEW_SECONDS = 60.0  # between the server's clock and ours
FUTURE_SECONDS = 5.0  # a sample may be so much younger than now before somebody's clock is wrong
OLDEST_SECONDS = 1e9  # 30 years: more is no age
RATIO_ROUNDING = 0.05  # rate() extrapolates: 1.03 is 1, 1.2 is nonsense
LARGEST_BYTES = 2**60

SUBJECT_LABEL: Mapping[str, str] = {
    **dict.fromkeys(CONTAINER_SIGNALS, "name"),  # cAdvisor's name of a Docker container
    **dict.fromkeys(MODEL_SIGNALS, "model"),
}

# Numerator and denominator are extrapolated alike, so the quotient is right from the second scrape on; a plain
# `1 - avg(rate(idle))` says 90 % busy while the window is still mostly empty.
_CPU_SHARE = (
    "sum by (job, instance) (rate(node_cpu_seconds_total{%s,$host}[$window]))"
    " / sum by (job, instance) (rate(node_cpu_seconds_total{$host}[$window]))"
)
_MEMORY_AGE = "node_memory_MemAvailable_bytes{$host}"
_CPU_AGE = 'node_cpu_seconds_total{mode="idle",$host}'
_CONTAINER_AGE = 'container_memory_working_set_bytes{name!=""}'

DEFAULT_SIGNALS: Mapping[str, SignalSettings] = {
    # node_exporter
    "host_memory_available_bytes": SignalSettings(expr="node_memory_MemAvailable_bytes{$host}", age_of=_MEMORY_AGE),
    "host_memory_total_bytes": SignalSettings(expr="node_memory_MemTotal_bytes{$host}", age_of=_MEMORY_AGE),
    "host_cpu_busy_ratio": SignalSettings(expr="1 - " + _CPU_SHARE % 'mode=~"idle|iowait"', age_of=_CPU_AGE),
    "host_cpu_steal_ratio": SignalSettings(expr=_CPU_SHARE % 'mode="steal"', age_of=_CPU_AGE),
    "host_memory_pressure_ratio": SignalSettings(
        expr="rate(node_pressure_memory_waiting_seconds_total{$host}[$window])",
        age_of="node_pressure_memory_waiting_seconds_total{$host}",
    ),
    "host_memory_pressure_full_ratio": SignalSettings(
        expr="rate(node_pressure_memory_stalled_seconds_total{$host}[$window])",
        age_of="node_pressure_memory_stalled_seconds_total{$host}",
    ),
    "host_cpu_pressure_ratio": SignalSettings(
        expr="rate(node_pressure_cpu_waiting_seconds_total{$host}[$window])",
        age_of="node_pressure_cpu_waiting_seconds_total{$host}",
    ),
    "host_cpu_count": SignalSettings(
        expr='count by (job, instance) (node_cpu_seconds_total{mode="idle",$host})', age_of=_CPU_AGE
    ),
    # cAdvisor; a container made anew has two series until the old one ends, hence max
    "container_memory_bytes": SignalSettings(
        expr='max by (name) (container_memory_working_set_bytes{name!=""})', age_of=_CONTAINER_AGE
    ),
    "container_cpu_cores": SignalSettings(
        expr='sum by (name) (rate(container_cpu_usage_seconds_total{name!=""}[$window]))', age_of=_CONTAINER_AGE
    ),
    "container_oom_events": SignalSettings(
        expr='max by (name) (container_oom_events_total{name!=""})', age_of=_CONTAINER_AGE
    ),
    "container_memory_rss_bytes": SignalSettings(
        expr='max by (name) (container_memory_rss{name!=""})', age_of=_CONTAINER_AGE
    ),
    "container_mapped_file_bytes": SignalSettings(
        expr='max by (name) (container_memory_mapped_file{name!=""})', age_of=_CONTAINER_AGE
    ),
    # our own exporter; `>= 0` drops the NaN of a model nobody asked in the window
    "model_request_seconds_p50": SignalSettings(
        expr="histogram_quantile(0.5, sum by (model, le) (rate(ollama_request_duration_seconds_bucket[5m]))) >= 0",
        age_of="ollama_request_duration_seconds_count",
    ),
    "model_request_seconds_p95": SignalSettings(
        expr="histogram_quantile(0.95, sum by (model, le) (rate(ollama_request_duration_seconds_bucket[5m]))) >= 0",
        age_of="ollama_request_duration_seconds_count",
    ),
    "model_tokens_per_second": SignalSettings(
        expr="(sum by (model) (rate(ollama_generated_tokens_total[5m]))"
        " / sum by (model) (rate(ollama_eval_duration_seconds_total[5m]))) >= 0",
        age_of="ollama_generated_tokens_total",
    ),
    "models_loaded": SignalSettings(  # scraped twice (exporter and /metrics of the API) counts once
        expr="sum(max by (place) (ollama_models_loaded))", age_of="ollama_models_loaded"
    ),
    # NVIDIA's DCGM exporter (MiB), else nvidia_gpu_exporter: all GPUs of a host; two hosts are never one sum
    "gpu_memory_free_bytes": SignalSettings(
        expr="sum by (instance) (DCGM_FI_DEV_FB_FREE) * 1048576"
        " or on () sum by (instance) (nvidia_smi_memory_free_bytes)",
        age_of='{__name__=~"DCGM_FI_DEV_FB_FREE|nvidia_smi_memory_free_bytes"}',
    ),
}

# The frcooper/rbx family (port 8000), as read in ollama_exporter.py of frcooper/ollama-exporter and rbx/ollama-exporter
# on GitHub: histograms `ollama_response_seconds` (both) and `ollama_eval_duration_seconds` (rbx only), counter
# `ollama_tokens_generated_total` (both), all by `model`. The first has no decode time, so its speed stays unknown.
PRESETS: Mapping[str, Mapping[str, SignalSettings]] = {
    "own": {},
    "frcooper": {
        "model_request_seconds_p50": SignalSettings(
            expr="histogram_quantile(0.5, sum by (model, le) (rate(ollama_response_seconds_bucket[5m]))) >= 0",
            age_of="ollama_response_seconds_count",
        ),
        "model_request_seconds_p95": SignalSettings(
            expr="histogram_quantile(0.95, sum by (model, le) (rate(ollama_response_seconds_bucket[5m]))) >= 0",
            age_of="ollama_response_seconds_count",
        ),
        "model_tokens_per_second": SignalSettings(
            expr="(sum by (model) (rate(ollama_tokens_generated_total[5m]))"
            " / sum by (model) (rate(ollama_eval_duration_seconds_sum[5m]))) >= 0",
            age_of="ollama_tokens_generated_total",
        ),
    },
}


def effective_signals(telemetry: TelemetrySettings) -> dict[str, SignalSettings]:
    """What is asked: the defaults, under the preset's, under the configured ones. An empty `expr` switches one off."""
    chosen = {**DEFAULT_SIGNALS, **PRESETS[telemetry.preset], **telemetry.signals}
    return {name: chosen[name] for name in SIGNALS if chosen[name].expr.strip()}


def with_host(promql: str, instance: str | None, rate_seconds: float = USUAL_MEAN_SECONDS) -> str:
    """`$host` becomes the instance matcher, or vanishes with its comma; `$window` becomes the rate window."""
    promql = promql.replace("$window", f"{math.ceil(rate_seconds)}s")
    if instance is None:
        return re.sub(r"\$host\s*,|,\s*\$host\b|\$host\b", "", promql)
    return promql.replace("$host", f"instance={quoted(instance)}")


def quoted(text: str) -> str:
    """A PromQL string literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def union_query(
    signals: Mapping[str, SignalSettings], instance: str | None, scrape_interval_seconds: float | None = None
) -> str:
    """One query for all values and ages; series carry their signal in the label `signal`, ages as `age:<signal>`.
    `$window` is each signal's own: `window_seconds` of the vocabulary."""
    parts = [
        _labelled(with_host(setting.expr, instance, window_seconds(name, scrape_interval_seconds)), name)
        for name, setting in signals.items()
    ]
    ages = _age_names(signals)
    for name in dict.fromkeys(ages.values()):
        setting = signals[name]
        if setting.age_of.strip():
            over = f" by ({SUBJECT_LABEL[name]})" if name in SUBJECT_LABEL else ""
            age = f"max{over} (time() - timestamp({with_host(setting.age_of, instance)}))"
            parts.append(_labelled(age, f"age:{name}"))
    return "\nor ".join(parts)


def single_query(
    name: str, setting: SignalSettings, instance: str | None, scrape_interval_seconds: float | None = None
) -> str:
    return union_query({name: setting}, instance, scrape_interval_seconds)


def _labelled(promql: str, name: str) -> str:
    return f'label_replace(\n{promql}\n, "signal", {quoted(name)}, "", "")'  # own lines: it may end in a comment


def _age_names(signals: Mapping[str, SignalSettings]) -> dict[str, str]:
    """signal → the signal under whose name its age is asked: the first that has the same age_of and subject."""
    first: dict[tuple[str, str], str] = {}
    return {
        name: first.setdefault((setting.age_of, SUBJECT_LABEL.get(name, HOST)), name)
        for name, setting in signals.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    signal: str
    labels: Mapping[str, str]
    query_time_seconds: float
    value: float  # may be NaN

    def subject(self, signal: str) -> str:
        label = SUBJECT_LABEL.get(signal)
        return self.labels.get(label, HOST) if label else HOST


def samples(
    vector: object, signals: Mapping[str, SignalSettings], now_seconds: float, wall_seconds: float | None = None
) -> list[Sample]:
    """The answer of `union_query(signals)` as samples: at least one per signal, with why where there is no value.

    at_seconds = now − age, by our clock, which never jumps. wall_seconds: this machine's wall clock of the moment,
    which the server's must agree with (None: it is now_seconds): stepped together, they agree again at once.
    A value whose age nobody knows is no value (prom_stale): it happens when a target is gone, whose last samples still
    fill the rate window, and such a value must never pass as fresh.
    Raises ValueError when the vector is not one.
    """
    if not isinstance(vector, Sequence) or isinstance(vector, str | bytes):
        raise ValueError("the result is not a list of series")
    rows = [_row(item) for item in vector]
    ages = {
        (row.signal.removeprefix("age:"), row.subject(row.signal.removeprefix("age:"))): row.value
        for row in rows
        if row.signal.startswith("age:") and abs(row.value) <= OLDEST_SECONDS  # NaN and infinity are no age
    }
    by_key: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        if row.signal in signals:
            by_key.setdefault((row.signal, row.subject(row.signal)), []).append(row)
    age_names = _age_names(signals)
    ours_seconds = now_seconds if wall_seconds is None else wall_seconds
    # One query, one time; NaN is nobody's.
    skewed = any(not abs(row.query_time_seconds - ours_seconds) <= CLOCK_SKEW_SECONDS for row in rows)
    told = []
    for (name, subject), series in by_key.items():
        age = ages.get((age_names[name], subject), ages.get((age_names[name], HOST)))
        told.append(_sample(name, subject, series, age, now_seconds, skewed))
    seen = {name for name, _ in by_key}
    told += [unknown_sample(name, UnknownReason.EMPTY, now_seconds) for name in signals if name not in seen]
    return _without_impossible_memory(told)


def unknown_sample(name: str, why: UnknownReason, now_seconds: float, subject: str = HOST) -> Sample:
    return Sample(signal=name, subject=subject, value=None, at_seconds=now_seconds, source=SOURCE, unknown=why)


def _sample(
    name: str, subject: str, series: Sequence[_Row], age: float | None, now_seconds: float, skewed: bool
) -> Sample:
    row = series[0]
    at_seconds = now_seconds - max(age, 0.0) if age is not None else now_seconds
    if len(series) > 1:
        why = UnknownReason.MULTI_SERIES
    elif not math.isfinite(row.value):
        why = UnknownReason.NOT_A_NUMBER
    elif skewed or (age is not None and age < -FUTURE_SECONDS):
        why = UnknownReason.CLOCK_SKEW
    elif age is None:
        why = UnknownReason.PROM_STALE
    elif (value := sane(name, row.value)) is None:
        why = UnknownReason.ABSURD
    else:
        return Sample(
            signal=name,
            subject=subject,
            value=value,
            at_seconds=at_seconds,
            source=SOURCE,
            evaluated_at_seconds=row.query_time_seconds,
        )
    return replace(unknown_sample(name, why, now_seconds, subject), at_seconds=at_seconds)


def sane(signal: str, value: float) -> float | None:
    """The value, a ratio's rounding cut off; None if it cannot be: negative, a ratio beyond 0..1, 2⁶⁰ bytes, no CPU."""
    if signal.endswith("_ratio"):
        return min(1.0, max(0.0, value)) if -RATIO_ROUNDING <= value <= 1 + RATIO_ROUNDING else None
    if signal in ("host_cpu_count", "host_memory_total_bytes") and not value >= 1:
        return None
    if signal.endswith("_bytes") and not value <= LARGEST_BYTES:
        return None
    return value if value >= 0 else None


def _without_impossible_memory(told: list[Sample]) -> list[Sample]:
    """More available than there is: the available one is not believed."""
    total = next((sample.value for sample in told if sample.signal == "host_memory_total_bytes"), None)
    return [
        replace(sample, value=None, unknown=UnknownReason.ABSURD)
        if sample.signal == "host_memory_available_bytes"
        and sample.value is not None
        and total is not None
        and sample.value > total
        else sample
        for sample in told
    ]


def _row(item: object) -> _Row:
    """{"metric": {"signal": …}, "value": [query time, "number"]}. A native histogram has no `value`: not a number."""
    if not isinstance(item, Mapping) or not isinstance(labels := item.get("metric"), Mapping):
        raise ValueError(f"a series without labels: {str(item)[:80]}")
    pair = item.get("value", item.get("histogram"))
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise ValueError(f"a series without a value: {str(item)[:80]}")
    query_time, number = pair
    try:
        value = float(number) if "value" in item else math.nan
        return _Row(
            signal=str(labels.get("signal", "")),
            labels={str(key): str(label) for key, label in labels.items()},
            query_time_seconds=float(query_time),
            value=value,
        )
    except (TypeError, ValueError) as cause:
        raise ValueError(f"a series whose value is no number: {str(item)[:80]}") from cause
