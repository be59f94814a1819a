"""A request that the gateway relays keeps its model, however long it takes: longer than its lease, too."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from tests.e2e import traffic
from tests.e2e.running import RunningDaemon
from tests.misbehaving import Line, Misbehaving, good_pieces, media_type_of
from tests.realparts import eventually

MODEL = "phi3:mini"
LEASE_ENDS = {"lifecycle": {"lease_max": "1s", "lease_min": "1s", "dwell": "1s", "reconcile_interval": "1s"}}


def place(daemon: RunningDaemon) -> dict[str, Any]:
    models = daemon.get("/models").json()["models"]
    found: dict[str, Any] = next(model for model in models if model["model"] == MODEL)["places"][0]
    return found


async def test_a_stream_that_outlives_its_lease_is_in_flight_and_a_stop_waits_for_it(tmp_path: Path) -> None:
    goes_on = threading.Event()  # of another loop's

    async def pauses(line: Line) -> None:
        first, *rest = good_pieces(line.heard)
        await line.head(200, f"Content-Type: {media_type_of(line.heard)}", "Transfer-Encoding: chunked")
        await line.chunk(first)
        await asyncio.to_thread(goes_on.wait, 60)
        for piece in rest:
            await line.chunk(piece)
        await line.last_chunk()

    with Misbehaving() as server, traffic.gateway(tmp_path, server, **LEASE_ENDS) as daemon:
        server.script("", {MODEL: pauses})
        async with traffic.clients() as session:
            stream = asyncio.create_task(traffic.ask(session, daemon.url, traffic.chat(model=MODEL, stream=True)))
            await traffic.until(
                lambda: (place(daemon)["in_flight"], place(daemon)["leases"]) == (1, 0), "the lease to end"
            )
            asked = await asyncio.to_thread(daemon.post, f"/models/{MODEL}/stop")
            looked = place(daemon)["state"]
            await asyncio.sleep(2.5)  # two looks of the controller, at which an idle place would be stopped
            assert ("draining", True) == (place(daemon)["state"], MODEL in server.loaded), (asked.text, looked)
            goes_on.set()
            seen = await stream

        assert seen.whole, seen
        await asyncio.to_thread(
            eventually, lambda: MODEL not in server.loaded or None, deadline_seconds=30, what=daemon.log
        )
