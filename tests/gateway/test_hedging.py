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


async def believed(trial: Trial, server: Misbehaving) -> None:
    """The first place answers once."""
    server.script("", {"*": misconduct.answers()})
    errand, given = an_errand(Reader()), a_given(server.url)
    end = await trial.trying.attempt(errand, given, a_slot(), cached=False)
    assert (None, False) == (end.cause, trial.trying.proofs.is_doubtful(given))


SILENCES = {
    "silence": misconduct.silent(),
    "headers, then silence": misconduct.silent(headers_first=True),
    "half a body": misconduct.begins_and("stall"),
    "no chunk": misconduct.begins_and("bad_chunk"),
}


@pytest.mark.parametrize("what", SILENCES)
async def test_a_place_that_has_answered_and_then_goes_silent_is_not_waited_for_alone(trial, server, what):
    await believed(trial, server)
    server.script("", {PHI.model: SILENCES[what], LLAMA.model: misconduct.answers()})
    errand, given, ended = an_errand(Reader()), a_given(server.url), []
    errand.given, errand.decision = given, given.decision

    task = asyncio.current_task()
    async with asyncio.timeout(DEADLINE_SECONDS):
        end = await a_hedging(trial, server, ended).attempt(errand, given, a_slot(), cached=False)

    assert (None, LLAMA, LLAMA) == (end.cause, errand.given.place, errand.answered_by)
    assert (2, ["l-1"], 0) == (errand.attempts, ended, task.cancelling())
    assert trial.trying.proofs.is_failing(PHI)


async def test_an_answer_that_takes_no_longer_than_others_there_is_asked_for_once(trial, server):
    server.script("", {"*": misconduct.slow(0.5)})
    given, ended = a_given(server.url), []
    await trial.trying.attempt(an_errand(Reader()), given, a_slot(), cached=False)
    server.script("", {PHI.model: misconduct.slow(0.4)})
    errand = an_errand(Reader())
    errand.given, errand.decision = given, given.decision
    end = await a_hedging(trial, server, ended).attempt(errand, given, a_slot(), cached=False)

    assert (None, PHI, 1, []) == (end.cause, errand.given.place, errand.attempts, ended)
