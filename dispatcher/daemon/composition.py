"""Settings → rooms → named tasks. Every arrow of the ring is drawn here, and none anywhere else."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from dispatcher import VERSION
from dispatcher.api.app import make_app, server_config
from dispatcher.api.doors import Doors
from dispatcher.api.front_door import FrontDoor
from dispatcher.clock import SystemClock
from dispatcher.config import find, load
from dispatcher.control.tally import Tally
from dispatcher.daemon.eyes import Eyes
from dispatcher.daemon.found import Found, announce
from dispatcher.daemon.operations import Operations
from dispatcher.daemon.pulse import Pulse
from dispatcher.daemon.servers import CLOSE_SECONDS, DRAIN_SECONDS, PortInUse, Server, bound, server, until_idle
from dispatcher.daemon.slow_jobs import SEEN_REAL, SlowJobs, simulated
from dispatcher.daemon.stream import Stream
from dispatcher.desk import Desk, Fleet
from dispatcher.errors import ConfigurationInvalid, HistoryUnavailable
from dispatcher.history.store import Store
from dispatcher.lifecycle.auto_provider import AutoProvider
from dispatcher.lifecycle.controller import Controller
from dispatcher.telemetry.sampler import Sampler
from dispatcher.vocabulary.address import is_loopback
from dispatcher.vocabulary.fleet import FleetView
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.wire.decision import decision_document, encode
from exporter.app import exposition_of, metrics_app
from exporter.collect import Collector

EX_CONFIG = 78
EX_UNAVAILABLE = 69
WARM_UP_ROWS = 20_000

_log = logging.getLogger("dispatcher")


class Daemon:
    """has_file: whether a configuration file was given; without one, and only then, rehearsal may stand in."""

    def __init__(self, settings: Settings, *, has_file: bool) -> None:
        """Longer than 50 lines: one line per hand-over, in the order of the ring; splitting it would hide an arrow."""
        self.settings = settings
        self.clock = SystemClock()
        self.store = Store(
            history_path(settings),
            settings.history,
            self.clock,
            lambda decision: encode(decision_document(decision)),
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
            snapshot=self.snapshot,
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
        self.slow_jobs = SlowJobs(
            fleet=self.fleet,
            tally=self.tally,
            store=self.store,
            keep_pinned=self.operations.keep_pinned,
            clock=self.clock,
        )
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._servers: list[Server] = []

    # --- what the rooms are handed -----------------------------------------------------------------------------

    def _settings(self) -> Settings:
        return self.settings

    def snapshot(self) -> Snapshot:
        return self.sampler.snapshot()

    def fleet(self) -> FleetView:
        return self.controller.view()

    def profiles(self) -> Profiles:
        return self.tally.profiles(self.clock.now_seconds())

    def _process(self) -> dict[str, float]:
        return {
            "abandoned_threads": float(self.eyes.abandoned_threads()),
            "history_dropped": float(self.store.dropped_total),
        }

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
            readiness=self.operations.readiness,
            heartbeat_age_seconds=self.pulse.age_seconds,
            clock=self.clock,
            draining=lambda: tenancy.draining,
        )

    # --- living ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises PortInUse when the API cannot listen."""
        rules = self.settings.server
        api_socket = bound(rules.host, rules.port)
        notes: list[str] = []
        exporter_socket = self._exporter_socket(notes)
        notes += self._remember()
        await self._first_look()
        self._listen_for_signals()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.controller.run(), name="lifecycle"),
                group.create_task(self.sampler.run(), name="telemetry"),
                group.create_task(self.pulse.run(self.collector.observe_loop_lag), name="pulse"),
            ]
            self.slow_jobs.start()
            api = server(server_config(make_app(self.doors()), rules.host, rules.port))
            self._servers.append(api)
            serving = [group.create_task(api.serve(sockets=[api_socket]), name="api")]
            if exporter_socket is not None:
                self._servers.append(self._exporter())
                serving.append(group.create_task(self._servers[1].serve(sockets=[exporter_socket]), name="exporter"))
            announce(await self._found(exporter_socket is not None, notes))
            gc.freeze()  # what start-up made stays: no collection need walk it again
            await self._stopping.wait()
            await self._drain(serving)
            for task in tasks:
                task.cancel()
        self.slow_jobs.stop()
        await self.eyes.close()
        await asyncio.to_thread(self.store.close)

    def _remember(self) -> list[str]:
        """What earlier runs left: promises first, then what they learned. Each by itself: one that cannot be read is
        said, and costs no other."""
        notes: list[str] = []
        try:
            aside = self.store.open()
            if aside is not None:
                notes.append(f"the history was not readable and was set aside as {aside}; a new one is begun")
        except HistoryUnavailable as trouble:
            notes.append(f"no history: {trouble}")
        recalls: tuple[tuple[str, Callable[[], None]], ...] = (
            ("leases", self._recall_leases),
            ("the pin", self._recall_pin),
            ("footprints", self.slow_jobs.recall),
            ("speeds", self._recall_speeds),
        )
        for what, recall in recalls:
            try:
                recall()
            except (HistoryUnavailable, ValueError, KeyError, TypeError) as trouble:
                notes.append(f"{what} of earlier runs cannot be read ({trouble}); going on without")
        return notes

    def _recall_leases(self) -> None:
        self.controller.restore(self.store.leases())

    def _recall_pin(self) -> None:
        self.controller.tenancy.pinned_model = self.store.pinned_model()

    def _recall_speeds(self) -> None:
        """What simulated models did teaches nothing about real ones."""
        rehearsing = self.settings.lifecycle.provider == "rehearsal"
        for acted in self.store.recent_acted(WARM_UP_ROWS):
            if rehearsing or not simulated(acted.action.place):
                self.tally.on_event(acted, acted.at_seconds)
        for completed in self.store.recent_completed(WARM_UP_ROWS):
            if rehearsing or completed.place is None or not simulated(completed.place):
                self.tally.on_event(completed, completed.at_seconds)

    async def _first_look(self) -> None:
        """Before anybody is answered: which engine, what the machine is like, what runs."""
        if isinstance(self.eyes.provider, AutoProvider):
            await self.eyes.provider.detect()
        await self.sampler.poll_once()
        await self.controller.prepare()
        self.slow_jobs.note_provider()

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
        return server(server_config(app, rules.host, rules.port))

    async def _found(self, exports: bool, notes: list[str]) -> Found:
        prometheus, provider = self.settings.telemetry.prometheus, self.eyes.provider
        exporter = self.settings.exporter
        return Found(
            api_url=f"http://{self.settings.server.host}:{self.settings.server.port}",
            exporter_url=f"http://{exporter.host}:{exporter.port}/metrics" if exports else "",
            prometheus_url=prometheus.url,
            prometheus_answers=None if prometheus.enabled == "false" else await self.eyes.prometheus.answers(),
            engines=dict(provider.found()) if isinstance(provider, AutoProvider) else {},
            fleet=self.fleet(),
            snapshot=self.snapshot(),
            notes=tuple(notes),
        )

    def _listen_for_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(
            signal.SIGHUP, lambda: _log.warning("reload=ignored because=not built yet; restart to apply a change")
        )

    def _stop(self) -> None:
        """The first time: drain. The second time: leave now."""
        if self._stopping.is_set():
            self._hurry.set()
        self.controller.tenancy.draining = True
        self._stopping.set()

    async def _drain(self, serving: list[asyncio.Task[None]]) -> None:
        """Open requests finish while new ones are told 503; then, or when hurried, who still waits is answered with
        what was promised so far, and the servers close."""
        _log.info("stopping: open requests finish, models keep running (again to leave at once)")
        api = self._servers[0]
        await until_idle(api, DRAIN_SECONDS, self._hurry)
        self.controller.leave()
        await until_idle(api, CLOSE_SECONDS, asyncio.Event())
        for one in self._servers:
            one.should_exit = True
        await asyncio.gather(*serving, return_exceptions=True)


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
    """Runs the daemon; the process's exit status. 78: the configuration is wrong; 69: its port is taken."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("httpx", "httpcore", "apscheduler", "urllib3", "docker", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    path = find(config_path, os.environ, Path.cwd())
    try:
        settings = load(path, os.environ)
        with asyncio.Runner(loop_factory=event_loop) as runner:
            runner.run(_run(settings, has_file=path is not None))
    except ConfigurationInvalid as invalid:
        print(invalid, file=sys.stderr)
        return EX_CONFIG
    except PortInUse as busy:
        print(
            f"{busy}: is a dispatcher already running? See .venv/bin/dispatcher status, or set server.port "
            "(DISPATCHER_SERVER_PORT) to another.",
            file=sys.stderr,
        )
        return EX_UNAVAILABLE
    return 0


def event_loop() -> asyncio.AbstractEventLoop:
    """uvloop where there is one (it comes with uvicorn[standard]): a third less CPU per request than asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _run(settings: Settings, *, has_file: bool) -> None:
    await Daemon(settings, has_file=has_file).run()
