"""What an answer shows of its own quality, where no caller judges it: faults that can be seen without understanding it.

| it shows | quality |
|---|---|
| no fault | 7 |
| it was cut by the model's own limit, where the caller set none | 4 |
| it refuses | 3 |
| JSON was asked for, and it is none; a tool is called that was not offered, or with what is no JSON object | 2 |
| it repeats itself to the end | 1 |
| nothing was said and no tool called | 0 |

The lowest counts. Seven says nothing of how good an answer is (control.beliefs takes it for no news); the rest are
evidence against a model. Patterns are few and literal on purpose: a fault that is not there costs a model its requests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dispatcher.wire.surface import Told

MAX_CHARACTERS = 64 * 1024  # of an answer that are kept while it passes by, and as many of the arguments of its calls
MAX_CALLS = 64
FAULTLESS, CUT, REFUSED, WRONG_FORM, REPEATED, EMPTY = 7.0, 4.0, 3.0, 2.0, 1.0, 0.0
REFUSAL_CHARACTERS = 400  # a longer answer has more to say than no
PERIODS = 6  # so often in a row is no rhyme and no list any more …
PERIOD_CHARACTERS = 20  # … of so many characters at least, shorter ones so much the oftener; lines of "=" are none
_NOT = r"(?:can'?t|cannot|(?:am )?(?:not able|unable))"
_REFUSES = re.compile(
    rf"\W*(?:i'?m (?:very |really )?sorry,? but (?:i|as an)\b|sorry,? (?:but )?i {_NOT}\b"
    rf"|i {_NOT} (?:to )?(?:assist|help|fulfil|comply|do that|provide)\b|as an ai\b[^.]{{0,80}}\b{_NOT}\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Of an answer. json: its form was asked for. tools: the names that were offered. limited: its caller set a limit
    of tokens, so that being cut there is what was asked for."""

    json: bool = False
    tools: frozenset[str] = frozenset()
    limited: bool = False


_PLAIN = Expected()


def expected(request: Told) -> Expected | None:
    """Of its answer; None where there is nothing to judge: vectors, and loads."""
    asked = request.asked
    if request.endpoint.kind != "generate" or not asked.text:
        return None
    if not asked.requires and asked.max_output_tokens is None:
        return _PLAIN
    tools = _tool_names(request.fields.get("tools")) if "tools" in asked.requires else frozenset[str]()
    return Expected(json="json" in asked.requires, tools=tools, limited=asked.max_output_tokens is not None)


def _tool_names(raw: msgspec.Raw | None) -> frozenset[str]:
    try:
        tools = msgspec.json.decode(raw or b"null", type=list[_Tool])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return frozenset()
    return frozenset(tool.function.name for tool in tools if tool.function.name)


class _Function(msgspec.Struct):
    name: str = ""


class _Tool(msgspec.Struct):
    function: _Function = msgspec.field(default_factory=_Function)


@dataclass(slots=True)
class _Call:
    name: object = None
    arguments: list[str] = field(default_factory=list)
    whole: object = None


class Heard:
    """What of an answer is judged, as it passes by. Mutable; bounded: of a longer text only the form of its beginning
    is unknown, and its JSON is not judged; nor are calls, of which there are more than are kept."""

    __slots__ = ("_argued", "_calls", "_characters", "_missed", "_pieces", "cut")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._characters = 0
        self._calls: dict[int, _Call] = {}
        self._argued = 0  # characters of arguments
        self._missed = False  # there is more in its calls than was kept
        self.cut = False  # by a limit of tokens

    def say(self, text: object) -> None:
        if isinstance(text, str) and self._characters <= MAX_CHARACTERS:
            self._pieces.append(text)
            self._characters += len(text)

    def call(self, calls: object) -> None:
        """Of one message or delta: Ollama's calls come whole, those of a /v1 stream in pieces by index."""
        for call in calls if isinstance(calls, list) else ():
            if not isinstance(call, dict):
                continue
            index, function = call.get("index", len(self._calls)), call.get("function")
            if not isinstance(index, int) or not isinstance(function, dict):
                continue
            if index not in self._calls and len(self._calls) >= MAX_CALLS:
                self._missed = True
                continue
            known = self._calls.setdefault(index, _Call())
            known.name = function.get("name") or known.name
            arguments = function.get("arguments")
            if isinstance(arguments, str):
                self._argue(known, arguments)
            else:
                known.whole = arguments

    def _argue(self, call: _Call, arguments: str) -> None:
        self._argued += len(arguments)
        if self._argued > MAX_CHARACTERS:
            self._missed = True
        else:
            call.arguments.append(arguments)

    def quality(self, expected: Expected) -> float:
        """0..10, of an answer that came whole."""
        text = "".join(self._pieces)
        faults = [FAULTLESS]
        if not text.strip() and not self._calls:
            faults.append(EMPTY)
        if self.cut and not expected.limited:
            faults.append(CUT)
        if len(text) <= REFUSAL_CHARACTERS and _REFUSES.match(text):
            faults.append(REFUSED)
        if expected.json and not (self._calls or self.cut) and not self._is_json(text):
            faults.append(WRONG_FORM)
        if expected.tools and not self._missed and not self._calls_are_right(expected.tools):
            faults.append(WRONG_FORM)
        if _repeats(text):
            faults.append(REPEATED)
        return min(faults)

    def _calls_are_right(self, offered: frozenset[str]) -> bool:
        return all(_is_right(call, offered) for call in self._calls.values())

    def _is_json(self, text: str) -> bool:
        return self._characters > MAX_CHARACTERS or _reads(text)


def _is_right(call: _Call, offered: frozenset[str]) -> bool:
    if not isinstance(call.name, str) or call.name not in offered:
        return False
    told = "".join(call.arguments)
    if call.arguments:
        return told.strip()[:1] in ("{", "") and (not told.strip() or _reads(told))
    return call.whole is None or isinstance(call.whole, dict)


def _reads(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=Any)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True


def _repeats(text: str) -> bool:
    """Whether it ends with one passage PERIODS times in a row: models that are stuck do not come out of it."""
    text = text.rstrip()
    if len(text) < PERIOD_CHARACTERS * PERIODS:
        return False
    end = text[-PERIOD_CHARACTERS:]
    before = text.rfind(end, 0, len(text) - 1)
    if before < 0:
        return False
    period = len(text) - PERIOD_CHARACTERS - before
    while period < PERIOD_CHARACTERS:
        period *= 2
    length = period * PERIODS
    return len(text) >= length and len(set(text[-period:])) > 2 and text[-length:-period] == text[-length + period :]
