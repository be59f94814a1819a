"""The one path of a request, on a real controller in virtual time: promise, wait, fall back, give up."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dispatcher.control.ledger import reserved_bytes
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import GIB
from dispatcher.vocabulary.signal import Freshness
from tests.builders import LLAMA, PHI, QWEN, a_snapshot
from tests.fake_engine import footprint
from tests.virtual_house import a_house, told, up
from tests.virtual_time import in_virtual_time

S = PlaceState
SMALL = 8 * GIB  # 7 of room: llama and qwen do not fit together
QWEN_NAMED = Asked(model="qwen2.5:7b", text="think hard")
LLAMA_NAMED = Asked(model="llama3.2:3b", text="hi")


# ── a promise ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_with_start_the_answer_waits_until_the_model_may_be_called(clock):
    house = a_house(clock)
    async with house.open():
        selected = await house.desk.select(LLAMA_NAMED)

        assert (LLAMA, S.READY, True) == told(selected)
        assert (0.0, "http://127.0.0.1:21000") == (selected.eta_seconds, selected.endpoint)
        assert None is not selected.lease.expires_at_seconds, "its time runs"
        (event,) = house.decided()
        assert ("chosen", selected.lease.id) == (event.outcome, event.lease_id)


@in_virtual_time
async def test_what_is_ready_is_answered_at_once(clock):
    house = a_house(clock)
    async with house.open():
        await up(house, LLAMA)
        began = clock.now_seconds()
        selected = await house.desk.select(LLAMA_NAMED)

        assert (LLAMA, S.READY, True) == told(selected)
        assert clock.now_seconds() - began < 0.1


@in_virtual_time
async def test_without_a_wait_the_state_is_starting_and_the_eta_known(clock):
    house = a_house(clock)
    async with house.open():
        selected = await house.desk.select(replace(LLAMA_NAMED, wait_seconds=0.0))

        assert (LLAMA, S.STARTING, True) == told(selected)
        assert pytest.approx(3.52, abs=0.01) == selected.eta_seconds  # the prior: 1.5 s + 1.88 GiB at 1 GB/s
        assert None is selected.lease.expires_at_seconds


@in_virtual_time
async def test_patience_is_the_shorter_of_wait_and_deadline(clock):
    house = a_house(clock, engine={"load_seconds": 200.0})
    async with house.open():
        for asked, expected in (
            (replace(LLAMA_NAMED, wait_seconds=10.0), 10.0),
            (replace(LLAMA_NAMED, wait_seconds=50.0, deadline_seconds=250.0), 50.0),
        ):
            began = clock.now_seconds()
            selected = await house.desk.select(asked)
            assert (LLAMA, S.STARTING, True) == told(selected)
            assert pytest.approx(expected, abs=0.1) == clock.now_seconds() - began


@in_virtual_time
async def test_a_lease_lasts_what_was_asked_or_twice_what_is_predicted_within_its_limits(clock):
    house = a_house(clock)
    async with house.open():
        for asked, expected in (
            (replace(LLAMA_NAMED, lease_seconds=33.0), 33.0),
            (replace(LLAMA_NAMED, lease_seconds=5000.0), 900.0),
            (replace(LLAMA_NAMED, expected_output_tokens=1), 60.0),
            (replace(LLAMA_NAMED, expected_output_tokens=30_000), 900.0),
        ):
            selected = await house.desk.select(asked)
            assert expected == selected.lease.seconds
            house.give_back(selected.lease)
        selected = await house.desk.select(replace(LLAMA_NAMED, expected_output_tokens=500))
        assert 2 * selected.decision.chosen.prediction.total_seconds == selected.lease.seconds


@in_virtual_time
async def test_a_dry_run_and_a_recommendation_change_nothing(clock):
    house = a_house(clock)
    async with house.open():
        before = len(house.events)
        recommended = house.desk.recommend(Asked(text="hi"))
        assert before == len(house.events), "no side effect, not even an event"
        selected = await house.desk.select(Asked(text="hi", dry_run=True))

        assert recommended.chosen.place == selected.decision.chosen.place
        assert None is selected.lease
        await asyncio.sleep(30.0)
        assert [] == house.engine.did("start")
        assert 0 == house.live_leases()


@in_virtual_time
async def test_with_start_false_only_a_ready_place_is_leased(clock):
    house = a_house(clock)
    async with house.open():
        asked = replace(LLAMA_NAMED, start=False)
        assert (LLAMA, S.STOPPED, False) == told(await house.desk.select(asked))
        assert [] == house.engine.did("start")

        await up(house, LLAMA)
        assert (LLAMA, S.READY, True) == told(await house.desk.select(asked))


@in_virtual_time
async def test_with_start_false_nothing_is_reloaded_either(clock):
    house = a_house(clock)
    async with house.open():
        await up(house, LLAMA)
        selected = await house.desk.select(replace(LLAMA_NAMED, start=False, context_tokens=6000))
        await asyncio.sleep(30.0)

        assert None is selected.lease
        assert 1 == len(house.engine.did("load"))


@in_virtual_time
async def test_ready_with_too_little_context_is_not_ready_for_who_takes_no_lease(clock):
    house = a_house(clock)
    async with house.open():
        await up(house, LLAMA)
        for asked, expected in (
            (replace(LLAMA_NAMED, start=False, context_tokens=6000), S.STOPPED),
            (replace(LLAMA_NAMED, dry_run=True, context_tokens=6000), S.STARTING),
            (replace(LLAMA_NAMED, dry_run=True), S.READY),
        ):
            assert (LLAMA, expected, False) == told(await house.desk.select(asked))


@in_virtual_time
async def test_a_lease_the_disk_refused_is_granted_from_memory_and_says_so(clock):
    house = a_house(clock)
    house.disk_full = True
    async with house.open():
        selected = await house.desk.select(LLAMA_NAMED)

        assert (LLAMA, S.READY, True) == told(selected)
        assert not selected.durable
        assert "not_durable" == selected.decision.reasons[-1].code


@in_virtual_time
async def test_a_lease_is_recorded_before_it_is_handed_out(clock):
    house = a_house(clock)
    async with house.open():
        selected = await house.desk.select(LLAMA_NAMED)

        assert [selected.lease.id] == [lease.id for lease in house.recorded]


@in_virtual_time
async def test_no_model_is_an_answer_not_an_error(clock):
    house = a_house(clock)
    async with house.open():
        selected = await house.desk.select(Asked(model="gpt-4"))

        assert (None, S.STOPPED, False) == told(selected)
        assert "none" == house.decided()[0].outcome


# ── falling back ──────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_a_start_that_fails_is_followed_by_the_next_best(clock):
    house = a_house(clock)
    asked = Asked(text="hi", complexity="complex", task="coding", prefer="quality")
    house.engine.servers[QWEN].fail_loads = 1
    async with house.open():
        selected = await house.desk.select(asked)

        assert (LLAMA, S.READY, True) == told(selected)
        assert ["chosen", "fallback"] == [event.outcome for event in house.decided()]
        lost = next(one for one in selected.decision.candidates if one.place == QWEN)
        assert ("reservation_lost", "it was chosen and could not be started (start_failed)") == (
            lost.rejection.rule,
            lost.because,
        )
        assert {QWEN: 0, LLAMA: 1} == {place: house.view(place).leases for place in (QWEN, LLAMA)}


@in_virtual_time
async def test_a_withdrawn_grant_is_followed_by_the_next_best(clock):
    house = a_house(clock, total_bytes=SMALL, stop_timeout_seconds=20.0)
    async with house.open():
        await up(house, LLAMA)
        house.engine.servers[LLAMA].hang_stop = True
        selected = await house.desk.select(Asked(text="hi", complexity="complex", task="coding", prefer="quality"))

        assert "withdrawn" in house.ends().values()
        assert (PHI, S.READY, True) == told(selected)  # beside llama, which is stuck, qwen does not fit
        assert footprint(LLAMA) + footprint(PHI) == reserved_bytes(house.controller.tenancy.ledger)


@in_virtual_time
async def test_when_everything_fails_every_place_is_tried_once(clock):
    house = a_house(clock, engine={"fail_loads": 9})
    async with house.open():
        selected = await house.desk.select(Asked(text="hi"))

        assert None is selected.decision.chosen
        assert {PHI: 1, LLAMA: 1, QWEN: 1} == {
            place: len(house.engine.did("load", place)) for place in (PHI, LLAMA, QWEN)
        }
        assert 0 == house.live_leases()


@in_virtual_time
async def test_what_the_ledger_refuses_is_decided_again_without_it(clock):
    """The snapshot advises 12 GiB; a promise made meanwhile left room for the smallest only."""
    house = a_house(clock)
    async with house.open():
        tenancy = house.controller.tenancy
        tenancy.ledger = replace(tenancy.ledger, room_bytes=3 * GIB)  # the view still says 15
        selected = await house.desk.select(Asked(text="hi", complexity="complex", wait_seconds=0.0))
        decision = selected.decision

        assert LLAMA == selected.lease.place
        rules = {one.place: one.rejection.rule for one in decision.candidates if one.rejection}
        assert "reservation_lost" in rules.values()
        assert 1 == house.live_leases()


# ── seeing little ─────────────────────────────────────────────────────────────────────────────────────────────────────


@in_virtual_time
async def test_blind_with_something_running_answers_from_what_runs(clock):
    house = a_house(clock)
    async with house.open():
        await up(house, LLAMA)
        blind = a_snapshot(
            readings={"host_memory_available_bytes": None, "host_cpu_busy_ratio": None}, freshness=Freshness.BLIND
        )
        house.snapshot = lambda: blind
        selected = await house.desk.select(Asked(text="hi", complexity="complex", prefer="quality"))

        assert (LLAMA, S.READY, True) == told(selected)
        assert ("low", True) == (selected.decision.confidence, selected.decision.degraded)
        assert "degraded" == house.decided()[-1].outcome


@in_virtual_time
async def test_blind_with_nothing_running_starts_nothing_for_anybody(clock):
    house = a_house(clock)
    async with house.open():
        blind = a_snapshot(readings={"host_memory_available_bytes": None}, freshness=Freshness.BLIND)
        house.snapshot = lambda: blind
        selected = await house.desk.select(Asked(text="hi"))

        assert None is selected.decision.chosen
        assert {"signal_unknown"} == {one.rejection.rule for one in selected.decision.candidates}
