"""One request: what is said of it, once, at its end."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dispatcher.api.exchange import REQUEST_ID
from dispatcher.api.relay_route import RelayRoute
from dispatcher.clock import ManualClock
from dispatcher.gateway.attempt import Ended
from dispatcher.gateway.errand import REHEARSAL, Given
from dispatcher.gateway.relay import Gateway
from dispatcher.vocabulary.decision import Selected
from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.event import Completed
from dispatcher.vocabulary.fleet import FleetView
from dispatcher.vocabulary.relay import ENDPOINTS, Arrived
from dispatcher.vocabulary.settings import Settings
from tests.builders import NOW, PHI, a_fleet, a_lease
from tests.decisions import a_chosen, a_prediction
from tests.gateway.trials import V1, Reader, a_decision, an_errand
from tests.virtual_time import in_virtual_time


def a_gateway(clock: ManualClock, events: list) -> Gateway:
    """Nothing can be chosen."""

    async def select(*_: object, **__: object):
        await asyncio.sleep(3600.0)

    def fleet() -> FleetView:
        return a_fleet()

    return Gateway(
        select=select,
        recommend=lambda asked: a_decision(),
        end_lease=lambda lease_id: None,
        fleet=fleet,
        settings=lambda: settings,
        clock=clock,
        emit=events.append,
        jitter=lambda: 0.0,
    )


settings = Settings()


def arrived(body: bytes, **more) -> Arrived:
    return Arrived(**{"endpoint": ENDPOINTS[V1], "headers": [], "body": body, "request_id": "r-1", **more})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"body": b'{"messages": "hi"}', "headers": [(b"x-dispatcher-task", b"laundry")]},
        {"body": b"", "unreadable": "said twice"},
    ],
    ids=["no JSON", "a wish that is none", "read in two ways"],
)
async def test_a_request_that_cannot_be_read_has_one_end_like_every_other(more):
    clock, events, reader = ManualClock(), [], Reader()
    began = clock.now_seconds()
    clock.advance(2.0)
    await a_gateway(clock, events).relay(arrived(**{"body": b"{no json", "at_seconds": began, **more}), reader)

    assert 400 == reader.status
    assert [("_other", "error", True, None, 2.0)] == [
        (one.model, one.status, one.relayed, one.place, one.duration_seconds) for one in events
    ]
    assert b"said twice" in reader.body or "unreadable" not in more


@in_virtual_time
async def test_a_deadline_counts_from_when_the_request_came_not_from_when_its_body_had(clock):
    events, reader = [], Reader()
    gateway = a_gateway(clock, events)
    body = b'{"model": "phi3:mini", "messages": [{"role": "user", "content": "hi"}]}'
    began = clock.now_seconds()
    await asyncio.sleep(9.0)
    await gateway.relay(arrived(body, at_seconds=began, headers=[(b"x-dispatcher-deadline", b"10")]), reader)
    await gateway.close()

    ends = [event for event in events if isinstance(event, Completed)]
    assert (504, ["timeout"]) == (reader.status, [end.status for end in ends])
    assert pytest.approx(10.0, abs=0.1) == ends[0].duration_seconds


async def test_when_its_head_came_is_when_it_arrived():
    clock, seen = ManualClock(), []
    began = clock.now_seconds()

    async def receive():
        clock.advance(5.0)
        return {"type": "http.request", "body": b'{"a": 1, "a": 2}'}

    async def relay(came, client):
        seen.append(came)

    route = RelayRoute(ENDPOINTS[V1], relay, lambda: False, clock)
    await route({"headers": [], REQUEST_ID: "r-1"}, receive, None)

    assert [(began, b"")] == [(came.at_seconds, came.body) for came in seen]
    assert seen[0].unreadable, "it says `a` twice: that is the gateway's to refuse, and to count"


@pytest.mark.parametrize("decided", [True, False])
def test_each_header_of_an_answer_from_outside_is_said_once(decided):
    errand = an_errand(Reader())
    errand.attempts, errand.outside = 2, "last-resort:big"
    errand.decision = a_decision("d-7") if decided else None
    told = errand.headers_outside()

    assert len(dict(told)) == len(told)
    assert (b"last-resort:big", b"2") == (dict(told)[b"x-dispatcher-model"], dict(told)[b"x-dispatcher-attempts"])
    assert (b"d-7" if decided else None) == dict(told).get(b"x-dispatcher-decision")


def test_what_the_last_resort_answered_is_its_own_and_of_no_place():
    errand = an_errand(Reader())
    errand.outside, errand.outside_answered = "last-resort:big", True
    end = errand.completed("ok", NOW + 3.0)

    assert ("last-resort:big", None, 3.0) == (end.model, end.place, end.duration_seconds)


def test_a_name_is_unknown_only_when_every_place_was_refused_for_it():
    errand = an_errand(Reader(), model="nobody:1b")
    errand.refused = a_decision("d-1", (PHI, "not_allowed"))
    assert errand.is_unknown
    errand.refused = a_decision("d-1", (PHI, "memory_short"))
    assert not errand.is_unknown


@pytest.mark.parametrize("rehearsal", [True, False])
def test_an_answer_of_a_simulated_model_says_so_in_its_headers(rehearsal):
    errand = an_errand(Reader())
    errand.decision = replace(a_decision("d-7"), rehearsal=rehearsal)
    kept_at = replace(PHI, server="rehearsal:phi3-mini") if rehearsal else PHI

    expected = {b"x-dispatcher-rehearsal": b"true"} if rehearsal else {}
    assert expected == {name: told for name, told in errand.headers() if name in REHEARSAL}
    assert expected == {name: told for name, told in errand.headers_of_kept(kept_at) if name in REHEARSAL}
    assert not any(name in REHEARSAL for name, _ in errand.headers_outside()), "a real model, outside"


@pytest.mark.parametrize(
    ("cause", "told"),
    [("reset", "an attempt of this request just failed here: reset: why"), ("no_slot", "no_slot: why")],
)
def test_only_where_an_attempt_was_made_it_is_said_to_have_failed(cause, told):
    errand = an_errand(Reader())
    errand.gives_up_on(PHI, cause, "why")

    assert {PHI: told} == errand.lost


@pytest.mark.parametrize(("tokens", "predicted"), [(None, 10.0), (101, 1.0 + 100 / 20.0), (1, 1.0)])
def test_what_was_predicted_is_told_for_as_many_tokens_as_came(tokens, predicted):
    prediction = a_prediction(first_token_seconds=1.0, decode_seconds=9.0, tokens_per_second=20.0)
    decision = replace(a_decision(), chosen=a_chosen(PHI, prediction=prediction))
    errand = an_errand(Reader())
    errand.given = Given(selected=Selected(decision=decision), lease=a_lease(PHI), origin="http://127.0.0.1:1")
    errand.ended = Ended(began_seconds=NOW, timings=Timings(output_tokens=tokens))

    assert pytest.approx(predicted) == errand.completed("ok", NOW + 5).predicted_seconds
