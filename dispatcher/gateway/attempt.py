"""One attempt at one model server: sent, watched, relayed piece by piece, and judged by how it ended.

Until the first content nothing reaches the client, so that another model may still answer. Every wait has an absolute
deadline, moved on as the answer gets on; what it was waiting for when it passed is what the attempt failed of.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from dispatcher.clock import Clock
from dispatcher.gateway.answering import EVENT_STREAM, Answering
from dispatcher.gateway.patience import Patience
from dispatcher.gateway.upstream import BROKEN, ClientResponse, Failed, Upstreams
from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.relay import Cause, Endpoint, Headers
from dispatcher.wire import relayed
from dispatcher.wire.ollama import error_text
from dispatcher.wire.quality import Expected, Heard
from dispatcher.wire.relayed_shapes import heard

log = logging.getLogger("dispatcher.gateway")

REFUSAL_BYTES = 64 * 1024  # of an answer that is no 200
AFTER_END_SECONDS = 1.0  # for the connection to end, once the answer has
JSON = b"application/json"
_STREAMED = {"openai": EVENT_STREAM, "ollama": b"application/x-ndjson"}
_FAILURES: dict[Cause, str] = {
    "empty": "it answered 200 and said nothing",
    "truncated": "its answer ended without its end",
    "malformed": "what it answered is not of this surface",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """All from one moment to the next, none of them in all; first_token counts from sending."""

    connect_seconds: float
    first_token_seconds: float
    between_seconds: float
    total_seconds: float
    answer_bytes: int


@dataclass(slots=True, kw_only=True)
class Ended:
    """How an attempt ended; filled in as it goes on, so that one that is cancelled is known too.

    cause None: whole. words: of a failure, for a person. said: the model server's own, which may be the prompt's: for
    its own client and nobody else. status, refusal: of an answer that is no 200. body: of a whole answer, and of a
    stream where it is to be kept.
    """

    began_seconds: float
    cause: Cause | None = None
    words: str = ""
    said: str | None = None
    status: int | None = None
    refusal: bytes = b""
    content_type: bytes = JSON
    retry_after: str | None = None
    body: bytes | None = None
    timings: Timings = relayed.NO_TIMINGS
    first_token_seconds: float | None = None
    longest_pause_seconds: float = 0.0
    quality: float | None = None  # 0..10, as the answer itself shows; None: not judged
    seconds: float = 0.0
    kept: list[bytes] = field(default_factory=list)

    @property
    def in_full(self) -> str:
        """For its own client."""
        return f"{self.words}: {self.said}" if self.said else self.words

    def told(self) -> tuple[str, str]:
        """With its cause: for everybody, and for its own client. Of one that failed."""
        return f"{self.cause}, {self.words}", f"{self.cause}, {self.in_full}"


class Attempt:
    """nothing_asked: there is nothing in the request for the model to read. expected: of an answer that is judged."""

    def __init__(
        self,
        upstreams: Upstreams,
        clock: Clock,
        answering: Answering,
        endpoint: Endpoint,
        limits: Limits,
        *,
        nothing_asked: bool = False,
        expected: Expected | None = None,
    ) -> None:
        self._upstreams = upstreams
        self._clock = clock
        self._answering = answering
        self._endpoint = endpoint
        self._limits = limits
        self._nothing_asked = nothing_asked
        self._expected = expected
        self._sent_bytes = 0
        self._writing = False  # waits for its reader
        self.ended = Ended(began_seconds=clock.now_seconds())

    async def run(
        self, origin: str, body: bytes, headers: Headers, *, stream: bool, keep_bytes: int = 0, key: str | None = None
    ) -> Ended:
        """Never raises but for cancellation, and what its client's side raises. keep_bytes: of a stream that is
        collected for the cache; 0: none."""
        ended, limits, loop = self.ended, self._limits, asyncio.get_running_loop()
        path = self._endpoint.path
        first = limits.first_token_seconds if stream else max(limits.first_token_seconds, limits.total_seconds)
        self._total_at = loop.time() + limits.total_seconds
        try:
            async with (
                Patience(loop.time() + first) as self._timer,
                self._upstreams.post(origin, path, body, limits.connect_seconds, key) as response,
            ):
                ended.status = response.status
                if response.status != 200:
                    await self._refused(response)
                elif stream:
                    await self._stream(response, headers, keep_bytes)
                else:
                    await self._whole(response)
        except TimeoutError:
            began = self._answering.begun
            ended.cause = "stalled" if began or (ended.status == 200 and not stream) else "silent"
            ended.words = f"nothing came for {self._patience_seconds(first):.3g} s"
            if self._writing:
                ended.cause, ended.words = "too_long", "it was read too slowly to end in time"
        except Failed as failed:
            late = self._answering.begun or ended.status is not None
            ended.cause = "truncated" if late and failed.cause == "reset" else failed.cause
            ended.words = failed.words
        except Exception:
            if self._writing:
                raise
            log.exception('attempt=failed path=%s consequence="its answer counts as malformed"', path)
            ended.cause, ended.words = "malformed", "what it answered cannot be read"
        finally:
            ended.seconds = self._clock.now_seconds() - ended.began_seconds
        return ended

    def _patience_seconds(self, first_seconds: float) -> float:
        return self._limits.between_seconds if self._answering.begun else first_seconds

    async def _refused(self, response: ClientResponse) -> None:
        ended = self.ended
        body = await _at_most(response, REFUSAL_BYTES)
        ended.refusal = body if body is not None else b""
        ended.content_type = _content_type(response, JSON)
        ended.retry_after = response.headers.get("Retry-After")
        ended.cause = relayed.refusal(response.status, ended.refusal)
        ended.words, ended.said = f"it said {response.status}", error_text(ended.refusal)

    async def _whole(self, response: ClientResponse) -> None:
        """The first byte of an answer that is not streamed is the answer."""
        ended = self.ended
        body = await _at_most(response, self._limits.answer_bytes)
        if body is None:
            ended.cause, ended.words = "too_long", f"its answer is longer than {self._limits.answer_bytes} bytes"
            return
        ended.content_type = _content_type(response, JSON)
        ended.cause = relayed.whole(self._endpoint, body, nothing_asked=self._nothing_asked)
        if ended.cause is not None:
            ended.words, ended.said = _FAILURES.get(ended.cause, ended.cause), error_text(body)
            return
        ended.body = body
        ended.timings = relayed.timings(self._endpoint.surface, body)
        if self._expected is not None:
            self._judged(heard(self._endpoint.surface, body), self._expected)

    async def _stream(self, response: ClientResponse, headers: Headers, keep_bytes: int) -> None:
        watch = relayed.Watch(self._endpoint.surface, nothing_asked=self._nothing_asked)
        answering, loop, ended = self._answering, asyncio.get_running_loop(), self.ended
        ended.content_type = _content_type(response, _STREAMED[self._endpoint.surface])
        held: list[bytes] = []  # all that came before the first content, later the beginning of a line
        last_at, read_lines = loop.time(), 0
        try:
            async for piece in response.content.iter_any():
                watch.take(piece)
                held.append(piece)
                if watch.failed is not None:
                    break
                unended_bytes = watch.unended_bytes
                if not watch.begun or len(piece) <= unended_bytes:
                    continue
                now = loop.time()
                if not answering.begun:
                    await self._begin(headers)
                elif watch.data_lines > read_lines and now - last_at > ended.longest_pause_seconds:
                    ended.longest_pause_seconds = now - last_at
                piece, held = _whole_lines(held, unended_bytes)
                if keep_bytes > 0:
                    keep_bytes = self._keep(piece, keep_bytes)
                await self._pass_on(piece)
                written_at = loop.time()  # comments and blank lines move no deadline, nor does a slow reader
                last_at = written_at if watch.data_lines > read_lines else last_at + written_at - now
                read_lines = watch.data_lines
                pause = AFTER_END_SECONDS if watch.ended else self._limits.between_seconds
                self._timer.reschedule(min(last_at + pause, self._total_at))
        except BROKEN:
            if self._writing or not watch.ended:
                raise
        except asyncio.CancelledError:  # of the timer, too: it becomes TimeoutError further out
            if self._writing or not (watch.ended and self._timer.expired()):
                raise  # what was being written is lost: such an answer is not whole, whatever was read of it
        await self._last_of(watch, held, headers, keep_bytes)
        self._judge(watch)

    async def _begin(self, headers: Headers) -> None:
        self.ended.first_token_seconds = self._clock.now_seconds() - self.ended.began_seconds
        self._timer.reschedule(self._total_at)
        self._writing = True
        await self._answering.begin(self.ended.content_type, headers)
        self._writing = False

    async def _pass_on(self, piece: bytes) -> None:
        """How long its reader takes is no matter of the place, within the time that the whole may take."""
        self._timer.reschedule(self._total_at)
        self._writing = True
        self._sent_bytes += len(piece)
        await self._answering.write(piece)
        self._writing = False

    async def _last_of(self, watch: relayed.Watch, held: list[bytes], headers: Headers, keep_bytes: int) -> None:
        """What is held when no more comes is the end of an answer, or what goes out of it no further than its last good
        line: not the beginning of one that is cut, nor one that shows a failure (a false end would look whole)."""
        watch.end()
        rest = b"".join(held)
        if not watch.ended:
            rest = rest[: watch.good_bytes - self._sent_bytes] if self._answering.begun else b""
        if not rest:
            return
        if not self._answering.begun:
            await self._begin(headers)
        self._keep(rest, keep_bytes)
        await self._pass_on(rest)

    def _keep(self, piece: bytes, left_bytes: int) -> int:
        """What is left of what may be kept; nothing once it was too much."""
        if left_bytes > 0:
            self.ended.kept.append(piece)
            left_bytes -= len(piece)
            if left_bytes <= 0:
                self.ended.kept.clear()
        return left_bytes

    def _judge(self, watch: relayed.Watch) -> None:
        ended = self.ended
        ended.timings = watch.timings()
        if watch.failed is None:
            ended.body = b"".join(ended.kept) if ended.kept else None
            if self._expected is not None:
                self._judged(watch.heard, self._expected)
            return
        ended.cause = watch.failed
        ended.words, ended.said = _FAILURES.get(watch.failed, watch.failed), watch.words
        if ended.said:
            ended.words = "its stream told of a failure"

    def _judged(self, said: Heard, expected: Expected) -> None:
        """An answer is not lost because judging it failed."""
        try:
            self.ended.quality = said.quality(expected)
        except Exception:
            log.exception('attempt=judged path=%s consequence="its quality stays unknown"', self._endpoint.path)


def _whole_lines(held: list[bytes], unended_bytes: int) -> tuple[bytes, list[bytes]]:
    """Whole lines go out, and no other: an error could not be read behind the beginning of one."""
    whole = held[0] if len(held) == 1 else b"".join(held)
    if not unended_bytes:
        return whole, []
    return whole[:-unended_bytes], [whole[-unended_bytes:]]


async def _at_most(response: ClientResponse, most_bytes: int) -> bytes | None:
    """None when there is more."""
    if (response.content_length or 0) > most_bytes:
        return None
    pieces: list[bytes] = []
    size_bytes = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size_bytes += len(piece)
        if size_bytes > most_bytes:
            return None
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _content_type(response: ClientResponse, own: bytes) -> bytes:
    """own: the surface's, for one that cannot be a header of ours."""
    told = response.headers.get("Content-Type", "")
    return told.encode() if told and told.isascii() and told.isprintable() else own
