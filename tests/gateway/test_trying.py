"""After a failed attempt: whether another follows, where, and when the model outside of this machine is asked."""

from __future__ import annotations

import json
import logging

import pytest

from dispatcher.gateway.refusing import give_up
from dispatcher.vocabulary.event import Failed, Relayed
from dispatcher.vocabulary.gateway_settings import GatewaySettings, LastResortSettings
from tests import misconduct
from tests.builders import LLAMA, PHI
from tests.gateway.trials import API, Reader, Trial, a_decision, a_given, an_errand
from tests.misbehaving import Misbehaving, words_of

KEY = "sk-of-the-environment"


@pytest.fixture(scope="module")
def server():
    with Misbehaving() as started:
        yield started


@pytest.fixture
def outside():
    with Misbehaving(models=("big",)) as started:
        yield started


@pytest.fixture
async def trial():
    made = Trial()
    yield made
    await made.close()


@pytest.fixture
async def resort(outside, monkeypatch):
    monkeypatch.setenv("KEY_OF_TEST", KEY)
    last = LastResortSettings(url=outside.url + "/v1", model="big", key_env="KEY_OF_TEST")
    made = Trial(gateway=GatewaySettings(last_resort=last))
    yield made
    await made.close()


# ── whether another follows ───────────────────────────────────────────────────────────────────────────────────────────


def much_was_asked(trial: Trial) -> None:
    """So that repeats are within their budget."""
    for _ in range(100):
        trial.breakers.requested()


async def test_a_place_that_keeps_failing_is_tried_twice_and_then_another_model_may_be_started(trial, server):
    much_was_asked(trial)
    server.script("", {"*": misconduct.refuses(503)})
    errand, given = an_errand(Reader()), a_given(server.url)

    assert (True, {}) == (await trial.fails(errand, given), errand.lost)
    assert (True, [PHI]) == (await trial.fails(errand, given), [*errand.lost])


@pytest.mark.parametrize("status", [401, 403, 407, 408, 425])
async def test_what_our_own_head_or_key_caused_moves_on_tells_against_the_place_and_is_not_passed_on(
    trial, server, status
):
    server.script("", {"*": misconduct.refuses(status, "your key is wrong")})
    trial.ready_elsewhere = True
    reader = Reader()
    errand = an_errand(reader)

    assert await trial.fails(errand, a_given(server.url))
    await give_up(errand)

    assert [("server_error", True)] == [(failed.cause, failed.fails_place) for failed in trial.told(Failed)]
    assert 502 == reader.status


@pytest.mark.parametrize(("status", "words"), [(429, "slow down"), (503, misconduct.BUSY), (404, "not found")])
async def test_a_place_that_cannot_now_rests_until_it_answers(trial, server, status, words):
    server.script("", {"*": misconduct.refuses(status, words)})
    trial.ready_elsewhere = True
    await trial.fails(an_errand(Reader()), a_given(server.url))
    resting = trial.trying.proofs.resting.now(trial.clock.now_seconds())
    trial.trying.proofs.answered(PHI)

    assert [PHI] == [*resting]
    assert {} == trial.trying.proofs.resting.now(trial.clock.now_seconds())


async def test_another_that_is_ready_is_better_than_the_same_again(trial, server):
    server.script("", {"*": misconduct.refuses(503)})
    trial.ready_elsewhere = True
    errand = an_errand(Reader())

    assert (True, [PHI]) == (await trial.fails(errand, a_given(server.url)), [*errand.lost])


async def test_without_fallback_the_named_model_is_tried_twice(trial, server):
    much_was_asked(trial)
    server.script("", {"*": misconduct.refuses(503)})
    errand, given = an_errand(Reader(), fallback="off"), a_given(server.url)

    assert [True, False] == [await trial.fails(errand, given) for _ in range(2)]


async def test_a_callers_fault_is_tried_nowhere_else(trial, server):
    server.script("", {"*": misconduct.refuses(400)})
    assert not await trial.fails(an_errand(Reader()), a_given(server.url))


async def test_the_third_attempt_is_the_last_resorts_where_there_is_one(trial, resort):
    assert [3, 2] == [one.trying.most(an_errand(Reader())) for one in (trial, resort)]
    assert [3, 3] == [
        resort.trying.most(errand) for errand in (an_errand(Reader(), API), an_errand(Reader(), fallback="off"))
    ], "for these it is never asked"


