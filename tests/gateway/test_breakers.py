"""Which end a half-open breaker believes: the probe's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dispatcher.gateway.breakers import Breakers
from dispatcher.vocabulary.settings import Settings
from tests.builders import PHI
from tests.virtual_time import in_virtual_time

AWAY_SECONDS = 300.0


async def half_open(clock) -> Breakers:
    settings = Settings()
    breakers = Breakers(settings=lambda: settings, clock=clock, emit=lambda event: None)
    for _ in range(settings.gateway.breaker.failures_in_row):
        breakers.failed(PHI, "it said 500")
    await asyncio.sleep(settings.gateway.breaker.open_seconds + 0.1)
    assert "half_open" == breakers.seen(PHI).state
    return breakers


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda breakers: breakers.says_nothing(PHI), id="its client leaves"),
        pytest.param(lambda breakers: breakers.passed(PHI), id="it is answered"),
        pytest.param(lambda breakers: breakers.failed(PHI, "reset"), id="it fails"),
    ],
)
@in_virtual_time
async def test_the_end_of_an_older_request_is_not_the_probes(clock, end: Callable[[Breakers], None]):
    breakers = await half_open(clock)
    probe = breakers.goes(PHI, clock.now_seconds() + AWAY_SECONDS)
    before = breakers.seen(PHI)
    for _ in range(2):
        end(breakers)

    assert "open" == before.state, "the one probe is out"
    assert before == breakers.seen(PHI)
    breakers.says_nothing(PHI, probe)
    assert "half_open" == breakers.seen(PHI).state
    breakers.close()


@in_virtual_time
async def test_a_claim_becomes_the_probe_and_is_not_a_second_one(clock):
    breakers = await half_open(clock)
    claim = breakers.goes(PHI, clock.now_seconds() + 1.0)

    assert 0 == breakers.goes(PHI, clock.now_seconds() + AWAY_SECONDS), "another request is no probe"
    assert claim == breakers.goes(PHI, clock.now_seconds() + AWAY_SECONDS, claim)
    await asyncio.sleep(2.0)
    assert "open" == breakers.seen(PHI).state
    breakers.passed(PHI, claim)
    breakers.passed(PHI, breakers.goes(PHI, clock.now_seconds() + AWAY_SECONDS))
    assert "closed" == breakers.seen(PHI).state
    breakers.close()
