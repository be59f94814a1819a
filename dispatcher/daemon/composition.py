"""Settings → rooms → named tasks. Every arrow of the ring is drawn here, and none anywhere else."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from dispatcher import VERSION
from dispatcher.api.app import make_app, server_config
from dispatcher.api.doors import Doors
from dispatcher.api.events import Feed
from dispatcher.api.front_door import FrontDoor
from dispatcher.clock import SystemClock
from dispatcher.config import find, load
from dispatcher.control.tally import Tally
from dispatcher.daemon.eyes import Eyes
from dispatcher.daemon.found import Found, announce, words
from dispatcher.daemon.keeping import Keeping
from dispatcher.daemon.leaving import SIGNALS, Leaving
from dispatcher.daemon.notify import Notifier
from dispatcher.daemon.operations import Operations
from dispatcher.daemon.pulse import Pulse
from dispatcher.daemon.readiness import Standing
from dispatcher.daemon.recollection import Recollection
from dispatcher.daemon.reload import Origin, Reloading
from dispatcher.daemon.servers import PortInUse, Server, allow_files, bound, event_loop, server
from dispatcher.daemon.single import HistoryInUse, Holds
from dispatcher.daemon.slow_jobs import LAST_PROVIDER, SEEN_REAL, SlowJobs
from dispatcher.daemon.stream import Stream
from dispatcher.desk import Desk, Fleet
from dispatcher.errors import ConfigurationInvalid
from dispatcher.history.store import Store
from dispatcher.lifecycle.auto_provider import AutoProvider
from dispatcher.lifecycle.controller import Controller
from dispatcher.telemetry.sampler import Sampler
from dispatcher.vocabulary.address import is_loopback
from dispatcher.vocabulary.fleet import FleetView, Lease
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.settings import LimitSettings, Settings
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.wire.decision import encode, kept
from exporter.app import exposition_of, metrics_app
from exporter.collect import Collector

EX_CONFIG = 78
EX_UNAVAILABLE = 69
YOUNG_OBJECTS = (
    5_000  # a decision makes some 700, all of them gone a moment later: a tenth of its CPU was looking at them
)


class Daemon:
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
        self.stream = Stream(tally=self.tally, store=self.store, settings=self._settings, clock=self.clock)
        self.eyes = Eyes(
            settings=self._settings,
            clock=self.clock,
            tally=self.tally,
            scrape_interval_seconds=lambda: self.snapshot().scrape_interval_seconds,
            known_places=lambda: len(self.fleet().places),
            has_file=has_file,
            saw_real=lambda: self.store.flag(SEEN_REAL),
            had=lambda: self.store.recall(LAST_PROVIDER),
        )
        self.sampler = Sampler(
            settings=self._settings,
            clock=self.clock,
            sources=self.eyes.sources,
            fleet=self.fleet,
            profiles=self.profiles,
            emit=self.stream.emit,
        )
        self.controller = Controller(
            provider=self.eyes.provider,
            settings=self._settings,
            clock=self.clock,
            snapshot=self.snapshot,
            profiles=self.profiles,
            emit=self.stream.emit,
        )
        self.desk = Desk(
            fleet=_fleet_of(self.controller),
            snapshot=self.snapshot,
            profiles=self.profiles,
            settings=self._settings,
            clock=self.clock,
            emit=self.stream.emit,
            record_lease=self.store.record_lease,
        )
        self.operations = Operations(
            desk=self.desk,
            controller=self.controller,
            store=self.store,
            settings=self._settings,
            clock=self.clock,
            emit=self.stream.emit,
        )
        self.collector = self.stream.collector = Collector(
            fleet=self.fleet,
            snapshot=self.snapshot,
            profiles=self.profiles,
            settings=self._settings,
            process=self._process,
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
            settings=self._settings,
            clock=self.clock,
        )
        self.feed = Feed(self._limits)
        self.stream.listeners = (self.standing.on_event, self.feed.publish)
        self.slow_jobs = SlowJobs(
            fleet=self.fleet,
            snapshot=self.snapshot,
            erred=self.stream.erred,
            tally=self.tally,
            store=self.store,
            keep_pinned=self.operations.keep_pinned,
            clock=self.clock,
        )
        self.recollection = Recollection(
            store=self.store,
            controller=self.controller,
            slow_jobs=self.slow_jobs,
            tally=self.tally,
            rehearsing=settings.lifecycle.provider == "rehearsal",
        )
        self.keeping = Keeping(store=self.store, leases=self._live_leases, emit=self.stream.emit, clock=self.clock)
        self.notifier = Notifier(os.environ)
        self.leaving = Leaving(begun=self._begin_leaving, answer=self.controller.leave, notifier=self.notifier)
        self.reloading = Reloading(
            origin or Origin(),
            os.environ,
            settings=self._settings,
            apply=self._apply,
            emit=self.stream.emit,
            clock=self.clock,
            held=self.notifier.reloading,
        )
        self.holds = Holds(f"http://{settings.server.host}:{settings.server.port}")
        self._servers: list[Server] = []

    # --- what the rooms are handed -----------------------------------------------------------------------------

    def _settings(self) -> Settings:
        return self.settings

    def _apply(self, settings: Settings) -> None:
        """A reload's. Who asks per use has the new ones from here on; who keeps something of them is told."""
        self.settings = settings
        self.tally.configure({model.name: model.facts() for model in settings.models})
        self.eyes.apply(settings)
        self.store.apply(settings.history)
        allow_files(settings.server.limits.connections)
        self.controller.tenancy.changed()

    def _limits(self) -> LimitSettings:
        return self.settings.server.limits

    def snapshot(self) -> Snapshot:
        return self.sampler.snapshot()

    def fleet(self) -> FleetView:
        return self.controller.view()

    def profiles(self) -> Profiles:
        return self.tally.profiles(self.clock.now_seconds())

    def _live_leases(self) -> list[Lease]:
        tenancy = self.controller.tenancy
        return [lease for place in tenancy.residents for lease in tenancy.promises.on(place).values()]

    def _process(self) -> dict[str, float]:
        return {
            "abandoned_threads": float(self._abandoned_threads()),
            "history_dropped": float(self.store.dropped_total),
        }

    def _abandoned_threads(self) -> int:
        return self.eyes.abandoned_threads() + self.store.abandoned_threads + self.reloading.abandoned_threads

    def doors(self) -> Doors:
        tenancy = self.controller.tenancy
        return Doors(
            select=self.desk.select,
            recommend=self.desk.recommend,
            snapshot=self.snapshot,
            fleet=self.fleet,
            profiles=self.profiles,
            settings=self._settings,
            lease=tenancy.lease,
            renew_lease=self.operations.renew_lease,
            end_lease=lambda lease_id: tenancy.end(lease_id, "returned"),
            record_outcome=self.operations.record_outcome,
            decisions=self.operations.decisions,
            decision=self.operations.decision,
            act=self.operations.act,
            exposition=self.exposition,
            readiness=self.standing.readiness,
            heartbeat_age_seconds=self.pulse.age_seconds,
            clock=self.clock,
            draining=lambda: tenancy.draining,
            feed=self.feed,
            erred=self.stream.erred,
            records=lambda: self.tally.records(self.clock.now_seconds()),
        )

    # --- living ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises HistoryInUse, or PortInUse when the API cannot listen; nothing was opened."""
        self._listen_for_signals()
        rules = self.settings.server
        allow_files(rules.limits.connections)
        unlocked = self.holds.history(self.store.path)
        api_socket = bound(rules.host, rules.port)
        notes = [] if unlocked is None else [unlocked]
        exporter_socket = self._exporter_socket(notes)
        notes += self.recollection.recall()
        try:
            if await self.leaving.unless_told(self._first_look(notes)):
                await self._serve(api_socket, exporter_socket, notes)
        finally:  # also after a fault of ours: what is queued is written
            self.slow_jobs.stop()
            await asyncio.to_thread(self.store.close)  # first: what follows hangs up on the outside, and may hang
            await self.leaving.bounded(self.eyes.close(), "eyes")
            self.leaving.end()

    async def _serve(self, api_socket: socket.socket, exporter_socket: socket.socket | None, notes: list[str]) -> None:
        rules = self.settings.server
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.controller.run(), name="lifecycle"),
                group.create_task(self.sampler.run(), name="telemetry"),
                group.create_task(self.reloading.run(), name="reload"),
                group.create_task(self.pulse.run(self.collector.observe_loop_lag, self._beat), name="pulse"),
            ]
            self.slow_jobs.start()
            api = server(server_config(make_app(self.doors()), rules.host, rules.port, self._limits))
            self._servers.append(api)
            serving = [group.create_task(api.serve(sockets=[api_socket]), name="api")]
            if exporter_socket is not None:
                self._servers.append(self._exporter())
                serving.append(group.create_task(self._servers[1].serve(sockets=[exporter_socket]), name="exporter"))
            found = await self._found(exporter_socket is not None, notes)
            announce(found)
            self.notifier.serving(words(found)[0])
            gc.freeze()  # what start-up made stays: no collection need walk it again
            gc.set_threshold(YOUNG_OBJECTS, 10, 10)
            await self.leaving.told()
            await self.leaving.drain(self._servers, serving)
            for task in tasks:
                task.cancel()

    def _beat(self) -> None:
        self.keeping.look()
        self.notifier.beat(self.controller.reconciled_at_seconds)

    def _begin_leaving(self) -> None:
        self.controller.tenancy.draining = True
        self.feed.close()

    async def _first_look(self, notes: list[str]) -> None:
        """Before anybody is answered: which engine, what the machine is like, what runs."""
        if isinstance(self.eyes.provider, AutoProvider):
            await self.eyes.provider.detect()
        await self.sampler.poll_once()
        await self.controller.prepare()
        self.slow_jobs.note_provider()
        rules = self.settings.lifecycle
        rivals = self.holds.fleet(rules, os.environ) if self.eyes.provider.name == "docker" else None
        impatient = self.notifier.too_impatient(rules.reconcile_interval_seconds + rules.list_timeout_seconds)
        notes += [warning for warning in (rivals, impatient) if warning is not None]

    def _exporter_socket(self, notes: list[str]) -> socket.socket | None:
        """None when it is switched off or its port is taken: then `/metrics` of the API has to do."""
        rules = self.settings.exporter
        if not rules.enabled:
            return None
        try:
            return bound(rules.host, rules.port)
        except PortInUse as busy:
            notes.append(f"the exporter's port {busy}; metrics are at /metrics of the API only")
            return None

    def _exporter(self) -> Server:
        """Beyond loopback it asks for the same key, and answers to the same names, as the API."""
        rules = self.settings.exporter
        app = metrics_app(self.exposition)
        if not is_loopback(rules.host):
            app = FrontDoor(app, self._settings, os.environ)
        return server(server_config(app, rules.host, rules.port, self._limits))

    async def _found(self, exports: bool, notes: list[str]) -> Found:
        asked, provider = self.settings.telemetry.prometheus.enabled != "false", self.eyes.provider
        return Found(
            settings=self.settings,
            exports=exports,
            prometheus_answers=await self.eyes.prometheus.answers() if asked else None,
            engines=dict(provider.found()) if isinstance(provider, AutoProvider) else {},
            fleet=self.fleet(),
            snapshot=self.snapshot(),
            profiles=self.profiles(),
            config_path=self.reloading.path,
            history_path=self.store.path if self.store.flag(SEEN_REAL) else None,
            notes=tuple(notes),
        )

    def _listen_for_signals(self) -> None:
        self.leaving.listen()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reloading.ask)


