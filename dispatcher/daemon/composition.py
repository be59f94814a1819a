"""Settings → rooms → named tasks. Every arrow of the ring is drawn here, and none anywhere else."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from dispatcher import VERSION
from dispatcher.api.app import make_app, server_config
from dispatcher.api.doors import Doors
from dispatcher.clock import SystemClock
from dispatcher.config import find, load
from dispatcher.control.tally import Tally
from dispatcher.daemon.found import Found, announce
from dispatcher.daemon.operations import Operations
from dispatcher.daemon.pulse import Pulse
from dispatcher.daemon.servers import PortInUse, Server, bound, server
from dispatcher.daemon.slow_jobs import SlowJobs
from dispatcher.desk import Desk, Fleet
from dispatcher.errors import ConfigurationInvalid, HistoryUnavailable
from dispatcher.history.store import Store
from dispatcher.lifecycle.auto_provider import AutoProvider
from dispatcher.lifecycle.controller import Controller
from dispatcher.lifecycle.docker_provider import DockerProvider
from dispatcher.lifecycle.engine_calls import EngineCalls
from dispatcher.lifecycle.none_provider import NoneProvider
from dispatcher.lifecycle.ollama_provider import OllamaProvider
from dispatcher.lifecycle.provider import Provider
from dispatcher.rehearsal.host import SimulatedHost
from dispatcher.rehearsal.provider import RehearsalProvider
from dispatcher.telemetry.engine_source import EngineSource
from dispatcher.telemetry.host_source import HostSource
from dispatcher.telemetry.prometheus_source import PrometheusSource
from dispatcher.telemetry.sampler import Sampler
from dispatcher.telemetry.source import Source
from dispatcher.vocabulary.action import Start
from dispatcher.vocabulary.engine import EngineSeen
from dispatcher.vocabulary.event import Acted, Event, Leased, Turned
from dispatcher.vocabulary.fleet import FleetView
from dispatcher.vocabulary.profile import Profiles
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.signal import Snapshot
from dispatcher.wire.decision import decision_document, encode
from exporter.app import exposition_of, metrics_app
from exporter.collect import Collector

EX_CONFIG = 78
EX_UNAVAILABLE = 69
SEEN_REAL = "ever_seen_real"
WARM_UP_ROWS = 20_000


_log = logging.getLogger("dispatcher")


class Daemon:
    """has_file: whether a configuration file was given; without one, and only then, rehearsal may stand in."""

    def __init__(self, settings: Settings, *, has_file: bool) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.store = Store(
            history_path(settings),
            settings.history,
            self.clock,
            lambda decision: encode(decision_document(decision)),
        )
        self.tally = Tally({model.name: model.facts() for model in settings.models})
        self.engine_source = EngineSource(clock=self.clock)
        self.prometheus = PrometheusSource(
            self._settings,
            scrape_interval_seconds=lambda: self.snapshot().scrape_interval_seconds,
            known_places=lambda: len(self.fleet().places),
        )
        self.host = HostSource(clock=self.clock)
        self._rehearsal: RehearsalProvider | None = None
        self._simulated_host: SimulatedHost | None = None
        self.provider = self._provider(has_file)
        self.sampler = Sampler(
            settings=self._settings,
            clock=self.clock,
            sources=self._sources,
            fleet=self.fleet,
            profiles=self.profiles,
            emit=self.emit,
        )
        self.controller = Controller(
            provider=self.provider,
            settings=self._settings,
            clock=self.clock,
            snapshot=self.snapshot,
            profiles=self.profiles,
            emit=self.emit,
        )
        tenancy = self.controller.tenancy
        self.desk = Desk(
            fleet=Fleet(
                view=tenancy.view,
                reserve=lambda place, num_ctx, evicts, decision_id, seconds: tenancy.reserve(
                    place=place, num_ctx=num_ctx, evicts=evicts, decision_id=decision_id, seconds=seconds
                ),
                end=tenancy.end,
                claim=tenancy.claim,
                unclaim=tenancy.unclaim,
                ready=self.controller.ready,
                changed=self.controller.changed,
            ),
            snapshot=self.snapshot,
            profiles=self.profiles,
            settings=self._settings,
            clock=self.clock,
            emit=self.emit,
            record_lease=self.store.record_lease,
        )
        self.operations = Operations(
            desk=self.desk,
            controller=self.controller,
            store=self.store,
            snapshot=self.snapshot,
            settings=self._settings,
            clock=self.clock,
            emit=self.emit,
        )
        self.pulse = Pulse()
        self.collector = Collector(
            fleet=self.fleet,
            snapshot=self.snapshot,
            profiles=self.profiles,
            settings=self._settings,
            process=self._process,
            clock=self.clock,
            version=VERSION,
        )
        self.exposition = exposition_of(self.collector)
        self.slow_jobs = SlowJobs(
            fleet=self.fleet,
            tally=self.tally,
            store=self.store,
            keep_pinned=self.operations.keep_pinned,
            clock=self.clock,
        )
        self._stopping = asyncio.Event()
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

    def emit(self, event: Event) -> None:
        """The one stream. Synchronous and bounded: nobody who listens may wait or fail here."""
        self.tally.on_event(event, self.clock.now_seconds())
        if isinstance(event, Acted) and isinstance(event.action, Start) and event.error_type == "oom_killed":
            start, parallel = event.action, self.settings.lifecycle.num_parallel
            self.tally.learn_oom(start.place.model, start.num_ctx, parallel)
        self.collector.on_event(event)
        self.store.append(event)
        if isinstance(event, Leased) and event.what == "ended":
            self.store.forget_lease(event.lease.id)
        elif isinstance(event, Leased) and event.what == "ready":
            self.store.owe_lease(event.lease)
        self._tell(event)

    def _tell(self, event: Event) -> None:
        """Log once, when it happens. Weighing is silent."""
        if isinstance(event, Turned) and event.what in ("place", "provider", "breaker"):  # telemetry tells its own
            because = f' because="{event.because}"' if event.because else ""
            _log.info("%s=%s before=%s after=%s%s", event.what, event.subject, event.before, event.after, because)
        elif isinstance(event, Acted):
            verb = type(event.action).__name__.lower()
            outcome = "ok" if event.ok else f'failed because="{event.because}"'
            load = f" load_seconds={event.load_seconds:.2f}" if event.load_seconds is not None else ""
            _log.info(
                "action=%s place=%s cause=%s seconds=%.2f%s result=%s",
                verb,
                event.action.place,
                event.action.cause,
                event.seconds,
                load,
                outcome,
            )

    async def look(self, endpoint: str, *, deadline_seconds: float = 2.0, details: bool = True) -> EngineSeen:
        """Telemetry's eyes for lifecycle; what is seen of models is learned on the way."""
        seen = await self.engine_source.look(endpoint, deadline_seconds=deadline_seconds, details=details)
        for model in seen.shapes.keys() | (seen.installed or {}).keys():
            self.tally.learn_facts(seen.shapes.get(model), (seen.installed or {}).get(model))
        return seen

    def _process(self) -> dict[str, float]:
        return {
            "abandoned_threads": float(self.prometheus.abandoned_threads),
            "history_dropped": float(self.store.dropped_total),
        }

    def _sources(self) -> Sequence[Source]:
        """Rehearsal has a simulated host of its own; readings of this host stand in only for places on it."""
        if self.provider.rehearsal and self._simulated_host is not None:
            return (self._simulated_host,)
        sources: list[Source] = []
        if self.settings.telemetry.prometheus.enabled != "false":
            sources.append(self.prometheus)
        if self.settings.telemetry.host_enabled and self.provider.local:
            sources.append(self.host)
        return sources

    def _provider(self, has_file: bool) -> Provider:
        rules = self.settings.lifecycle
        names = [model.name for model in self.settings.models]
        match rules.provider:
            case "docker":
                return DockerProvider(rules, self.look)
            case "ollama":
                return OllamaProvider(rules, names, self.look)
            case "none":
                return NoneProvider()
            case "rehearsal":
                return self._rehearse()
        return AutoProvider(
            DockerProvider(rules, self.look),
            OllamaProvider(rules, names, self.look),
            rehearsal=None if has_file else self._rehearse,
            saw_real=lambda: self.store.flag(SEEN_REAL),
        )

    def _rehearse(self) -> Provider:
        self._rehearsal = RehearsalProvider(
            self.settings.models,
            self.settings.rehearsal,
            load=EngineCalls().load,
            look=self.look,
            num_parallel=self.settings.lifecycle.num_parallel,
        )
        self._simulated_host = SimulatedHost(self.settings.rehearsal, self._rehearsal.loaded_bytes)
        return self._rehearsal

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
        api_socket = bound(self.settings.server.host, self.settings.server.port)
        notes = self._remember()
        if isinstance(self.provider, AutoProvider):
            await self.provider.detect()
        await self.sampler.poll_once()
        await self.controller.prepare()
        if not self.provider.rehearsal and self.fleet().places:
            self.store.set_flag(SEEN_REAL)
        self._listen_for_signals()
        exporter_url = ""
        async with asyncio.TaskGroup() as group:
            self.slow_jobs.start()
            tasks = [
                group.create_task(self.controller.run(), name="lifecycle"),
                group.create_task(self.sampler.run(), name="telemetry"),
                group.create_task(self.pulse.run(self.collector.observe_loop_lag), name="pulse"),
            ]
            rules = self.settings.server
            api = server(server_config(make_app(self.doors()), rules.host, rules.port))
            self._servers.append(api)
            serving = [group.create_task(api.serve(sockets=[api_socket]), name="api")]
            if self.settings.exporter.enabled:
                try:
                    exporter_socket = bound(self.settings.exporter.host, self.settings.exporter.port)
                except PortInUse as busy:
                    notes.append(f"the exporter's port {busy}; metrics are at /metrics of the API only")
                else:
                    metrics = metrics_app(self.exposition)
                    exporter = server(server_config(metrics, self.settings.exporter.host, self.settings.exporter.port))
                    self._servers.append(exporter)
                    serving.append(group.create_task(exporter.serve(sockets=[exporter_socket]), name="exporter"))
                    exporter_url = f"http://{self.settings.exporter.host}:{self.settings.exporter.port}/metrics"
            announce(await self._found(exporter_url, notes))
            await self._stopping.wait()
            await self._drain(serving)
            for task in tasks:
                task.cancel()
        await self._close()

    def _remember(self) -> list[str]:
        """What earlier runs left: leases, pins, profiles. A broken history is said, and lived without."""
        notes = []
        try:
            aside = self.store.open()
            if aside is not None:
                notes.append(f"the history was not readable and was set aside as {aside}; a new one is begun")
            for acted in self.store.recent_acted(WARM_UP_ROWS):
                self.tally.on_event(acted, acted.at_seconds)
            for completed in self.store.recent_completed(WARM_UP_ROWS):
                self.tally.on_event(completed, completed.at_seconds)
            self.controller.restore(self.store.leases())
            self.controller.tenancy.pinned_model = self.store.pinned_model()
            self.slow_jobs.recall()
        except HistoryUnavailable as trouble:
            notes.append(f"no history: {trouble}")
        return notes

    async def _found(self, exporter_url: str, notes: list[str]) -> Found:
        prometheus = self.settings.telemetry.prometheus
        return Found(
            api_url=f"http://{self.settings.server.host}:{self.settings.server.port}",
            exporter_url=exporter_url,
            prometheus_url=prometheus.url,
            prometheus_answers=prometheus.enabled != "false" and await self.prometheus.answers(),
            engines=dict(self.provider.found()) if isinstance(self.provider, AutoProvider) else {},
            fleet=self.fleet(),
            snapshot=self.snapshot(),
            notes=tuple(notes),
        )

    def _listen_for_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)

    def _stop(self) -> None:
        """The first time: drain. The second time: leave now."""
        if self._stopping.is_set():
            for one in self._servers:
                one.force_exit = True
        self.controller.tenancy.draining = True
        self._stopping.set()

    async def _drain(self, serving: list[asyncio.Task[None]]) -> None:
        _log.info("stopping: open requests finish, models keep running (again to leave at once)")
        for one in self._servers:
            one.should_exit = True
        await asyncio.gather(*serving, return_exceptions=True)

    async def _close(self) -> None:
        self.slow_jobs.stop()
        await self.provider.close()
        await self.engine_source.close()
        self.prometheus.close()
        await asyncio.to_thread(self.store.close)


def history_path(settings: Settings) -> Path:
    """The configured file, else under the user's state directory (XDG), made when opened."""
    if settings.history.path:
        return Path(settings.history.path).expanduser()
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "ai-model-dispatcher" / "history.sqlite"


def main(config_path: Path | None = None) -> int:
    """Runs the daemon; the process's exit status. 78: the configuration is wrong; 69: its port is taken."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    for noisy in ("httpx", "httpcore", "apscheduler", "urllib3", "docker", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    path = find(config_path, os.environ, Path.cwd())
    try:
        settings = load(path, os.environ)
        asyncio.run(_run(settings, has_file=path is not None))
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


async def _run(settings: Settings, *, has_file: bool) -> None:
    await Daemon(settings, has_file=has_file).run()
