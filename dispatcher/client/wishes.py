"""What may be asked for: the fields of /select as keyword arguments. Left out: not said. The daemon checks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

Task = Literal[
    "coding",
    "architecture",
    "testing",
    "debugging",
    "documentation",
    "analysis",
    "summarization",
    "planning",
    "general",
]


class Wishes(TypedDict, total=False):
    """deadline_seconds: from now on, waits and loads included. wait_seconds: for a model that must be started first,
    at most 280. start False: a model that is ready, or none."""

    task: Task
    complexity: Literal["simple", "moderate", "complex", "ambiguous", "low", "medium", "high"]
    prefer: Literal["speed", "balanced", "quality"]
    model: str
    requires: Sequence[Literal["tools", "json", "vision"]]
    context_tokens: int
    expected_output_tokens: int
    deadline_seconds: float
    priority: Literal["high", "normal", "batch"]
    agent: str
    start: bool
    wait_seconds: float
    lease_seconds: float


class Ask(Wishes, total=False):
    prompt: str
    messages: Sequence[Mapping[str, Any]]
    dry_run: bool


class Generation(Wishes, total=False):
    """body: further fields of /api/generate, such as system, format or options. fallback (True): at most two more
    models when one fails. gateway (False): and at last through the gateway. within_seconds: for all of it;
    deadline_seconds where that is given, else 300. first_text_seconds: how long one model may be silent (three times
    what was predicted, 5 to 180). stall_seconds: and after its first text (60)."""

    body: Mapping[str, Any]
    fallback: bool
    gateway: bool
    within_seconds: float
    first_text_seconds: float
    stall_seconds: float


class Report(TypedDict, total=False):
    """Of an outcome. quality: 0..10."""

    output_tokens: int | None
    prompt_tokens: int | None
    quality: float | None


HEADERS = {  # of the gateway, for what it reads from no body
    "task": "X-Dispatcher-Task",
    "complexity": "X-Dispatcher-Complexity",
    "prefer": "X-Dispatcher-Prefer",
    "priority": "X-Dispatcher-Priority",
    "deadline_seconds": "X-Dispatcher-Deadline",
    "agent": "X-Dispatcher-Agent",
}


def said(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None: not said."""
    return {name: value for name, value in fields.items() if value is not None}


def headers_of(fields: Mapping[str, Any]) -> dict[str, str]:
    return {header: str(fields[name]) for name, header in HEADERS.items() if fields.get(name) is not None}


CLASSIFIED_CHARACTERS = 2_000  # what the daemon looks at to tell the task


def query_of(prompt: str | None, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """For GET /recommendations: an address has no room for a long prompt, so its beginning and its size go."""
    told = said(wishes)
    if prompt:
        told.setdefault("context_tokens", max(1, len(prompt) // 4))
        told["prompt"] = prompt[:CLASSIFIED_CHARACTERS]
    if "requires" in told:
        told["requires"] = ",".join(told["requires"])
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in told.items()}
