"""Connections to model servers: none is left open that nobody will use again."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from dispatcher.gateway import upstream
from dispatcher.gateway.upstream import Failed, Upstreams

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
DEADLINE_SECONDS = 20.0  # nothing is asserted of it


class Server:
    """Answers each request and keeps the connection; one with `wait` in it is never answered."""

    def __init__(self) -> None:
        self.asked = asyncio.Semaphore(0)
        self.closed = asyncio.Semaphore(0)

    async def serve(self, reader, writer) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.asked.release()
                if b"wait" not in head:
                    await reader.readexactly(2)
                    writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.release()
        finally:
            writer.close()


class Forgetful:
    """Promises to keep a connection and closes it a moment after each answer. A request that crosses that is reset,
    heard or not, as is one with `never` in it, and every one on a connection of its own if it `only_resets`."""

    def __init__(self, *, closes_after_seconds: float = 0.004, only_resets: bool = False) -> None:
        self.heard: list[bytes] = []
        self.answered = 0
        self._closes_after_seconds = closes_after_seconds
        self._only_resets = only_resets

    async def serve(self, reader, writer) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            self.heard.append(head.partition(b" HTTP/")[0])
            if not self._only_resets and b"never" not in head:
                writer.write(ANSWER)
                self.answered += 1
                await asyncio.sleep(self._closes_after_seconds)
        writer.transport.abort()


class Crossing(Forgetful):
    """Closes on the second request of a connection, not before: each crosses the closing for sure."""

    async def serve(self, reader, writer) -> None:
        for first in (True, False):
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                self.heard.append(head.partition(b" HTTP/")[0])
                if b"never" in head:
                    break
                if first:
                    writer.write(ANSWER)
                    self.answered += 1
                elif b"half" in head:
                    writer.write(ANSWER[:20])
                    await writer.drain()
                elif b"late" in head:
                    await asyncio.sleep(upstream.STALE_SECONDS * 2)
        (writer.close if b"half" in head else writer.transport.abort)()


@asynccontextmanager
async def serving(server=None):
    server = server or Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    try:
        yield server, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()


async def ask(upstreams: Upstreams, origin: str, path: str = "/") -> None:
    async with upstreams.post(origin, path, b"{}", 5.0) as response:
        await response.read()


@pytest.fixture(autouse=True)
def one_pool(monkeypatch):
    """And a connection that is not used is not closed for that."""
    monkeypatch.setattr(upstream, "MAX_POOLS", 1)
    monkeypatch.setattr(upstream, "IDLE_SECONDS", 3600.0)


async def test_the_connections_of_a_server_nobody_asks_any_more_are_closed():
    upstreams = Upstreams()
    async with asyncio.timeout(DEADLINE_SECONDS), serving() as (first, there), serving() as (_, elsewhere):
        await ask(upstreams, there)
        await ask(upstreams, elsewhere)
        await first.closed.acquire()
    await upstreams.close()


async def test_when_the_last_request_on_a_retired_server_is_cancelled_its_connections_are_closed():
    upstreams = Upstreams()
    async with asyncio.timeout(DEADLINE_SECONDS), serving() as (first, there), serving() as (_, elsewhere):
        hanging = asyncio.create_task(ask(upstreams, there, "/wait"))
        await first.asked.acquire()
        await ask(upstreams, there)  # on a connection of its own, which is kept
        await ask(upstreams, elsewhere)
        hanging.cancel()
        await first.closed.acquire()
        await first.closed.acquire()
    await upstreams.close()


async def test_closing_waits_for_what_is_being_closed():
    upstreams = Upstreams()
    before = asyncio.all_tasks()
    async with asyncio.timeout(DEADLINE_SECONDS), serving() as (_, there), serving() as (_, elsewhere):
        await ask(upstreams, there)
        await ask(upstreams, elsewhere)
        await upstreams.close()
        assert not {task.get_name() for task in asyncio.all_tasks() - before} & {"gateway.pool"}


@pytest.mark.parametrize("server", [Forgetful(), Forgetful(closes_after_seconds=0.0), Crossing()])
async def test_connections_that_are_closed_without_a_word_cost_no_request(server):
    upstreams = Upstreams()
    async with asyncio.timeout(DEADLINE_SECONDS), serving(server) as (_, there):
        for _ in range(40):
            await ask(upstreams, there)
            await asyncio.sleep(0.003)
        assert 40 == server.answered
        await upstreams.close()


async def test_requests_side_by_side_lose_nothing_to_them_either():
    upstreams, server = Upstreams(), Crossing()
    async with asyncio.timeout(DEADLINE_SECONDS), serving(server) as (_, there):
        for _ in range(5):
            await asyncio.gather(*(ask(upstreams, there) for _ in range(8)))
        assert 40 == server.answered
        await upstreams.close()


async def test_a_connection_of_its_own_that_is_reset_is_a_failure_and_is_not_asked_again():
    upstreams, server = Upstreams(), Forgetful(only_resets=True)
    async with asyncio.timeout(DEADLINE_SECONDS), serving(server) as (_, there):
        with pytest.raises(Failed) as failed:
            await ask(upstreams, there)
        assert ("reset", 1) == (failed.value.cause, len(server.heard))
        await upstreams.close()


async def test_a_server_that_resets_a_request_on_a_new_connection_too_has_failed():
    upstreams, server = Upstreams(), Crossing()
    async with asyncio.timeout(DEADLINE_SECONDS), serving(server) as (_, there):
        await ask(upstreams, there)
        with pytest.raises(Failed) as failed:
            await ask(upstreams, there, "/never")
        assert ("reset", [b"POST /", b"POST /never", b"POST /never"]) == (failed.value.cause, server.heard)
        await upstreams.close()


@pytest.mark.parametrize("path", ["/half", "/late"])
async def test_what_was_begun_or_worked_on_is_not_asked_again(monkeypatch, path):
    """late: longer than a connection that was closed already takes to say so."""
    monkeypatch.setattr(upstream, "STALE_SECONDS", 0.05)
    upstreams, server = Upstreams(), Crossing()
    async with asyncio.timeout(DEADLINE_SECONDS), serving(server) as (_, there):
        await ask(upstreams, there)
        with pytest.raises(Failed) as failed:
            await ask(upstreams, there, path)
        assert ("reset", [b"POST /", b"POST " + path.encode()]) == (failed.value.cause, server.heard)
        await upstreams.close()
