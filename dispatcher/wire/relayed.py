"""An answer on its way back through the gateway: has it begun, is it whole, did it fail? No socket, no clock.

Bytes are watched and never changed. Every line of a stream is parsed (half a microsecond): only so a word inside of a
text is no end and no error, and no mangled line passes for a good one. A stream without its end marker is cut, whatever
its HTTP framing says; "rule n" cites tests/fixtures/ollama/README.md.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from dispatcher.errors import EngineAnswerUnreadable
from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.relay import Cause, Endpoint, Surface
from dispatcher.wire import ollama
from dispatcher.wire.quality import Heard
from dispatcher.wire.relayed_shapes import (
    EVENT,
    LINE,
    NO_USAGE,
    USAGE,
    VECTORS,
    Choice,
    Line,
    Said,
    hear_choice,
    hear_line,
    parsed,
)

MAX_LINE_BYTES = 4 * 1024**2  # of a stream; more without an end of line is no stream of ours
MAX_HELD_BYTES = 256 * 1024  # of lines that say nothing, before the first content; more is no stream of ours
# 4xx that no content of a request can cause: its path, its headers and its key are ours, not the caller's.
NEVER_THE_CALLERS = frozenset((401, 402, 403, 405, 406, 407, 408, 409, 410, 411, 414, 421, 423, 424, 425, 426, 428))
NEVER_THE_CALLERS |= {431, 451, 499}
NO_TIMINGS = Timings()
_MOST_TOKENS = 2**31  # of one answer; more, or less than none, is no count
_MOST_SECONDS = 1e6  # of one answer, likewise
_FIELDS = frozenset((b"", b"data", b"event", b"id", b"retry"))  # of a stream of events; "": a comment


_Number = TypeVar("_Number", bound=float)


def refusal(status: int, body: bytes) -> Cause:
    """What an answer that is no 200 means."""
    if 300 <= status < 400:
        return "redirect"
    if status == 429:
        return "rate_limited"
    if status == 404:
        return "not_found"
    if ollama.is_context_exceeded(status, body) or (status == 400 and b"context_length_exceeded" in body):
        return "context_exceeded"
    if 400 <= status < 500:
        return "server_error" if status in NEVER_THE_CALLERS else "caller_error"
    if ollama.is_wrong_option(status, body):
        return "wrong_option"
    if ollama.is_busy(status, body):
        return "busy"
    if ollama.is_memory_refusal(status, body):
        return "memory"
    return "server_error" if status >= 500 else "empty"


def whole(endpoint: Endpoint, body: bytes, *, nothing_asked: bool = False) -> Cause | None:
    """Why a 200 that was not streamed is no answer; None when it is one. An empty text is one: a model may say
    nothing, and a load or an unload says so; no field for a text is none. nothing_asked: there was nothing to read or
    to embed, then no text and no vectors are right."""
    if not body.strip():
        return "empty"
    if endpoint.kind == "embed":
        return _embedded(body, nothing_asked=nothing_asked)
    return (_native if endpoint.surface == "ollama" else _choices)(body, nothing_asked=nothing_asked)


def _native(body: bytes, *, nothing_asked: bool) -> Cause | None:
    line = parsed(LINE, body)
    if line is None:
        return "malformed"
    if line.error is not None or line.done_reason == "error":
        return _told(body)
    if not line.done:
        return "truncated"
    return None if _has_text(line) or nothing_asked else "empty"


def _choices(body: bytes, *, nothing_asked: bool) -> Cause | None:
    event = parsed(EVENT, body)
    if event is None:
        return "malformed"
    choices = event.choices or []
    if event.error is not None or any(_is_failed(choice) for choice in choices):
        return _told(body)
    if not choices:
        return "empty"
    if not all(choice.finish_reason is not None or choice.text or _says(choice.message) for choice in choices):
        return "truncated"
    has_text = any(choice.message is not None or choice.text is not None for choice in choices)
    return None if has_text or nothing_asked else "empty"


def _embedded(body: bytes, *, nothing_asked: bool) -> Cause | None:
    read = parsed(VECTORS, body)
    if read is None:
        return "malformed"
    if read.error is not None:
        return _told(body)
    given = [vectors for vectors in (read.embedding, read.embeddings, read.data) if vectors is not None]
    return None if any(given) or (given and nothing_asked) else "empty"


def timings(surface: Surface, last: bytes) -> Timings:
    """What the last line of a stream, or a whole answer, tells of tokens and time; /v1 has no durations (rule 7).
    A number that cannot be is None: it would stay in averages for long."""
    if surface == "ollama":
        try:
            return _believed(ollama.timings(last))
        except (EngineAnswerUnreadable, OverflowError, RecursionError):
            return NO_TIMINGS
    event = parsed(EVENT, last)
    usage = None if event is None else parsed(USAGE, event.usage)
    if usage is None:
        return NO_TIMINGS
    return _believed(Timings(prompt_tokens=_int(usage.prompt_tokens), output_tokens=_int(usage.completion_tokens)))


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _believed(told: Timings) -> Timings:
    return Timings(
        total_seconds=_within(told.total_seconds, _MOST_SECONDS),
        load_seconds=_within(told.load_seconds, _MOST_SECONDS),
        prompt_eval_seconds=_within(told.prompt_eval_seconds, _MOST_SECONDS),
        eval_seconds=_within(told.eval_seconds, _MOST_SECONDS),
        prompt_tokens=_within(told.prompt_tokens, _MOST_TOKENS),
        output_tokens=_within(told.output_tokens, _MOST_TOKENS),
    )


def _within(value: _Number | None, most: float) -> _Number | None:
    return None if value is None or not 0 <= value <= most else value


class Watch:
    """One stream, piece by piece. Mutable; the relay keeps one per attempt.

    begun: its first content was seen: from here on no other model may answer. ended: its end marker was seen.
    failed: it said itself that it failed, or is none. words: its own, of the former. pieces: how many came.
    good_bytes: of whole lines before a failure. data_lines: of its lines, those with data: comments and blank lines
    keep a connection alive, and tell nothing of the answer. What comes after an end or a failure is not read.
    nothing_asked: as of whole(). heard: what of it is judged.
    """

    def __init__(self, surface: Surface, *, nothing_asked: bool = False) -> None:
        self._sse = surface == "openai"
        self._surface = surface
        self._rest = bytearray()  # of a line whose end has not come
        self._held_bytes = 0
        self._last = b""  # the line that may tell the timings
        self._has_text = nothing_asked  # a field for a text was seen, or none was to be expected
        self.heard = Heard()
        self.begun = False
        self.ended = False
        self.failed: Cause | None = None
        self.words = ""
        self.pieces = 0
        self.good_bytes = 0
        self.data_lines = 0

    @property
    def unended_bytes(self) -> int:
        """Of the last line, whose end has not come. 0 after the end of the stream: what follows is not read."""
        return 0 if self.ended else len(self._rest)

    def take(self, piece: bytes) -> None:
        self.pieces += 1
        if self.ended or self.failed is not None:
            return
        if not self.begun:
            self._held_bytes += len(piece)
        end = piece.rfind(b"\n") + 1
        if end == len(piece) and not self._rest:  # whole lines, nearly always
            self._read_all(piece)
        elif end:
            lines, self._rest = bytes(self._rest + piece[:end]), bytearray(piece[end:])
            self._read_all(lines)
        else:
            self._rest += piece  # not searched again: a line may come byte by byte
        if len(self._rest) > MAX_LINE_BYTES or (not self.begun and self._held_bytes > MAX_HELD_BYTES):
            self._bound()

    def _bound(self) -> None:
        """Nothing begins by its length: what says nothing is no answer, however much of it comes. A first line may be
        long."""
        too_long = len(self._rest) > MAX_LINE_BYTES
        if self.failed is None and (too_long or self._held_bytes - len(self._rest) > MAX_HELD_BYTES):
            self.failed = "malformed"
            self._rest.clear()

    def end(self) -> None:
        """No more comes. A last line without its end of line counts."""
        rest, self._rest = bytes(self._rest), bytearray()
        if not self.ended and self.failed is None:
            self._read_all(rest)
        if not self.ended and self.failed is None:
            self.failed = "truncated" if self.pieces else "empty"

    def timings(self) -> Timings:
        return timings(self._surface, self._last) if self._last else NO_TIMINGS

    def _read_all(self, lines: bytes) -> None:
        read = self._read_event if self._sse else self._read_line
        *ended, last = lines.split(b"\n")
        for line in ended:
            if line and (stripped := line.strip()):
                read(stripped)
                if self.failed is not None:
                    return
            self.good_bytes += len(line) + 1
            if self.ended:
                return
        if last and (stripped := last.strip()):
            read(stripped)

    def _read_line(self, line: bytes) -> None:
        self.data_lines += 1
        read = parsed(LINE, line)
        if read is None:
            self.failed = "malformed"
            return
        if read.error is not None or read.done_reason == "error":
            self._failed(line)
            return
        self._has_text = self._has_text or _has_text(read)
        hear_line(self.heard, read)
        if read.done:
            self._last = line
            if self._has_text:
                self.begun, self.ended = True, True
            else:
                self.failed = "empty"
        elif read.done is msgspec.UNSET and not _has_text(read):
            self.failed = "malformed"  # {"detail": …}, as what stands before a server says that it is gone
        elif not self.begun:
            self.begun = bool(read.response or read.thinking) or _says(read.message)

    def _read_other(self, line: bytes) -> None:
        """A line of a stream of events that has no data."""
        name, _, value = line.partition(b":")
        if name not in _FIELDS:
            self.failed = "malformed"  # a proxy's words: clients skip them, and would take the rest for all
        elif name == b"event" and value.strip() == b"error":
            self.failed, self.words = "server_error", "event: error"

    def _read_event(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            self._read_other(line)
            return
        self.data_lines += 1
        data = line[5:].strip()
        if data == b"[DONE]":
            self._read_done()
            return
        read = parsed(EVENT, data)
        if read is None:
            self.failed = "malformed"
            return
        if read.error is not None:
            self._failed(data)
            return
        if self.begun and read.model == "" and not any(_goes_on(choice) for choice in read.choices or ()):
            self.failed = "truncated"  # Ollama's last word when its runner was killed; a [DONE] after it is a proxy's
            return
        for choice in read.choices or ():
            if _is_failed(choice):
                self._failed(data)
                return
            self._has_text = self._has_text or choice.delta is not None or choice.text is not None
            hear_choice(self.heard, choice)
            if choice.finish_reason is not None:
                self.begun = self.begun or self._has_text
            elif not self.begun:
                self.begun = _goes_on(choice)
        if read.usage is not NO_USAGE and read.usage != NO_USAGE:
            self._last = data

    def _failed(self, line: bytes) -> None:
        self.failed, self.words = _told(line), ollama.error_text(line) or "no words"

    def _read_done(self) -> None:
        """The end of what was begun; of nothing it is none. Why each choice stopped is not asked for: servers that
        speak OpenAI leave that out."""
        if self.begun:
            self.ended = True
        else:
            self.failed = "empty"


def _told(line: bytes) -> Cause:
    """What an error inside of a stream means."""
    return "memory" if ollama.is_memory_refusal(500, line) else "server_error"


def _has_text(line: Line) -> bool:
    """A field for it; the text may be empty."""
    return line.response is not None or line.message is not None or line.thinking is not None


def _is_failed(choice: Choice) -> bool:
    return choice.error is not None or choice.finish_reason == "error"


def _goes_on(choice: Choice) -> bool:
    return choice.finish_reason is not None or bool(choice.text) or _says(choice.delta)


def _says(said: Said | None) -> bool:
    return said is not None and bool(
        said.content or said.thinking or said.tool_calls or said.reasoning or said.reasoning_content or said.refusal
    )
