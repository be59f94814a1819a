"""The degradation ladder, row by row: what /select says, what is done, and whether we call ourselves ready.

A real controller, desk, ledger and policy in virtual time. `ready` here is what /readyz asks: would a request get a
model now?
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

from dispatcher.vocabulary.decision import Selected
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import GIB
from dispatcher.vocabulary.signal import HOST, NEVER_SEEN, Freshness, Snapshot, UnknownReason
from dispatcher.wire.decision import no_model
from tests.builders import LLAMA, PHI, QWEN
from tests.fake_engine import footprint
from tests.virtual_house import House, a_house, ready, told, up
from tests.virtual_time import in_virtual_time

S = PlaceState
MEMORY = ("host_memory_available_bytes", HOST)
BLIND_SECONDS = 300.0
THINK = Asked(text="prove it", task="architecture", complexity="complex", wait_seconds=60.0)
AT_ONCE = Asked(text="hi", wait_seconds=0.0)
LOOKED = 6.0  # one look of the controller, at least


def stale(house: House) -> None:
    """Prometheus and the host have failed for a minute; what they said last is what there is."""
    last = replace(house.measured(), failing={"prometheus": UnknownReason.PROM_UNREACHABLE}, freshness=Freshness.STALE)
    house.snapshot = lambda: last


def blind(house: House, *, ever_known: bool = True, polls: int = 1) -> None:
    """And beyond five minutes. Never known: not even the host's size, at none of so many polls."""
    last = house.measured()
    lost = replace(last.readings[MEMORY], value=None, unknown=UnknownReason.PROM_STALE)
    if ever_known:
        gone = replace(last, readings={**last.readings, MEMORY: lost}, freshness=Freshness.BLIND)
    else:
        gone = Snapshot(number=polls, at_seconds=last.at_seconds, readings={MEMORY: NEVER_SEEN})
    gone = replace(gone, failing={"prometheus": UnknownReason.PROM_UNREACHABLE})
    house.snapshot = lambda: gone


def is_ready(house: House) -> bool:
    return house.desk.recommend(Asked()).chosen is not None


def codes(selected: Selected) -> list[str]:
    return [reason.code for reason in selected.decision.reasons]


def rules(selected: Selected) -> dict[str, str]:
    return {
        candidate.place.model: candidate.rejection.rule
        for candidate in selected.decision.candidates
        if candidate.rejection is not None
    }


# ── all good ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_all_good_the_best_is_started_and_answers(clock):
    house = a_house(clock)
    async with house.open():
        selected = await house.desk.select(THINK)

        assert ((QWEN, S.READY, True), False) == (told(selected), selected.decision.degraded)
        assert is_ready(house)


@in_virtual_time
async def test_prometheus_failing_while_the_host_stands_in_is_degraded_and_everything_is_allowed(clock):
    house, real = a_house(clock), a_house(clock)
    real.engine = house.engine
    failing = {"prometheus": UnknownReason.PROM_UNREACHABLE}
    house.snapshot = lambda: replace(real.measured(), failing=failing)
    async with house.open():
        selected = await house.desk.select(THINK)

        assert ((QWEN, S.READY, True), True) == (told(selected), selected.decision.degraded)
        assert "prom_unreachable" in codes(selected)


# ── stale ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_stale_only_ready_places_are_handed_out_and_nothing_bigger_is_started(clock):
    house = a_house(clock)
    async with house.open():
        await up(house, PHI)
        stale(house)
        selected = await house.desk.select(THINK)

        assert (PHI, S.READY, True) == told(selected)
        assert (True, "low") == (selected.decision.degraded, selected.decision.confidence)
        assert {"llama3.2:3b": "signal_unknown", "qwen2.5:7b": "signal_unknown"} == rules(selected)
        assert is_ready(house)
        house.give_back(selected.lease)
        await asyncio.sleep(3600.0)
        assert S.READY is house.state(PHI), "nothing healthy is stopped on what nobody knows"


