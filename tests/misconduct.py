"""What a misbehaving model server does to one generating request: each function makes one way to go wrong.

after: so many pieces (lines or events) of a good stream come first; an answer that is not streamed is half sent then.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Literal

from dispatcher.vocabulary.relay import ENDPOINTS
from tests.misbehaving import Conduct, Line, answers_well, good_pieces, media_type_of
from tests.wire.captured import Captured

Ending = Literal["close", "reset", "stall", "clean", "bad_chunk"]

SEEN_SECONDS = 0.03  # a reset, or what is no chunk, hides what came just before it: so that it was read by then

BUSY = "server busy, please try again.  maximum pending requests exceeded"
KILLED = "llama runner process has terminated: signal: killed"
TOO_LONG = "the input length exceeds the context length"


def answers() -> Conduct:
    return answers_well


def refuses(status: int, words: str = "it will not", *headers: str) -> Conduct:
    """With an error in the words of the surface."""

    async def conduct(line: Line) -> None:
        error: object = words
        if ENDPOINTS[line.heard.path].surface == "openai":
            error = {"message": words, "type": "api_error", "param": None, "code": None}
        await line.whole(status, json.dumps({"error": error}).encode(), *headers)

    return conduct


def hangs_up(*, reset: bool = False) -> Conduct:
    """Before any answer."""

    async def conduct(line: Line) -> None:
        if reset:
            line.reset()

    return conduct


def silent(*, headers_first: bool = False) -> Conduct:
    """Until the other leaves. headers_first: 200 and then nothing."""

    async def conduct(line: Line) -> None:
        if headers_first:
            await _head(line)
        await line.until_the_other_leaves()

    return conduct


def slow(seconds: float) -> Conduct:
    async def conduct(line: Line) -> None:
        await asyncio.sleep(seconds)
        await answers_well(line)

    return conduct


def begins_and(ending: Ending, after: int = 2) -> Conduct:
    """after 0: only the headers came. clean: the body ends as it should, what it says does not."""

    async def conduct(line: Line) -> None:
        pieces = good_pieces(line.heard)
        said = pieces[:after] if line.heard.streams else [pieces[0][: len(pieces[0]) // 2]] * bool(after)
        await _head(line)
        for piece in said:
            await line.chunk(piece)
        if said and ending != "clean":
            await asyncio.sleep(SEEN_SECONDS)
        await _end(line, ending)

    return conduct


def says(body: bytes, *, ending: Ending = "clean") -> Conduct:
    """A 200 with this body, chunked."""

    async def conduct(line: Line) -> None:
        await _head(line)
        if body:
            await line.chunk(body)
        await _end(line, ending)

    return conduct


def states_length(more_bytes: int) -> Conduct:
    """A good answer with a Content-Length that is too long (then it hangs up), or too short, by so much."""

    async def conduct(line: Line) -> None:
        first, *more = good_pieces(line.heard)
        rest = b"".join(more)
        kind = f"Content-Type: {media_type_of(line.heard)}"
        await line.head(200, kind, f"Content-Length: {len(first) + len(rest) + more_bytes}")
        await line.say(first)
        await asyncio.sleep(SEEN_SECONDS)
        await line.say(rest)
        line.keep = more_bytes < 0  # what is left over must not be taken for the next answer

    return conduct


def empty() -> Conduct:
    """200, and a body of no bytes."""

    async def conduct(line: Line) -> None:
        await line.whole(200, b"", media_type=media_type_of(line.heard))

    return conduct


def redirects(to: str, status: int = 301) -> Conduct:
    async def conduct(line: Line) -> None:
        await line.whole(status, b"", f"Location: {to}")

    return conduct


def raw(data: bytes) -> Conduct:
    """These bytes for an answer; then it hangs up."""

    async def conduct(line: Line) -> None:
        await line.say(data)

    return conduct


GARBAGE = b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n"
HUGE_HEADER = b"HTTP/1.1 200 OK\r\nX-Huge: " + b"x" * 200_000 + b"\r\nContent-Length: 2\r\n\r\n{}"


def plays(capture: Captured, *, delays: Sequence[float] = ()) -> Conduct:
    """A capture of a real server, byte by byte, chunk by chunk, with its pauses where they are given, and its end."""

    async def conduct(line: Line) -> None:
        if capture.end == "closed_before_any_response":
            return
        if capture.end in ("client_timeout", "connection_refused"):
            await line.until_the_other_leaves()
            return
        assert capture.status is not None, capture.name
        pieces, waits = capture.pieces, [*delays, *([0.0] * len(capture.pieces))]
        await asyncio.sleep(waits[0])
        if not capture.streamed:
            await line.whole(capture.status, capture.body)
            return
        await _head(line)
        for piece, wait in zip(pieces, [0.0, *waits[1:]], strict=False):
            await asyncio.sleep(wait)
            await line.chunk(piece)
        if capture.end == "complete":
            await line.last_chunk()
        elif capture.end != "closed_without_final_chunk":
            await line.until_the_other_leaves()

    return conduct


async def chunked(line: Line, pieces: Sequence[bytes], ending: Ending, *, then: Sequence[bytes] = ()) -> None:
    """These pieces, each in a chunk of its own. then: once the others were read."""
    await _head(line)
    for piece in pieces:
        if piece:
            await line.chunk(piece)
    if then:
        await asyncio.sleep(SEEN_SECONDS)
    for piece in then:
        await line.chunk(piece)
    await _end(line, ending)


async def _head(line: Line) -> None:
    await line.head(200, f"Content-Type: {media_type_of(line.heard)}", "Transfer-Encoding: chunked")


async def _end(line: Line, ending: Ending) -> None:
    if ending == "clean":
        await line.last_chunk()
    elif ending == "stall":
        await line.until_the_other_leaves()
    elif ending == "bad_chunk":
        await line.say(b"zz\r\nnot a chunk size\r\n")
        await line.until_the_other_leaves()
    elif ending == "reset":
        line.reset()
