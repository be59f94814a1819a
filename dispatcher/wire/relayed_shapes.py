"""Answers that pass through the gateway, as far as they are read: lines, events, vectors. Other fields stay unread."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from dispatcher.vocabulary.relay import Surface
from dispatcher.wire.quality import Heard

NO_USAGE = msgspec.Raw(b"null")


class Said(msgspec.Struct):
    """A message, or the delta of one."""

    content: Any = None
    thinking: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    refusal: Any = None
    tool_calls: Any = None


class Line(msgspec.Struct):
    """One line of a native stream, or the whole of a native answer."""

    done: bool | msgspec.UnsetType = msgspec.UNSET
    done_reason: Any = None
    error: Any = None
    response: Any = None
    thinking: Any = None
    message: Said | None = None


class Choice(msgspec.Struct):
    delta: Said | None = None
    message: Said | None = None
    text: Any = None
    finish_reason: Any = None
    error: Any = None


class Usage(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None


class Event(msgspec.Struct):
    """One event of an OpenAI stream, or the whole of such an answer."""

    error: Any = None
    model: Any = None
    choices: list[Choice] | None = None
    usage: msgspec.Raw = NO_USAGE  # read for the timings only: an odd one does not make an answer a bad one


class Vectors(msgspec.Struct):
    """The three forms of embeddings; the numbers stay unread."""

    error: Any = None
    embedding: list[msgspec.Raw] | None = None
    embeddings: list[msgspec.Raw] | None = None
    data: list[msgspec.Raw] | None = None


LINE = msgspec.json.Decoder(Line)
EVENT = msgspec.json.Decoder(Event)
VECTORS = msgspec.json.Decoder(Vectors)
USAGE = msgspec.json.Decoder(Usage)
_Shape = TypeVar("_Shape", Line, Event, Vectors, Usage)


def parsed(decoder: msgspec.json.Decoder[_Shape], body: bytes | msgspec.Raw) -> _Shape | None:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def heard(surface: Surface, body: bytes) -> Heard:
    """Of a whole answer that is one."""
    found = Heard()
    if surface == "ollama":
        line = parsed(LINE, body)
        if line is not None:
            hear_line(found, line)
        return found
    event = parsed(EVENT, body)
    for choice in (event.choices if event is not None else None) or ():
        hear_choice(found, choice)
    return found


def hear_line(found: Heard, line: Line) -> None:
    found.say(line.response)
    if line.message is not None:
        found.say(line.message.content)
        if line.message.tool_calls:
            found.call(line.message.tool_calls)
    if line.done_reason == "length":
        found.cut = True


def hear_choice(found: Heard, choice: Choice) -> None:
    said = choice.delta if choice.delta is not None else choice.message
    if said is not None:
        found.say(said.content)
        if said.tool_calls:
            found.call(said.tool_calls)
    else:
        found.say(choice.text)
    if choice.finish_reason == "length":
        found.cut = True
