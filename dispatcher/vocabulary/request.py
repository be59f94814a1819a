"""What is asked: Asked (the caller's words and wishes, which end at classify) and Request (features only)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

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
Complexity = Literal["simple", "moderate", "complex", "ambiguous"]
Prefer = Literal["speed", "balanced", "quality"]
Priority = Literal["high", "normal", "batch"]
Feature = Literal["tools", "json", "vision"]
Need = Literal["accuracy", "speed", "creativity", "json", "tools", "context"]

TASKS: tuple[str, ...] = get_args(Task)
COMPLEXITIES: tuple[str, ...] = get_args(Complexity)
PRIORITIES: tuple[str, ...] = get_args(Priority)
CONTEXT_RUNGS_TOKENS = (4096, 8192, 16384, 32768)  # a request takes the smallest that holds prompt + answer
DEFAULT_NUM_CTX = CONTEXT_RUNGS_TOKENS[0]  # where nobody says how much: of a place that has nothing loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request in the caller's words. Dies in classify: nothing here is stored, logged or exported."""

    text: str = ""  # the prompt, or the messages joined
    last_at: int = field(default=0, compare=False)  # where in it the last message of the user begins
    task: Task | None = None
    usual_task: Task | None = None  # of its agent, as the preferences have it: where `task` says nothing
    complexity: Complexity | None = None
    prefer: Prefer = "balanced"
    model: str = "auto"
    requires: frozenset[Feature] = frozenset()
    context_tokens: int | None = None
    expected_output_tokens: int | None = None
    max_output_tokens: int | None = None  # where the answer is cut at the latest; no guess of its length
    deadline_seconds: float | None = None
    priority: Priority = "normal"
    agent: str = ""
    start: bool = True
    wait_seconds: float = 120.0
    lease_seconds: float | None = None
    dry_run: bool = False
    # Of the two, what the caller did not say and what stands there by default: a preference of the agent goes before.
    unsaid: frozenset[Literal["prefer", "priority"]] = field(default=frozenset(), compare=False)
    decided_before: str = ""  # the id of an earlier decision on this very request: experiments keep it in its arm

    def __repr__(self) -> str:
        return f"Asked(model={self.model!r}, text=<{len(self.text)} characters>)"


def unsaid(prefer: str | None, priority: str | None) -> frozenset[Literal["prefer", "priority"]]:
    """Those of the two that are None: what stands there by default is nobody's word."""
    found: set[Literal["prefer", "priority"]] = set()
    if prefer is None:
        found.add("prefer")
    if priority is None:
        found.add("priority")
    return frozenset(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The features of one request: all that deciding may know, and all that is kept of it."""

    id: str  # the decision's id, too
    at_seconds: float
    task: Task = "general"
    complexity: Complexity = "moderate"
    classified_by: Literal["caller", "heuristic"] = "heuristic"
    evidence: tuple[str, ...] = ()  # which rules fired, or which of the model's words: never more of the caller's text
    needs: frozenset[Need] = frozenset()  # beyond its task; json and tools: `requires` has them only when stated
    prefer: Prefer = "balanced"
    model: str = "auto"
    requires: frozenset[Feature] = frozenset()
    prompt_tokens: int = 0
    output_tokens: int = 200  # expected
    deadline_seconds: float | None = None
    priority: Priority = "normal"
    agent: str = ""
    start: bool = True
    wait_seconds: float = 120.0
    lease_seconds: float | None = None
    dry_run: bool = False

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens
