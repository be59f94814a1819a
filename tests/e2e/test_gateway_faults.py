"""The gateway of the real daemon before a model server that misbehaves: whatever it does, a request is rescued by the
next model or fails so that its client sees it. It never looks whole when it is cut, and never hangs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest

from tests import misconduct
from tests.e2e.gateway_house import (
    API_JSON,
    API_STREAM,
    JSON_WAYS,
    LLAMA,
    PHI,
    QWEN,
    STREAM_WAYS,
    WAYS,
    Got,
    House,
    Way,
    house,
    new_case,
)
from tests.misbehaving import CHAIN, Conduct, Line, Script, good_pieces, words_of

OTHERS = (LLAMA, QWEN)
GUARD = "model requires more system memory (12.0 GiB) than is available (3.0 GiB)"

# Nothing of an answer came: another model gives it, whole.
BEFORE_ANY_CONTENT: dict[str, Conduct] = {
    "429 with Retry-After": misconduct.refuses(429, "slow down", "Retry-After: 7"),
    "a lasting 503": misconduct.refuses(503),
    "a 500": misconduct.refuses(500),
    "a 404": misconduct.refuses(404, "model not found"),
    "engine busy": misconduct.refuses(503, misconduct.BUSY),
    "out of memory: killed": misconduct.refuses(500, misconduct.KILLED),
    "out of memory: guarded": misconduct.refuses(500, GUARD),
    "context exceeded": misconduct.refuses(400, misconduct.TOO_LONG),
    "reset": misconduct.hangs_up(reset=True),
    "hung up": misconduct.hangs_up(),
    "silent": misconduct.silent(),
    "silent after its headers": misconduct.silent(headers_first=True),
    "a first token that comes too late": misconduct.slow(8.0),
    "malformed chunk at once": misconduct.begins_and("bad_chunk", after=0),
    "reset after its headers": misconduct.begins_and("reset", after=0),
    "200 without a body": misconduct.empty(),
    "200 that ends at once": misconduct.begins_and("clean", after=0),
    "200 of blank lines": misconduct.says(b"\n\n\n"),
    "200 of a web page": misconduct.says(b"<html><body>It works!</body></html>\n"),
    "200 with nothing but an error": misconduct.says(b'{"error":"it broke"}\n'),
    "a redirect": misconduct.redirects("/api/chat"),
    "a redirect to elsewhere": misconduct.redirects("http://127.0.0.1:9/", 307),
    "no HTTP": misconduct.raw(misconduct.GARBAGE),
    "a huge header": misconduct.raw(misconduct.HUGE_HEADER),
}

LOST = ("reset", "hung up")

# Content came: a stream can only fail, and an answer that is not streamed has not reached anybody yet.
AFTER_SOME_CONTENT: dict[str, Conduct] = {
    "cut": misconduct.begins_and("close"),
    "cut by a reset": misconduct.begins_and("reset"),
    "stalled": misconduct.begins_and("stall"),
    "malformed chunk": misconduct.begins_and("bad_chunk"),
    "no end marker": misconduct.begins_and("clean"),
    "Content-Length too short": misconduct.states_length(-20),
}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("faults")) as made:
        yield made


async def asked_in(there: House, ways: tuple[Way, ...], script: Script, **how: object) -> list[tuple[Got, str]]:
    """In all these ways at once; what each got, and the name of its case."""
    cases = [new_case() for _ in ways]
    for case in cases:
        there.server.script(case, script)
    got = await asyncio.gather(*(there.ask(way, case, **how) for way, case in zip(ways, cases, strict=True)))
    return list(zip(got, cases, strict=True))


def attempts_heard(there: House, case: str, what: str, *failing: str) -> list[str]:
    """The models of a case's attempts. What is lost at once on a connection that was kept may have crossed its closing:
    it is sent once more, on a new one, and both are one attempt."""
    heard = there.server.asked(case)
    return [one.model for one in heard if not (what in LOST and one.reused and one.model in failing)]


@pytest.mark.parametrize("what", BEFORE_ANY_CONTENT)
async def test_what_fails_before_any_content_is_rescued_by_the_next_model(there: House, what: str) -> None:
    for got, case in await asked_in(there, WAYS, {PHI: BEFORE_ANY_CONTENT[what]}):
        assert got.model in OTHERS, got
        got.assert_answered_by(got.model, attempts=2)
        assert [PHI, got.model] == attempts_heard(there, case, what, PHI)


@pytest.mark.parametrize("what", AFTER_SOME_CONTENT)
async def test_an_answer_that_is_not_streamed_and_breaks_off_is_rescued_by_the_next_model(
    there: House, what: str
) -> None:
    for got, case in await asked_in(there, JSON_WAYS, {PHI: AFTER_SOME_CONTENT[what]}):
        assert got.model in OTHERS, got
        got.assert_answered_by(got.model, attempts=2)
        assert 2 == there.asked(case)


@pytest.mark.parametrize("what", AFTER_SOME_CONTENT)
async def test_a_stream_that_breaks_off_fails_visibly_and_nobody_elses_words_are_in_it(there: House, what: str) -> None:
    for got, case in await asked_in(there, STREAM_WAYS, {PHI: AFTER_SOME_CONTENT[what]}):
        got.assert_failed_visibly()
        assert got.words.startswith(words_of(PHI)[0]) and "".join(words_of(PHI)).startswith(got.words), got
        assert (200, PHI, 1, 1) == (got.status, got.model, got.attempts, there.asked(case)), got


@pytest.mark.parametrize("failure", [b'{"error":"it broke"}', b"{no JSON"], ids=["told", "mangled"])
async def test_a_false_end_behind_a_failure_does_not_reach_the_client(there: House, failure: bytes) -> None:
    async def conduct(line: Line) -> None:
        begin, end = good_pieces(line.heard)[0], good_pieces(line.heard)[-1]
        event = b"data: " + failure + b"\n\n" if line.heard.path.startswith("/v1") else failure + b"\n"
        await misconduct.chunked(line, [begin], "clean", then=[event + end])

    for got, case in await asked_in(there, STREAM_WAYS, {PHI: conduct}):
        got.assert_failed_visibly()
        assert words_of(PHI)[0] == got.words
        assert 1 == there.asked(case)


async def test_a_stream_that_stands_whole_before_the_end_its_length_promised_is_whole(there: House) -> None:
    for got, _ in await asked_in(there, STREAM_WAYS, {PHI: misconduct.states_length(+20)}):
        got.assert_answered_by(PHI, attempts=1)


async def test_an_answer_that_is_shorter_than_its_content_length_is_rescued(there: House) -> None:
    for got, _ in await asked_in(there, JSON_WAYS, {PHI: misconduct.states_length(+20)}):
        got.assert_answered_by(got.model, attempts=2)


async def test_what_one_answer_left_on_its_connection_is_not_the_beginning_of_the_next(there: House) -> None:
    for _ in range(3):
        await asked_in(there, JSON_WAYS, {PHI: misconduct.states_length(-20)})
        for got, _ in await asked_in(there, WAYS, {}):
            got.assert_answered_by(PHI, attempts=1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(there: House, status: int) -> None:
    elsewhere = f"/elsewhere-{status}"
    for got, _ in await asked_in(there, WAYS, {PHI: misconduct.redirects(there.server.url + elsewhere, status)}):
        got.assert_answered_by(got.model, attempts=2)
    assert elsewhere not in {heard.path for heard in there.server.heard}


async def test_a_first_token_that_is_slow_and_in_time_is_waited_for(there: House) -> None:
    for got, _ in await asked_in(there, WAYS, {PHI: misconduct.slow(0.2)}):
        got.assert_answered_by(PHI, attempts=1)


async def test_one_500_of_the_only_model_wanted_is_tried_again(there: House) -> None:
    script = {PHI: [misconduct.refuses(500), misconduct.answers()]}
    for got, case in await asked_in(there, WAYS, script, headers={"X-Dispatcher-Fallback": "off"}):
        got.assert_answered_by(PHI, attempts=2)
        assert 2 == there.asked(case)


async def test_without_a_fallback_a_lasting_503_is_seen_and_no_other_model_is_asked(there: House) -> None:
    found = await asked_in(there, WAYS, {PHI: misconduct.refuses(503)}, headers={"X-Dispatcher-Fallback": "off"})
    for got, case in found:
        got.assert_failed_visibly()
        assert 502 == got.status, got
        assert there.asked(case) == there.asked(case, PHI) <= 3


async def test_a_place_that_flaps_costs_no_request_its_answer(there: House) -> None:
    case = new_case("flapping")
    bad = (misconduct.refuses(503), misconduct.hangs_up(reset=True), misconduct.empty())
    there.server.script(case, {PHI: [conduct for one in bad * 4 for conduct in (one, misconduct.answers())]})
    for way in WAYS * 5:
        got = await there.ask(way, case)
        got.assert_answered_by(got.model)
        assert got.attempts <= 2, got
    sent_again = [heard for heard in there.server.asked(case, PHI)[2:24:6] if heard.reused]  # of those that were reset
    assert 20 + len(sent_again) == there.asked(case, PHI)


# --- nobody can answer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "statuses"),
    [
        ("a lasting 503", {502}),
        ("reset", {502}),
        ("200 without a body", {502}),
        ("engine busy", {502, 503}),
        ("out of memory: killed", {502, 503}),
        ("a redirect", {502}),
        ("no HTTP", {502}),
        ("silent", {504}),
    ],
)
async def test_in_a_total_outage_three_attempts_are_made_and_the_failure_is_seen(
    there: House, what: str, statuses: set[int]
) -> None:
    for got, case in await asked_in(there, WAYS, {"*": BEFORE_ANY_CONTENT[what]}):
        got.assert_failed_visibly()
        assert got.status in statuses, got
        assert 1 <= int(got.headers["retry-after"]) <= 120
        assert dict.fromkeys(CHAIN, 1) == Counter(attempts_heard(there, case, what, *CHAIN)), got
        assert 3 == got.attempts


async def test_when_all_models_say_429_the_caller_is_told_so_and_when_to_come_again(there: House) -> None:
    for got, case in await asked_in(there, WAYS, {"*": BEFORE_ANY_CONTENT["429 with Retry-After"]}):
        assert (429, "7", "slow down") == (got.status, got.headers["retry-after"], got.error), got
        assert 3 == there.asked(case)


async def test_what_is_too_long_for_all_models_is_refused_in_the_model_servers_words(there: House) -> None:
    for got, _ in await asked_in(there, WAYS, {"*": BEFORE_ANY_CONTENT["context exceeded"]}):
        assert (400, misconduct.TOO_LONG) == (got.status, got.error), got


@pytest.mark.parametrize(
    ("status", "words"), [(400, "invalid duration"), (500, 'option "num_predict" must be of type integer')]
)
async def test_what_the_caller_got_wrong_is_said_at_once_and_tried_nowhere_else(
    there: House, status: int, words: str
) -> None:
    for got, case in await asked_in(there, (API_JSON, API_STREAM), {"*": misconduct.refuses(status, words)}):
        assert (status, words, 1) == (got.status, got.error, there.asked(case)), got


async def test_embeddings_fail_visibly_rather_than_come_from_another_model(there: House) -> None:
    ways = tuple(Way(path=path, stream=False) for path in ("/api/embed", "/api/embeddings", "/v1/embeddings"))
    for what in ("a lasting 503", "reset", "200 without a body", "200 of a web page"):
        for got, case in await asked_in(there, ways, {PHI: BEFORE_ANY_CONTENT[what]}):
            got.assert_failed_visibly()
            assert there.asked(case) == there.asked(case, PHI) <= 3


async def test_a_deadline_of_the_caller_ends_a_silent_request(there: House) -> None:
    found = await asked_in(there, WAYS, {"*": misconduct.silent()}, headers={"X-Dispatcher-Deadline": "0.5"})
    for got, case in found:
        got.assert_failed_visibly()
        assert 504 == got.status, got
        assert there.asked(case) <= 2


async def test_a_model_server_hears_only_what_a_model_server_should(there: House) -> None:
    mine = {"Authorization": "Bearer secret", "Cookie": "a=b", "X-Dispatcher-Agent": "me", "X-Forwarded-For": "1.2.3.4"}
    for _, case in await asked_in(there, WAYS, {}, headers=mine):
        (heard,) = there.server.asked(case)
        assert {"host", "content-type", "accept", "content-length"} == {name for name, _ in heard.headers}


async def test_what_the_client_is_told_is_not_what_the_model_server_put_in_its_headers(there: House) -> None:
    said = b'{"message":{"role":"assistant","content":"x"},"done": true}'
    evil = b"Set-Cookie: a=b\r\nX-Dispatcher-Model: me\r\nConnection: keep-alive, X-A\r\nX-A: 1\r\n"
    head = b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n" % (evil, len(said))
    case = new_case()
    there.server.script(case, {PHI: misconduct.raw(head + said)})

    got = await there.ask(API_JSON, case)

    assert (said, PHI) == (got.body, got.model), got
    assert not {"set-cookie", "x-a"} & set(got.headers)
    assert [PHI] == got.headers.get_list("x-dispatcher-model")
