"""A refusal in the words of the surface that was asked: a client of OpenAI's or of Ollama's reads only its own.

The words are those of wire.problem on all three, and the status, too."""

from __future__ import annotations

from typing import Any, NamedTuple

from dispatcher.vocabulary.relay import Surface
from dispatcher.wire.decision import encode
from dispatcher.wire.problem import MEDIA_TYPE, PROBLEMS, Problem, problem

JSON = "application/json"
OWN = "/api/v1"  # below Ollama's prefix, but our API's
_OPENAI_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"}


class Envelope(NamedTuple):
    status: int
    body: bytes
    media_type: str


def surface_of(path: str) -> Surface | None:
    """Whose clients ask there; None: our API's, whose errors are problems. path: decoded, without query."""
    if _is_under(path, "/v1"):
        return "openai"
    return "ollama" if _is_under(path, "/api") and not _is_under(path, OWN) else None


def refusal(path: str, word: str, detail: str, request_id: str, *, status: int | None = None) -> Envelope:
    """KeyError for a word outside PROBLEMS. status: where it is not the word's usual one."""
    told = problem(word, detail, request_id, status=status)
    return told_in(surface_of(path), told)


def told_in(surface: Surface | None, told: Problem) -> Envelope:
    if surface is None:
        return Envelope(told.status, encode(told), MEDIA_TYPE)
    return Envelope(told.status, encode(_error(surface, told)), JSON)


def stream_error(surface: Surface, word: str, detail: str) -> bytes:
    """The last that a stream says when it fails: an event or a line with the error, and no end marker."""
    told = encode(_error(surface, problem(word, detail, "")))
    return told + b"\n" if surface == "ollama" else b"data: " + told + b"\n\n"


def _error(surface: Surface, told: Problem) -> dict[str, Any]:
    if surface == "ollama":
        return {"error": told.detail}
    return {"error": {"message": told.detail, "type": _openai_type(told.status), "param": None, "code": word_of(told)}}


def _openai_type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return _OPENAI_TYPES.get(status, "invalid_request_error")


def word_of(told: Problem) -> str:
    word = told.type.rpartition(":")[2]
    assert word in PROBLEMS, word
    return word


def _is_under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")
