"""Settings → rooms, handed to each other. Every arrow of the ring is drawn here, and none anywhere else; nothing begins
and nothing is opened here (composition: in what order)."""

from __future__ import annotations

import os
from pathlib import Path
from random import random

from dispatcher import VERSION
from dispatcher.api.doors import Doors
from dispatcher.api.events import Feed
from dispatcher.api.recent import Recent
from dispatcher.clock import SystemClock
from dispatcher.control.tally import Tally
from dispatcher.daemon.arm_check import arm_check
from dispatcher.daemon.experimenting import Experimenting
from dispatcher.daemon.eyes import Eyes
from dispatcher.daemon.fleet import fleet_of
from dispatcher.daemon.keeping import Keeping
from dispatcher.daemon.leaving import Leaving
from dispatcher.daemon.notify import Notifier
from dispatcher.daemon.operations import Operations
from dispatcher.daemon.pulse import Pulse
from dispatcher.daemon.readiness import Standing
from dispatcher.daemon.recollection import Recollection
from dispatcher.daemon.reload import Origin, Reloading
from dispatcher.daemon.servers import allow_files
from dispatcher.daemon.slow_jobs import LAST_PROVIDER, SEEN_REAL, SlowJobs
from dispatcher.daemon.stream import Stream
from dispatcher.desk import Desk
from dispatcher.gateway.relay import Gateway
from dispatcher.history.store import Store
from dispatcher.lifecycle.controller import Controller
from dispatcher.telemetry.sampler import Sampler
from dispatcher.vocabulary.fleet import FleetView, Lease
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.settings import LimitSettings, Settings
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.wire.decision import encode, kept
from exporter.app import exposition_of
from exporter.collect import Collector