# ── the last resort ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
async def test_the_last_resort_answers_what_failed_here_and_says_so(resort, server, outside, stream):
    server.script("", {"*": misconduct.refuses(503)})
    reader = Reader()
    errand = an_errand(reader, stream=stream, agent="me")
    await resort.fails(errand, a_given(server.url))

    assert await resort.trying.last_resort(errand)
    assert ["finished" if stream else "answered"] == reader.ends
    assert all(word.strip().encode() in reader.body for word in words_of("big"))
    assert {b"x-dispatcher-model": b"last-resort:big", b"x-dispatcher-attempts": b"2"}.items() <= reader.headers.items()
    assert b"d-1" == reader.headers[b"x-dispatcher-decision"]
    heard = outside.heard[-1]
    assert ("/v1/chat/completions", "big") == (heard.path, heard.model)
    assert {"host", "authorization", "content-type", "accept", "content-length"} == {name for name, _ in heard.headers}
    assert f"Bearer {KEY}" == dict(heard.headers)["authorization"]
    began = resort.told(Relayed)[-1]
    assert ("last-resort:big", 2, PHI, "server_error") == (began.place.model, began.attempt, began.before, began.cause)
    end = errand.completed("ok", resort.clock.now_seconds())
    assert ("last-resort:big", None) == (end.model, end.place)


async def test_it_answers_when_there_is_no_place_here(resort):
    reader = Reader()
    errand = an_errand(reader)
    errand.refused = a_decision("d-9", (PHI, "memory_short"), (LLAMA, "not_allowed"))

    assert await resort.trying.last_resort(errand)
    assert (b"d-9", b"1") == (reader.headers[b"x-dispatcher-decision"], reader.headers[b"x-dispatcher-attempts"])


@pytest.mark.parametrize("status", [400, 422])
async def test_what_is_the_callers_fault_never_leaves_this_machine(resort, server, outside, status):
    server.script("", {"*": misconduct.refuses(status, "your tools are wrong")})
    reader = Reader()
    errand = an_errand(reader)
    await resort.fails(errand, a_given(server.url))

    assert not await resort.trying.last_resort(errand)
    await give_up(errand)
    assert (status, True, []) == (reader.status, b"your tools are wrong" in reader.body, outside.heard)


async def test_nor_does_a_request_for_a_name_nobody_has(resort, outside):
    errand = an_errand(Reader(), model="nobody:1b")
    errand.refused = a_decision("d-1", (PHI, "not_allowed"))

    assert (False, []) == (await resort.trying.last_resort(errand), outside.heard)


async def test_nor_what_came_for_the_named_model_alone_or_in_another_form(resort, server, outside):
    server.script("", {"*": misconduct.refuses(503)})
    for errand in (an_errand(Reader(), fallback="off"), an_errand(Reader(), API)):
        await resort.fails(errand, a_given(server.url))
        assert (False, []) == (await resort.trying.last_resort(errand), outside.heard)


@pytest.mark.parametrize("status", [400, 401, 429, 500])
async def test_its_refusal_is_no_clients_matter(resort, server, outside, caplog, status):
    server.script("", {"*": misconduct.refuses(503, "out of order")})
    outside.script("", {"*": misconduct.refuses(status, f"Incorrect API key provided: {KEY}", "Retry-After: 77")})
    reader = Reader()
    errand = an_errand(reader)
    await resort.fails(errand, a_given(server.url))
    here = errand.ended

    with caplog.at_level(logging.WARNING, "dispatcher.gateway"):
        assert not await resort.trying.last_resort(errand)
    assert here is errand.ended
    await give_up(errand)
    assert (502, b"5") == (reader.status, reader.headers[b"retry-after"])
    told = json.loads(reader.body)["error"]["message"]
    assert "out of order" in told
    assert told.endswith("the last resort failed, too")
    assert KEY.encode() not in reader.body
    assert [f"it said {status}" in line and KEY not in line for line in caplog.messages] == [True]
    assert [("last-resort:big", False)] == [(one.place.model, one.fails_place) for one in resort.told(Failed)[1:]]


async def test_what_was_refused_here_in_a_model_servers_words_stays_so_when_it_fails_too(resort, server, outside):
    server.script("", {"*": misconduct.refuses(429, "not so fast", "Retry-After: 3")})
    outside.script("", {"*": misconduct.refuses(401, "who are you")})
    reader = Reader()
    errand = an_errand(reader)
    await resort.fails(errand, a_given(server.url))

    assert not await resort.trying.last_resort(errand)
    await give_up(errand)
    assert (429, b"3", True) == (reader.status, reader.headers[b"retry-after"], b"not so fast" in reader.body)


@pytest.mark.parametrize("here", [503, 429])
async def test_when_its_stream_breaks_the_answer_is_cut_and_says_why(resort, server, outside, here):
    server.script("", {"*": misconduct.refuses(here, "not here")})
    outside.script("", {"*": misconduct.begins_and("reset")})
    reader = Reader()
    errand = an_errand(reader, stream=True)
    await resort.fails(errand, a_given(server.url))

    assert not await resort.trying.last_resort(errand)
    assert "error" == await give_up(errand)
    assert (200, ["cut"]) == (reader.status, reader.ends)
    assert b"the last resort failed, too" in reader.body
    assert b"[DONE]" not in reader.body