@in_virtual_time
async def test_stale_the_same_model_is_started_again_after_a_crash(clock):
    house = a_house(clock)
    async with house.open():
        await ready(house, LLAMA)
        stale(house)
        house.engine.down(LLAMA, exit_code=2)
        await house.until(lambda: house.state(LLAMA) is S.STOPPED)
        await house.until(lambda: house.state(LLAMA) is S.READY, within_seconds=30.0)


# ── blind ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_blind_what_answers_is_handed_out_with_low_confidence_and_nothing_is_started_or_stopped(clock):
    house = a_house(clock)
    async with house.open():
        await up(house, LLAMA)
        blind(house)
        before = len(house.engine.calls)
        await asyncio.sleep(3600.0)
        selected = await house.desk.select(THINK)

        assert (LLAMA, S.READY, True) == told(selected)
        assert (True, "low") == (selected.decision.degraded, selected.decision.confidence)
        assert before == len(house.engine.calls)
        assert is_ready(house)


@in_virtual_time
async def test_blind_and_nothing_runs_the_smallest_alone_is_started_and_then_answers(clock):
    for ever_known in (True, False):
        house = a_house(clock, engine={"load_seconds": 60.0})
        if not ever_known:
            blind(house, ever_known=False)
        async with house.open():
            blind(house, ever_known=ever_known, polls=2)
            await asyncio.sleep(BLIND_SECONDS - 10.0)
            assert [] == house.engine.calls, "for five minutes, or the first polls, it may come back"

            if not ever_known:
                blind(house, ever_known=False, polls=3)
            await house.until(lambda house=house: house.state(LLAMA) is S.STARTING, within_seconds=20.0)
            refused = await house.desk.select(THINK)
            assert None is refused.decision.chosen
            assert {"signal_unknown"} == set(rules(refused).values())
            assert ("prom_stale" if ever_known else "never_seen") in codes(refused)
            assert 1 <= refused.decision.retry_after_seconds <= 120
            assert not is_ready(house)

            await house.until(lambda house=house: house.state(LLAMA) is S.READY, within_seconds=90.0)
            selected = await house.desk.select(THINK)
            assert (LLAMA, S.READY, True) == told(selected)
            assert ("low", True) == (selected.decision.confidence, is_ready(house))
            await asyncio.sleep(600.0)
            assert [LLAMA] == [call.place for call in house.engine.did("start")], "the least footprint, and once"


