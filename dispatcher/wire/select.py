"""What callers send: the body and the query of /select, the body of /outcomes, the queries of the reads.

Strict: an unknown field, a wrong type or a number out of range is AskInvalid, which names the field, the value and what
is allowed; nothing is clamped. `null` means not said, everywhere. The words of a prompt leave here inside Asked and go
nowhere else: no message of this module repeats them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import accumulate
from math import isfinite
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from msgspec import Meta, Struct

from dispatcher.errors import AskInvalid
from dispatcher.vocabulary.request import TASKS, Asked, Complexity, Feature, Prefer, Priority, Task, unsaid
from dispatcher.vocabulary.settings import MAX_LEASE_SECONDS
from dispatcher.vocabulary.words import shortened

MAX_JSON_DEPTH = 64
MAX_WAIT_SECONDS = 280.0  # n8n gives up after 300 s without headers
MAX_DURATION_SECONDS = 604_800  # a week
MAX_MESSAGES = 10_000  # and pieces of one message: more are seconds of work and no conversation
DEFAULT_DECISIONS = 50

_PRINTABLE = r"^[^\x00-\x1f\x7f]*(?!\n)$"  # it stands in tables and labels; Python's $ alone lets a last \n pass
_Name = Annotated[str, Meta(max_length=200, pattern=_PRINTABLE)]
_Tokens = Annotated[int, Meta(ge=1, le=1_000_000_000)]
_Counted = Annotated[int, Meta(ge=0, le=10_000_000)]
_AskedComplexity = Literal["simple", "moderate", "complex", "ambiguous", "low", "medium", "high"]
_COMPLEXITY: dict[str, Complexity] = {
    "low": "simple",
    "medium": "moderate",
    "high": "complex",
    "simple": "simple",
    "moderate": "moderate",
    "complex": "complex",
    "ambiguous": "ambiguous",
}


class Part(Struct):
    """One piece of a message's content. Pieces without text (images, audio) have nothing to classify."""

    text: str | None = None


class Message(Struct):
    """One message in either surface's form. Other keys (name, tool_calls, images …) are the model's, not ours."""

    role: str = "user"
    content: str | Annotated[list[Part], Meta(max_length=MAX_MESSAGES)] | None = None


_Messages = Annotated[list[Message], Meta(max_length=MAX_MESSAGES)]


class SelectBody(Struct, forbid_unknown_fields=True):
    """What /select may be asked. Every field is optional; null is as good as absent."""

    prompt: str | None = None
    messages: _Messages | None = None
    task: Task | None = None
    complexity: _AskedComplexity | None = None
    prefer: Prefer | None = None
    model: _Name | None = None
    requires: list[Feature] | None = None
    context_tokens: _Tokens | None = None
    expected_output_tokens: _Tokens | None = None
    deadline_seconds: Annotated[float, Meta(gt=0)] | None = None
    priority: Priority | None = None
    agent: _Name | None = None
    start: bool | None = None
    wait_seconds: Annotated[float, Meta(ge=0, le=MAX_WAIT_SECONDS)] | None = None
    lease_seconds: Annotated[float, Meta(gt=0, le=MAX_LEASE_SECONDS)] | None = None
    dry_run: bool | None = None
    soft: bool | None = None


class OutcomeBody(Struct, forbid_unknown_fields=True):
    """What became of a decision."""

    decision_id: Annotated[str, Meta(min_length=1, max_length=200)]
    status: Literal["ok", "error", "timeout", "cancelled"]
    duration_seconds: Annotated[float, Meta(ge=0, le=MAX_DURATION_SECONDS)]  # 0: not timed
    output_tokens: _Counted | None = None
    prompt_tokens: _Counted | None = None
    quality: Annotated[float, Meta(ge=0, le=10)] | None = None


class DecisionsQuery(Struct, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=1, le=1000)] | None = None
    model: _Name | None = None
    since: str | None = None


