"""Requests too large, too slow, or to be read in two ways. Each gets one answer, and the next one is served."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tests.abuse.abused import HEADER_SECONDS, INFER_KEY, AbusedDaemon
from tests.raw_http import answers_in, connected, read_to_end, request

CHUNKED = (
    f"POST /select HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {INFER_KEY}\r\nTransfer-Encoding: chunked\r\n".encode()
)
GIB = 1024**3
MIB = 1024**2


@pytest.fixture(autouse=True)
def _goes_on(daemon: AbusedDaemon):
    yield
    assert daemon.lives()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(CHUNKED + b"Content-Length: 6\r\n\r\n0\r\n\r\n", (400, "invalid_request"), id="CL and TE"),
        pytest.param(
            CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n", (400, "invalid_request"), id="TE twice"
        ),
        pytest.param(
            CHUNKED + b"\r\n-1\r\n{}\r\n0\r\n\r\n", (400, "invalid_request"), id="a chunk of less than nothing"
        ),
        pytest.param(
            CHUNKED + b"\r\nffffffffffffffff1\r\n{}", (400, "invalid_request"), id="a chunk of more than there is"
        ),
        pytest.param(CHUNKED + b"\r\n2\n{}\n0\n\n", (400, "invalid_request"), id="chunks with line feeds alone"),
        pytest.param(request(X="y" * 100 * 1024), (431, "head_too_large"), id="a header of 100 KB"),
        pytest.param(request("/models?" + "y" * 100 * 1024), (431, "head_too_large"), id="a query of 100 KB"),
        pytest.param(
            request(**{f"X{number}": "y" for number in range(10_000)}), (431, "head_too_large"), id="10,000 headers"
        ),
        pytest.param(request(X="a\x07b"), (400, "invalid_request"), id="a control character in a header"),
        pytest.param(request(X="a\r\n\x00: b"), (400, "invalid_request"), id="a header named NUL"),
        pytest.param(
            b"GET /models HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n",
            (400, "invalid_request"),
            id="a space before the colon",
        ),
        pytest.param(
            b"GET /models HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\nConnection: close\r\n\r\n",
            (400, "invalid_request"),
            id="a folded header",
        ),
        pytest.param(b"GET /models HTTP/9.9\r\nHost: localhost\r\n\r\n", (400, "invalid_request"), id="HTTP/9.9"),
        pytest.param(b"\x00" * 1000, (400, "invalid_request"), id="zeros"),
        pytest.param(
            request("/select", method="POST", Content_Length="1073741824"),
            (413, "too_large"),
            id="1 GB, no key: told before anything of it is waited for",
        ),
    ],
)
def test_it_is_refused_as_a_problem_with_a_request_id(daemon: AbusedDaemon, sent, expected):
    answer = daemon.raw(sent)

    assert expected == (answer.status, answer.word)
    assert answer.headers["x-request-id"]


def test_a_chunked_body_of_a_gigabyte_is_cut_at_8_mib(daemon: AbusedDaemon):
    chunk = b"100000\r\n" + b" " * MIB + b"\r\n"
    sent_bytes = 0
    with connected(daemon.url) as raw:
        raw.sendall(CHUNKED + b"\r\n")
        with suppress(ConnectionError):
            while sent_bytes < GIB:
                raw.sendall(chunk)
                sent_bytes += MIB
        (answer,) = answers_in(read_to_end(raw))

    assert (413, "too_large", "close") == (answer.status, answer.word, answer.headers["connection"])
    assert sent_bytes < 64 * MIB, "the connection was closed long before the end"


def test_a_trailer_without_end_is_cut(daemon: AbusedDaemon):
    with connected(daemon.url) as raw:
        raw.sendall(CHUNKED + b"\r\n2\r\n{}\r\n0\r\nX: ")
        with suppress(ConnectionError):
            for _ in range(64):
                raw.sendall(b"y" * MIB)
        (answer,) = answers_in(read_to_end(raw))

    assert (400, "invalid_request") == (answer.status, answer.word)


def test_two_hundred_slow_heads_are_closed_and_nobody_waits_for_them(daemon: AbusedDaemon):
    async def slow(number: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.running.port)
        head = f"GET /models HTTP/1.1\r\nHost: localhost\r\nX-{number}: ".encode()
        writer.write(head)
        with suppress(ConnectionError):
            while not reader.at_eof() and not (got := await _in_a_moment(reader)):
                writer.write(b"y")
            return got
        return b""

    async def attack() -> tuple[list[int], list[bytes]]:
        attackers = [asyncio.create_task(slow(number)) for number in range(200)]
        served = [(await asyncio.to_thread(daemon.ask, "GET", "/models")).status_code for _ in range(10)]
        assert not any(one.done() for one in attackers), "served while the slow ones were still at it"
        return served, await asyncio.gather(*attackers)

    served, ends = asyncio.run(attack())

    assert [200] * 10 == served
    assert {408} == {answers_in(end)[0].status for end in ends}


async def _in_a_moment(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(HEADER_SECONDS / 6):
            return await reader.read(65536)
    except TimeoutError:
        return b""


def test_a_body_that_drips_is_given_up(daemon: AbusedDaemon):
    with connected(daemon.url) as raw:
        raw.sendall(request("/select", method="POST", X_API_Key=INFER_KEY, Content_Length="100") + b"{")
        (answer,) = answers_in(read_to_end(raw))

    assert (408, "too_slow") == (answer.status, answer.word)


def test_a_stranger_who_holds_a_body_back_is_answered_all_the_same(daemon: AbusedDaemon):
    with connected(daemon.url) as raw:
        raw.sendall(request("/select", method="POST", Content_Length="100") + b"{")

        assert raw.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_request_smuggled_behind_another_is_a_request_of_its_own(daemon: AbusedDaemon):
    """The second has no key, and does not borrow the first one's."""
    first = f"GET /models HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {INFER_KEY}\r\n\r\n".encode()
    with connected(daemon.url) as raw:
        raw.sendall(first + request("/models/phi3:mini/stop", method="POST"))

        assert [200, 401] == [answer.status for answer in answers_in(read_to_end(raw))]


def test_readers_of_events_have_a_limit_and_hold_nobody_up(daemon: AbusedDaemon):
    held = []
    for _ in range(4):
        manager = connected(daemon.url)
        raw = manager.__enter__()
        held.append((manager, raw))
        raw.sendall(f"GET /events HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {INFER_KEY}\r\n\r\n".encode())
        assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")
    refused = daemon.sent("/events")
    for manager, _ in held:
        manager.__exit__(None, None, None)

    assert (503, "too_many") == (refused.status, refused.word)
