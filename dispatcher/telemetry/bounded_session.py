"""requests, tamed, and a thread to put it in: what a blocking HTTP library needs before a daemon may call it.

A timeout of requests is per read of the socket: a server that sends one byte a second holds it for ever. Here every
request has one absolute deadline, the body is read piece by piece against it and against a size, and `abort` shuts the
sockets from outside, which also ends a thread that waits for dripping headers. Redirects are not followed, environment
proxies and .netrc are not read, cookies are not kept.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from typing import Any, TypeVar
from weakref import WeakSet

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as SocketTimeout
from urllib3.util.retry import Retry

T = TypeVar("T")
_PIECE_BYTES = 65536


class BodyRefused(requests.RequestException):
    """Cut short, or not what its encoding says."""


class BodyTooLarge(BodyRefused):
    """More than is taken in; nobody waits for its end."""


class BoundedSession(requests.Session):
    """For one thread at a time; only `abort` may be called from another one. After `abort` it is of no more use."""

    def __init__(self, *, max_body_bytes: int) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.headers["Accept-Encoding"] = "identity"  # the size limit is then one of bytes on the wire, too
        self.max_body_bytes = max_body_bytes
        self.deadline_seconds = 0.0  # of time.monotonic(); set before each poll
        self.requests_made = 0
        self.last: requests.Response | None = None
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self.aborted = False
        self._adapter = _bounded_adapter(self._opened)

    def get_adapter(self, url: str | bytes) -> HTTPAdapter:
        """Always ours: PrometheusConnect mounts one of its own."""
        return self._adapter

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None, always. Even with allow_redirects=False requests would read a redirect's whole body, unbounded."""
        return

    def request(self, method: str | bytes, url: str | bytes, **given: Any) -> requests.Response:  # type: ignore[override]
        """`params` of a POST go into the body: prometheus-api-client puts them into the URL, and 4 KiB of query
        are more than some proxies take there."""
        remaining_seconds = self.deadline_seconds - time.monotonic()
        if remaining_seconds <= 0 or self.aborted:
            raise requests.Timeout("the deadline has passed")
        if method == "POST":
            given["data"] = given.pop("params", None)
        given |= {"allow_redirects": False, "stream": True, "timeout": remaining_seconds}
        self.requests_made += 1
        self.last = None
        response: requests.Response = super().request(method, url, **given)
        try:
            response._content = self._body(response)
            response._content_consumed = True  # type: ignore[attr-defined]
            response.encoding = "utf-8"  # JSON's; guessing one for 8 MiB of garbage takes minutes
        except BaseException:
            response.close()
            raise
        self.last = response
        return response

    def _body(self, response: requests.Response) -> bytes:
        body = bytearray()
        try:
            while piece := response.raw.read1(_PIECE_BYTES, decode_content=True):
                body += piece
                if len(body) > self.max_body_bytes:
                    raise BodyTooLarge(f"the answer is larger than {self.max_body_bytes} bytes")
                if time.monotonic() > self.deadline_seconds:
                    raise requests.Timeout("the answer was still coming when the deadline passed")
        except SocketTimeout as cause:
            raise requests.Timeout("the answer stopped coming") from cause
        except (HTTPError, OSError) as cause:
            if isinstance(cause, requests.RequestException):  # an OSError, too
                raise
            if self.aborted:
                raise requests.Timeout("the deadline passed") from cause
            raise BodyRefused(f"the answer is cut short after {len(body)} bytes") from cause
        return bytes(body)

    def _opened(self, opened: socket.socket) -> None:
        self._sockets.add(opened)
        if self.aborted:
            self.abort()

    def abort(self) -> None:
        """From any thread: whoever waits for this session's sockets stops waiting. Not the resolver, it cannot be."""
        self.aborted = True
        for opened in list(self._sockets):
            try:
                socket.socket.shutdown(opened, socket.SHUT_RDWR)  # not SSLSocket's: that one takes the session apart
            except OSError:
                continue  # closed already


def _bounded_adapter(opened: Callable[[socket.socket], None]) -> HTTPAdapter:
    """No retries, at most one connection, and `opened` learns of every socket."""

    class Connection(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            opened(self.sock)

    class SecureConnection(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            opened(self.sock)

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = SecureConnection

    adapter = HTTPAdapter(max_retries=Retry(total=0, redirect=False), pool_connections=1, pool_maxsize=1)
    adapter.poolmanager.pool_classes_by_scheme = {"http": Pool, "https": SecurePool}
    return adapter


class TooManyAbandoned(Exception):
    """So many threads hang already; another one would hang, too."""


class BoundedThreads:
    """Runs blocking work, each piece in a daemon thread of its own and under a deadline.

    A thread cannot be cancelled, only told to give up and abandoned. At most `most` abandoned ones exist: a hung
    resolver never eats the process. No executor: its threads are joined at exit, where a hung one holds the daemon.
    """

    def __init__(self, name: str, *, most: int = 2) -> None:
        self._name = name
        self._most = most
        self._abandoned: set[threading.Thread] = set()

    @property
    def abandoned(self) -> int:
        self._abandoned = {thread for thread in self._abandoned if thread.is_alive()}
        return len(self._abandoned)

    async def run(self, work: Callable[[], T], deadline_seconds: float, give_up: Callable[[], None]) -> T:
        """The work's result or exception; TimeoutError past the deadline, and then it was told to give up."""
        if self.abandoned >= self._most:
            raise TooManyAbandoned(f"{self.abandoned} earlier calls still hang")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        thread = threading.Thread(target=_settle, args=(loop, done, work), name=self._name, daemon=True)
        thread.start()
        try:
            async with asyncio.timeout(deadline_seconds):
                return await done
        except BaseException:
            if not done.done() or done.cancelled():
                give_up()
                self._abandoned.add(thread)
            raise


def _settle(loop: asyncio.AbstractEventLoop, done: asyncio.Future[T], work: Callable[[], T]) -> None:
    """In the thread. A waiter that has left, or a loop that is gone, is nobody to tell."""
    try:
        outcome: Callable[[], None] = partial(done.set_result, work())
    except BaseException as error:
        outcome = partial(done.set_exception, error)

    def tell() -> None:
        if not done.done():
            outcome()

    try:
        loop.call_soon_threadsafe(tell)
    except RuntimeError:
        return
