"""What the linear model sees of a prompt: words and pairs of words, their stems, and a few marks of form.

No weights here: training (scripts/train_classifier.py) and deciding read prompts with these functions.

Each feature counts once, however often it occurs, so a long prompt is no more of anything.
"""

from __future__ import annotations

import re
from itertools import pairwise

HEAD_SENTENCES, TAIL_SENTENCES = 5, 3  # what is asked stands in the first sentences or in the last ones …
HEAD_WORDS, TAIL_WORDS = 90, 40  # … and between them what it is asked about: an article, a log, a conversation
STEM_LETTERS = 5

# Letters of any script, with what belongs to a word (don't, c++, c#); one mark of form; a number. No nesting, so no
# input makes it slow.
_TOKEN = re.compile(r"[^\W\d_]+(?:'[a-z]+|\+\+|#)?|\d+|[?!{}<>=`;:\[\]/#$%*]")
_SENTENCE = re.compile(r"[.?!]\s+|\n+")
_NUMBER = "0"
# Of every prompt, and so of no task; in pairs ("what is", "the following") they say something.
_COMMON_WORDS = (
    "a an the of to in on at by for from with and or as is are was be been it its this that these those i you we my "
    "our your me us they he she his her him their them there"
)
_COMMON = frozenset(_COMMON_WORDS.split())


def sentences(text: str) -> list[str]:
    """The first and the last of them, each once; a question keeps its mark."""
    parts, begin = [], 0
    for mark in _SENTENCE.finditer(text):
        parts.append(text[begin : mark.start() + 1])
        begin = mark.end()
    parts.append(text[begin:])
    parts = list(dict.fromkeys(part.strip() for part in parts))
    if len(parts) > HEAD_SENTENCES + TAIL_SENTENCES:
        parts = parts[:HEAD_SENTENCES] + parts[-TAIL_SENTENCES:]
    return parts


def features(text: str) -> set[str]:
    """text: in lower case, already cut. A word, `two words`, `stem-`, `^first`, and marks."""
    tokens = _TOKEN.findall(text)
    if len(tokens) > HEAD_WORDS + TAIL_WORDS:
        tokens = [*tokens[:HEAD_WORDS], "…", *tokens[-TAIL_WORDS:]]
    tokens = [_NUMBER if token.isdigit() else token for token in tokens]
    seen = set(tokens) - _COMMON
    seen.update([token[:STEM_LETTERS] + "-" for token in seen if len(token) > STEM_LETTERS])
    seen.update(map(" ".join, pairwise(tokens)))
    if tokens:
        seen.add("^" + tokens[0])
        seen.add("^" + " ".join(tokens[:2]))
    return seen
