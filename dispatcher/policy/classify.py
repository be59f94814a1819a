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
    r"\W*(?:hi|hello|hey|thanks?|thank you|translate|what is|what's|who|when|where|which|"
    r"how (?:many|much|long|old|far|tall|big)|do|does|did|is|are|was|were|can|tell me a joke|define|spell|yes|no)\b"
)
# One thing is asked for, and it is small. Not in a long prompt: there the words may stand for anything.
_SMALL = re.compile(
    r"\b(?:one[- ]liner|docstring|commit message|help text|typo|yes or no|in (?:one|two) (?:sentences?|words?)|"
    r"difference between|cron expression|rename)\b|^\W*(?:how (?:do|can|to|would)|what does|when (?:do|does|should))\b"
)
_OPENERS = ("how", "what", "when")  # of a question, which has to be short itself
_SMALL_CHARACTERS = 300
_SMALL_QUESTION_WORDS = 14
_AMBIGUOUS = re.compile(r"\W*(?:it|this|that|help|fix it|do it|continue|more|again|improve (?:it|this))\W*$")
# Nothing but these: no word says what it is about.
_VAGUE_WORDS = (
    "a about again and another any anything better can change come continue could different do does doesn't "
    "doing don't else fix for go good help i i'm improve in is isn't it its last look make me more my need "
    "next no not now of ok on one other please same second so solve some something stuff sure that that's the "
    "them then these they thing things this those to try up want what what's why with won't work working works "
    "wrong yes you"
)
_VAGUE = frozenset(_VAGUE_WORDS.split())
_VAGUE_AT_MOST_WORDS = 10
_WORD = re.compile(r"[^\W_]+(?:'[a-z]+)?")
_GREETINGS = frozenset(("ok", "sure", "yes", "no", "good"))
# What else the answer has to satisfy.
_DEMAND = _rule(
    "demand",
    "must,should,includ,support,handl,validat,ensur,without,at least,graceful,make sure,cover",
    r"\b(?:must|should|including|include|supports?|handles?|handling|validate|ensure|without|at least|gracefully?|"
    r"make sure|cover)\b",
)
_MANY_DEMANDS = 3
_DEMANDS_READ_CHARACTERS = 600

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
    task, task_because = _stated_task(asked) or _task(text, opening)
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


def _stated_task(asked: Asked) -> tuple[Task, str] | None:
    if asked.task is not None:
        return asked.task, "the caller said so"
    return None if asked.usual_task is None else (asked.usual_task, "usual of its agent (preferences)")


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
    if _AMBIGUOUS.match(text) or _is_vague(text):
        return "ambiguous", "refers to something that is not there"
    if found := _COMPLEX.finds(text):
        return "complex", f"{len(found)} marker(s) of depth"
    if task == "architecture":
        return "complex", "a design task"
    if len(demands := set(_DEMAND.finds(text[:_DEMANDS_READ_CHARACTERS]))) >= _MANY_DEMANDS:
        return "complex", f"{len(demands)} demands at once"
    if task == "general" and _SIMPLE.match(text):
        return "simple", "a greeting, a translation or a fact"
    if _is_small(text):
        return "simple", "one small thing"
    return "moderate", "no marker of depth or ease"


def _is_vague(text: str) -> bool:
    """A few words of which none says what it is about."""
    if len(text) > _VAGUE_AT_MOST_WORDS * 12:
        return False
    words = _WORD.findall(text)
    return 0 < len(words) <= _VAGUE_AT_MOST_WORDS and _VAGUE.issuperset(words) and not _GREETINGS.issuperset(words)


def _is_small(text: str) -> bool:
    if len(text) > _SMALL_CHARACTERS or (found := _SMALL.search(text)) is None:
        return False
    return found.start() > 0 or not found[0].startswith(_OPENERS) or len(text.split()) <= _SMALL_QUESTION_WORDS
