"""What a request is told that got no answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.gateway.attempt import Ended
from dispatcher.gateway.refusing import give_up, out_of_time
from dispatcher.vocabulary.fleet import PlaceState
from tests.builders import LLAMA, PHI, a_fleet, a_place_view
from tests.gateway.trials import Reader, a_decision, an_errand


def refused_with(retry_after: str) -> Ended:
    return Ended(began_seconds=0.0, cause="rate_limited", status=429, refusal=b"{}", retry_after=retry_after)


@pytest.mark.parametrize(
    ("said", "told"),
    [("12", b"12"), ("0", b"1"), ("9" * 400, b"120"), ("²", None), ("١٢", None), ("soon", None), ("-1", None)],
)
async def test_when_to_come_back_is_passed_on_if_it_is_a_number(said, told):
    reader = Reader()
    errand = an_errand(reader)
    errand.attempts, errand.ended = 1, refused_with(said)

    assert "error" == await give_up(errand)
    assert (429, told) == (reader.status, reader.headers.get(b"retry-after"))


async def test_a_name_nobody_has_is_a_404():
    reader = Reader()
    errand = an_errand(reader, model="nobody:1b")
    errand.refused = a_decision("d-1", (PHI, "not_allowed"), (LLAMA, "not_allowed"))

    assert "error" == await give_up(errand)
    assert (404, True) == (reader.status, b"nobody:1b" in reader.body)


async def test_full_queues_are_still_told_when_the_last_resort_failed_too():
    reader = Reader()
    errand = an_errand(reader)
    errand.attempts, errand.outside, errand.queue_retry_seconds = 1, "last-resort:big", 7.0
    errand.story = ["phi3: its queue is full", "the last resort failed, too"]

    assert "shed" == await give_up(errand)
    assert (503, b"7", b"true") == (reader.status, reader.headers[b"retry-after"], reader.headers[b"x-should-retry"])
    assert b"the last resort failed, too" in reader.body


@pytest.mark.parametrize(
    ("awaits", "said"),
    [
        ("", b"waited for a model to be ready (now loading: llama3.2:3b)"),
        ("its turn at x", b"waited for its turn at x"),
    ],
)
async def test_a_deadline_that_passed_says_what_was_waited_for_and_which_decision_it_was(awaits, said):
    reader = Reader()
    errand = an_errand(reader)
    errand.awaits, errand.refused = awaits, replace(a_decision("d-3"), rehearsal=True)
    await out_of_time(errand, 2.0, a_fleet(a_place_view(LLAMA, state=PlaceState.STARTING)))

    assert (504, b"d-3", b"true") == (
        reader.status,
        reader.headers[b"x-dispatcher-decision"],
        reader.headers[b"x-dispatcher-rehearsal"],
    )
    assert b"the deadline of 2 s passed" in reader.body
    assert said in reader.body


async def test_what_chose_nothing_at_last_is_the_decision_that_is_named():
    reader = Reader()
    errand = an_errand(reader)
    errand.decision, errand.refused = a_decision("d-1"), a_decision("d-2", (PHI, "memory_short"))

    assert "shed" == await give_up(errand)
    assert b"d-2" == reader.headers[b"x-dispatcher-decision"]
