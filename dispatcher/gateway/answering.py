"""The client's side of one relayed request: its headers once, its bytes as they come, its failure so that it is seen.

A silent event stream gets its headers and a comment every so often, so that nobody on the way gives up on it; another
model may still answer until the first content. A failure after that is an error event in the surface's own form and a
connection that ends without its end: an answer that was cut never looks whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dispatcher.vocabulary.relay import Client, Endpoint, Headers
from dispatcher.wire.envelope import refusal, stream_error
from dispatcher.wire.ollama import error_text

EVENT_STREAM = b"text/event-stream"
HEARTBEAT = b": waiting for the model\n\n"
LAST_WORDS_SECONDS = 2.0  # for a client to take the error that ends its answer; who reads nothing is only cut off


class Answering:
    """started: headers are out. begun: content is: no other model may answer. early: asked for the headers of
    the first heartbeat, while nothing else is known."""

    def __init__(
        self,
        client: Client,
        endpoint: Endpoint,
        request_id: str,
        *,
        stream: bool,
        heartbeat_seconds: float,
        early: Callable[[], Headers] = list,
    ) -> None:
        self._early = early
        self._client = client
        self._request_id = request_id
        self._endpoint = endpoint
        self._beats = stream and endpoint.surface == "openai"
        self._heartbeat_seconds = heartbeat_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None
        self._written = b""  # the last two bytes of it
        self.started = False
        self.begun = False

    @property
    def left(self) -> bool:
        """The client, of itself."""
        return self._client.left

    def listen(self) -> None:
        """From here on the client waits."""
        if self._beats:
            self._timer = asyncio.get_running_loop().call_later(self._heartbeat_seconds, self._beat)

    async def begin(self, content_type: bytes, headers: Headers) -> None:
        """The first content is about to be written. Headers that are out already cannot be changed."""
        self.hush()
        self.begun = True
        if not self.started:
            self.started = True
            await self._client.start(200, [(b"content-type", content_type), *headers])

    async def write(self, piece: bytes) -> None:
        self._written = piece[-2:] if len(piece) > 1 else self._written[-1:] + piece
        await self._client.write(piece)

    async def finish(self) -> None:
        await self._client.finish()

    async def whole(self, status: int, body: bytes, content_type: bytes, headers: Headers) -> None:
        """An answer that is complete, or a refusal in the model server's own words."""
        self.hush()
        if self.started:  # a heartbeat was first
            await self._fail_late(stream_error(self._endpoint.surface, "engine_refused", _words_of(body)))
            return
        self.started = self.begun = True
        await self._client.answer(status, body, [(b"content-type", content_type), *headers])

    async def fail(self, word: str, words: str, headers: Headers) -> None:
        """A failure in the surface's form. word: of the vocabulary of wire.problem."""
        self.hush()
        if self.started:
            await self._fail_late(stream_error(self._endpoint.surface, word, words))
            return
        self.started = True
        told_so = refusal(self._endpoint.path, word, words, self._request_id)
        content_type = (b"content-type", told_so.media_type.encode())
        await self._client.answer(told_so.status, told_so.body, [content_type, *headers])

    async def _fail_late(self, event: bytes) -> None:
        """On a line of its own, also where the answer was cut in the middle of one."""
        ending = b"\n\n" if self._endpoint.surface == "openai" else b"\n"
        gap = b"" if not self._written or self._written.endswith(ending) else ending
        try:
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await self._client.write(gap + event)
        except TimeoutError:
            await self._client.cut(at_once=True)
        else:
            await self._client.cut()

    def hush(self) -> None:
        """No more heartbeats."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None

    def _beat(self) -> None:
        self._timer = None
        self._beating = asyncio.create_task(self._keep_beating(), name="gateway.heartbeat")

    async def _keep_beating(self) -> None:
        self.started = True
        await self._client.start(200, [(b"content-type", EVENT_STREAM), *self._early()])
        while True:
            await self._client.write(HEARTBEAT)
            await asyncio.sleep(self._heartbeat_seconds)


def _words_of(body: bytes) -> str:
    return f"the model server refused it: {error_text(body) or 'and said no more'}"
