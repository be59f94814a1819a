"""Places that said they cannot now: for how long they are nobody's first choice."""

from __future__ import annotations

import pytest

from dispatcher.gateway.resting import MAX_PLACES, Resting
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.relay import Cause
from tests.builders import LLAMA, NOW, PHI


@pytest.mark.parametrize(
    ("cause", "again_seconds", "seconds"),
    [
        ("rate_limited", None, 5.0),
        ("rate_limited", 30, 30.0),
        ("rate_limited", 3600, 120.0),
        ("busy", None, 5.0),
        ("busy", 60, 5.0),
        ("memory", None, 5.0),
        ("not_found", None, 30.0),
    ],
)
def test_it_rests_as_long_as_it_said_or_as_such_an_answer_lasts(
    cause: Cause, again_seconds: float | None, seconds: float
) -> None:
    resting = Resting()
    resting.said(PHI, cause, NOW, again_seconds)

    assert [PHI] == [*resting.now(NOW + seconds - 0.1)]
    assert cause in resting.now(NOW)[PHI]
    assert {} == resting.now(NOW + seconds)


@pytest.mark.parametrize("cause", ["server_error", "context_exceeded", "caller_error", "silent"])
def test_what_is_a_breakers_matter_or_the_callers_rests_nothing(cause: Cause) -> None:
    resting = Resting()
    resting.said(PHI, cause, NOW, 60.0)

    assert {} == resting.now(NOW)


def test_a_place_that_answers_rests_no_longer() -> None:
    resting = Resting()
    resting.said(PHI, "busy", NOW, None)
    resting.said(LLAMA, "busy", NOW, None)
    resting.answered(PHI)

    assert [LLAMA] == [*resting.now(NOW)]


def test_no_more_places_are_remembered_than_there_may_be() -> None:
    resting = Resting()
    for number in range(MAX_PLACES + 1):
        resting.said(Place(server="s", model=f"m{number}"), "busy", NOW, None)

    assert MAX_PLACES == len(resting.now(NOW))
