"""What the linear model sees of a prompt: words and pairs of words, their stems, what a verb asks for, marks of form.

No weights here: training (scripts/train_classifier.py) and deciding read prompts with these functions.

Each feature counts once, however often it occurs, so a long prompt is no more of anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

HEAD_SENTENCES, TAIL_SENTENCES = 5, 3  # what is asked stands in the first sentences or in the last ones …
HEAD_WORDS, TAIL_WORDS = 90, 40  # … and between them what it is asked about: an article, a log, a conversation
HEAD_CHARACTERS, TAIL_CHARACTERS = 700, 350  # about so many words; nothing else is split into words
HEAD_LINES, TAIL_LINES = 60, 20
VERBS_READ, OBJECT_WITHIN_WORDS = 10, 6
STEM_LETTERS = 5
CODE = "‹code›"  # stands for lines of code: the words in them say little of what is asked
LANGUAGE = "‹language›"  # in pairs of words: "in go" and "in rust" are one thing

# Letters of any script, with what belongs to a word (don't, c++, c#); one mark of form; a number. No nesting, so no
# input makes it slow.
_TOKEN = re.compile(r"‹code›|[^\W\d_]+(?:'[a-z]+|\+\+|#)?|\d+|[?!{}<>=`;:\[\]/#$%*]")
_SENTENCE = re.compile(r"[.?!]\s+|\n+")
_NUMBER = "0"
# Of every prompt, and so of no task; in pairs ("what is", "the following") they say something.
_COMMON_WORDS = (
    "a an the of to in on at by for from with and or as is are was be been it its this that these those i you we my "
    "our your me us they he she his him her them their there"
)
_COMMON = frozenset(_COMMON_WORDS.split())
_LANGUAGE_NAMES = (
    "python typescript java javascript ruby go golang rust php kotlin swift c c++ c# scala elixir perl haskell node "
    "react vue angular django flask spring bash powershell sql dart flutter laravel rails express lua matlab r"
)
_LANGUAGES = frozenset(_LANGUAGE_NAMES.split())
_VERB_NAMES = (
    "write create make build implement add give design test check explain describe plan draft generate find fix review "
    "show list tell suggest turn convert need want define document prepare propose cover verify compare evaluate "
    "summarize how what why which should can"
)
_VERBS = frozenset(_VERB_NAMES.split())
# A whole line, without the blanks around it. Alternatives begin with different characters or are bounded.
_CODE_LINE = re.compile(
    r"(?:def|class|import|from|function|func|fn|const|let|var|public|private|protected|static|export|async|return|"
    r"package|using|namespace|struct|impl|pub|select|insert into|create table|elif|else|try|catch|except|finally|raise|"
    r"throw|end|echo|await|type|interface|enum|module|for|if|while|switch|case)\b.*[:;{}()\]]"
    r"|[\]})][\]});,]*"
    r"|[#@]\w.{0,40}"
    r"|</?[a-z].*>"
    r"|[\w.\[\]\"'\->]{1,40} ?[-+*/|&:]?=.*"
    r"|.{0,300}[;{]"
    r"|[\w.]{1,40}\(.{0,200}\)"
)


def without_code(text: str) -> str:
    """text: in lower case, already cut. Neighbouring lines of code become one mark; one line alone stays as it is.
    Of a long text, its begin and its end."""
    lines = text.split("\n")
    if len(lines) == 1:
        return _ends(text)
    if len(lines) > HEAD_LINES + TAIL_LINES:
        lines = lines[:HEAD_LINES] + lines[-TAIL_LINES:]
    kept = [""]
    for line in lines:
        bare = line.strip()
        said = CODE if bare and _CODE_LINE.fullmatch(bare) else bare
        if said != CODE or kept[-1] != CODE:
            kept.append(said)
    return _ends("\n".join(kept[1:]))


def _ends(text: str) -> str:
    if len(text) <= HEAD_CHARACTERS + TAIL_CHARACTERS:
        return text
    return f"{text[:HEAD_CHARACTERS]} …\n{text[-TAIL_CHARACTERS:]}"


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
    """text: without its code. A word, `two words`, `stem-`, `^first`, `verb…objec`, and marks."""
    tokens = _TOKEN.findall(text)
    if len(tokens) > HEAD_WORDS + TAIL_WORDS:
        tokens = [*tokens[:HEAD_WORDS], "…", *tokens[-TAIL_WORDS:]]
    tokens = [_NUMBER if token.isdigit() else token for token in tokens]
    seen = set(tokens) - _COMMON
    seen.update([token[:STEM_LETTERS] + "-" for token in seen if len(token) > STEM_LETTERS])
    if not _LANGUAGES.isdisjoint(seen):
        tokens = [LANGUAGE if token in _LANGUAGES else token for token in tokens]
        seen.add(LANGUAGE)
    seen.update(map(" ".join, pairwise(tokens)))
    seen.update(_asked_for(tokens))
    if tokens:
        seen.add("^" + tokens[0])
        seen.add("^" + " ".join(tokens[:2]))
    return seen


def _asked_for(tokens: Sequence[str]) -> list[str]:
    """What stands soon behind the first verbs: "write some short tests" is `write…tests`."""
    found = []
    for place in [place for place, token in enumerate(tokens) if token in _VERBS][:VERBS_READ]:
        for token in tokens[place + 1 : place + 1 + OBJECT_WITHIN_WORDS]:
            if token in "?!":
                break
            if token not in _COMMON:
                found.append(f"{tokens[place]}…{token[:STEM_LETTERS]}")
    return found
