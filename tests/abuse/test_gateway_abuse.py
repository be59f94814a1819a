"""Bad requests at the gateway: refused in the words of the surface, and none of them reaches a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from dispatcher.vocabulary.relay import ENDPOINTS
from tests.abuse.abused import INFER_KEY
from tests.abuse.gateway_place import CHAT, GOOD, NATIVE, Place, posted, states_of, words_in
from tests.raw_http import answers_in, connected, read_to_end, request

both = pytest.mark.parametrize("path", [CHAT, NATIVE])
each = pytest.mark.parametrize("path", sorted(ENDPOINTS))
HUNDRED_MB = 100_000_000
NESTED = b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.fixture
def unasked(there: Place) -> Iterator[Place]:
    """No request of the test may reach a model, and the daemon is none the worse for it."""
    before, states = there.generating(), states_of(there.daemon)
    yield there
    assert before == there.generating()
    assert states == states_of(there.daemon)
    assert there.daemon.lives()


@both
@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param(b'{"model": ', "not JSON", id="cut off"),
        pytest.param(b"", "", id="nothing"),
        pytest.param(b"[]", "not a JSON object", id="a list"),
        pytest.param(b'"hello"', "not a JSON object", id="a text"),
        pytest.param(b'\xff\xfe{"model":"auto"}', "", id="no UTF-8"),
        pytest.param(b'{"model":"auto","model":"phi3:mini"}', "model: said more than once", id="two models"),
        pytest.param(b'{"stream":false,"str\\u0065am":true}', "stream: said more than once", id="disguised"),
        pytest.param(b'{"temperature":NaN}', "NaN is no JSON number", id="NaN"),
        pytest.param(NESTED, "nests deeper than 64", id="deep"),
        pytest.param(b'{"model":["phi3:mini"]}', "model: must be a text", id="a list of models"),
        pytest.param(b'{"model":"a\\r\\nX-Evil: 1"}', "cannot be shown", id="a header in a name"),
        pytest.param(b'{"model":"' + b"x" * 100_000 + b'"}', "longer than", id="a very long name"),
        pytest.param(b'{"stream":"yes"}', "stream: must be true or false", id="a text as stream"),
        pytest.param(b'{"api_base":"http://127.0.0.1:1/"}', "decided here", id="api_base"),
        pytest.param(b'{"base_url":"http://127.0.0.1:1/"}', "decided here", id="base_url"),
        pytest.param(b'{"API_Base":"http://127.0.0.1:1/"}', "decided here", id="api_base in other letters"),
        pytest.param(b'{"api_key":"sk-1"}', "decided here", id="a key in the body"),
        pytest.param(b'{"Model":"qwen2.5:7b"}', "write model", id="a model in other letters"),
    ],
)
def test_a_body_that_is_no_question_is_refused(unasked: Place, path: str, body: bytes, said: str) -> None:
    answer = unasked.daemon.ask("POST", path, content=body)

    assert (400, "application/json") == (answer.status_code, answer.headers["content-type"])
    assert said in words_in(path, answer.content)
    assert len(answer.content) < 1000
    assert "x-evil" not in answer.headers


@each
def test_a_body_of_a_hundred_megabytes_is_refused_by_its_length(unasked: Place, path: str) -> None:
    head = request(path, method="POST", X_API_Key=INFER_KEY, Content_Length=HUNDRED_MB)
    answer = unasked.raw(head + GOOD)

    assert 413 == answer.status
    assert "bytes" in words_in(path, answer.body)


@both
def test_a_chunked_body_of_a_hundred_megabytes_is_cut(unasked: Place, path: str) -> None:
    piece = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with connected(unasked.daemon.url) as raw:
        raw.sendall(request(path, method="POST", X_API_Key=INFER_KEY, Transfer_Encoding="chunked"))
        sent = 0
        with suppress(ConnectionError):
            while sent < HUNDRED_MB:
                raw.sendall(piece)
                sent += len(piece)
        told = answers_in(read_to_end(raw))

    assert sent < HUNDRED_MB
    assert [413] == [answer.status for answer in told] or told == []  # a reset may overtake the words


@both
@pytest.mark.parametrize(
    ("more", "status"),
    [
        pytest.param({"Transfer_Encoding": "chunked"}, 400, id="a length and chunks"),
        pytest.param({"Transfer_Encoding": "chunked, identity"}, 400, id="two codings"),
        pytest.param({"Transfer_encoding": "\x0bchunked"}, 400, id="a coding in disguise"),
        pytest.param({"Content_length": "3"}, 400, id="two lengths"),
        pytest.param({"host": "localhost\r\nHost: other.example"}, 400, id="two hosts"),
        pytest.param({"host": "other.example"}, 421, id="another host"),
        pytest.param({"Origin": "http://other.example"}, 403, id="another site's page"),
        pytest.param({"Sec_Fetch_Site": "cross-site"}, 403, id="another site's form"),
        pytest.param({"X_Dispatcher_Task": "juggling"}, 400, id="an unknown task"),
        pytest.param({"X_Dispatcher_Deadline": "soon"}, 400, id="a deadline that is none"),
        pytest.param({"X_Dispatcher_Deadline": "nan"}, 400, id="a deadline that is no number"),
        pytest.param({"X_Dispatcher_Agent": "a\x1b[31mb"}, 400, id="a terminal's colours"),
        pytest.param({"X_Dispatcher_Agent": "a\x85b"}, 400, id="a line's end of other kind"),
        pytest.param({"X_Dispatcher_Agent": "a\x00b"}, 400, id="a NUL"),
        pytest.param({"X_Dispatcher_Agent": "a\r\n b"}, 400, id="a folded header"),
        pytest.param({"X_Dispatcher_Agent": "x" * 201}, 400, id="a very long name"),
        pytest.param({"X_Dispatcher_Fallback": "on\r\nX-Dispatcher-Fallback: off"}, 400, id="said twice"),
    ],
)
def test_a_head_that_can_be_read_in_two_ways_is_refused(unasked: Place, path: str, more: Any, status: int) -> None:
    answer = unasked.raw(posted(path, **more))

    assert status == answer.status, answer
    assert words_in(path, answer.body)
    assert "x-request-id" in answer.headers


@both
def test_a_request_hidden_behind_a_refused_one_is_not_answered(unasked: Place, path: str) -> None:
    hidden = posted(path)
    chunks = b"0\r\n\r\n" + hidden
    with connected(unasked.daemon.url) as raw:
        raw.sendall(posted(path, body=chunks, Transfer_Encoding="chunked"))
        told = answers_in(read_to_end(raw))

    assert [400] == [answer.status for answer in told]


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("POST", "/v1/nothing", 404),
        ("POST", "/api/nothing", 404),
        ("POST", "/v1/responses", 404),
        ("POST", "/api/pull", 404),
        ("POST", "/api/create", 404),
        ("DELETE", "/api/delete", 404),
        ("POST", "/api/copy", 404),
        ("POST", "/api/push", 404),
        ("HEAD", "/api/blobs/sha256:0", 404),
        ("POST", "/api/blobs/sha256:0", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/api/chat", 405),
        ("PUT", "/api/generate", 405),
        ("POST", "/api/tags", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/models/phi3:mini/stop", 405),
        ("POST", "/v1/models/../../models/phi3:mini/stop", 405),
        ("POST", "/v1/../models/phi3:mini/stop", 404),
        ("POST", "/v1/%2e%2e/models/phi3:mini/stop", 404),
        ("POST", "/v1/chat/completions/../../../models/phi3:mini/stop", 404),
        ("POST", "/v1/chat/completions/%2e%2e/%2e%2e/%2e%2e/models/phi3:mini/stop", 404),
        ("POST", "/v1/..%2fmodels/phi3:mini/stop", 404),
        ("POST", "/api/..%5cmodels/phi3:mini/stop", 404),
        ("POST", "/api/../api/chat", 404),
        ("POST", "/api/./chat", 404),
        ("POST", "/api/chat/", 404),
        ("POST", "/api//chat", 404),
        ("POST", "/v1//chat/completions", 404),
        ("POST", "/api/chat%00", 404),
        ("POST", "/api/chat;x=1", 404),
    ],
)
def test_a_path_is_what_it_says_and_nothing_else(unasked: Place, method: str, target: str, status: int) -> None:
    """With a key that may ask models and may not stop them."""
    answer = unasked.raw(request(target, method=method, body=b"" if method == "HEAD" else GOOD, X_API_Key=INFER_KEY))

    assert status == answer.status
    assert (status == 405) == ("allow" in answer.headers)
    if method != "HEAD":
        assert words_in("/api" if target.startswith("/api") else "/v1", answer.body)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("//models/phi3:mini/stop", 403),
        ("///v1/chat/completions", 403),
        ("/models/phi3:mini/stop", 403),
        ("/models/../v1/chat/completions", 403),
        ("/%2e/models/phi3:mini/stop", 403),
        ("/V1/chat/completions", 403),
        (f"http://other.example{CHAT}", 400),
        (f"ftp://localhost{CHAT}", 400),
        ("http://localhost", 400),
        ("localhost:80", 400),
        ("*", 400),
    ],
)
def test_a_target_outside_of_the_surfaces_is_refused_as_a_problem_or_misread(
    unasked: Place, target: str, status: int
) -> None:
    answer = unasked.raw(posted(target))

    assert status == answer.status, answer


def test_connect_is_refused_and_goes_nowhere(unasked: Place) -> None:
    port = unasked.server.port
    answer = unasked.raw(request(f"127.0.0.1:{port}", method="CONNECT", X_API_Key=INFER_KEY))

    assert 400 <= answer.status < 500


@both
@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.2"])
def test_an_upgrade_is_never_granted(there: Place, path: str, protocol: str) -> None:
    """Answered as if it had not asked, or refused; the bytes after it are nobody's request."""
    before = there.generating()
    sent = posted(path, Upgrade=protocol).replace(b"Connection: close", b"Connection: Upgrade", 1)
    with connected(there.daemon.url) as raw:
        raw.sendall(sent + posted(path))
        told = answers_in(read_to_end(raw))

    assert 1 == len(told)
    assert told[0].status in (200, 400)
    assert there.generating() <= before + 1
    assert there.daemon.lives()


def test_who_has_no_key_reaches_no_model(unasked: Place) -> None:
    for path in ENDPOINTS:
        nobody = unasked.post(path, key=None)
        stranger = unasked.post(path, key="sk-canary-unknown")

        assert [401, 401] == [nobody.status_code, stranger.status_code]
        assert "canary" not in words_in(path, stranger.content)
