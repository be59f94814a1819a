"""What goes through the gateway besides question and answer: nothing. No header of a client reaches a model server, no
header of a model server reaches a client, and the words of a prompt are nobody else's."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from dispatcher.vocabulary.relay import ENDPOINTS
from tests import misconduct
from tests.abuse.abused import ADMIN_KEY, INFER_KEY
from tests.abuse.gateway_place import ASKED, CHAT, NATIVE, Place, posted
from tests.misbehaving import CHAIN, Conduct, Line, good_pieces, media_type_of
from tests.raw_http import connected
from tests.realparts import eventually

both = pytest.mark.parametrize("path", [CHAT, NATIVE])
each = pytest.mark.parametrize("path", sorted(ENDPOINTS))


@each
def test_no_header_of_a_client_reaches_a_model_server(there: Place, path: str) -> None:
    before = there.generating()
    fields = {**ASKED, "prompt": "hello", "input": "hello"}
    canaries = {
        "User-Agent": "canary",
        "Cookie": "canary=1",
        "Authorization": f"Bearer {INFER_KEY}",
        "Proxy-Authorization": "Basic canary",
        "X-Forwarded-For": "canary",
        "X-Forwarded-Host": "canary",
        "Forwarded": "for=canary",
        "Via": "1.1 canary",
        "X-Request-Id": "canary",
        "X-Dispatcher-Agent": "canary",
        "Traceparent": "canary",
        "Accept": "text/canary",
        "Accept-Encoding": "gzip, canary",
        "Accept-Language": "canary",
        "Content-Type": "text/plain; charset=canary",
        "Connection": "X-Canary, Authorization",
        "X-Canary": "canary",
        "Referer": "http://localhost/canary",
        "Expect": "",
        "TE": "trailers",
        "OpenAI-Organization": "canary",
    }
    answer = there.post(f"{path}?canary=1", fields, headers=canaries)
    heard = there.server.heard[-1]

    assert (200, before + 1) == (answer.status_code, there.generating()), answer.text
    assert {"host", "accept", "content-type", "content-length"} == {name for name, _ in heard.headers}
    assert 4 == len(heard.headers)
    assert {
        "host": f"127.0.0.1:{there.server.port}",
        "accept": "*/*",
        "content-type": "application/json",
        "content-length": str(len(heard.body)),
    } == dict(heard.headers)
    assert ("POST", path) == (heard.method, heard.path)
    assert b"canary" not in heard.body
    assert INFER_KEY.encode() not in heard.body


def test_a_target_in_absolute_form_is_answered_here_and_nowhere_else(there: Place) -> None:
    before = there.generating()
    answer = there.raw(posted(f"http://localhost{CHAT}"))

    assert (200, before + 1) == (answer.status, there.generating())
    assert (CHAT, f"127.0.0.1:{there.server.port}") == (
        there.server.heard[-1].path,
        dict(there.server.heard[-1].headers)["host"],
    )


FORGED = (
    "Set-Cookie: canary=1",
    "Connection: X-Canary",
    "X-Canary: 1",
    "Server: canary",
    "Location: http://canary.example",
    "WWW-Authenticate: canary",
    "Proxy-Authenticate: canary",
    "Access-Control-Allow-Origin: *",
    "X-Dispatcher-Model: canary",
    "X-Dispatcher-Attempts: 9",
    "X-Request-Id: canary",
    "Cache-Control: public, max-age=1",
    "Refresh: 0; url=http://canary.example",
    "Alt-Svc: canary",
)


NAMED_ALONE = {"X-Dispatcher-Fallback": "off"}


def forging(status: int) -> Conduct:
    async def conduct(line: Line) -> None:
        pieces = good_pieces(line.heard) if status == 200 else [b'{"error":"it will not"}']
        media_type = media_type_of(line.heard) if status == 200 else "application/json"
        await line.head(status, f"Content-Type: {media_type}", "Transfer-Encoding: chunked", *FORGED)
        for piece in pieces:
            await line.chunk(piece)
        await line.last_chunk()

    return conduct


@both
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [200, 400, 404])
def test_no_header_of_a_model_server_reaches_a_client(there: Place, path: str, stream: bool, status: int) -> None:
    there.server.script("case-forged", {"*": forging(status)})
    words = [{"role": "user", "content": "case-forged"}]
    answer = there.post(path, {**ASKED, "messages": words, "stream": stream}, headers=NAMED_ALONE)

    told = {name: value for name, value in answer.headers.items() if name not in ("date", "transfer-encoding")}
    assert status == answer.status_code
    assert "canary" not in str(told)
    assert {"x-dispatcher-model": "phi3:mini", "x-dispatcher-attempts": "1", "cache-control": "no-store"}.items() <= (
        told.items()
    )
    assert set(told) <= {
        "content-type",
        "content-length",
        "x-request-id",
        "cache-control",
        "x-content-type-options",
        "x-dispatcher-model",
        "x-dispatcher-attempts",
        "x-dispatcher-decision",
        "x-dispatcher-degraded",
    }


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────────

CANARY = "canaryPromptG4"


def asks_with_the_canary(there: Place) -> list[Any]:
    """In every way a prompt can come and fail. A model server may say the prompt in its error: that is for its own
    client, and nobody else."""
    there.server.script("case-echo", {"*": misconduct.refuses(500, f"cannot tokenize {CANARY}")})
    there.server.script("case-busy", {"*": misconduct.refuses(503, f"server busy with {CANARY}")})
    there.server.script("case-wrong", {"*": misconduct.refuses(400, f"invalid {CANARY}")})
    there.server.script("case-cut", {"*": misconduct.begins_and("reset")})
    there.server.script("case-told", {"*": misconduct.says(b'{"error":"' + CANARY.encode() + b'"}\n')})
    answers = []
    for case in ("", "case-echo", "case-busy", "case-wrong", "case-cut", "case-told"):
        for stream in (False, True):
            words = f"{CANARY} {case}"
            said = {"messages": [{"role": "user", "content": words}], "prompt": words, "input": words}
            for path in ENDPOINTS:
                with suppress(Exception):  # a connection that was cut, too
                    answers.append(there.post(path, {"model": "auto", "stream": stream, **said}))
    for path in (CHAT, NATIVE):
        answers += [
            there.daemon.ask("POST", path, content=f'{{"prompt": "{CANARY}'),
            there.daemon.ask("POST", path, content=f'{{"prompt": "{CANARY}", "prompt": 1}}'),
            there.daemon.ask("POST", path, json={"prompt": CANARY, "stream": CANARY}),
            there.daemon.ask("POST", path, json={"model": "auto", "api_base": CANARY}),
            there.daemon.ask("POST", f"{path}?prompt={CANARY}", json=[CANARY]),
        ]
    return answers


def test_the_words_of_a_prompt_are_kept_nowhere_and_told_to_nobody_else(there: Place) -> None:
    daemon = there.daemon
    with connected(daemon.url) as events:
        events.sendall(f"GET /events HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {INFER_KEY}\r\n\r\n".encode())
        told = events.recv(65536)
        answers = asks_with_the_canary(there)
        last = next(answer for answer in reversed(answers) if "x-dispatcher-decision" in answer.headers)
        decision_id = last.headers["x-dispatcher-decision"].encode()
        while decision_id not in told:
            told += events.recv(65536)
        eventually(
            lambda: any(decision_id in kept for kept in daemon.everything_kept().values()) or None,
            deadline_seconds=20,
            what="the decision to be in the database",
        )
        events.settimeout(0.5)
        with suppress(TimeoutError):
            told += events.recv(1_000_000)
    paths = ("/decisions", "/metrics", "/", "/snapshot", "/models", "/queue", "/readyz?verbose", "/performance-metrics")
    reads = {path: daemon.ask("GET", path, key=ADMIN_KEY).content for path in paths}

    secrets = [word.encode() for word in (CANARY, INFER_KEY, ADMIN_KEY)]
    everywhere = {**reads, **daemon.everything_kept(), "/events": told}
    assert [] == [(where, word) for where, kept in everywhere.items() for word in secrets if word in kept]
    refused_here = [
        answer for answer in answers if answer.status_code == 400 and "x-dispatcher-model" not in answer.headers
    ]
    assert len(refused_here) >= 10
    assert [] == [answer.text for answer in refused_here if CANARY in answer.text]
    assert len(there.server.asked("case-echo")) > len(CHAIN)
