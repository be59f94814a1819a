"""From the caller's words to features. The words end here: a Request carries none of them.

High-precision rules over the first 2,000 characters, then a linear model of words, then `general` where that is not
sure; what the caller states wins over what is guessed, and the Decision says which it was. No model call, no state,
microseconds. Prompt length alone is a bad router, so length only counts the tokens and never names a task.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from dispatcher.policy.classify_model import guess
from dispatcher.policy.classify_needs import needs_of
from dispatcher.vocabulary.request import Asked, Complexity, Request, Task

READ_CHARACTERS = 2000
CHARACTERS_PER_TOKEN = 4  # where the caller gives no context_tokens
OPENING_CHARACTERS = 600  # of a system prompt: who the model is to be, and often what it is to do
ENOUGH_CONFIDENCE_RATIO = 0.5  # with it, the last message of the user speaks for itself
LEAST_CONFIDENCE_RATIO = 0.2  # of nine tasks, chance is 0.11; below this, fewer than half of the guesses are right


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


# Wording that says it all, whatever else stands there; the first that matches names the task. Rules that were wrong too
# often in public prompts ("design a …", "compare", a code block …; docs/classifier.md) are words of the model now. None
# looks at length.
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
            "debug,fix,why ",
            r"\b(?:debug|fix|why (?:does|is|am|do) (?:my|our|the|it|this))\b[^.?!]{0,80}"
            r"\b(?:bugs?|crash\w*|fails?|failing|exception|broken|not work\w*)\b",
        ),
    ),
    (
        "testing",
        _rule(
            "asks for tests",
            "test,junit",
            r"\b(?:write|add|create|generate|draft)\b[^.?!]{0,40}\b(?:(?:unit|integration|regression|end-to-end) "
            r"tests?|test (?:cases|plan))\b|\bunder pytest\b|\bjunit tests?\b",
        ),
    ),
    (
        "summarization",
        _rule(
            "asks to summarise",
            "summar,tldr,tl;dr",
            r"^\W*(?:please |can you |could you )?summari[sz]e\b|\btl;?dr\b",
        ),
    ),
    (
        "documentation",
        _rule(
            "asks for documentation",
            "docstring,readme,api reference,changelog,release notes",
            r"\b(?:write|add|create|generate|update|draft)\b[^.?!]{0,40}"
            r"\b(?:docstrings?|readme|api reference|changelog|release notes)\b",
        ),
    ),
    (
        "coding",
        _rule(
            "begins as code",
            "from ,import ,def ,#include",
            r"^\s*(?:from [\w.]+ import |import [\w.]+\n|def \w+\(|#include ?<)",
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
    text = asked.text[asked.last_at : asked.last_at + READ_CHARACTERS].lower()
    opening = asked.text[: min(asked.last_at, OPENING_CHARACTERS)].lower()
    task, task_because = (asked.task, "the caller said so") if asked.task else _task(text, opening)
    complexity, complexity_because = (
        (asked.complexity, "the caller said so") if asked.complexity else _complexity(text, task)
    )
    stated: Literal["caller", "heuristic"] = "caller" if asked.task and asked.complexity else "heuristic"
    prompt_tokens = (
        asked.context_tokens if asked.context_tokens is not None else -(-len(asked.text) // CHARACTERS_PER_TOKEN)
    )
    usual_tokens = round(_OUTPUT_TOKENS[task] * _COMPLEXITY_FACTOR[complexity])
    output_tokens = asked.expected_output_tokens or min(usual_tokens, asked.max_output_tokens or usual_tokens)
    needs, needs_because = needs_of(text, asked, prompt_tokens + output_tokens)
    return Request(
        id=request_id,
        at_seconds=at_seconds,
        task=task,
        complexity=complexity,
        classified_by=stated,
        evidence=(f"task {task}: {task_because}", f"complexity {complexity}: {complexity_because}", *needs_because),
        needs=needs,
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


def ruled(text: str) -> Task | None:
    """What the rules alone say; text in lower case. None: no rule matched."""
    return next((task for task, rule in _TASK_RULES if rule.matches(text)), None)


def _task(text: str, opening: str) -> tuple[Task, str]:
    """opening: of the messages before the user's last. It is asked where that says little (an article that the system
    prompt wants summarised), and cannot outvote what is plain (in front of a coding assistant, hello is hello)."""
    for task, rule in _TASK_RULES:
        if rule.matches(text):
            return task, rule.name
    if _AMBIGUOUS.match(text):
        return "general", "no rule matched, and it refers to something that is not there"
    guessed = guess(text)
    if opening and (guessed is None or guessed.confidence_ratio < ENOUGH_CONFIDENCE_RATIO):
        guessed = guess(f"{opening}\n{text}")
    if guessed is None:
        return "general", "no rule matched, and too few words the model knows"
    words = ", ".join(f"'{name}' {share:+.1f}" for name, share in guessed.because)
    sure = f"confidence {guessed.confidence_ratio:.2f}"
    if guessed.confidence_ratio < LEAST_CONFIDENCE_RATIO:
        return "general", f"no rule matched, and the model is not sure ({guessed.task}: {sure})"
    return guessed.task, f"words ({words}; {sure})"


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
