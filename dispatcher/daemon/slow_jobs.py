"""What is done by the clock and not by the loop: learning footprints, keeping the pinned model up, an hourly summary.

APScheduler reads the wall clock and a hung job holds its slot, so nothing that awaits the outside runs here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import msgspec
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from dispatcher.clock import Clock
from dispatcher.control.footprints import Kills, occupied_bytes
from dispatcher.control.tally import Tally
from dispatcher.errors import NotNow
from dispatcher.history.store import Store
from dispatcher.vocabulary.event import Event, Turned
from dispatcher.vocabulary.fleet import FleetView, Place, PlaceState
from dispatcher.vocabulary.profile import Measured
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.vocabulary.words import Bytes

LEARN_SECONDS = 15
KEEP_PINNED_SECONDS = 15
SUMMARY_SECONDS = 3600
SEEN_REAL = "ever_seen_real"  # the store's flag: from then on, rehearsal never stands in again
LAST_PROVIDER = "last_provider"  # the store's name for who had our places: after a restart it is waited for
PEAKS = "peaks"  # the store's name for the learned footprints

_log = logging.getLogger("dispatcher.summary")
_NUMBERS = re.compile(r"\d[\d.,:]*")


def simulated(place: Place) -> bool:
    """A rehearsal's place: nothing that happens there says anything about a real one."""
    return place.server.startswith("rehearsal:")


class SlowJobs:
    def __init__(
        self,
        *,
        fleet: Callable[[], FleetView],
        snapshot: Callable[[], Snapshot],
        erred: Callable[[str], None],
        tally: Tally,
        store: Store,
        keep_pinned: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._fleet = fleet
        self._snapshot = snapshot
        self._erred = erred
        self._kills = Kills()
        self._tally = tally
        self._store = store
        self._keep_pinned = keep_pinned
        self._scheduler: AsyncIOScheduler | None = None
        self._remembered = ""
        self._pin_waits_for = ""
        self._rehearsed = False

    def start(self) -> None:
        self._scheduler = AsyncIOScheduler(
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        )
        self._scheduler.add_job(self.learn_peaks, "interval", seconds=LEARN_SECONDS, id="learn_peaks")
        self._scheduler.add_job(self.keep_pinned, "interval", seconds=KEEP_PINNED_SECONDS, id="keep_pinned")
        self._scheduler.add_job(self.summarize, "interval", seconds=SUMMARY_SECONDS, id="summary")
        self._scheduler.start()

    def stop(self) -> None:
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=False)

    def note_provider(self) -> None:
        """A real place seen once is remembered for good; what simulated ones taught ends with the rehearsal."""
        fleet = self._fleet()
        if fleet.places and not fleet.rehearsal:
            self._store.set_flag(SEEN_REAL)
            if fleet.failing is None and self._store.recall(LAST_PROVIDER) != fleet.provider:
                self._store.remember(LAST_PROVIDER, fleet.provider)
            if self._rehearsed:
                self._tally.begin_anew()
        self._rehearsed = fleet.rehearsal

    async def learn_peaks(self) -> None:
        """What a ready model was seen to occupy corrects what it is expected to; kept across restarts."""
        self.note_provider()
        fleet = self._fleet()
        if fleet.rehearsal:
            return
        snapshot = self._snapshot()
        for view in fleet.places:
            occupied = occupied_bytes(view, snapshot)
            if occupied is not None and view.num_ctx:
                self._tally.learn_peak(view.place.model, view.num_ctx, view.parallel, occupied)
        for view in self._kills.new(fleet, snapshot):
            if view.num_ctx:
                _log.warning('oom_killed=%s consequence="its footprint is believed larger"', view.place)
                self._erred("oom_killed")
                self._tally.learn_oom(view.place.model, view.num_ctx, view.parallel)
        self._keep_peaks()

    def on_event(self, event: Event) -> None:
        """What was forgotten must not come back with the next start."""
        if isinstance(event, Turned) and event.what == "profile":
            self._keep_peaks()

    def _keep_peaks(self) -> None:
        peaks = self._tally.profiles(self._clock.now_seconds()).peaks
        told = msgspec.json.encode(
            [[model, num_ctx, parallel, peak.value, peak.n] for (model, num_ctx, parallel), peak in peaks.items()]
        ).decode()
        if told != self._remembered:
            self._remembered = told
            self._store.remember(PEAKS, told)

    def recall(self) -> None:
        """The learned footprints of earlier runs."""
        told = self._store.recall(PEAKS)
        if told is None:
            return
        try:
            rows = msgspec.json.decode(told, type=list[tuple[str, int, int, float, int]])
        except msgspec.MsgspecError as garbage:
            _log.warning('learned_footprints=unreadable because="%s" consequence="learned anew"', garbage)
            return
        self._tally.restore_peaks(
            {(model, num_ctx, parallel): Measured(value=value, n=n) for model, num_ctx, parallel, value, n in rows}
        )

    async def keep_pinned(self) -> None:
        """What it waits for is told once per change: numbers in it move all the time, and are none."""
        before = self._pin_waits_for
        try:
            self._keep_pinned()
        except NotNow as trouble:
            self._pin_waits_for = _NUMBERS.sub("#", str(trouble))
            if self._pin_waits_for != before:
                _log.info('pinned=waiting because="%s"', trouble)
        else:
            self._pin_waits_for = ""

    async def summarize(self) -> None:
        fleet = self._fleet()
        up = [view.place.model for view in fleet.places if view.state is PlaceState.READY]
        held = Bytes(fleet.reserved_bytes)
        _log.info('summary models_ready="%s" memory_reserved="%s" provider=%s', ", ".join(up), held, fleet.provider)