class PerformanceQuery(Struct, forbid_unknown_fields=True):
    agent_type: _Name | None = None
    model: _Name | None = None
    task: Task | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeReport:
    """duration_seconds: request to last byte, as the caller saw it; 0: not timed. quality: 0..10. None: not said."""

    decision_id: str
    status: Literal["ok", "error", "timeout", "cancelled"]
    duration_seconds: float
    output_tokens: int | None = None
    prompt_tokens: int | None = None
    quality: float | None = None


_ALLOWED = {  # in words, where the type alone would not say it
    "prompt": "text",
    "messages": 'a list of at most 10000 {"role": …, "content": text or as many {"type": "text", "text": …}}',
    "task": f"one of {', '.join(TASKS)}",
    "complexity": "one of simple, moderate, complex, ambiguous (or low, medium, high)",
    "prefer": "one of speed, balanced, quality",
    "model": "auto, or a model's name (text of at most 200 characters)",
    "requires": "a list of tools, json, vision",
    "context_tokens": "a whole number from 1 to 1000000000",
    "expected_output_tokens": "a whole number from 1 to 1000000000",
    "deadline_seconds": "a number above 0",
    "priority": "one of high, normal, batch",
    "agent": "text of at most 200 characters, none of them control characters",
    "start": "true or false",
    "wait_seconds": "a number from 0 to 280",
    "lease_seconds": "a number above 0, at most 900",
    "dry_run": "true or false",
    "soft": "true or false",
    "decision_id": "the decision_id of an answer of /select",
    "status": "one of ok, error, timeout, cancelled",
    "duration_seconds": "a number from 0 (not timed) to 604800",
    "output_tokens": "a whole number from 0 to 10000000",
    "prompt_tokens": "a whole number from 0 to 10000000",
    "quality": "a number from 0 to 10",
    "limit": "a whole number from 1 to 1000",
    "since": "Unix seconds, or a time as 2026-01-31T14:02:10Z",
    "agent_type": "text of at most 200 characters",
}
_FLAGS = frozenset({"start", "dry_run", "soft"})  # a bare `?dry_run` means what it looks like
_SECRET = frozenset({"prompt", "messages"})  # the caller's words are not repeated, not even to the caller

_select_decoder = msgspec.json.Decoder(SelectBody)
_outcome_decoder = msgspec.json.Decoder(OutcomeBody)
_messages_decoder = msgspec.json.Decoder(_Messages)
_NOTHING = SelectBody()


def asked_from_body(body: bytes) -> tuple[Asked, bool]:
    """The Asked, and `soft`. An empty body is all defaults. Raises AskInvalid."""
    return _asked(_decoded(_select_decoder, body) if body else _NOTHING)


def asked_from_query(pairs: Iterable[tuple[str, str]]) -> tuple[Asked, bool]:
    """As asked_from_body, from decoded query parameters. `requires` may repeat or carry commas, `messages` is JSON
    text, a bare `dry_run`, `start` or `soft` is true; anything else empty is refused. Raises AskInvalid."""
    given: dict[str, object] = {}
    for name, value in _each_once(SelectBody, pairs, repeatable="requires"):
        if name == "requires":
            words = [word.strip() for word in value.split(",") if word.strip()]
            given[name] = [*cast("list[str]", given.get(name, [])), *words]
        elif name == "messages":
            given[name] = _decoded_messages(value)
        else:
            given[name] = value
    return _asked(_converted(SelectBody, given))


def outcome_from_body(body: bytes) -> OutcomeReport:
    """Raises AskInvalid."""
    told = _decoded(_outcome_decoder, body)
    return OutcomeReport(
        decision_id=told.decision_id,
        status=told.status,
        duration_seconds=told.duration_seconds,
        output_tokens=told.output_tokens,
        prompt_tokens=told.prompt_tokens,
        quality=told.quality,
    )


def nothing_from_body(body: bytes) -> None:
    """Of a renewal. Raises AskInvalid for a body that says anything: it would be ignored in silence."""
    try:
        told = msgspec.json.decode(body, type=dict[str, msgspec.Raw]) if body.strip() else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise AskInvalid("a renewal takes no body; send none, or {}") from None
    for name in told:
        raise AskInvalid(f"{shortened(name)}: no such field; a renewal takes no body: it begins the lease's time anew")


