"""Driving the simulated server in virtual time, for the tests of replay."""

from __future__ import annotations

from typing import Any

from dispatcher.replay.asks import Ask, Event, Finished, Noise, Refused
from dispatcher.replay.engine import Engine
from dispatcher.replay.models import GIB, Limits, RehearsalModel

QUIET = Noise(scheduler_seconds=0.0)
A, B, C = "phi3:mini", "llama3.2:3b", "qwen2.5:7b"


def a_model(name: str = A, **more: Any) -> RehearsalModel:
    """Loads in 2 s, evaluates 100 and says 10 tokens a second, 1 GiB."""
    given: dict[str, Any] = {
        "name": name,
        "file_bytes": GIB // 2,
        "resident_bytes": GIB,
        "kv_bytes_per_token": 1024,
        "load_seconds": 2.0,
        "decode_tokens_per_second": 10.0,
        "prefill_tokens_per_second": 100.0,
        "context_max": 8192,
    }
    return RehearsalModel(**{**given, **more})


def an_engine(*models: RehearsalModel, **limits: Any) -> Engine:
    chosen = models or (a_model(A), a_model(B), a_model(C))
    return Engine({model.name: model for model in chosen}, Limits(**{"contention_ratio": 0.0, **limits}))


def an_ask(model: str = A, **more: Any) -> Ask:
    return Ask(**{"model": model, "prompt_tokens": 100, "num_predict": 11, **more})


def play(engine: Engine, until_seconds: float = 1e6) -> list[Event]:
    """Everything that happens by itself from here on."""
    told: list[Event] = []
    while (at := engine.next_event_at()) is not None and at <= until_seconds:
        told += engine.advance(at)
    return told + engine.advance(until_seconds)


def finished(events: list[Event]) -> dict[int, Finished]:
    return {event.request: event for event in events if isinstance(event, Finished)}


def refused(events: list[Event]) -> dict[int, tuple[int, str]]:
    return {event.request: (event.status, event.text) for event in events if isinstance(event, Refused)}


def loaded(engine: Engine) -> list[str]:
    return [runner.model.name for runner in engine.loaded()]


def load(engine: Engine, now_seconds: float, *models: str, **more: Any) -> float:
    """Loads them one after another and says when the last one is there."""
    for model in models:
        engine.submit(now_seconds, an_ask(model, work="load", **more), QUIET)
        now_seconds += engine.models[model].load_seconds
        engine.advance(now_seconds)
    return now_seconds