class Rooms:
    """has_file: whether a configuration file was given; without one, and only then, rehearsal may stand in. origin:
    what a reload reads again."""

    def __init__(self, settings: Settings, *, has_file: bool, origin: Origin | None = None) -> None:
        """Longer than 50 lines: one line per hand-over, in the order of the ring; splitting it would hide an arrow."""
        self.settings = settings
        self.clock = SystemClock()
        self.store = Store(
            history_path(settings),
            settings.history,
            self.clock,
            lambda decision: encode(kept(decision)),
        )
        self.tally = Tally({model.name: model.facts() for model in settings.models})
        self.stream = Stream(tally=self.tally, store=self.store, settings=self.current, clock=self.clock)
        self.eyes = Eyes(
            settings=self.current,
            clock=self.clock,
            tally=self.tally,
            scrape_interval_seconds=lambda: self.snapshot().scrape_interval_seconds,
            known_places=lambda: len(self.fleet().places),
            has_file=has_file,
            saw_real=lambda: self.store.flag(SEEN_REAL),
            had=lambda: self.store.recall(LAST_PROVIDER),
            erred=self.stream.erred,
        )
        self.sampler = Sampler(
            settings=self.current,
            clock=self.clock,
            sources=self.eyes.sources,
            fleet=self.fleet,
            profiles=self.profiles,
            emit=self.stream.emit,
        )
        self.controller = Controller(
            provider=self.eyes.provider,
            settings=self.current,
            clock=self.clock,
            snapshot=self.snapshot,
            profiles=self.profiles,
            emit=self.stream.emit,
            in_flight=lambda place: self.gateway.in_flight(place),
            breaker=lambda place: self.gateway.breakers.seen(place),
        )
        self.experimenting = Experimenting(
            store=self.store,
            settings=self.current,
            check=arm_check(self.current, os.environ),
            clock=self.clock,
            emit=self.stream.emit,
        )
        self.desk = Desk(
            fleet=fleet_of(self.controller),
            snapshot=self.snapshot,
            profiles=self.profiles,
            settings=self.current,
            clock=self.clock,
            emit=self.stream.emit,
            record_lease=self.store.record_lease,
            experiments=self.experimenting,
        )
        tenancy = self.controller.tenancy
        self.gateway = Gateway(
            select=self.desk.select,
            recommend=self.desk.recommend,
            end_lease=lambda lease_id: tenancy.end(lease_id, "outcome"),
            fleet=self.fleet,
            settings=self.current,
            clock=self.clock,
            emit=self.stream.emit,
            jitter=random,
        )
        self.operations = Operations(
            desk=self.desk,
            controller=self.controller,
            store=self.store,
            settings=self.current,
            clock=self.clock,
            emit=self.stream.emit,
        )
        self.collector = self.stream.collector = Collector(
            fleet=self.fleet,
            snapshot=self.snapshot,
            profiles=self.profiles,
            settings=self.current,
            process=self._process,
            queues=self.gateway.lines,
            clock=self.clock,
            version=VERSION,
        )
        self.exposition = exposition_of(self.collector)
        self.pulse = Pulse()
        self.standing = Standing(
            desk=self.desk,
            controller=self.controller,
            store=self.store,
            pulse=self.pulse,
            snapshot=self.snapshot,
            settings=self.current,
            clock=self.clock,
        )
        self.feed = Feed(self.limits)
        self.recent = Recent()
        self.slow_jobs = SlowJobs(
            fleet=self.fleet,
            snapshot=self.snapshot,
            erred=self.stream.erred,
            tally=self.tally,
            store=self.store,
            keep_pinned=self.operations.keep_pinned,
            clock=self.clock,
        )
        self.stream.listeners = (
            *(self.standing.on_event, self.feed.publish, self.recent.on_event),
            self.slow_jobs.on_event,
            self.experimenting.on_event,  # last: what it tells of an event comes after that
        )
        self.recollection = Recollection(
            store=self.store,
            controller=self.controller,
            slow_jobs=self.slow_jobs,
            tally=self.tally,
            rehearsing=settings.lifecycle.provider == "rehearsal",
            experiments=self.experimenting.recall,
        )
        self.keeping = Keeping(store=self.store, leases=self._live_leases, emit=self.stream.emit, clock=self.clock)
        self.notifier = Notifier(os.environ)
        self.leaving = Leaving(begun=self._begin_leaving, answer=self._answer_who_waits, notifier=self.notifier)
        self.reloading = Reloading(
            origin or Origin(),
            os.environ,
            settings=self.current,
            apply=self._apply,
            emit=self.stream.emit,
            clock=self.clock,
            held=self.notifier.reloading,
        )

    def current(self) -> Settings:
        return self.settings

    def _apply(self, settings: Settings) -> None:
        """A reload's. Who asks per use has the new ones from here on; who keeps something of them is told."""
        self.settings = settings
        self.tally.configure({model.name: model.facts() for model in settings.models})
        self.eyes.apply(settings)
        self.store.apply(settings.history)
        allow_files(settings.server.limits.connections)
        self.controller.tenancy.apply()
        self.experimenting.apply()

    def limits(self) -> LimitSettings:
        return self.settings.server.limits

    def snapshot(self) -> Snapshot:
        return self.sampler.snapshot()

    def fleet(self) -> FleetView:
        return self.controller.view()

    def profiles(self) -> Profiles:
        return self.tally.profiles(self.clock.now_seconds())

    def _live_leases(self) -> list[Lease]:
        tenancy = self.controller.tenancy
        live = (lease for place in tenancy.residents for lease in tenancy.promises.on(place).values())
        return [lease for lease in live if lease.durable]

    def _process(self) -> dict[str, float]:
        return {
            "abandoned_threads": float(self._abandoned_threads()),
            "history_dropped": float(self.store.dropped_total),
            "retry_budget_ratio": 1.0 - self.gateway.breakers.used_ratio(),
            "cache_bytes": float(self.gateway.cache_bytes),
        }

    def _abandoned_threads(self) -> int:
        return self.eyes.abandoned_threads() + self.store.abandoned_threads + self.reloading.abandoned_threads

    def _begin_leaving(self) -> None:
        self.controller.tenancy.draining = True
        self.feed.close()

    def _answer_who_waits(self) -> None:
        self.gateway.leave()  # first: those who wait for a load through it are not to try the next model
        self.controller.leave()

    def doors(self) -> Doors:
        tenancy = self.controller.tenancy
        return Doors(
            select=self.desk.select,
            recommend=self.desk.recommend,
            snapshot=self.snapshot,
            fleet=self.fleet,
            profiles=self.profiles,
            settings=self.current,
            lease=tenancy.lease,
            renew_lease=self.operations.renew_lease,
            end_lease=lambda lease_id: tenancy.end(lease_id, "returned"),
            record_outcome=self.operations.record_outcome,
            decisions=self.operations.decisions,
            decision=self.operations.decision,
            act=self.operations.act,
            exposition=self.exposition,
            readiness=self.standing.readiness,
            heartbeat_age_seconds=self.pulse.loop_age_seconds,
            clock=self.clock,
            draining=lambda: tenancy.draining,
            feed=self.feed,
            recent=self.recent,
            erred=self.stream.erred,
            relay=self.gateway.relay,
            lines=self.gateway.lines,
            records=lambda: self.tally.records(self.clock.now_seconds()),
            experiments=self.experimenting.told,
            start_experiment=self.experimenting.start,
            stop_experiment=self.experimenting.stop,
        )


def history_path(settings: Settings) -> Path:
    """The configured file, else under the user's state directory (XDG), made when opened."""
    if settings.history.path:
        return Path(settings.history.path).expanduser()
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "ai-model-dispatcher" / "history.sqlite"
