from __future__ import annotations

import re

from exporter.catalogue import CATALOGUE, reference_markdown

# contract.md, "Metrics (exporter)": a change here is a breaking change and goes into CHANGELOG.md.
NAMES = """
ollama_up ollama_info ollama_models_loaded ollama_model_loaded ollama_model_memory_usage_bytes ollama_model_size_bytes
ollama_requests_total ollama_request_duration_seconds ollama_time_to_first_token_seconds ollama_load_duration_seconds
ollama_queue_wait_seconds ollama_prompt_tokens_total ollama_generated_tokens_total ollama_eval_duration_seconds_total
ollama_prompt_eval_duration_seconds_total ollama_generation_speed_tokens_per_second ollama_queue_depth
dispatcher_decisions_total dispatcher_rejections_total dispatcher_decision_duration_seconds
dispatcher_predicted_error_ratio dispatcher_fallbacks_total dispatcher_retries_total dispatcher_errors_total
dispatcher_model_state dispatcher_model_starts_total dispatcher_model_stops_total dispatcher_model_load_seconds
dispatcher_swap_seconds_total dispatcher_memory_reserved_bytes dispatcher_memory_capacity_bytes dispatcher_leases
dispatcher_idle_model_byte_seconds_total dispatcher_signal_age_seconds dispatcher_signal_unknown dispatcher_degraded
dispatcher_poll_duration_seconds dispatcher_poll_failures_total dispatcher_ticks_missed_total dispatcher_breaker_state
dispatcher_model_health dispatcher_cache_hits_total dispatcher_cache_misses_total dispatcher_cache_bytes
dispatcher_experiment_samples_total dispatcher_config_last_reload_successful dispatcher_build_info
dispatcher_event_loop_lag_seconds dispatcher_abandoned_threads dispatcher_history_dropped_total
dispatcher_retry_budget_ratio dispatcher_experiment_rollbacks_total dispatcher_shadow_decisions_total
dispatcher_queue_limit
"""
CONTRACT = NAMES.split()

CONTRACT_LABELS = {
    "ollama_up": ("place",),
    "ollama_info": ("place", "version"),
    "ollama_models_loaded": ("place",),
    "ollama_model_loaded": ("model", "place"),
    "ollama_model_memory_usage_bytes": ("model", "place"),
    "ollama_model_size_bytes": ("model", "place"),
    "ollama_requests_total": ("model", "status"),
    "ollama_request_duration_seconds": ("model",),
    "ollama_queue_depth": ("place", "priority"),
    "dispatcher_decisions_total": ("model", "task", "complexity", "outcome"),
    "dispatcher_rejections_total": ("model", "rule"),
    "dispatcher_fallbacks_total": ("from", "to", "cause"),
    "dispatcher_retries_total": ("cause",),
    "dispatcher_errors_total": ("error_type",),
    "dispatcher_model_state": ("model", "place", "state"),
    "dispatcher_signal_age_seconds": ("signal",),
    "dispatcher_signal_unknown": ("signal", "reason"),
    "dispatcher_degraded": ("reason",),
    "dispatcher_poll_failures_total": ("reason",),
    "dispatcher_breaker_state": ("model", "place"),
    "dispatcher_model_health": ("model",),
    "dispatcher_experiment_samples_total": ("experiment", "arm"),
    "dispatcher_experiment_rollbacks_total": ("experiment",),
    "dispatcher_shadow_decisions_total": ("same",),
    "dispatcher_queue_limit": ("place", "priority"),
}


def test_the_catalogue_is_the_contracts_table_no_more_and_no_less():
    assert sorted(CONTRACT) == sorted(metric.name for metric in CATALOGUE)


def test_labels_are_those_of_the_contract():
    assert CONTRACT_LABELS == {
        metric.name: metric.label_names for metric in CATALOGUE if metric.name in CONTRACT_LABELS
    }


def test_units_are_base_units_and_stand_in_the_name():
    for metric in CATALOGUE:
        bare = metric.name.removesuffix("_total")
        assert ("counter" == metric.kind) == metric.name.endswith("_total"), metric.name
        assert bool(metric.buckets) == ("histogram" == metric.kind), metric.name
        if metric.unit:
            assert bare.endswith(f"_{metric.unit}"), metric.name
        elif re.search(r"_(seconds|bytes|ratio)$", bare):
            raise AssertionError(f"{metric.name}: its unit is not in the table")
        assert not re.search(r"milli|percent|minute|_(ms|mb|kb|gb)(_|$)", metric.name), metric.name


def test_buckets_rise_and_help_is_a_sentence():
    for metric in CATALOGUE:
        assert sorted(set(metric.buckets)) == list(metric.buckets), metric.name
        assert metric.help.endswith("."), metric.name


def test_every_label_says_where_its_words_come_from():
    for metric in CATALOGUE:
        for label in metric.labels:
            assert bool(label.values) != bool(label.origin), f"{metric.name}{{{label.name}}}"


def test_the_reference_names_every_metric_and_every_table_row_is_whole():
    lines = reference_markdown().splitlines()
    first_cells = [line.split("|")[1].strip(" `") for line in lines if line.startswith("| `")]

    assert set(CONTRACT) <= set(first_cells)
    assert {8, 5, 4} == {len(line.split("|")) for line in lines if line.startswith("|")}
