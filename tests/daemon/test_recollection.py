"""What earlier runs left is taken up off the loop: a signal that comes meanwhile is heard."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

from dispatcher.clock import ManualClock
from dispatcher.daemon.leaving import Leaving
from dispatcher.daemon.notify import Notifier
from dispatcher.daemon.recollection import Recollection
from dispatcher.history.store import Store
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.profile import Success
from dispatcher.vocabulary.settings import HistorySettings
from tests.builders import NOW, PHI
from tests.history.some_events import a_failed, a_relayed_end
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

    def forgotten(self) -> dict[str, float]:
        self.read.append("what was forgotten")
        return {}

    def recall(self, name: str) -> str | None:
        return None

    def recent_acted(self, limit: int) -> list[Any]:
        self.read.append("speeds")
        return []

    recent_completed = recent_failed = recent_acted


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
    assert (["leases", "the pin", "what was forgotten", "speeds", "speeds", "speeds"], "phi3:mini") == (
        disk.read,
        house.controller.tenancy.pinned_model,
    )


async def test_attempts_that_failed_are_learned_again_among_the_answers_in_their_order(tmp_path):
    house = a_house(ManualClock(NOW))
    store = Store(tmp_path / "history.sqlite", HistorySettings(), house.clock, lambda decision: b"{}")
    store.open()
    for number in range(60):  # sixty answers, and between them as many failures: only the last hundred count
        store.append(a_relayed_end(f"d-{number}", place=PHI, at_seconds=NOW + 2 * number))
        store.append(a_failed(PHI, at_seconds=NOW + 2 * number + 1))
    store.append(a_failed(Place(server="rehearsal:phi3:mini", model="phi3:mini"), at_seconds=NOW + 120))
    store.close()
    again = Store(tmp_path / "history.sqlite", HistorySettings(), house.clock, lambda decision: b"{}")
    recollection = Recollection(
        store=again,
        controller=house.controller,
        slow_jobs=cast("Any", NothingLearned()),
        tally=house.tally,
        rehearsing=False,
    )
    try:
        assert [] == await recollection.recalled()
    finally:
        again.close()

    assert {("phi3:mini", "coding"): Success(ok=50, n=100)} == house.tally.profiles(NOW + 120).success


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
