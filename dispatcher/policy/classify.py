"""From the caller's words to features. The words end here: a Request carries none of them.

High-precision rules over the first 2,000 characters; what the caller states wins over what is guessed, and the Decision
says which it was. No model call, no state, microseconds. Prompt length alone is a bad router (numbers.md), so length
only counts the tokens and never names a task.
"""

from __future__ import annotations

import re
from typing import Literal

from dispatcher.vocabulary.request import Asked, Complexity, Request, Task

READ_CHARACTERS = 2000
CHARACTERS_PER_TOKEN = 4  # contract.md: context_tokens, else characters / 4

# In the order of precision: the first that matches names the task. Each matches wording, never length.
_TASK_PATTERNS: tuple[tuple[Task, str, str], ...] = (
    ("debugging", "traceback", r"traceback \(most recent|stack ?trace|segmentation fault|\bexception in thread\b"),
    (
        "debugging",
        "asks to fix",
        r"\b(?:debug|fix|why (?:does|is|am|do)|what(?:'s| is) wrong)\b[^.?!]{0,80}"
        r"\b(?:bugs?|errors?|code|function|crash\w*|fails?|failing|exception|broken|not work\w*|wrong)\b",
    ),
    (
        "testing",
        "asks for tests",
        r"\b(?:write|add|create|generate|design)\b[^.?!]{0,60}\b(?:unit |integration |regression )?test(?:s| cases?)?\b"
        r"|\bpytest\b|\bjunit\b|\btest plan\b",
    ),
    ("summarization", "asks to summarise", r"\bsummar(?:y|ies|i[sz]e\w*)\b|\btl;?dr\b|\bkey points\b|\bcondense\b"),
    (
        "documentation",
        "asks for documentation",
        r"\bdocstrings?\b|\breadme\b|\bapi reference\b|\bchangelog\b|\bdocument(?:ation)? (?:for|of|this|the)\b",
    ),
    (
        "architecture",
        "asks for a design",
        r"\b(?:architect\w*|system design|microservices?|design (?:a|an|the) (?:[\w-]+ ){0,3}"
        r"(?:system|service|platform|schema|database|pipeline))\b",
    ),
    (
        "coding",
        "asks for code",
        r"\b(?:write|implement|create|code|build|refactor|complete)\b[^.?!]{0,60}\b(?:function|class|script|program|"
        r"method|query|regex|api|code|module|endpoint|algorithm)\b",
    ),
    (
        "coding",
        "holds code",
        r"```|\bdef \w+\(|\bfunction \w+\(|#include\s*<|\bpublic (?:static|class)\b|\bselect .{1,80} from\b",
    ),
    (
        "planning",
        "asks for a plan",
        r"\b(?:plan|roadmap|itinerary|schedule|milestones?|step[- ]by[- ]step plan|to-?do list)\b",
    ),
    (
        "analysis",
        "asks to analyse",
        r"\b(?:analy[sz]e|analysis|compare|evaluate|assess|pros and cons|trade-?offs?|classify|extract|interpret)\b",
    ),
)
_TASK_RULES = tuple((task, name, re.compile(pattern)) for task, name, pattern in _TASK_PATTERNS)

_COMPLEX = re.compile(
    r"\b(?:architect\w*|distributed|concurren\w+|scalab\w+|optimi[sz]e|prove|proof|trade-?offs?|multi-?step|in depth|"
    r"in detail|thorough\w*|comprehensive|end-to-end|migrat\w+|security|rigorous\w*|step by step)\b"
)
_SIMPLE = re.compile(
    r"^\W*(?:hi|hello|hey|thanks?|thank you|translate|what is|who (?:is|was)|when (?:is|was|did)|define|spell|yes|no)\b"
)
_AMBIGUOUS = re.compile(r"^\W*(?:it|this|that|help|fix it|do it|continue|more|again|improve (?:it|this))\W*$")

_OUTPUT_TOKENS: dict[str, int] = {  # what such an answer usually takes, until history says otherwise
    "coding": 400,
    "architecture": 600,
    "testing": 400,
    "debugging": 300,
    "documentation": 400,
    "analysis": 300,
    "summarization": 150,
    "planning": 400,
    "general": 200,
}
_COMPLEXITY_FACTOR: dict[str, float] = {"simple": 0.5, "moderate": 1.0, "ambiguous": 1.0, "complex": 1.5}


def classify(asked: Asked, *, request_id: str, at_seconds: float) -> Request:
    """The features of one request. prompt_tokens: the caller's context_tokens, else characters / 4."""
    text = asked.text[:READ_CHARACTERS].lower()
    task, task_because = (asked.task, "the caller said so") if asked.task else _task(text)
    complexity, complexity_because = (
        (asked.complexity, "the caller said so") if asked.complexity else _complexity(text, task)
    )
    stated: Literal["caller", "heuristic"] = "caller" if asked.task and asked.complexity else "heuristic"
    prompt_tokens = (
        asked.context_tokens if asked.context_tokens is not None else -(-len(asked.text) // CHARACTERS_PER_TOKEN)
    )
    usual_tokens = round(_OUTPUT_TOKENS[task] * _COMPLEXITY_FACTOR[complexity])
    output_tokens = asked.expected_output_tokens or min(usual_tokens, asked.max_output_tokens or usual_tokens)
    return Request(
        id=request_id,
        at_seconds=at_seconds,
        task=task,
        complexity=complexity,
        classified_by=stated,
        evidence=(f"task {task}: {task_because}", f"complexity {complexity}: {complexity_because}"),
        prefer=asked.prefer,
        model=asked.model,
        requires=asked.requires,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        deadline_seconds=asked.deadline_seconds,
        priority=asked.priority,
        agent=asked.agent,
        start=asked.start,
        wait_seconds=asked.wait_seconds,
        lease_seconds=asked.lease_seconds,
        dry_run=asked.dry_run,
    )


def _task(text: str) -> tuple[Task, str]:
    for task, name, pattern in _TASK_RULES:
        if pattern.search(text):
            return task, name
    return "general", "no rule matched"


def _complexity(text: str, task: Task) -> tuple[Complexity, str]:
    if not text.strip():
        return "moderate", "no text to judge"
    if _AMBIGUOUS.search(text):
        return "ambiguous", "refers to something that is not there"
    if found := _COMPLEX.findall(text):
        return "complex", f"{len(found)} marker(s) of depth"
    if task == "architecture":
        return "complex", "a design task"
    if task == "general" and _SIMPLE.search(text):
        return "simple", "a greeting, a translation or a fact"
    return "moderate", "no marker of depth or ease"
