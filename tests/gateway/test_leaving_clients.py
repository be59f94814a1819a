"""When a client that leaves is news of the place: never sooner than anybody should have to wait there."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.clock import ManualClock
from dispatcher.vocabulary.event import Failed
from tests.builders import PHI
from tests.gateway.trials import V1, Reader, Trial, a_given, a_slot, an_errand
from tests.realparts import pick_port


async def cancelled_after(seconds: float, *, left: bool = True, slowest_seconds: float | None = None) -> list[Failed]:
    """At a place that is silent and predicted to take a second."""
    clock, reader, port, heard = ManualClock(), Reader(), pick_port(), asyncio.Event()
    trial = Trial(clock=clock)
    if slowest_seconds is not None:
        trial.trying._deadlines.whole(PHI, slowest_seconds, clock.now_seconds())

    async def silent(from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        await from_client.read(1)
        heard.set()
        await from_client.read()
        to_client.close()

    async with await asyncio.start_server(silent, "127.0.0.1", port):
        given = a_given(f"http://127.0.0.1:{port}")
        attempt = asyncio.create_task(trial.trying.attempt(an_errand(reader, V1), given, a_slot(), cached=False))
        await heard.wait()
        clock.advance(seconds)
        reader.left = left
        attempt.cancel()
        await asyncio.wait((attempt,))
        await trial.close()
    return trial.told(Failed)


@pytest.mark.parametrize(
    ("seconds", "slowest_seconds", "is_news"),
    [
        pytest.param(2.0, None, False, id="impatient, at a place that never answered"),
        pytest.param(6.0, None, True, id="patient, at a place that never answered"),
        pytest.param(6.0, 8.0, False, id="sooner than it has taken before"),
        pytest.param(9.0, 8.0, True, id="longer than it has ever taken"),
    ],
)
async def test_a_client_that_leaves_is_news_only_after_what_anybody_should_wait(seconds, slowest_seconds, is_news):
    assert is_news == bool(await cancelled_after(seconds, slowest_seconds=slowest_seconds))


async def test_a_deadline_of_the_callers_own_is_never_news():
    assert [] == await cancelled_after(60.0, left=False)
