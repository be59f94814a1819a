"""What the history confirms stays: outcomes, leases, pins and flags, over locks, restarts and kill -9."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from dispatcher.errors import HistoryUnavailable
from dispatcher.vocabulary.engine import Timings
from tests.builders import NOW, PHI, QWEN, a_lease
from tests.history.some_events import (
    a_completed,
    a_decided,
    a_failed,
    a_relayed_end,
    a_start,
    a_stop,
)
from tests.history.stores import ROOT, an_open_store, another_program, ids_of, rows


async def test_the_first_outcome_wins_whoever_brings_it(path):
    with an_open_store(path) as store:
        first = a_completed("d-1", duration_seconds=1.0)

        assert await store.record_outcome(first)
        assert not await store.record_outcome(a_completed("d-1", duration_seconds=2.0))
        store.append(first)  # the event that follows the commit
        store.append(a_completed("d-2"))  # the gateway's own
        await store.flush()
        assert not await store.record_outcome(a_completed("d-2"))

        assert ["d-1", "d-2"] == [completed.decision_id for completed in store.recent_completed(10)]
        assert first == store.recent_completed(10)[0]


async def test_many_outcomes_at_once_share_commits_and_each_gets_its_answer(path):
    with an_open_store(path) as store:
        answers = await asyncio.gather(*(store.record_outcome(a_completed(f"d-{n // 2}")) for n in range(200)))

        assert 100 == sum(answers)


async def test_what_warms_the_tally_comes_back_as_it_went_in(path):
    timings = Timings(total_seconds=8.0, eval_seconds=7.0, output_tokens=100)
    completed = a_completed("d-1", QWEN, timings=timings, quality=7.5, output_tokens=100)
    with an_open_store(path) as store:
        await store.record_outcome(completed)
        store.append(a_start(ok=False, because="no room", error_type="start_failed"))
        store.append(a_stop(cause="evicted"))
    with an_open_store(path) as store:
        assert [completed] == store.recent_completed(10)
        expected = [a_start(ok=False, because="no room", error_type="start_failed"), a_stop(cause="evicted")]
        assert expected == store.recent_acted(10)


async def test_what_the_gateway_saw_comes_back_as_it_went_in(path):
    completed = a_relayed_end("d-1", first_token_seconds=0.25, queue_seconds=1.5)
    failed = [a_failed(cause="silent", seconds=9.0), a_failed(PHI, "busy", fails_place=False, agent="")]
    with an_open_store(path) as store:
        for event in (completed, *failed):
            store.append(event)
    with an_open_store(path) as store:
        assert [completed] == store.recent_completed(10)
        assert failed == store.recent_failed(10)


async def test_rows_of_before_the_gateway_are_still_read(path):
    told = {"at_seconds": NOW, "decision_id": "old", "model": "phi3:mini", "place": None, "task": "coding"}
    body = json.dumps({**told, "agent": "", "status": "ok", "duration_seconds": 2.0})
    with an_open_store(path):
        pass
    with another_program(path) as other:
        other.execute("INSERT INTO event (at_seconds, kind, body) VALUES (?, 'completed', ?)", (NOW, body))
    with an_open_store(path) as store:
        old = store.recent_completed(10)[0]

    assert (None, None, False) == (old.first_token_seconds, old.queue_seconds, old.relayed)


async def test_leases_survive_until_they_are_forgotten(path):
    lease = a_lease(evicts=(PHI,))
    renewed = replace(lease, expires_at_seconds=NOW + 60)
    with an_open_store(path) as store:
        await store.record_lease(lease)
        await store.record_lease(a_lease(id="l-2"))
        await store.renew_lease(renewed)
        store.forget_lease("l-2")
    with an_open_store(path) as store:
        assert [renewed] == store.leases()


async def test_what_is_owed_never_overwrites_what_came_later(path):
    ready, renewed = (replace(a_lease(), expires_at_seconds=NOW + seconds) for seconds in (60, 120))
    with an_open_store(path) as store:
        store.owe_lease(ready)
        await store.renew_lease(renewed)
        assert [renewed] == store.leases()
        with another_program(path) as other:
            other.execute("BEGIN EXCLUSIVE")
            store.owe_lease(ready)
            with pytest.raises(HistoryUnavailable):
                await store.record_outcome(a_completed())
            other.execute("ROLLBACK")
        await store.renew_lease(renewed)
        assert [renewed] == store.leases()


async def test_pin_and_flags_survive(path):
    with an_open_store(path) as store:
        assert store.pinned_model() is None
        await store.pin("phi3:mini")
        store.set_flag("ever_seen_real")
        store.remember("peaks", "[1]")
    with an_open_store(path) as store:
        assert ("phi3:mini", True, False) == (store.pinned_model(), store.flag("ever_seen_real"), store.flag("other"))
        assert "[1]" == store.recall("peaks")
        await store.pin(None)
        assert store.pinned_model() is None
    with an_open_store(path) as store:
        assert store.pinned_model() is None


async def test_what_was_forgotten_stays_forgotten(path):
    with an_open_store(path) as store:
        await store.forget("llama3.2:3b", 1_700_000_000.123456)
        await store.forget("phi3:mini", 5.0)
        await store.forget("phi3:mini", 7.0)
    with an_open_store(path) as store:
        assert {"llama3.2:3b": 1_700_000_000.123456, "phi3:mini": 7.0} == store.forgotten()


async def test_a_locked_file_refuses_promises_in_time_and_keeps_events_until_it_is_free(path):
    with an_open_store(path) as store, another_program(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        store.append(a_decided("waits"))
        with pytest.raises(HistoryUnavailable, match=r"locked|did not confirm"):
            await asyncio.wait_for(store.record_outcome(a_completed("refused")), timeout=10)
        other.execute("ROLLBACK")

        assert await store.record_outcome(a_completed("refused"))
        assert ["waits"] == ids_of([await store.decision("waits")])
        assert 0 == store.dropped_total


async def test_a_closed_store_drops_and_refuses_and_closing_twice_is_no_error(path):
    with an_open_store(path) as store:
        store.append(a_decided("last"))
        store.close()
        store.append(a_decided("late"))

        assert [("last",)] == rows(path, "SELECT decision_id FROM event")
        assert 1 == store.dropped_total
        with pytest.raises(HistoryUnavailable, match="closed"):
            await store.record_outcome(a_completed())
        with pytest.raises(HistoryUnavailable, match="closed"):
            await store.decisions(1)


def test_a_killed_process_loses_no_acknowledged_outcome_or_lease(path):
    script = """
        import asyncio, sys
        from pathlib import Path
        from dispatcher.clock import SystemClock
        from dispatcher.history.store import Store
        from dispatcher.vocabulary.settings import HistorySettings
        from tests.builders import a_lease
        from tests.history.some_events import a_completed, a_decided, as_json

        async def main():
            store = Store(Path(sys.argv[1]), HistorySettings(), SystemClock(), as_json)
            store.open()
            for number in range(100_000):
                store.append(a_decided(f"d-{number}"))
                await store.record_outcome(a_completed(f"d-{number}"))
                await store.record_lease(a_lease(id=f"l-{number}"))
                print(number, flush=True)

        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        acknowledged = [int(process.stdout.readline()) for _ in range(40)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout.read().splitlines()]

    with an_open_store(path) as store:
        assert () == store.set_aside
        kept = {completed.decision_id for completed in store.recent_completed(100_000)}
        assert set() == {f"d-{number}" for number in acknowledged} - kept
        assert set() == {f"l-{number}" for number in acknowledged} - {lease.id for lease in store.leases()}
