"""One HTTP exchange in ASGI's own terms: reading a body, answering, noticing that the client left."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from random import getrandbits

from starlette.types import Receive, Scope, Send

from dispatcher.wire.envelope import Envelope, refusal
from dispatcher.wire.problem import MEDIA_TYPE
from dispatcher.wire.strict_json import refuse_ambiguous

JSON = b"application/json"
PROBLEM = MEDIA_TYPE.encode()
REQUEST_ID = "dispatcher.request_id"  # in the scope
ABORT = "dispatcher.abort"  # in the scope: closes the connection at once, unsent bytes and all; not every server has it
CLOSE = "dispatcher.close"  # in the scope: closes the connection once what was written is out; as ABORT
PRESENCE = "dispatcher.presence"  # in the scope: the connection's Presence; not every server has it
KEY_NAME = "dispatcher.key_name"  # in the scope: whose key came with it; None when none is configured
ROLE_NOW = "dispatcher.role_now"  # in the scope: a callable; the role it has by now, None once it may not be here
KEEPABLE = "dispatcher.keepable"  # in the scope, set by who answers: a browser may keep the answer
IN_A_THREAD_BYTES = 256 * 1024  # looking through more than this is noticed by everybody else
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
Headers = Iterable[tuple[bytes, bytes]]
_one_at_a_time = ThreadPoolExecutor(1, "large-body")  # looking through 8 MiB takes a hundred while it lasts


LEAVING = "the daemon leaves"  # said by whoever cancels a request for that: it is answered all the same


class ClientLeft(Exception):
    """Nobody is there to be answered."""


class Turned(Exception):
    """A request that is answered with a refusal of the vocabulary of wire.problem, and nothing else."""

    def __init__(self, word: str, detail: str, headers: Headers = ()) -> None:
        self.word = word
        self.detail = detail
        self.headers = tuple(headers)
        super().__init__(detail)


def request_id_of(given: bytes) -> bytes:
    """The caller's, when it is fit for logs and headers; else a new one."""
    if _SANE_ID.fullmatch(given):
        return given
    return b"%016x" % getrandbits(64)  # told apart, not secret: the system's randomness costs 5 µs


async def answer(send: Send, status: int, body: bytes, media_type: bytes = JSON, headers: Headers = ()) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", media_type),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def answer_nothing(send: Send) -> None:
    """204: without content, it has neither a type nor a length."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def answer_problem(send: Send, scope: Scope, turned: Turned) -> None:
    """In the format of the surface that was asked."""
    await answer_envelope(send, refusal(scope["path"], turned.word, turned.detail, scope[REQUEST_ID]), turned.headers)


async def answer_envelope(send: Send, told: Envelope, headers: Headers = ()) -> None:
    await answer(send, told.status, told.body, told.media_type.encode(), headers)


async def body_of(receive: Receive) -> bytes:
    """The whole body; how large it may be and how long it may take is the connection's to see to (api.connection).
    Raises ClientLeft, and AskInvalid for JSON that can be read in two ways."""
    body = await _read(receive)
    if len(body) > IN_A_THREAD_BYTES:
        await asyncio.get_running_loop().run_in_executor(_one_at_a_time, refuse_ambiguous, body)
    elif body:
        refuse_ambiguous(body)
    return body


async def _read(receive: Receive) -> bytes:
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        piece: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            return b"".join((*pieces, piece)) if pieces else piece
        pieces.append(piece)


class Presence:
    """One connection, and who is to be told when it is lost."""

    def __init__(self) -> None:
        self._watchers: set[Callable[[], None]] = set()
        self.ended = asyncio.Event()

    def watch(self, lost: Callable[[], None]) -> None:
        """lost: called at once when it is lost already."""
        if self.ended.is_set():
            lost()
        else:
            self._watchers.add(lost)

    def unwatch(self, lost: Callable[[], None]) -> None:
        self._watchers.discard(lost)

    def end(self) -> None:
        self.ended.set()
        while self._watchers:
            self._watchers.pop()()


class Companion:
    """Cancels the task that entered it when the client leaves, and says so: `async with Companion(receive) as client`.

    A plain await is not cancelled when a client disconnects; somebody has to keep receiving: a task, where the server
    has no Presence in the scope (it costs 40 µs per request). On the way out a cancellation of our own becomes
    ClientLeft; one from outside stays what it is.
    """

    def __init__(self, receive: Receive, presence: Presence | None = None) -> None:
        self._receive = receive
        self._presence = presence
        self._watcher: asyncio.Task[None] | None = None
        self._cancels = True
        self.left = False

    async def __aenter__(self) -> Companion:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        if self._presence is not None:
            self._presence.watch(self._lost)
        else:
            self._watcher = asyncio.create_task(self._watch(), name="api.client")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._presence is not None:
            self._presence.unwatch(self._lost)
        if self._watcher is not None:
            self._watcher.cancel()
        if self.left and self._task.uncancel() == 0 and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise ClientLeft from None

    async def gone(self) -> None:
        """Until the client has left, which cancels nobody any more: it was sent away."""
        self._cancels = False
        if self._presence is not None:
            await self._presence.ended.wait()
        if self._watcher is not None:
            await asyncio.wait((self._watcher,))

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._lost()

    def _lost(self) -> None:
        if self._cancels:
            self.left = True
            self._task.cancel()
