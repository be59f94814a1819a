"""What the history keeps of the event stream, how it is read back, and when it goes."""

from __future__ import annotations

import json

import pytest

from dispatcher.errors import HistoryUnavailable
from dispatcher.vocabulary.event import Cached, Relayed, Reloaded, Turned
from dispatcher.vocabulary.settings import MIB
from tests.builders import LLAMA, NOW, PHI
from tests.history.some_events import (
    a_completed,
    a_decided,
    a_failed,
    a_leased,
    a_sampled,
    a_start,
    a_stop,
    as_json,
)
from tests.history.stores import an_open_store, another_program, ids_of, rows


@pytest.mark.parametrize(
    "body", ["", "no JSON", '{"decision_id": "d-2"', "[1]", "\udcff", b'{"decision_id": "\xff"}', '{} {"x": 1}']
)
async def test_a_row_that_is_no_json_any_more_is_passed_over(path, body):
    with an_open_store(path) as store:
        for number in range(1, 4):
            store.append(a_decided(f"d-{number}", at_seconds=NOW + number))
        await store.flush()
        with another_program(path) as other:
            damaged = body if isinstance(body, bytes) else body.encode(errors="surrogateescape")
            other.execute("UPDATE event SET body = CAST(? AS TEXT) WHERE decision_id = 'd-2'", (damaged,))
            other.commit()

        assert ["d-3", "d-1"] == ids_of(await store.decisions(10))
        assert await store.decision("d-2") is None


async def test_a_decision_is_kept_whole_and_read_back_newest_first(path):
    with an_open_store(path) as store:
        store.append(a_decided("old", PHI, at_seconds=NOW - 60))
        store.append(a_decided("new", LLAMA))
        store.append(a_decided("none", None, at_seconds=NOW + 1))
        await store.flush()

        assert ["none", "new", "old"] == ids_of(await store.decisions(10))
        assert ["none", "new"] == ids_of(await store.decisions(10, since_seconds=NOW))
        assert ["old"] == ids_of(await store.decisions(10, model="phi3:mini"))
        assert 1 == len(await store.decisions(1))
        old = await store.decision("old")
        assert old is not None
        assert {"decision_id": "old", "model": "phi3:mini", "task": "coding"} == json.loads(old)
        assert await store.decision("never") is None


async def test_a_decision_can_be_read_the_moment_it_was_appended(path):
    with an_open_store(path, commit_interval_seconds=1.0) as store:
        store.append(a_decided("d-1"))

        assert ["d-1"] == ids_of([await store.decision("d-1")])


async def test_an_outcome_finds_its_decision_before_and_after_a_restart(path):
    expected = ("llama3.2:3b", LLAMA, "coding", "digest", 10.0)
    with an_open_store(path) as store:
        store.append(a_decided("d-1"))
        store.append(a_decided("d-none", None))

        assert expected == await store.knows_decision("d-1")
        assert await store.knows_decision("d-none") is None
    with an_open_store(path) as store:
        assert expected == await store.knows_decision("d-1")
        assert await store.knows_decision("d-none") is None
        assert await store.knows_decision("never") is None


async def test_every_kind_of_event_has_its_row(path):
    with an_open_store(path) as store:
        store.append(a_leased())
        store.append(a_start())
        store.append(a_stop())
        store.append(a_completed())
        store.append(Reloaded(at_seconds=NOW, ok=True))
        store.append(Turned(at_seconds=NOW, what="latch", subject="cpu_busy", before="open", after="closed"))
        store.append(a_failed())
        store.append(Relayed(at_seconds=NOW, decision_id="d-1", place=PHI, attempt=2, before=LLAMA, cause="connect"))
        await store.flush()

        kinds = ["leased", "acted", "acted", "completed", "reloaded", "turned", "failed", "relayed"]
        assert [(kind,) for kind in kinds] == rows(path, "SELECT kind FROM event ORDER BY id")
        assert 0 == store.dropped_total


async def test_what_another_record_says_as_well_is_not_written(path):
    with an_open_store(path) as store:
        store.append(Relayed(at_seconds=NOW, decision_id="d-1", place=LLAMA, attempt=1))
        store.append(a_leased(durable=False))
        store.append(a_leased("ended", durable=False))
        store.append(Cached(at_seconds=NOW, model="auto", hit=False))
        store.append(a_leased())
        store.append(Relayed(at_seconds=NOW, decision_id="d-1", place=PHI, attempt=1, before=LLAMA, cause="no_slot"))
        await store.flush()

        assert [("leased",), ("relayed",)] == rows(path, "SELECT kind FROM event ORDER BY id")
        assert 0 == store.dropped_total


async def test_host_readings_are_kept_once_a_minute(path):
    with an_open_store(path) as store:
        for number in range(25):
            store.append(a_sampled(NOW + 5 * number))
        await store.flush()

        assert [(NOW,), (NOW + 60,), (NOW + 120,)] == rows(path, "SELECT at_seconds FROM event")


async def test_what_cannot_be_encoded_is_counted_and_takes_nothing_with_it(path):
    def refuses(decision):
        if decision.id == "bad":
            raise ValueError("no")
        return as_json(decision)

    with an_open_store(path, refuses) as store:
        store.append(a_decided("good"))
        store.append(a_decided("bad"))
        store.append(a_completed("lone", agent="\ud800"))
        await store.flush()

        assert [("good",)] == rows(path, "SELECT decision_id FROM event")
        assert 2 == store.dropped_total
        with pytest.raises(HistoryUnavailable, match="cannot be stored"):
            await store.record_outcome(a_completed("lone", agent="\ud800"))
        assert await store.record_outcome(a_completed("lone"))


async def test_a_full_queue_drops_and_counts_and_blocks_nobody(path):
    with an_open_store(path) as store, another_program(path) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(25_000):
            store.append(a_leased(id=f"l-{number}"))
        assert store.dropped_total >= 10_000
        other.execute("ROLLBACK")
        dropped = store.dropped_total
        store.close()

        assert [(25_000 - dropped,)] == rows(path, "SELECT count(*) FROM event")


# ── retention ──


async def test_the_oldest_rows_go_when_there_are_too_many(path):
    with an_open_store(path, retention_rows=1000) as store:
        for batch in range(12):
            for number in range(500):
                at_seconds = NOW + batch * 500 + number
                store.append(a_decided(f"d-{batch * 500 + number}", at_seconds=at_seconds))
            await store.record_outcome(a_completed(f"d-{batch * 500}", at_seconds=NOW + batch * 500))
        await store.flush()
        store.close()

        assert rows(path, "SELECT count(*) FROM event") <= [(1000 + 1500,)]
        assert [("d-5999",)] == rows(path, "SELECT max(decision_id) FROM event")
        oldest = rows(path, "SELECT min(at_seconds) FROM event")
        assert oldest <= rows(path, "SELECT min(at_seconds) FROM outcome")


async def test_the_oldest_rows_go_when_the_file_is_too_big(path):
    def long(decision):
        return b'{"decision_id": "%b", "padding": "%b"}' % (decision.id.encode(), b"x" * 3000)

    with an_open_store(path, long, retention_bytes=1 * MIB) as store:
        for batch in range(20):
            for number in range(250):
                store.append(a_decided(f"d-{batch * 250 + number}"))
            await store.flush()
        newest = await store.decisions(1)
        store.close()

        assert path.stat().st_size < 4 * MIB  # 15 MiB were written
        assert ["d-4999"] == ids_of(newest)
        assert [("ok",)] == rows(path, "PRAGMA integrity_check")
