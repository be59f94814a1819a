"""The errors of the client; their tree is drawn in the package's docstring. Each names the thing, the consequence and
the next step, and none the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "error", "timeout", "cancelled"]
SHOWN_CHARACTERS = 200
_ECHO_CHARACTERS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One model that gave no answer. cause: connect, cut, silent, stalled, truncated, malformed, empty, too_long,
    redirect, not_ready, no_address, no_model, rate_limited, not_found, busy, memory, context_exceeded, wrong_option,
    caller_error, server_error. status: of HTTP; None where none came."""

    model: str
    cause: str
    status: int | None = None
    detail: str = ""
    decision_id: str | None = None

    def __str__(self) -> str:
        told = self.cause if self.status is None else f"{self.cause}, HTTP {self.status}"
        return f"{self.model} ({told}: {self.detail})" if self.detail else f"{self.model} ({told})"


class ClientError(Exception):
    """The root of all of them."""


class DispatcherUnreachable(ClientError):
    """No dispatcher answered, in time and whole; or what answered is none."""


class Refused(ClientError):
    """The dispatcher said no. problem: its word, such as not_found; request_id: as in its log. Both may be empty."""

    def __init__(self, message: str, *, status: int, document: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.problem = str(document.get("type", "")).rpartition(":")[2]
        self.detail = str(document.get("detail", ""))
        self.request_id = str(document.get("instance", ""))


class Unauthorized(Refused):
    """401 or 403."""


class NoModel(Refused):
    """retry_after_seconds: when asking again may help; should_retry False: it will not help. None: not said."""

    def __init__(self, message: str, *, status: int, document: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        super().__init__(message, status=status, document=document)
        waits = headers.get("retry-after", "")
        self.retry_after_seconds: float | None = float(waits) if waits.isascii() and waits.isdigit() else None
        self.should_retry: bool | None = {"true": True, "false": False}.get(headers.get("x-should-retry", ""))
        self.candidates: tuple[Mapping[str, Any], ...] = tuple(document.get("candidates") or ())
        self.decision_id: str | None = document.get("decision_id")


class ModelFailed(ClientError):
    """attempts: every model that was tried, in order."""

    def __init__(self, message: str, attempts: tuple[Attempt, ...] = ()) -> None:
        super().__init__(message)
        self.attempts = attempts


class Truncated(ModelFailed):
    """The text that was handed out is the beginning of an answer, and not an answer."""


class Broken(Exception):
    """Inside of the client: one exchange failed. how: connect (none was made), late (its deadline), cut, too_long."""

    def __init__(self, how: str, why: str) -> None:
        super().__init__(why)
        self.how = how


class Cut(Exception):
    """Inside of the client: one attempt failed. outcome: what the dispatcher is told; cancelled where it says nothing
    about the model. moves_on: another model may do better."""

    def __init__(self, cause: str, *, status: int | None = None, detail: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.status = status
        self.detail = detail
        self.moves_on = cause not in ("caller_error", "wrong_option")
        self.outcome: Status = "error"
        if cause in ("silent", "stalled"):
            self.outcome = "timeout"
        elif not self.moves_on or cause in ("not_ready", "no_address", "context_exceeded"):
            self.outcome = "cancelled"


NO_MODEL = frozenset({"no_usable_model", "insufficient_memory", "draining"})  # problems that /select answers with


def refused(status: int, headers: Mapping[str, str], document: Mapping[str, Any]) -> Refused:
    """What an answer of 400 and more of the dispatcher means."""
    title, detail = document.get("title") or f"HTTP {status}", document.get("detail") or document.get("error") or ""
    told = f"the dispatcher refused: {title}: {detail}".rstrip(": .")
    if status in (401, 403):
        told = f"{told}. Nothing was done; give the client another key="
        return Unauthorized(told, status=status, document=document)
    wait = headers.get("retry-after")
    step = f"ask again in {wait} s" if wait else "ask again later"
    if str(document.get("type", "")).rpartition(":")[2] in NO_MODEL:
        if headers.get("x-should-retry") == "false":
            step = "asking again will not help, unless for less: fewer requirements, a smaller context, another model"
        return NoModel(f"{told}. No model was promised; {step}", status=status, document=document, headers=headers)
    step = f"{step}; its log tells more" if status >= 500 else "correct what was sent"
    return Refused(f"{told}. Nothing was done; {step}", status=status, document=document)


def quotable(words: object, prompt: str) -> str:
    """What a model server said, shortened; empty when a stretch of the prompt may stand in it."""
    if not isinstance(words, str):
        return ""
    told = " ".join(words.split())[:SHOWN_CHARACTERS]
    spaced = " ".join(prompt.split())
    if not spaced or not told:
        return told
    size = min(_ECHO_CHARACTERS, len(spaced))
    echoes = any(told[at : at + size] in spaced for at in range(len(told) - size + 1))
    return "" if echoes else told
