"""What earlier runs left is taken up off the loop: a signal that comes meanwhile is heard."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

from dispatcher.clock import ManualClock
from dispatcher.daemon.leaving import Leaving
from dispatcher.daemon.notify import Notifier
from dispatcher.daemon.recollection import Recollection
from tests.virtual_house import House, a_house


class Disk:
    """The part of the store that is read at start, on a disk that lets go when told."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.lets_go = threading.Event()
        self.read: list[str] = []

    def open(self) -> None:
        self.asked.set()
        assert self.lets_go.wait(60)

    def leases(self) -> list[Any]:
        self.read.append("leases")
        return []

    def pinned_model(self) -> str | None:
        self.read.append("the pin")
        return "phi3:mini"

    def recall(self, name: str) -> str | None:
        return None

    def recent_acted(self, limit: int) -> list[Any]:
        self.read.append("speeds")
        return []

    recent_completed = recent_acted


class NothingLearned:
    def recall(self) -> None: ...


def recollecting(disk: Disk) -> tuple[Recollection, House]:
    house = a_house(ManualClock())
    recollection = Recollection(
        store=cast("Any", disk),
        controller=house.controller,
        slow_jobs=cast("Any", NothingLearned()),
        tally=house.tally,
        rehearsing=False,
    )
    return recollection, house


def leaving(begun: list[str]) -> Leaving:
    return Leaving(begun=lambda: begun.append("leaving"), answer=lambda: None, notifier=Notifier({}))


async def until_asked(disk: Disk) -> None:
    assert await asyncio.to_thread(disk.asked.wait, 60)


async def test_what_earlier_runs_left_is_taken_up():
    disk = Disk()
    disk.lets_go.set()
    recollection, house = recollecting(disk)

    assert [] == await recollection.recalled()
    assert (["leases", "the pin", "speeds", "speeds"], "phi3:mini") == (
        disk.read,
        house.controller.tenancy.pinned_model,
    )


async def test_told_to_leave_while_the_disk_is_slow_it_reads_no_further_and_leaves():
    disk, begun, notes = Disk(), [], []
    recollection, _ = recollecting(disk)
    told = leaving(begun)
    bounds: list[float] = []
    told._last_bound.within = bounds.append  # type: ignore[method-assign]  # it would end this process

    async def first_look() -> None:
        notes.extend(await recollection.recalled())

    looking = asyncio.create_task(told.unless_told(first_look()))
    await until_asked(disk)
    told.stop()
    assert ["leaving"] == begun, "the signal was heard while the disk was silent"
    while not recollection._enough:  # noqa: ASYNC110  until it was told so
        await asyncio.sleep(0)
    disk.lets_go.set()

    assert not await looking
    assert ([], []) == (disk.read, notes)
    assert bounds[1] < bounds[0], "nothing is served yet, so nothing is drained"
