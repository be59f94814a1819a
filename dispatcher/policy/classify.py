"""From the caller's words to features. The words end here: a Request carries none of them.

High-precision rules over the first 2,000 characters; what the caller states wins over what is guessed, and the Decision
says which it was. No model call, no state, microseconds. Prompt length alone is a bad router (numbers.md), so length
only counts the tokens and never names a task.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from dispatcher.vocabulary.request import Asked, Complexity, Request, Task

READ_CHARACTERS = 2000
CHARACTERS_PER_TOKEN = 4  # contract.md: context_tokens, else characters / 4


class _Rule(NamedTuple):
    """words: one of them is in every text that the pattern matches. Looking for words is some twenty times as fast as
    matching: a prompt of 2,000 characters took 0.4 ms without."""

    name: str
    words: tuple[str, ...]
    pattern: re.Pattern[str]

    def finds(self, text: str) -> list[object]:
        return self.pattern.findall(text) if self._may_match(text) else []

    def matches(self, text: str) -> bool:
        return self._may_match(text) and self.pattern.search(text) is not None

    def _may_match(self, text: str) -> bool:
        for word in self.words:  # noqa: SIM110  # any() takes three times as long
            if word in text:
                return True
        return False


def _rule(name: str, words: str, pattern: str) -> _Rule:
    """words: split at commas."""
    return _Rule(name, tuple(words.split(",")), re.compile(pattern))


# In the order of precision: the first that matches names the task. Each matches wording, never length.
_TASK_RULES: tuple[tuple[Task, _Rule], ...] = (
    (
        "debugging",
        _rule(
            "traceback",
            "traceback (most recent,stacktrace,stack trace,segmentation fault,exception in thread",
            r"traceback \(most recent|stack ?trace|segmentation fault|\bexception in thread\b",
        ),
    ),
    (
        "debugging",
        _rule(
            "asks to fix",
            "debug,fix,why ,what",
            r"\b(?:debug|fix|why (?:does|is|am|do)|what(?:'s| is) wrong)\b[^.?!]{0,80}"
            r"\b(?:bugs?|errors?|code|function|crash\w*|fails?|failing|exception|broken|not work\w*|wrong)\b",
        ),
    ),
    (
        "testing",
        _rule(
            "asks for tests",
            "test,junit",
            r"\b(?:write|add|create|generate|design)\b[^.?!]{0,60}\b(?:unit |integration |regression )?"
            r"test(?:s| cases?)?\b|\bpytest\b|\bjunit\b|\btest plan\b",
        ),
    ),
    (
        "summarization",
        _rule(
            "asks to summarise",
            "summar,tldr,tl;dr,key points,condense",
            r"\bsummar(?:y|ies|i[sz]e\w*)\b|\btl;?dr\b|\bkey points\b|\bcondense\b",
        ),
    ),
    (
        "documentation",
        _rule(
            "asks for documentation",
            "docstring,readme,api reference,changelog,document",
            r"\bdocstrings?\b|\breadme\b|\bapi reference\b|\bchangelog\b|\bdocument(?:ation)? (?:for|of|this|the)\b",
        ),
    ),
    (
        "architecture",
        _rule(
            "asks for a design",
            "architect,system design,microservice,design a,design the",
            r"\b(?:architect\w*|system design|microservices?|design (?:a|an|the) (?:[\w-]+ ){0,3}"
            r"(?:system|service|platform|schema|database|pipeline))\b",
        ),
    ),
    (
        "coding",
        _rule(
            "asks for code",
            "write,implement,create,code,build,refactor,complete",
            r"\b(?:write|implement|create|code|build|refactor|complete)\b[^.?!]{0,60}\b(?:function|class|script|program|"
            r"method|query|regex|api|code|module|endpoint|algorithm)\b",
        ),
    ),
    (
        "coding",
        _rule(
            "holds code",
            "```,def ,function ,#include,public ,select ",
            r"```|\bdef \w+\(|\bfunction \w+\(|#include\s*<|\bpublic (?:static|class)\b|\bselect .{1,80} from\b",
        ),
    ),
    (
        "planning",
        _rule(
            "asks for a plan",
            "plan,roadmap,itinerary,schedule,milestone,to-do list,todo list",
            r"\b(?:plan|roadmap|itinerary|schedule|milestones?|step[- ]by[- ]step plan|to-?do list)\b",
        ),
    ),
    (
        "analysis",
        _rule(
            "asks to analyse",
            "analy,compare,evaluate,assess,pros and cons,trade,classify,extract,interpret",
            r"\b(?:analy[sz]e|analysis|compare|evaluate|assess|pros and cons|trade-?offs?|classify|extract|"
            r"interpret)\b",
        ),
    ),
)

_COMPLEX = _rule(
    "marker of depth",
    "architect,distributed,concurren,scalab,optimi,prove,proof,trade,multistep,multi-step,in depth,in detail,thorough,"
    "comprehensive,end-to-end,migrat,security,rigorous,step by step",
    r"\b(?:architect\w*|distributed|concurren\w+|scalab\w+|optimi[sz]e|prove|proof|trade-?offs?|multi-?step|in depth|"
    r"in detail|thorough\w*|comprehensive|end-to-end|migrat\w+|security|rigorous\w*|step by step)\b",
)
_SIMPLE = re.compile(
    r"\W*(?:hi|hello|hey|thanks?|thank you|translate|what is|who (?:is|was)|when (?:is|was|did)|define|spell|yes|no)\b"
)
_AMBIGUOUS = re.compile(r"\W*(?:it|this|that|help|fix it|do it|continue|more|again|improve (?:it|this))\W*$")

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
    for task, rule in _TASK_RULES:
        if rule.matches(text):
            return task, rule.name
    return "general", "no rule matched"


def _complexity(text: str, task: Task) -> tuple[Complexity, str]:
    if not text.strip():
        return "moderate", "no text to judge"
    if _AMBIGUOUS.match(text):
        return "ambiguous", "refers to something that is not there"
    if found := _COMPLEX.finds(text):
        return "complex", f"{len(found)} marker(s) of depth"
    if task == "architecture":
        return "complex", "a design task"
    if task == "general" and _SIMPLE.match(text):
        return "simple", "a greeting, a translation or a fact"
    return "moderate", "no marker of depth or ease"
