"""What a type cannot say of the gateway's settings: ranges, and what must agree. The rest of them: config.checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dispatcher.config.keys import Disagreement, variable_trouble
from dispatcher.vocabulary.settings import MIB, Settings

MOMENT_SECONDS = 0.001
HOUR_SECONDS = 3600.0

RANGES: Mapping[str, tuple[float, float]] = {
    "gateway.answer": (1024, 1024 * MIB),
    "gateway.timeouts.connect": (MOMENT_SECONDS, 60),
    "gateway.timeouts.first_token_min": (MOMENT_SECONDS, HOUR_SECONDS),
    "gateway.timeouts.first_token_max": (MOMENT_SECONDS, HOUR_SECONDS),
    "gateway.timeouts.between_min": (MOMENT_SECONDS, HOUR_SECONDS),
    "gateway.timeouts.between_max": (MOMENT_SECONDS, HOUR_SECONDS),
    "gateway.timeouts.total": (MOMENT_SECONDS, 24 * HOUR_SECONDS),
    "gateway.timeouts.heartbeat": (MOMENT_SECONDS, HOUR_SECONDS),
    "gateway.retries.attempts": (1, 10),
    "gateway.retries.backoff": (0, 60),
    "gateway.retries.backoff_max": (0, 60),
    "gateway.breaker.failures_in_row": (1, 1000),
    "gateway.breaker.window_min_requests": (1, 100_000),
    "gateway.breaker.window": (MOMENT_SECONDS, HOUR_SECONDS),
    "gateway.breaker.open": (MOMENT_SECONDS, HOUR_SECONDS),
    "gateway.breaker.open_max": (MOMENT_SECONDS, HOUR_SECONDS),
    "gateway.breaker.probe_passes": (1, 100),
    "gateway.queue.high_entries": (0, 100_000),
    "gateway.queue.normal_entries": (0, 100_000),
    "gateway.queue.batch_entries": (0, 100_000),
    "gateway.queue.high_wait": (0, 24 * HOUR_SECONDS),
    "gateway.queue.normal_wait": (0, 24 * HOUR_SECONDS),
    "gateway.queue.batch_wait": (0, 24 * HOUR_SECONDS),
    "gateway.queue.high_share": (0.01, 1e6),  # a class may come late, not never
    "gateway.queue.normal_share": (0.01, 1e6),
    "gateway.queue.batch_share": (0.01, 1e6),
    "gateway.cache.ttl": (0, 7 * 24 * HOUR_SECONDS),
    "gateway.last_resort.timeout": (MOMENT_SECONDS, HOUR_SECONDS),
}

ORDERED = (
    ("gateway.timeouts.first_token_min", "gateway.timeouts.first_token_max", True, "the wait lies between them"),
    ("gateway.timeouts.between_min", "gateway.timeouts.between_max", True, "the wait lies between them"),
    ("gateway.retries.backoff", "gateway.retries.backoff_max", True, "the pause grows from one to the other"),
    ("gateway.breaker.open", "gateway.breaker.open_max", True, "the cool-off grows from one to the other"),
)


def disagreements(settings: Settings, environ: Mapping[str, str]) -> Iterator[Disagreement]:
    gateway = settings.gateway
    names = [model.name for model in settings.models]
    if gateway.embedding_model is not None and gateway.embedding_model not in names:
        words = f"{gateway.embedding_model!r} is not a model of the chain; one of {', '.join(names)}"
        yield ("gateway.embedding_model",), words
    resort, path = gateway.last_resort, "gateway.last_resort"
    if resort.url is None:
        if resort.model is not None or resort.key_env is not None:
            yield (f"{path}.url",), "not set, so nothing leaves this machine; set it, or leave the rest of it out"
        return
    if resort.model is None:
        yield (f"{path}.model",), "not set; name the model that is to be asked for there"
    if resort.key_env is not None and (trouble := variable_trouble(resort.key_env, environ)) is not None:
        yield (f"{path}.key_env",), trouble
