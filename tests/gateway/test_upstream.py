"""Connections to model servers: none is left open that nobody will use again."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from dispatcher.gateway import upstream
from dispatcher.gateway.upstream import Upstreams

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


@asynccontextmanager
async def serving():
    server = Server()
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
