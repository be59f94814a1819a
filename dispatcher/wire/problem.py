"""Errors as application/problem+json (RFC 9457). The words are a closed vocabulary: clients may match on `type`."""

from __future__ import annotations

from msgspec import Struct

from dispatcher.errors import (
    AskInvalid,
    DispatcherError,
    EngineRefused,
    HistoryUnavailable,
    LooksAway,
    NotFound,
    NotNow,
    Refused,
)

MEDIA_TYPE = "application/problem+json"
URN = "urn:dispatcher:"

PROBLEMS: dict[str, tuple[int, str]] = {  # word → usual status, title
    "invalid_request": (400, AskInvalid.title),
    "unauthorized": (401, "a key is required"),
    "foreign_origin": (403, "not from another site's page"),
    "forbidden": (403, "this key may not do that"),
    "not_found": (404, NotFound.title),
    "method_not_allowed": (405, "not with this method"),
    "too_slow": (408, "the request did not arrive in time"),
    "not_now": (409, NotNow.title),
    "too_large": (413, "the body is too large"),
    "misdirected": (421, "this host name is not served here"),
    "rate_limited": (429, "the model server has had enough for now"),
    "head_too_large": (431, "the request line and headers are too large"),
    "internal_error": (500, "a fault of the dispatcher"),
    "engine_refused": (502, "the model server refused"),
    "upstream_failed": (502, "no model server gave an answer"),
    "no_usable_model": (503, "no usable model"),
    "insufficient_memory": (503, "the smallest model does not fit"),
    "engine_unreachable": (503, "the model server does not answer"),
    "draining": (503, "the dispatcher is shutting down"),
    "too_many": (503, "as many as can be served are here already"),
    "queue_full": (503, "as many as can wait are waiting already"),
    "upstream_timeout": (504, "no model server gave an answer in time"),
    "history_unavailable": (507, "nothing can be recorded"),
}


class Problem(Struct, kw_only=True, frozen=True):
    """instance: the request's id, as in X-Request-Id and in the log."""

    type: str
    title: str
    status: int
    detail: str
    instance: str


def problem(word: str, detail: str, instance: str, *, status: int | None = None) -> Problem:
    """KeyError for a word outside PROBLEMS."""
    usual, title = PROBLEMS[word]
    return Problem(type=URN + word, title=title, status=status or usual, detail=detail, instance=instance)


def problem_of(error: DispatcherError, instance: str) -> Problem:
    """What an error of ours is to a caller. Anything without a word of its own is internal_error."""
    return problem(_word(error), str(error), instance, status=error.status if isinstance(error, Refused) else None)


def retry_after_of(error: DispatcherError) -> int | None:
    """Seconds 1..120; None when trying again by itself changes nothing."""
    if isinstance(error, NotNow) and error.retry_after_seconds is not None:
        return within_limits(error.retry_after_seconds)
    return 5 if isinstance(error, LooksAway) else None


def within_limits(retry_after_seconds: float) -> int:
    """1..120: the OpenAI client ignores anything above."""
    return max(1, min(120, round(retry_after_seconds)))


def _word(error: DispatcherError) -> str:
    if isinstance(error, NotFound):
        return "not_found"
    if isinstance(error, NotNow):
        return "not_now"
    if isinstance(error, Refused):
        return "invalid_request"
    if isinstance(error, HistoryUnavailable):
        return "history_unavailable"
    if isinstance(error, LooksAway):
        return "engine_unreachable"
    return "engine_refused" if isinstance(error, EngineRefused) else "internal_error"
