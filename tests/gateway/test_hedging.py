"""Two places asked side by side: when the wait ends, and whose end is told."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.gateway.hedging import Hedging
from dispatcher.vocabulary.gateway_settings import GatewaySettings, TimeoutSettings
from tests import misconduct
from tests.builders import LLAMA, PHI
from tests.gateway.trials import Reader, Trial, a_given, a_slot, an_errand
from tests.misbehaving import Misbehaving

DEADLINE_SECONDS = 30.0  # nothing is asserted of it but that nothing hangs
SOON = TimeoutSettings(first_token_min_seconds=0.2, first_token_max_seconds=0.3, total_seconds=600.0)


@pytest.fixture
def server():
    with Misbehaving() as started:
        yield started


@pytest.fixture
async def trial():
    made = Trial(gateway=GatewaySettings(timeouts=SOON))
    yield made
    await made.close()


def a_hedging(trial: Trial, server: Misbehaving, ended: list[str]) -> Hedging:
    async def elsewhere(errand, given):
        return a_given(server.url, LLAMA), a_slot(LLAMA)

    return Hedging(trying=trial.trying, elsewhere=elsewhere, end_lease=ended.append)


async def asked(server: Misbehaving) -> None:
    """The other place was. The server is in a thread of its own."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not server.asked("", LLAMA.model):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("status", [400, 422])
async def test_a_callers_fault_is_told_at_once_although_the_other_place_hangs(trial, server, status):
    async def late(line):
        await asked(server)
        await misconduct.refuses(status, "your schema is wrong")(line)

    server.script("", {PHI.model: late, LLAMA.model: misconduct.silent()})
    errand, given, ended = an_errand(Reader()), a_given(server.url), []
    errand.given, errand.decision = given, given.decision

    async with asyncio.timeout(DEADLINE_SECONDS):
        end = await a_hedging(trial, server, ended).attempt(errand, given, a_slot(), cached=False)

    assert ("caller_error", status, 2) == (end.cause, end.status, errand.attempts)
    assert (["l-1"], {}) == (ended, errand.lost), "the other's lease is given back, and it has failed nobody"


async def test_who_leaves_while_two_are_asked_leaves_the_first_and_its_end_is_of_that_place(trial, server):
    server.script("", {"*": misconduct.silent()})
    errand, given = an_errand(Reader()), a_given(server.url)
    errand.given, errand.decision = given, given.decision
    asking = asyncio.create_task(a_hedging(trial, server, []).attempt(errand, given, a_slot(), cached=False))
    await asked(server)
    first, second = (heard.at_seconds for heard in (server.asked("", PHI.model)[0], server.asked("", LLAMA.model)[0]))
    asking.cancel()
    await asyncio.wait((asking,))

    end = errand.completed("cancelled", trial.clock.now_seconds())
    assert PHI == end.place
    assert end.duration_seconds > second - first, "since the first was asked, not the second"