def decisions_from_query(pairs: Iterable[tuple[str, str]]) -> tuple[int, str | None, float | None]:
    """limit, model, since as Unix seconds. Raises AskInvalid."""
    told = _converted(DecisionsQuery, dict(_each_once(DecisionsQuery, pairs)))
    return told.limit or DEFAULT_DECISIONS, told.model, None if told.since is None else _moment(told.since)


def performance_from_query(pairs: Iterable[tuple[str, str]]) -> tuple[str | None, str | None, str | None]:
    """agent_type, model, task. Raises AskInvalid."""
    told = _converted(PerformanceQuery, dict(_each_once(PerformanceQuery, pairs)))
    return told.agent_type, told.model, told.task


def depth_exceeds(body: bytes, limit: int) -> bool:
    """Whether arrays and objects nest deeper than `limit`. All in C, and only looked at where it could be so."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    bare = _STRING.sub(b"", body).translate(None, delete=_NOT_BRACKETS)
    return max(accumulate(map(_DEPTH_OF.__getitem__, bare)), default=0) > limit


# One that is not closed goes on to the end: starting again at every quote in it would take the square of its length.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_DEPTH_OF = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def _asked(told: SelectBody) -> tuple[Asked, bool]:
    text, last_at = _text(told)
    asked = Asked(
        text=text,
        last_at=last_at,
        task=told.task,
        complexity=None if told.complexity is None else _COMPLEXITY[told.complexity],
        prefer=told.prefer or "balanced",
        unsaid=unsaid(told.prefer, told.priority),
        model=told.model or "auto",
        requires=frozenset(told.requires) if told.requires else frozenset(),
        context_tokens=told.context_tokens,
        expected_output_tokens=told.expected_output_tokens,
        deadline_seconds=told.deadline_seconds,
        priority=told.priority or "normal",
        agent=told.agent or "",
        start=told.start is not False,
        wait_seconds=120.0 if told.wait_seconds is None else told.wait_seconds,
        lease_seconds=told.lease_seconds,
        dry_run=told.dry_run is True,
    )
    return asked, told.soft is True


def _text(told: SelectBody) -> tuple[str, int]:
    """The messages' text, then the prompt, one under the other; and where the last of the user's begins."""
    if told.messages is None:
        return told.prompt or "", 0
    texts: list[str] = []
    before = 0  # texts before the user's last message
    for message in told.messages:
        before = len(texts) if message.role == "user" else before
        if isinstance(message.content, str):
            texts.append(message.content)
        elif message.content is not None:
            texts.extend(part.text for part in message.content if part.text)
    if told.prompt:
        before = len(texts)
        texts.append(told.prompt)
    return "\n".join(texts), sum(map(len, texts[:before])) + before


S = TypeVar("S", bound=Struct)
ESCAPE = "a line break or quote inside a string must be escaped: in n8n use JSON.stringify"


def _decoded(decoder: msgspec.json.Decoder[S], body: bytes) -> S:
    if depth_exceeds(body, MAX_JSON_DEPTH):
        raise AskInvalid(f"the body nests deeper than {MAX_JSON_DEPTH} levels; send it flatter")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as problem:
        raise AskInvalid(_told(str(problem), lambda: _values(body, decoder.type), decoder.type)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise AskInvalid(f"the body is not JSON: {problem}; {ESCAPE}") from None


def _converted(shape: type[S], given: dict[str, Any]) -> S:
    """From query parameters: numbers and booleans as text. nan and inf pass no bound, but some fields have none."""
    try:
        told = msgspec.convert(given, shape, strict=False)
    except msgspec.ValidationError as problem:
        shown = {name: value if isinstance(value, str) else str(value) for name, value in given.items()}
        raise AskInvalid(_told(str(problem), lambda: shown, shape)) from None
    for name in shape.__struct_fields__:
        value = getattr(told, name)
        if isinstance(value, float) and not isfinite(value):
            raise AskInvalid(f"{name}: {shortened(str(given[name]))} is not a finite number; {_ALLOWED[name]}")
    return told


def _decoded_messages(value: str) -> object:
    """Checked here, because leniency ("5" for 5) is for parameters and not for what is inside of them."""
    raw = value.encode()
    try:
        if not depth_exceeds(raw, MAX_JSON_DEPTH):
            return msgspec.to_builtins(_messages_decoder.decode(raw))
    except (msgspec.DecodeError, RecursionError):
        pass
    raise AskInvalid(f"messages: what was sent is not it; as JSON text, {_ALLOWED['messages']}")


def _each_once(
    shape: type[Struct], pairs: Iterable[tuple[str, str]], repeatable: str = ""
) -> Iterable[tuple[str, str]]:
    """An unknown name passes: the conversion refuses it with a suggestion."""
    seen = set()
    for name, value in pairs:
        if name in seen and name != repeatable:
            raise AskInvalid(f"{name}: given more than once; say it once")
        seen.add(name)
        if value == "" and name in _FLAGS:
            value = "true"
        if value == "" and name in shape.__struct_fields__:
            raise AskInvalid(f"{name}: empty; {_ALLOWED[name]}, or leave it out")
        yield name, value


_PATH = re.compile(r" - at `\$\.?(\w+)?.*`$")
_UNKNOWN = re.compile(r"unknown field `([^`]{0,61})")  # cut: the rest of a long name is not looked at
SHOWN_BYTES = 256  # more than 61 letters of any script
_PATH_LETTERS = 200  # at the end of msgspec's words
_MISSING = re.compile(r"missing required field `(.*?)`")


def _values(body: bytes, shape: type[Struct]) -> dict[str, str] | None:
    """The beginning of each known field's value as it was written; None when the body is no object."""
    try:
        fields = msgspec.json.decode(body, type=_unread(shape))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    raw = {name: memoryview(getattr(fields, name)) for name in shape.__struct_fields__}
    return {name: bytes(value[:SHOWN_BYTES]).decode(errors="replace") for name, value in raw.items()}


