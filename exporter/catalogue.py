"""Every metric there is, as one literal table: name, labels and their words, unit, buckets, where its values come from.

The collector walks this table, docs/reference/metrics.md is generated from it, and dashboards, alerts and
scripts/verify-metrics.sh are held to it by tests. A metric that is not here does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exporter.labels import (
    ARM,
    CAUSE,
    COMPLEXITY,
    DECIDED_MODEL,
    ERROR_TYPE,
    EXPERIMENT,
    FROM,
    MODEL,
    OUTCOME,
    PLACE,
    PRIORITY,
    RULE,
    SAME,
    SIGNAL,
    STATE,
    STATUS,
    STOP_REASON,
    TASK,
    TO,
    UNKNOWN_REASON,
    VERSION,
    Label,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """since: the events or views it is made of. unit: suffix of the name before _total; empty for a count or state."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    since: str
    unit: str = ""
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)


def counter(name: str, *labels: Label, since: str, help: str, unit: str = "") -> Metric:
    return Metric(name=name, kind="counter", labels=labels, since=since, help=help, unit=unit)


def gauge(name: str, *labels: Label, since: str, help: str, unit: str = "") -> Metric:
    return Metric(name=name, kind="gauge", labels=labels, since=since, help=help, unit=unit)


def histogram(name: str, *labels: Label, since: str, help: str, unit: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(name=name, kind="histogram", labels=labels, since=since, help=help, unit=unit, buckets=buckets)


REQUEST_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600)
FIRST_TOKEN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 30, 60, 120, 180)
LOAD_BUCKETS = (0.01, 0.1, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300)
WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
DECISION_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
ERROR_RATIO_BUCKETS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5)
POLL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

