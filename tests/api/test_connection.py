"""What one connection may cost, on a real server: sizes, times, numbers, framing. Every refusal is a problem."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import ExitStack, suppress
from functools import partial

import httpx
import pytest

from dispatcher.vocabulary.settings import LimitSettings, ServerSettings, Settings
from tests.api.made_doors import serving_in_a_thread, some_doors
from tests.raw_http import Answer, answers_in, connected, exchange, read_to_end, request

TOO_LARGE = "a body may have 100000 bytes; say context_tokens and send the prompt's beginning"
OPENAI = {"type": "invalid_request_error", "param": None}
CHUNKED = b"POST /select HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def url():
    """With a little time for everything that may be slow."""
    limits = LimitSettings(
        header_timeout_seconds=0.4,
        body_timeout_seconds=0.4,
        body_bytes=100_000,
        header_bytes=8192,
        connections=20,
        keep_alive_seconds=20,
    )
    with serving_in_a_thread(some_doors(settings=lambda: Settings(server=ServerSettings(limits=limits)))) as served:
        yield served


@pytest.fixture
def patient_url():
    """With few places, nobody else on them, and more time than a busy machine takes."""
    limits = LimitSettings(header_timeout_seconds=300, keep_alive_seconds=300, connections=20)
    with serving_in_a_thread(some_doors(settings=lambda: Settings(server=ServerSettings(limits=limits)))) as served:
        yield served


def told(answers: list[Answer]) -> list[tuple[int, str]]:
    for answer in answers:
        assert answer.headers["x-request-id"]
    return [(answer.status, answer.word) for answer in answers]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(request(), (200, ""), id="all is well"),
        pytest.param(request(X_Long="x" * 8000), (200, ""), id="a long header"),
        pytest.param(request(X_Long="x" * 8200), (431, "head_too_large"), id="a longer one"),
        pytest.param(request("/" + "x" * 300_000), (431, "head_too_large"), id="a target without end"),
        pytest.param(request(**{f"X_{n}": "y" * 80 for n in range(100)}), (431, "head_too_large"), id="many headers"),
        pytest.param(request("/select", method="POST", body=b" " * 100_001), (413, "too_large"), id="a long body"),
        pytest.param(
            CHUNKED + b"\r\n" + b"fff\r\n%b\r\n" % (b" " * 4095) * 40, (413, "too_large"), id="a long chunked body"
        ),
        pytest.param(CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n", (400, "invalid_request"), id="CL + TE"),
        pytest.param(
            request("/select", method="POST", Content_Length="5, 6"), (400, "invalid_request"), id="CL is a list"
        ),
        pytest.param(
            b"POST /select HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
            (400, "invalid_request"),
            id="CL twice",
        ),
        pytest.param(CHUNKED + b"\r\nZZ\r\n{}\r\n0\r\n\r\n", (400, "invalid_request"), id="a chunk size of letters"),
        pytest.param(CHUNKED + b"\r\n2\r\n{}xx0\r\n\r\n", (400, "invalid_request"), id="a chunk without its end"),
        pytest.param(
            CHUNKED + b"\r\n2\r\n{}\r\n0\r\nX: " + b"y" * 200_000, (400, "invalid_request"), id="a trailer without end"
        ),
        pytest.param(
            request("/select", method="POST", Transfer_Encoding="gzip, chunked"),
            (400, "invalid_request"),
            id="another coding",
        ),
        pytest.param(request(X_Odd="a\x01b"), (400, "invalid_request"), id="a control character"),
        pytest.param(request(X_Odd="a\x00b"), (400, "invalid_request"), id="a NUL"),
        pytest.param(request(X_Odd="a\nb: c"), (400, "invalid_request"), id="a line feed alone"),
        pytest.param(b"GET /models HTTP/1.1\r\n\r\n", (400, "invalid_request"), id="no Host"),
        pytest.param(request(host="localhost\r\nHost: localhost"), (400, "invalid_request"), id="two Hosts"),
        pytest.param(b"hello\r\n\r\n", (400, "invalid_request"), id="no HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", (400, "invalid_request"), id="TLS"),
        pytest.param(request("*", method="OPTIONS"), (400, "invalid_request"), id="the server itself"),
        pytest.param(request("evil.example:443", method="CONNECT"), (400, "invalid_request"), id="a tunnel"),
        pytest.param(request("http://localhost/models"), (200, ""), id="absolute, and the same host"),
        pytest.param(request("http://evil.example/models"), (400, "invalid_request"), id="absolute, another host"),
        pytest.param(
            request("http://evil.example/models", host="evil.example"), (421, "misdirected"), id="absolute, foreign"
        ),
        pytest.param(request(Upgrade="h2c", Connection="Upgrade"), (200, ""), id="an upgrade is not taken"),
        pytest.param(b"GET /models HTTP/1.1\r\nHost: local", (408, "too_slow"), id="half a head"),
        pytest.param(b"", (408, "too_slow"), id="silence"),
        pytest.param(b"\r\n\r\n", (408, "too_slow"), id="empty lines"),
        pytest.param(
            b"POST /select HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
            (408, "too_slow"),
            id="half a body",
        ),
    ],
)
def test_a_request_gets_one_answer(url, sent, expected):
    assert [expected] == told(exchange(url, sent))


def test_a_pipelined_request_is_answered_before_the_garbage_after_it_ends_the_connection(url):
    first = b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n"

    assert [(200, ""), (200, "")] == told(exchange(url, first + request()))
    assert [(200, "")] == told(exchange(url, first + b"garbage\r\n\r\n"))


def test_a_refusal_names_the_request_it_refuses(url):
    (answer,) = exchange(url, request("/select", method="POST", X_Request_Id="r-9", Content_Length="999999999"))

    assert ("r-9", "close") == (answer.headers["x-request-id"], answer.headers["connection"])


def test_a_body_that_drips_is_given_up(url):
    with connected(url) as raw, suppress(ConnectionError):
        raw.sendall(b"POST /select HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        raw.settimeout(0.05)
        answer = b""
        while not answer:  # each drop in time for itself
            raw.sendall(b" ")
            with suppress(TimeoutError):
                answer = raw.recv(65536)

    assert [(408, "too_slow")] == told(answers_in(answer))


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(
            request("/v1/chat/completions", method="POST", Content_Length="999999999"),
            (
                413,
                {"error": {"message": TOO_LARGE, "type": "invalid_request_error", "param": None, "code": "too_large"}},
            ),
            id="OpenAI's",
        ),
        pytest.param(
            request("/api/chat?x=/v1/", method="POST", Content_Length="999999999"),
            (413, {"error": TOO_LARGE}),
            id="Ollama's",
        ),
        pytest.param(
            request("http://localhost/api/chat", method="POST", Content_Length="999999999"),
            (413, {"error": TOO_LARGE}),
            id="Ollama's, in absolute form",
        ),
        pytest.param(
            request("/api/tags", X_Long="x" * 9000),
            (431, {"error": "the request line and headers may have 8192 bytes"}),
            id="a head",
        ),
        pytest.param(
            request("/api/chat", host="localhost\r\nHost: localhost"),
            (400, {"error": "Host is given more than once"}),
            id="two Hosts",
        ),
    ],
)
def test_a_refusal_speaks_the_language_of_the_surface(url, sent, expected):
    (answer,) = exchange(url, sent)

    assert expected == (answer.status, json.loads(answer.body))
    assert "application/json" == answer.headers["content-type"]
    assert answer.headers["x-request-id"]


def test_a_slow_beginning_does_not_spoil_what_is_in_time(url):
    with connected(url) as raw:
        for piece in (b"GET /models HT", b"TP/1.1\r\nHost: localhost\r\nConnection: cl", b"ose\r\n\r\n"):
            raw.sendall(piece)

        assert [(200, "")] == told(answers_in(read_to_end(raw)))


def kept_alive(url: str) -> socket.socket:
    """One connection that has been answered and is idle."""
    raw = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30)
    raw.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    told_so_far = b""
    while not (b"\r\n\r\n" in told_so_far and told_so_far.endswith(b"}")):  # head and body may come one by one
        told_so_far += raw.recv(65536)
    assert told_so_far.startswith(b"HTTP/1.1 200")
    return raw


def test_when_all_places_are_taken_the_one_idle_for_longest_gives_way(patient_url):
    with ExitStack() as open_ones:
        idle = [open_ones.enter_context(kept_alive(patient_url)) for _ in range(20)]

        assert [(200, "")] == told(exchange(patient_url, request()))
        assert b"" == idle[0].recv(10)
        idle[1].sendall(request())
        assert [(200, "")] == told(answers_in(read_to_end(idle[1])))


def test_when_nobody_is_idle_one_more_is_told_so(patient_url):
    with ExitStack() as open_ones:
        for _ in range(20):
            open_ones.enter_context(connected(patient_url)).sendall(b"GET ")

        (refused,) = told(exchange(patient_url, b""))
    assert (503, "too_many") == refused


@pytest.mark.parametrize("limits", [LimitSettings(connections_per_client=2)])
def test_loopback_is_not_one_client(limits):
    doors = some_doors(settings=lambda: Settings(server=ServerSettings(limits=limits)))
    with serving_in_a_thread(doors) as served, ExitStack() as open_ones:
        for _ in range(5):
            open_ones.enter_context(kept_alive(served))

        assert 200 == httpx.get(f"{served}/models", trust_env=False).status_code


def test_two_hundred_slow_heads_do_not_keep_others_waiting():
    limits = LimitSettings(header_timeout_seconds=5)
    doors = some_doors(settings=lambda: Settings(server=ServerSettings(limits=limits)))

    async def slow(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /models HTTP/1.1\r\nX-Slow: ")
        return await reader.read()

    async def attack(url: str) -> tuple[list[int], list[tuple[int, str]]]:
        port = int(url.rpartition(":")[2])
        slow_ones = [asyncio.create_task(slow(port)) for _ in range(200)]
        async with httpx.AsyncClient(trust_env=False) as client:
            others = [(await client.get(f"{url}/models")).status_code for _ in range(20)]
        assert not any(one.done() for one in slow_ones), "the others were answered while the slow ones still sent"
        return others, [told(answers_in(answer))[0] for answer in await asyncio.gather(*slow_ones)]

    with serving_in_a_thread(doors) as served:
        others, slow_told = asyncio.run(partial(attack, served)())

    assert ([200] * 20, [(408, "too_slow")] * 200) == (others, slow_told)


def asks_without_end(client: socket.socket) -> None:
    while True:
        client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.001)  # one by one: a pile of them is refused for what it is


def test_who_asks_and_never_reads_is_disconnected(url):
    with connected(url) as client:
        client.settimeout(10)
        with pytest.raises(ConnectionError):  # its answers were not taken in time; a timeout of ours would be none
            asks_without_end(client)