@in_virtual_time
async def test_never_known_is_blind_from_the_first_few_polls_on_and_not_only_after_five_minutes(clock):
    house = a_house(clock)
    began = clock.now_seconds()
    house.snapshot = lambda: Snapshot(number=1 + int((clock.now_seconds() - began) // 5), at_seconds=began)
    async with house.open():
        await asyncio.sleep(9.0)
        assert [] == house.engine.calls, "the first polls may fail for want of a moment"
        await house.until(lambda: house.state(LLAMA) is S.STARTING, within_seconds=10.0)

        await asyncio.sleep(60.0)
        assert [LLAMA] == [call.place for call in house.engine.did("start")]


@in_virtual_time
async def test_before_the_first_poll_nobody_is_blind(clock):
    house = a_house(clock)
    house.snapshot = lambda: Snapshot(number=0, at_seconds=clock.now_seconds())
    async with house.open():
        await asyncio.sleep(3600.0)

        assert [] == house.engine.calls


def test_the_smallest_is_the_one_of_the_least_footprint_and_not_the_first_of_the_chain():
    assert LLAMA == min((PHI, LLAMA, QWEN), key=footprint)


@in_virtual_time
async def test_blind_a_smallest_that_fails_is_tried_again_after_its_backoff_and_nothing_else_in_its_stead(clock):
    house = a_house(clock, engine={"fail_loads": 2}, backoff_min_seconds=20.0)
    async with house.open():
        blind(house)
        await house.until(lambda: house.state(LLAMA) is S.READY, within_seconds=BLIND_SECONDS + 120.0)

        starts = house.engine.did("start")
        assert [LLAMA] * 3 == [call.place for call in starts]
        pauses = [after.at_seconds - before.at_seconds for before, after in pairwise(starts)]
        assert pauses[0] >= 20.0 and pauses[1] >= 40.0


@in_virtual_time
async def test_blind_and_stopped_by_memory_returning_is_as_before(clock):
    """Known again: the start under way may be waited for, and from then on everything is allowed."""
    house = a_house(clock, engine={"load_seconds": 60.0})
    async with house.open():
        blind(house)
        await house.until(lambda: house.state(LLAMA) is S.STARTING, within_seconds=BLIND_SECONDS + 20.0)
        house.snapshot = None
        selected = await house.desk.select(Asked(model="llama3.2:3b", text="hi", wait_seconds=120.0))

        assert (LLAMA, S.READY, True) == told(selected)


# ── Docker down ───────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_docker_down_what_runs_is_handed_out_and_nothing_is_done(clock):
    house = a_house(clock)
    async with house.open():
        await up(house, LLAMA)
        house.engine.unreachable = "the socket refuses"
        await asyncio.sleep(LOOKED)
        before = len(house.engine.calls)
        selected = await house.desk.select(THINK)

        assert ((LLAMA, S.READY, True), True) == (told(selected), selected.decision.degraded)
        assert "engine_unreachable" in codes(selected)
        assert is_ready(house)
        house.give_back(selected.lease)
        await asyncio.sleep(3600.0)
        assert before == len(house.engine.calls)


@in_virtual_time
async def test_docker_down_what_should_be_is_remembered_and_done_when_it_is_back(clock):
    """One place leased that dies meanwhile, one that is to stop: the one is started again, the other stopped."""
    house = a_house(clock)
    async with house.open():
        await ready(house, LLAMA)
        await up(house, PHI)
        house.engine.unreachable = "the socket refuses"
        await asyncio.sleep(LOOKED)
        house.controller.ask_stop(PHI)
        house.engine.down(LLAMA, exit_code=2)
        before = len(house.engine.calls)
        await asyncio.sleep(300.0)
        assert (S.DRAINING, before) == (house.state(PHI), len(house.engine.calls))

        house.engine.unreachable = None
        await house.until(lambda: house.state(PHI) is S.STOPPED, within_seconds=60.0)
        await house.until(lambda: house.state(LLAMA) is S.READY, within_seconds=60.0)
        assert 1 == house.live_leases()


# ── the smallest does not fit ─────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_the_smallest_does_not_fit_and_both_numbers_are_said(clock):
    house = a_house(clock, total_bytes=8 * GIB, other_bytes=6 * GIB)
    async with house.open():
        selected = await house.desk.select(AT_ONCE)
        shape = no_model(selected.decision, "r-1")

        assert {"memory_short"} == set(rules(selected).values())
        assert (503, "urn:dispatcher:insufficient_memory", False) == (shape.status, shape.type, shape.should_retry)
        assert (footprint(LLAMA), 1 * GIB) == (shape.needed_bytes, shape.available_bytes)
        assert not is_ready(house)


# ── draining ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_draining_what_waits_is_answered_and_what_runs_stays(clock):
    house = a_house(clock, engine={"load_seconds": 100.0})
    async with house.open():
        await up(house, PHI, dwelt=False)
        waiting = asyncio.create_task(house.desk.select(replace(THINK, wait_seconds=200.0)))
        await asyncio.sleep(5.0)
        house.controller.tenancy.draining = True
        assert not waiting.done()
        house.controller.leave()

        assert S.STARTING is (await waiting).state, "with what was promised so far"
        assert (S.READY, []) == (house.state(PHI), house.engine.did("stop"))


@in_virtual_time
async def test_draining_blind_starts_nothing(clock):
    house = a_house(clock)
    async with house.open():
        house.controller.tenancy.draining = True
        blind(house)
        await asyncio.sleep(BLIND_SECONDS + 60.0)

        assert [] == house.engine.calls