CATALOGUE: tuple[Metric, ...] = (
    # ── the model servers ──
    gauge(
        "ollama_up",
        PLACE,
        since="fleet view",
        help="1 while the place's engine runs and answers. A stopped container is 0 and no fault.",
    ),
    gauge(
        "ollama_info",
        PLACE,
        VERSION,
        since="fleet view",
        help="Always 1; the version of the place's engine, where it was seen.",
    ),
    gauge("ollama_models_loaded", PLACE, since="fleet view", help="Configured models loaded at this place: 0 or 1."),
    gauge("ollama_model_loaded", MODEL, PLACE, since="fleet view", help="1 while the model is loaded and answers."),
    gauge(
        "ollama_model_memory_usage_bytes",
        MODEL,
        PLACE,
        unit="bytes",
        since="fleet view",
        help="Measured memory: rss and mapped files of the container, else the size the engine reports.",
    ),
    gauge(
        "ollama_model_size_bytes",
        MODEL,
        PLACE,
        unit="bytes",
        since="profiles",
        help="Size of the weights on disk; the configured prior until the engine has said it.",
    ),
    counter(
        "ollama_requests_total",
        MODEL,
        STATUS,
        since="Completed",
        help="Requests that ended, by how; under _other those that came to no model, or were answered from elsewhere.",
    ),
    histogram(
        "ollama_request_duration_seconds",
        MODEL,
        buckets=REQUEST_BUCKETS,
        unit="seconds",
        since="Completed",
        help="From the request to the last byte, whatever the status; at the gateway of the attempt that ended it, "
        "and of answers from its cache none.",
    ),
    histogram(
        "ollama_time_to_first_token_seconds",
        MODEL,
        buckets=FIRST_TOKEN_BUCKETS,
        unit="seconds",
        since="Completed",
        help="From sending to the first content, as the gateway saw it; else, where the engine tells its durations, "
        "its total less its decoding: wait, load and prefill.",
    ),
    histogram(
        "ollama_load_duration_seconds",
        MODEL,
        buckets=LOAD_BUCKETS,
        unit="seconds",
        since="Completed with engine durations",
        help="Time in the engine's scheduler as it reports it per request; milliseconds when warm.",
    ),
    histogram(
        "ollama_queue_wait_seconds",
        MODEL,
        buckets=WAIT_BUCKETS,
        unit="seconds",
        since="Completed",
        help="Waiting for a slot: at the gateway, and in the engine (its total less load, prefill and decoding), where "
        "they are known.",
    ),
    counter(
        "ollama_prompt_tokens_total",
        MODEL,
        since="Completed",
        help="Prompt tokens, those from the prompt cache included.",
    ),
    counter(
        "ollama_generated_tokens_total",
        MODEL,
        since="Completed",
        help="Tokens generated, as the engine counted or a caller reported them. Divided by "
        "ollama_eval_duration_seconds_total it is the speed.",
    ),
    counter(
        "ollama_eval_duration_seconds_total",
        MODEL,
        unit="seconds",
        since="Completed",
        help="Time the generated tokens took: the engine's decoding; where it does not tell, what followed the first "
        "token the gateway saw; of a caller's report the whole request.",
    ),
    counter(
        "ollama_prompt_eval_duration_seconds_total",
        MODEL,
        unit="seconds",
        since="Completed with engine durations",
        help="Time spent on prompts, as the engine timed it; cached tokens and those a caller reports take none.",
    ),
    gauge(
        "ollama_generation_speed_tokens_per_second",
        MODEL,
        since="profiles",
        help="Median decode rate of the last 100 answers at the model's most used place. Panels divide the counters.",
    ),
    gauge("ollama_queue_depth", PLACE, PRIORITY, since="gateway queue", help="Requests waiting at the gateway."),
    # ── deciding ──
    counter(
        "dispatcher_decisions_total",
        DECIDED_MODEL,
        TASK,
        COMPLEXITY,
        OUTCOME,
        since="Decided",
        help="Decisions, by the model named and how it was come by.",
    ),
    counter(
        "dispatcher_rejections_total",
        MODEL,
        RULE,
        since="Decided",
        help="Candidates refused, by the rule that refused them.",
    ),
    histogram(
        "dispatcher_decision_duration_seconds",
        buckets=DECISION_BUCKETS,
        unit="seconds",
        since="Decided",
        help="From the classified request to the decision, waiting not included.",
    ),
    histogram(
        "dispatcher_predicted_error_ratio",
        buckets=ERROR_RATIO_BUCKETS,
        unit="ratio",
        since="Completed",
        help="Distance of the predicted from the actual duration of successful requests, relative to the actual; of "
        "what the gateway relayed, for as many tokens as came.",
    ),
    counter(
        "dispatcher_fallbacks_total", FROM, TO, CAUSE, since="Relayed", help="Attempts that moved on to another model."
    ),
    counter("dispatcher_retries_total", CAUSE, since="Relayed", help="Attempts repeated on the same model."),
    counter(
        "dispatcher_errors_total",
        ERROR_TYPE,
        since="Acted, Sampled, Turned, Reloaded, Erred",
        help="What went wrong, by kind: actions, each source that failed in a poll, the engine falling silent, history "
        "records dropped or refused, API answers with a 5xx that are a fault (a 503 for want of a model is none).",
    ),
    # ── places and memory ──
    gauge(
        "dispatcher_model_state",
        MODEL,
        PLACE,
        STATE,
        since="fleet view",
        help="1 for the state the place is in, 0 for the others.",
    ),
    counter(
        "dispatcher_model_starts_total", MODEL, PLACE, since="Acted", help="Starts and reloads that came to ready."
    ),
    counter(
        "dispatcher_model_stops_total",
        MODEL,
        PLACE,
        STOP_REASON,
        since="Acted",
        help="Stops that were seen done, by why.",
    ),
    histogram(
        "dispatcher_model_load_seconds",
        MODEL,
        buckets=LOAD_BUCKETS,
        unit="seconds",
        since="Acted",
        help="Our own loads, from asking until the model answered.",
    ),
    counter(
        "dispatcher_swap_seconds_total",
        unit="seconds",
        since="Acted",
        help="Time lost to starting and loading, failed starts included.",
    ),
    gauge("dispatcher_memory_reserved_bytes", unit="bytes", since="fleet view", help="Sum of the memory ledger."),
    gauge(
        "dispatcher_memory_capacity_bytes",
        unit="bytes",
        since="fleet view",
        help="Memory the models may share, the reserve included; absent while unknown.",
    ),
    gauge("dispatcher_leases", since="fleet view", help="Live leases."),
    counter(
        "dispatcher_idle_model_byte_seconds_total",
        unit="byte_seconds",
        since="fleet view, integrated over time",
        help="Memory held by ready models nobody was using, times how long.",
    ),
    # ── looking ──
    gauge(
        "dispatcher_signal_age_seconds",
        SIGNAL,
        unit="seconds",
        since="snapshot",
        help="Age of the signal's value in use, the oldest of its subjects; absent while it is unknown.",
    ),
    gauge(
        "dispatcher_signal_unknown",
        SIGNAL,
        UNKNOWN_REASON,
        since="snapshot",
        help="1 while the signal is unknown for this reason, for at least one of its subjects.",
    ),
    gauge(
        "dispatcher_degraded",
        UNKNOWN_REASON,
        since="snapshot, fleet view",
        help="1 while a configured or once seen source fails for this reason.",
    ),
    histogram(
        "dispatcher_poll_duration_seconds",
        buckets=POLL_BUCKETS,
        unit="seconds",
        since="Sampled",
        help="One look at all sources.",
    ),
    counter(
        "dispatcher_poll_failures_total", UNKNOWN_REASON, since="Sampled", help="Sources that failed in a poll, by why."
    ),
    counter("dispatcher_ticks_missed_total", since="Sampled", help="Polls that fell out."),
    # ── health ──
    gauge("dispatcher_breaker_state", MODEL, PLACE, since="fleet view", help="0 closed, 1 half-open, 2 open."),
    gauge(
        "dispatcher_model_health",
        MODEL,
        since="fleet view, profiles",
        help="1 healthy, 0.5 degraded, 0 unhealthy; of the model's best place.",
    ),
    # ── the gateway ──
    counter("dispatcher_cache_hits_total", since="Cached", help="Answers given from the cache."),
    counter("dispatcher_cache_misses_total", since="Cached", help="Cacheable requests that were not in the cache."),
    gauge("dispatcher_cache_bytes", unit="bytes", since="gateway cache", help="Size of the cached answers."),
    gauge(
        "dispatcher_retry_budget_ratio", unit="ratio", since="gateway", help="What is left of the budget for repeats."
    ),
    gauge("dispatcher_queue_limit", PLACE, PRIORITY, since="gateway queue", help="Requests that may wait."),
    # ── experiments ──
    counter(
        "dispatcher_experiment_samples_total", EXPERIMENT, ARM, since="experiments", help="Outcomes counted for an arm."
    ),
    counter(
        "dispatcher_experiment_rollbacks_total",
        EXPERIMENT,
        since="experiments",
        help="Arms switched off because a guardrail broke.",
    ),
    counter(
        "dispatcher_shadow_decisions_total",
        SAME,
        since="experiments",
        help="Decisions made again under a shadow policy, by whether they came out the same.",
    ),
    # ── this process ──
    gauge(
        "dispatcher_config_last_reload_successful",
        since="Reloaded",
        help="0 while the configuration on disk is broken and the old one is in force.",
    ),
    gauge("dispatcher_build_info", VERSION, since="daemon", help="Always 1; the dispatcher's version."),
    histogram(
        "dispatcher_event_loop_lag_seconds",
        buckets=LAG_BUCKETS,
        unit="seconds",
        since="daemon",
        help="How late the event loop's heartbeat was, ten times a second: over 10 minutes enough for a p99.9,"
        " histogram_quantile(0.999, rate(dispatcher_event_loop_lag_seconds_bucket[10m])).",
    ),
    gauge(
        "dispatcher_abandoned_threads",
        since="daemon",
        help="Threads whose answer nobody waits for any more: of Docker, Prometheus and the history's disk. At most 20;"
        " then calls are refused instead.",
    ),
    counter("dispatcher_history_dropped_total", since="history", help="Events that could not be kept."),
)

