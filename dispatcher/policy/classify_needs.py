"""What a request needs beyond its task.

Read from wording, as the rules are. A need is a wish of the scorers, never a filter: only what the caller states
(`requires`) refuses a model.
"""

from __future__ import annotations

import re

from dispatcher.vocabulary.request import CONTEXT_RUNGS_TOKENS, Asked, Need

_WORDING: tuple[tuple[Need, tuple[str, ...], re.Pattern[str]], ...] = (
    (
        "accuracy",
        ("accura", "exact", "precise", "factual", "correct", "careful", "legal", "medical", "proof", "prove"),
        re.compile(
            r"\b(?:accura\w+|exactly|precise\w*|factual\w*|must be correct|careful\w*|legal|medical|proof|"
            r"prove)\b"
        ),
    ),
    (
        "speed",
        ("quick", "brief", "asap", "short answer", "one word", "one-line", "yes or no", "fast answer"),
        re.compile(
            r"\b(?:quick (?:one|question|answer)|quickly|briefly|asap|short answer|one[- ]word|one-liner|yes or no|"
            r"fast answer)\b"
        ),
    ),
    (
        "creativity",
        (
            "creativ",
            "story",
            "poem",
            "haiku",
            "lyrics",
            "slogan",
            "brainstorm",
            "imagin",
            "joke",
            "invent",
            "fictional",
        ),
        re.compile(
            r"\b(?:creativ\w+|stor(?:y|ies)|poems?|haiku|lyrics|slogans?|brainstorm\w*|imagin\w+|jokes?|invent|fictional)\b"
        ),
    ),
    (
        "json",
        ("json",),
        re.compile(
            r"\b(?:in|as|valid|return|only|output|strictly|format:?)\s(?:a )?(?:json|raw json)\b|"
            r"\bjson (?:only|object|format|schema)\b"
        ),
    ),
    (
        "tools",
        ("tool", "function call"),
        re.compile(
            r"\b(?:use|call|following|these|available) (?:the )?(?:following )?tools?\b|"
            r"\b(?:function|tool) calls?\b"
        ),
    ),
)


def needs_of(text: str, asked: Asked, context_tokens: int) -> tuple[frozenset[Need], tuple[str, ...]]:
    """The needs, and the evidence for each in words. text: in lower case, already cut; context_tokens: with the
    answer."""
    because: dict[Need, str] = {}
    for need, words, pattern in _WORDING:
        if _any_in(words, text) and pattern.search(text):
            because[need] = "its wording"
    if asked.prefer == "speed" or asked.deadline_seconds is not None:
        because["speed"] = "prefer speed" if asked.prefer == "speed" else "a deadline"
    if asked.prefer == "quality":
        because["accuracy"] = "prefer quality"
    if "json" in asked.requires:
        because["json"] = "required"
    if "tools" in asked.requires:
        because["tools"] = "required"
    if context_tokens > CONTEXT_RUNGS_TOKENS[0]:
        because["context"] = f"{context_tokens} tokens"
    return frozenset(because), tuple(f"needs {need}: {why}" for need, why in because.items())


def _any_in(words: tuple[str, ...], text: str) -> bool:
    for word in words:  # noqa: SIM110  # any() takes three times as long
        if word in text:
            return True
    return False
