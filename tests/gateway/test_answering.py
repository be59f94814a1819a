"""The client's side: how an answer that was begun ends when it failed."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.gateway.answering import Answering
from dispatcher.vocabulary.relay import ENDPOINTS
from tests.gateway.trials import API, V1, Reader, an_answering
from tests.virtual_time import in_virtual_time


@in_virtual_time
async def test_a_client_that_takes_nothing_more_is_cut_off_in_time(clock):
    reader = Reader(reads=False)
    answering = an_answering(reader)
    await answering.begin(b"application/x-ndjson", [])
    await answering.write(b"a line\n")

    async with asyncio.timeout(10.0):
        await answering.fail("upstream_timeout", "too late", [])

    assert (["cut at once"], b"a line\n") == (reader.ends, reader.body)


@pytest.mark.parametrize(("path", "end"), [(API, b"\n"), (V1, b"\n\n")])
async def test_a_failure_after_the_beginning_is_said_on_a_line_of_its_own_and_then_it_is_cut(path, end):
    reader = Reader()
    answering = an_answering(reader, path)
    await answering.begin(b"text/event-stream", [])
    await answering.write(b"half a li")
    await answering.fail("upstream_failed", "it broke", [])

    assert ["cut"] == reader.ends
    assert reader.body.startswith(b"half a li" + end)
    assert b"it broke" in reader.body.removeprefix(b"half a li" + end).splitlines()[0]


@in_virtual_time
async def test_what_is_known_early_goes_with_the_first_heartbeat(clock):
    reader, early = Reader(), [(b"x-dispatcher-rehearsal", b"true")]
    answering = Answering(reader, ENDPOINTS[V1], "r-1", stream=True, heartbeat_seconds=15.0, early=lambda: early)
    answering.listen()
    await asyncio.sleep(16.0)
    answering.hush()

    assert (200, b"true") == (reader.status, reader.headers[b"x-dispatcher-rehearsal"])
