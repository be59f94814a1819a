"""What is handed to whom, where handing over something else would be a fault that no room can see."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from dispatcher.daemon.wiring import Rooms
from dispatcher.vocabulary.settings import Settings
from tests.builders import LLAMA, a_fleet, a_ready_view


def some_rooms(tmp_path: Path) -> Rooms:
    shipped = Settings()
    settings = replace(
        shipped,
        history=replace(shipped.history, path=str(tmp_path / "history.sqlite")),
        lifecycle=replace(shipped.lifecycle, provider="none"),
    )
    return Rooms(settings, has_file=True)


def exposed(rooms: Rooms) -> dict[tuple[str, ...], float]:
    """(name, label values…) → value."""
    text = rooms.exposition(None)[0].decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_livez_is_answered_from_the_event_loops_heartbeat_however_late_the_other_loops_are(tmp_path):
    rooms = some_rooms(tmp_path)
    rooms.pulse.watch("stuck", lambda: 0, lambda: -3600.0)
    rooms.pulse.beat()

    assert rooms.pulse.late_seconds("stuck") > 3600.0 > 60.0 > rooms.doors().heartbeat_age_seconds()


async def test_the_gateways_queues_budget_and_cache_are_what_is_scraped(
    tmp_path,
):
    rooms = some_rooms(tmp_path)
    before = exposed(rooms)
    assert (1.0, 0.0) == (before["dispatcher_retry_budget_ratio",], before["dispatcher_cache_bytes",])
    seen = a_fleet(a_ready_view(LLAMA))
    rooms.collector._fleet = lambda: seen  # type: ignore[method-assign]  # no engine is there to show a place
    slot = rooms.gateway._queues.take(LLAMA, expected_seconds=1.0)
    waits = asyncio.create_task(
        rooms.gateway._queues.enter(
            LLAMA,
            "high",
            until_seconds=float("inf"),
            expected_seconds=1.0,
            patience_seconds=60.0,
            elsewhere=lambda: False,
            may_move=None,
        )
    )
    await asyncio.sleep(0)
    rooms.gateway.breakers.requested()
    assert rooms.gateway.breakers.may_repeat()
    after = exposed(rooms)

    assert 0.0 == after["dispatcher_retry_budget_ratio",], "at least one repeat is allowed, and it was made"
    assert [1.0, 64.0] == [after[name, "docker:llama", "high"] for name in QUEUES]
    assert [0.0, 1024.0] == [after[name, "docker:llama", "batch"] for name in QUEUES]
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    assert slot is not None
    slot.release()


QUEUES = ("ollama_queue_depth", "dispatcher_queue_limit")
