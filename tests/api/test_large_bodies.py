"""A large body pauses the reading of its connection: its client is seen leaving all the same, and no other gains."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import urlsplit

import pytest

from dispatcher.vocabulary.relay import Arrived, Client
from tests.api.made_doors import serving, some_doors

DEADLINE_SECONDS = 30.0  # nothing is asserted of it


def chat(size_bytes: int, framing: str = "length") -> bytes:
    body = b'{"model":"auto","messages":[{"role":"user","content":"%b"}]}'
    body %= b"x" * (size_bytes - len(body) + 2)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    if framing == "chunks":
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


class Waiting:
    """Answers when it is told to; says who arrived and who left."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.arrived = asyncio.Semaphore(0)
        self.left = asyncio.Event()
        self.answers = asyncio.Event()

    async def relay(self, arrived: Arrived, client: Client) -> None:
        self.sizes.append(len(arrived.body))
        self.arrived.release()
        try:
            await self.answers.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        await client.answer(200, b"{}", [(b"content-type", b"application/json")])


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("size_bytes", [300_000, 4 * 1024**2])
async def test_who_leaves_after_a_large_body_is_seen_leaving(size_bytes, framing):
    waiting = Waiting()
    async with asyncio.timeout(DEADLINE_SECONDS), serving(some_doors(relay=waiting.relay)) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        writer.write(chat(size_bytes, framing))
        await waiting.arrived.acquire()

        writer.close()

        await waiting.left.wait()
    assert [size_bytes] == waiting.sizes


async def test_a_second_request_after_a_large_body_is_answered_on_the_same_connection():
    waiting = Waiting()
    waiting.answers.set()
    async with asyncio.timeout(DEADLINE_SECONDS), serving(some_doors(relay=waiting.relay)) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        for _ in range(2):
            writer.write(chat(300_000))
            assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert [300_000] * 2 == waiting.sizes


async def one_by_one(raw: socket.socket, requests: list[bytes]) -> None:
    """Each in a piece that ends with its end, for a server in this loop that reads at all."""
    loop = asyncio.get_running_loop()
    for sent in requests:
        await loop.sock_sendall(raw, sent)
        for _ in range(3):
            await asyncio.sleep(0)


async def test_who_sends_requests_without_waiting_is_not_read_while_the_first_is_answered():
    waiting = Waiting()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE_SECONDS), serving(some_doors(relay=waiting.relay)) as url:
        with socket.create_connection(("127.0.0.1", urlsplit(url).port)) as raw:
            raw.setblocking(False)
            await loop.sock_sendall(raw, chat(100))
            await waiting.arrived.acquire()
            sending = asyncio.create_task(one_by_one(raw, [chat(50_000)] * 960))

            done, _ = await asyncio.wait((sending,), timeout=1.5)
            assert not done, "all of it was taken, more than any buffer holds"

            sending.cancel()
            waiting.answers.set()
            told = b""
            while told.count(b"HTTP/1.1 200 ") < 3:
                told += await loop.sock_recv(raw, 65536)
    assert [100, 50_000, 50_000] == waiting.sizes[:3]