def _fleet_of(controller: Controller) -> Fleet:
    tenancy = controller.tenancy
    return Fleet(
        view=tenancy.view,
        reserve=lambda place, num_ctx, evicts, decision_id, seconds: tenancy.reserve(
            place=place, num_ctx=num_ctx, evicts=evicts, decision_id=decision_id, seconds=seconds
        ),
        end=tenancy.end,
        claim=tenancy.claim,
        unclaim=tenancy.unclaim,
        ready=controller.ready,
        changed=controller.changed,
    )


def history_path(settings: Settings) -> Path:
    """The configured file, else under the user's state directory (XDG), made when opened."""
    if settings.history.path:
        return Path(settings.history.path).expanduser()
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "ai-model-dispatcher" / "history.sqlite"


def main(config_path: Path | None = None) -> int:
    """Runs the daemon; the process's exit status. 0: it was told to leave; 69: its port, or its history, is another
    dispatcher's; 70: it could not leave in order (LastBound); 78: the configuration is wrong."""
    for number in SIGNALS:  # until the loop listens; what was not begun needs no ending
        signal.signal(number, _leave_early)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until then the file is still to be read
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("httpx", "httpcore", "apscheduler", "urllib3", "docker", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    path = find(config_path, os.environ, Path.cwd())
    origin = Origin.of(path)
    try:
        settings = load(path, os.environ)
        with asyncio.Runner(loop_factory=event_loop) as runner:
            runner.run(_run(settings, origin))
    except ConfigurationInvalid as invalid:
        print(invalid, file=sys.stderr)
        return EX_CONFIG
    except HistoryInUse as busy:
        print(busy, file=sys.stderr)
        return EX_UNAVAILABLE
    except PortInUse as busy:
        print(
            f"{busy}: is a dispatcher already running? See .venv/bin/dispatcher status, or set server.port "
            "(DISPATCHER_SERVER_PORT) to another.",
            file=sys.stderr,
        )
        return EX_UNAVAILABLE
    return 0


def _leave_early(_number: int, _frame: object) -> None:
    raise SystemExit(0)


async def _run(settings: Settings, origin: Origin) -> None:
    await Daemon(settings, has_file=origin.path is not None, origin=origin).run()
