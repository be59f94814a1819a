"""What a real Ollama was captured answering, played to the real daemon as it came: a client gets the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.gateway_house import QUICK, House, house
from tests.misbehaving import CHAIN, Conduct, Line
from tests.wire.captured import FOLDER, Captured, captured, every

ANSWERED = [one for one in every() if one.status == 200]
OURS = {"x-request-id", "cache-control", "x-content-type-options"}
NEVER_RETURNED = {"set-cookie", "server", "x-powered-by", "keep-alive", "proxy-authenticate", "upgrade", "trailer"}
CUT = {one.name for one in ANSWERED if one.streamed and b'"done":true' not in one.body and b"[DONE]" not in one.body}
WHOLE = [one for one in ANSWERED if one.name not in CUT]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """No cache: each answer is to come from the server."""
    quick = {**QUICK, "cache": {"enabled": False}}
    with house(tmp_path_factory.mktemp("captures"), quick) as one:
        yield one


def content_type_of(capture: Captured) -> str:
    meta = json.loads((FOLDER / f"{capture.name}.meta.json").read_text())
    headers = {name.lower(): value for name, value in meta["headers"].items()}
    told: str = headers["content-type"]
    return told


def replayed(capture: Captured) -> Conduct:
    """With its own content type, its own framing, in the pieces it came in, and headers no client may ever see."""
    meta = json.loads((FOLDER / f"{capture.name}.meta.json").read_text())
    framed = {name.lower() for name in meta["headers"]}

    async def conduct(line: Line) -> None:
        more = ("Set-Cookie: canary=1", "Server: canary", "X-Powered-By: canary", "Keep-Alive: timeout=9")
        told = (f"Content-Type: {content_type_of(capture)}", *more)
        if "content-length" in framed:
            await line.head(200, *told, f"Content-Length: {len(capture.body)}")
            await line.say(capture.body)
            line.keep = True
            return
        await line.head(200, *told, "Transfer-Encoding: chunked")
        for piece in capture.pieces:
            await line.chunk(piece)
        if capture.end == "complete":
            await line.last_chunk()

    return conduct


async def asked(there: House, capture: Captured) -> tuple[int, httpx.Headers, bytes, str]:
    """status, headers, body, what was wrong with its framing."""
    conduct = replayed(capture)
    there.server.script("", {"*": conduct})
    there.server.loading.update(dict.fromkeys(CHAIN, conduct))  # an empty prompt is one, too
    body, broken = bytearray(), ""
    try:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=30) as client,
            client.stream(
                "POST", there.daemon.url + capture.endpoint.path, content=capture.sent_bytes, headers={"Accept": "*/*"}
            ) as answer,
        ):
            try:
                async for piece in answer.aiter_raw():
                    body += piece
            except httpx.RemoteProtocolError as problem:
                broken = str(problem)
            return answer.status_code, answer.headers, bytes(body), broken
    finally:
        there.server.loading.clear()


def test_there_is_a_capture_of_each_path_and_most_of_them_are_whole():
    assert {one.endpoint.path for one in ANSWERED} == {one.endpoint.path for one in WHOLE}
    assert len(WHOLE) > 40
    assert 0 < len(CUT) < 15, CUT


@pytest.mark.parametrize("capture", WHOLE, ids=str)
async def test_an_answer_comes_back_byte_for_byte(there: House, capture: Captured):
    status, headers, body, broken = await asked(there, capture)

    assert (200, content_type_of(capture), "") == (status, headers["content-type"], broken), body[:500]
    assert capture.body == body
    assert {*OURS, "x-dispatcher-model", "x-dispatcher-attempts", "x-dispatcher-decision"} <= headers.keys()
    assert "canary" not in str(headers)
    assert set() == NEVER_RETURNED & headers.keys()
    assert "1" == headers["x-dispatcher-attempts"]


def shows_failure(line: bytes) -> bool:
    """An error, or the last word of a killed runner on /v1: an event of no model, with nothing in it."""
    return b'"error"' in line or b'"model":""' in line


@pytest.mark.parametrize("name", sorted(CUT))
async def test_an_answer_that_was_cut_never_looks_whole(there: House, name: str):
    """What had come is what the client got; then an error in the surface's form, no end marker, a broken framing. One
    that failed before its first content is a plain error."""
    capture = captured(name)
    status, _, body, broken = await asked(there, capture)

    assert b'"done":true' not in body
    assert b"[DONE]" not in body
    assert b'"error"' in body.rstrip(b"\n").rpartition(b"\n")[2]
    if status == 200:
        assert "incomplete chunked read" in broken
        lines = [line for line in capture.body.split(b"\n") if line and not shows_failure(line)]
        assert b"\n".join(lines).split(b"\n") == [line for line in body.split(b"\n") if line and b'"error"' not in line]
    else:
        assert status in (502, 504)
        assert not broken
