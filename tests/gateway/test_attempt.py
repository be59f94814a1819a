"""One attempt at a real server: what of an answer counts as whole, whoever is slow."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.clock import SystemClock
from dispatcher.gateway.attempt import Attempt, Ended, Limits
from dispatcher.gateway.upstream import Upstreams
from dispatcher.vocabulary.relay import ENDPOINTS
from dispatcher.wire.quality import FAULTLESS, WRONG_FORM, Expected
from tests.gateway.trials import API, V1, Reader, an_answering
from tests.misbehaving import Misbehaving, good_pieces, media_type_of
from tests.misconduct import SEEN_SECONDS

HALF = b'{"message":{"content":"half of it "},"done":false}\n'
REST = b'{"message":{"content":"the rest"},"done":false}\n{"done":true}\n'


@pytest.fixture
def server():
    with Misbehaving() as started:
        yield started


async def attempted(
    server: Misbehaving,
    reader: Reader,
    *,
    total_seconds: float,
    between_seconds: float = 5.0,
    path: str = API,
    stream: bool = True,
    expected: Expected | None = None,
) -> Ended:
    limits = Limits(
        connect_seconds=5.0,
        first_token_seconds=5.0,
        between_seconds=between_seconds,
        total_seconds=total_seconds,
        answer_bytes=2**20,
    )
    upstreams = Upstreams()
    answering = an_answering(reader, path, stream=stream)
    attempt = Attempt(upstreams, SystemClock(), answering, ENDPOINTS[path], limits, expected=expected)
    try:
        return await attempt.run(server.url, b'{"model": "phi3:mini"}', [], stream=stream, keep_bytes=2**20)
    finally:
        await upstreams.close()


def in_pieces(*pieces: bytes, stays: bool = False):
    """Read one by one. stays: the connection does not end with the answer."""

    async def conduct(line):
        await line.head(200, f"Content-Type: {media_type_of(line.heard)}", "Transfer-Encoding: chunked")
        for piece in pieces:
            await line.chunk(piece)
            await asyncio.sleep(SEEN_SECONDS)
        if stays:
            await line.until_the_other_leaves()
        await line.last_chunk()

    return conduct


@pytest.mark.parametrize("last", [REST, b'{"done":true}'], ids=["whole lines", "a line without its end"])
async def test_an_answer_whose_last_piece_its_reader_never_took_is_cut_and_not_whole(server, last):
    server.script("", {"*": in_pieces(HALF, last)})
    reader = Reader(reads=False)

    ended = await attempted(server, reader, total_seconds=0.5)

    assert ("too_long", None) == (ended.cause, ended.body)
    assert HALF == reader.body


async def test_an_answer_that_came_to_its_end_is_whole_although_its_connection_stays_open(server):
    server.script("", {"*": in_pieces(HALF, REST, stays=True)})
    reader = Reader()

    ended = await attempted(server, reader, total_seconds=0.5)

    assert (None, HALF + REST) == (ended.cause, ended.body)
    assert HALF + REST == reader.body


@pytest.mark.parametrize(
    ("path", "first", "kept_alive"),
    [(API, HALF, b"\n"), (V1, b'data: {"choices":[{"delta":{"content":"half"}}]}\n\n', b": ping\n\n")],
    ids=["blank lines", "comments"],
)
async def test_a_stall_is_not_hidden_by_what_keeps_its_connection_alive(server, path, first, kept_alive):
    async def conduct(line):
        await line.head(200, f"Content-Type: {media_type_of(line.heard)}", "Transfer-Encoding: chunked")
        await line.chunk(first)
        while not line.writer.is_closing():
            await asyncio.sleep(SEEN_SECONDS)
            await line.chunk(kept_alive)

    server.script("", {"*": conduct})
    reader = Reader()

    ended = await attempted(server, reader, total_seconds=20.0, between_seconds=0.5, path=path)

    assert ("stalled", True) == (ended.cause, reader.body.startswith(first + kept_alive))


def of_type(media_type: str, status: int = 200, body: bytes = REST):
    async def conduct(line):
        await line.whole(status, body, media_type=media_type)

    return conduct


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize(
    ("path", "stream", "own"),
    [
        (API, True, b"application/x-ndjson"),
        (V1, True, b"text/event-stream"),
        (API, False, b"application/json"),
    ],
)
@pytest.mark.parametrize("odd", ["text/\x01plain", "text/\x7f", "te\xfft/plain", "a\tb", ""])
async def test_a_content_type_that_cannot_be_a_header_becomes_the_surfaces_own(server, odd, path, stream, own, status):
    server.script("", {"*": of_type(odd, status)})

    ended = await attempted(server, Reader(), total_seconds=20.0, path=path, stream=stream)

    assert (b"application/json" if status == 500 else own) == ended.content_type


async def test_a_content_type_that_is_odd_and_can_be_a_header_is_passed_on(server):
    server.script("", {"*": of_type("text/plain; charset=odd")})
    reader = Reader()

    await attempted(server, reader, total_seconds=20.0)

    assert b"text/plain; charset=odd" == reader.headers[b"content-type"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [200, 400, 500])
async def test_an_answer_nested_too_deep_fails_the_attempt_and_nothing_else(server, status, stream):
    server.script("", {"*": of_type("application/json", status, b'{"error":' + b"[" * 100_000)})

    ended = await attempted(server, Reader(), total_seconds=20.0, stream=stream)

    assert {200: "malformed", 400: "caller_error", 500: "server_error"}[status] == ended.cause


async def test_what_nobody_foresaw_in_reading_an_answer_is_malformed_and_logged(server, monkeypatch, caplog):
    def breaks(*_, **__):
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("dispatcher.wire.relayed.whole", breaks)

    ended = await attempted(server, Reader(), total_seconds=20.0, stream=False)

    (told,) = caplog.records
    assert ("malformed", "unforeseen") == (ended.cause, str(told.exc_info[1]))


async def test_what_its_clients_side_raises_is_no_matter_of_the_place(server):
    class Broken(Reader):
        async def start(self, status, headers):
            raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        await attempted(server, Broken(), total_seconds=20.0)


async def test_what_came_is_passed_on_and_kept_byte_for_byte(server):
    reader = Reader()
    ended = await attempted(server, reader, total_seconds=30.0)

    assert b"".join(good_pieces(server.asked("")[0])) == reader.body == ended.body


def test_how_it_failed_is_told_to_all_without_what_its_server_said():
    ended = Ended(began_seconds=0.0, cause="server_error", words="it said 500", said="the secret prompt")
    assert ("server_error, it said 500", "server_error, it said 500: the secret prompt") == ended.told()


@pytest.mark.parametrize(
    ("expected", "quality"),
    [
        pytest.param(Expected(), FAULTLESS, id="any text will do"),
        pytest.param(Expected(json=True), WRONG_FORM, id="JSON was asked for"),
        pytest.param(None, None, id="it is not judged"),
    ],
)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_an_answer_that_came_whole_says_what_it_showed_of_its_quality(server, stream, expected, quality):
    whole = b'{"message":{"content":"half of it the rest"},"done":true}'
    server.script("", {"*": in_pieces(HALF, REST) if stream else of_type("application/json", body=whole)})

    ended = await attempted(server, Reader(), total_seconds=20.0, stream=stream, expected=expected)

    assert (None, quality) == (ended.cause, ended.quality)


async def test_an_answer_that_was_cut_is_not_judged(server):
    server.script("", {"*": in_pieces(HALF)})

    ended = await attempted(server, Reader(), total_seconds=20.0, expected=Expected())

    assert ("truncated", None) == (ended.cause, ended.quality)
