"""What the gateway speaks of: the surfaces it answers on, who asks, and why an attempt at a model server failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

Surface = Literal["openai", "ollama"]
Kind = Literal["generate", "embed"]
Headers = list[tuple[bytes, bytes]]

Cause = Literal[
    "connect",  # no connection: refused, no route, or not within its deadline
    "reset",  # the connection ended before an answer
    "silent",  # no first byte of content in time
    "stalled",  # an answer began and stopped
    "truncated",  # an answer ended without its end
    "malformed",  # not HTTP, or not what the surface answers
    "empty",  # 200 and nothing in it
    "too_long",  # an answer beyond every bound
    "server_error",  # a 5xx of the server's own making, or a 4xx that no content of a request can cause
    "redirect",  # never followed
    "busy",  # its load queue is full
    "memory",  # it needs more memory than there is
    "rate_limited",  # 429
    "not_found",  # 404: not the model we were told
    "context_exceeded",  # the prompt is too long for this model
    "wrong_option",  # a 500 that is the caller's fault
    "caller_error",  # any other 4xx
    "not_ready",  # its start or load failed
    "no_slot",  # its queue was full, or the wait too long
]
CAUSES: tuple[Cause, ...] = get_args(Cause)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One path that is relayed. The only ones: whatever changes a model's files is not among them."""

    path: str
    surface: Surface
    kind: Kind
    streams_unless_told: bool = False  # what an absent `stream` means there
    may_stream: bool = True


def _openai(path: str, kind: Kind) -> Endpoint:
    return Endpoint(path=path, surface="openai", kind=kind, may_stream=kind == "generate")


def _ollama(path: str, kind: Kind) -> Endpoint:
    generates = kind == "generate"
    return Endpoint(path=path, surface="ollama", kind=kind, streams_unless_told=generates, may_stream=generates)


ENDPOINTS: dict[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in (
        _openai("/v1/chat/completions", "generate"),
        _openai("/v1/completions", "generate"),
        _openai("/v1/embeddings", "embed"),
        _ollama("/api/chat", "generate"),
        _ollama("/api/generate", "generate"),
        _ollama("/api/embed", "embed"),
        _ollama("/api/embeddings", "embed"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A request as the API hands it on. headers: names in lower case. key_name: whose key came with it. at_seconds:
    when its head had come; None: now. unreadable: why its body is not taken; it is then left out."""

    endpoint: Endpoint
    headers: Headers
    body: bytes
    request_id: str
    key_name: str | None = None
    at_seconds: float | None = None
    unreadable: str | None = None


class Client(Protocol):
    """Who asked. Made by the API; all of it ends at once when the client has left. left: it has."""

    @property
    def left(self) -> bool: ...

    async def start(self, status: int, headers: Headers) -> None: ...

    async def write(self, piece: bytes) -> None: ...

    async def finish(self) -> None: ...

    async def answer(self, status: int, body: bytes, headers: Headers) -> None:
        """Whole, in one."""

    async def cut(self, *, at_once: bool = False) -> None:
        """What was written goes out; the connection then ends without the end of the answer. at_once: it does not go
        out, for nobody takes it."""
