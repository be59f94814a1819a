"""One attempt at a real server: what of an answer counts as whole, whoever is slow."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.clock import SystemClock
from dispatcher.gateway.attempt import Attempt, Ended, Limits
from dispatcher.gateway.upstream import Upstreams
from dispatcher.vocabulary.relay import ENDPOINTS
from tests.gateway.trials import API, Reader, an_answering
from tests.misbehaving import Misbehaving, good_pieces, media_type_of
from tests.misconduct import SEEN_SECONDS

HALF = b'{"message":{"content":"half of it "},"done":false}\n'
REST = b'{"message":{"content":"the rest"},"done":false}\n{"done":true}\n'


@pytest.fixture
def server():
    with Misbehaving() as started:
        yield started


async def attempted(server: Misbehaving, reader: Reader, *, total_seconds: float) -> Ended:
    limits = Limits(
        connect_seconds=5.0,
        first_token_seconds=5.0,
        between_seconds=5.0,
        total_seconds=total_seconds,
        answer_bytes=2**20,
    )
    upstreams = Upstreams()
    attempt = Attempt(upstreams, SystemClock(), an_answering(reader), ENDPOINTS[API], limits)
    try:
        return await attempt.run(server.url, b'{"model": "phi3:mini"}', [], stream=True, keep_bytes=2**20)
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


async def test_what_came_is_passed_on_and_kept_byte_for_byte(server):
    reader = Reader()
    ended = await attempted(server, reader, total_seconds=30.0)

    assert b"".join(good_pieces(server.asked("")[0])) == reader.body == ended.body


def test_how_it_failed_is_told_to_all_without_what_its_server_said():
    ended = Ended(began_seconds=0.0, cause="server_error", words="it said 500", said="the secret prompt")
    assert ("server_error, it said 500", "server_error, it said 500: the secret prompt") == ended.told()