BY_NAME = {metric.name: metric for metric in CATALOGUE}


def reference_markdown() -> str:
    """docs/reference/metrics.md, whole."""
    lines = [
        "# Metrics",
        "",
        "Generated from `exporter/catalogue.py`; do not edit. Base units everywhere. Labels come from the configuration"
        " and fixed vocabularies only; counters of known label sets start at 0. A gauge without a value is unknown.",
        "",
        "| metric | type | labels | unit | from | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for metric in CATALOGUE:
        labels = " ".join(f"`{name}`" for name in metric.label_names)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.unit} | {metric.since} | {metric.help} |")
    lines += ["", "## Label values", "", "| label | of | values |", "|---|---|---|"]
    for label in dict.fromkeys(label for metric in CATALOGUE for label in metric.labels):
        users = ", ".join(f"`{metric.name}`" for metric in CATALOGUE if label in metric.labels)
        values = label.origin if label.values is None else " ".join(f"`{value}`" for value in label.values)
        lines.append(f"| `{label.name}` | {users} | {values} |")
    lines += ["", "## Histogram buckets", "", "| metric | upper bounds |", "|---|---|"]
    for metric in CATALOGUE:
        if metric.buckets:
            lines.append(f"| `{metric.name}` | {' '.join(f'{bound:g}' for bound in metric.buckets)} |")
    return "\n".join(lines) + "\n"