@cache
def _unread(shape: type[Struct]) -> type[Struct]:
    """The same fields, each as its bytes; unlike with a dict, a million other names cost no memory."""
    return msgspec.defstruct(f"{shape.__name__}Unread", [(name, msgspec.Raw, b"") for name in shape.__struct_fields__])


def _told(problem: str, values_told: Callable[[], dict[str, str] | None], shape: type[Struct]) -> str:
    """msgspec's words, made ours: the field, the value, what is allowed."""
    known = shape.__struct_fields__
    unknown, missing, at = _UNKNOWN.search(problem), _MISSING.search(problem), _PATH.search(problem[-_PATH_LETTERS:])
    if unknown:
        near = difflib.get_close_matches(unknown[1][:60], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"{shortened(unknown[1])}: no such field; {hint}"
    if missing:
        return f"{missing[1]}: missing; {_ALLOWED.get(missing[1], 'it is required')}"
    name = at[1] if at else None
    values = values_told()
    if name is None or values is None:
        return "the body is not a JSON object; send {} for all defaults"
    if name in _SECRET:
        return f"{name}: {_unlike(values.get(name, ''), name)}"
    shown = shortened(values.get(name, ""))
    return f"{name}: {shown} is not allowed; {_ALLOWED[name]}"


def _unlike(written: str, name: str) -> str:
    """What is wrong with a value that is not repeated: its kind, where that is it."""
    kind = _KINDS.get(written.lstrip()[:1], "a number")
    wanted = "text" if name == "prompt" else "a list"
    if kind != wanted:
        return f"must be {_ALLOWED[name]}, not {kind}"
    return f"what was sent is not allowed; {_ALLOWED[name]}"


_KINDS = {'"': "text", "[": "a list", "{": "an object", "t": "true", "f": "false"}


def _moment(since: str) -> float:
    """Unix seconds of a number or an RFC 3339 time; a `+` that arrived as a space is forgiven."""
    try:
        value = float(since)
    except ValueError:
        try:
            moment = datetime.fromisoformat(since.strip().replace(" ", "+") if "T" in since else since)
            value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            value = float("nan")
    if not isfinite(value):
        raise AskInvalid(f"since: {shortened(since)} is not allowed; {_ALLOWED['since']}")
    return value
