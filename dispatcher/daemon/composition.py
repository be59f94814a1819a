"""Rooms → named tasks: in what order the daemon begins, serves and ends (wiring: what is handed to whom)."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket

from dispatcher.api.access import exporter_rules
from dispatcher.api.app import make_app, server_config
from dispatcher.api.front_door import FrontDoor
from dispatcher.daemon.found import Found, announce, words
from dispatcher.daemon.reload import Origin
from dispatcher.daemon.servers import PortInUse, Server, allow_files, bound, server
from dispatcher.daemon.single import Holds
from dispatcher.daemon.slow_jobs import SEEN_REAL
from dispatcher.daemon.wiring import Rooms
from dispatcher.lifecycle.auto_provider import AutoProvider
from dispatcher.vocabulary.settings import Settings
from exporter.app import metrics_app

YOUNG_OBJECTS = (
    5_000  # a decision makes some 700, all of them gone a moment later: a tenth of its CPU was looking at them
)


class Daemon:
    def __init__(self, settings: Settings, *, has_file: bool, origin: Origin | None = None) -> None:
        self.rooms = Rooms(settings, has_file=has_file, origin=origin)
        self.holds = Holds(f"http://{settings.server.host}:{settings.server.port}")
        self._servers: list[Server] = []

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises HistoryInUse, or PortInUse when the API cannot listen; nothing was opened."""
        self._listen_for_signals()
        rules = self.rooms.settings.server
        allow_files(rules.limits.connections)
        unlocked = self.holds.history(self.rooms.store.path)
        api_socket = bound(rules.host, rules.port)
        notes = [] if unlocked is None else [unlocked]
        exporter_socket = self._exporter_socket(notes)
        try:
            if await self.rooms.leaving.unless_told(self._first_look(notes)):
                await self._serve(api_socket, exporter_socket, notes)
        finally:  # also after a fault of ours: what is queued is written
            self.rooms.slow_jobs.stop()
            self.rooms.experimenting.save()
            await asyncio.to_thread(self.rooms.store.close)  # first: what follows hangs up on the outside, and may hang
            await self.rooms.leaving.bounded(self.rooms.eyes.close(), "eyes")
            self.rooms.leaving.end()

    async def _serve(self, api_socket: socket.socket, exporter_socket: socket.socket | None, notes: list[str]) -> None:
        rules = self.rooms.settings.server
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.rooms.controller.run(), name="lifecycle"),
                group.create_task(self.rooms.sampler.run(), name="telemetry"),
                group.create_task(self.rooms.reloading.run(), name="reload"),
                group.create_task(
                    self.rooms.pulse.run(self.rooms.collector.observe_loop_lag, self._beat), name="pulse"
                ),
            ]
            self.rooms.slow_jobs.start()
            api = server(server_config(make_app(self.rooms.doors()), rules.host, rules.port, self.rooms.limits))
            self._servers.append(api)
            serving = [group.create_task(api.serve(sockets=[api_socket]), name="api")]
            if exporter_socket is not None:
                self._servers.append(self._exporter())
                serving.append(group.create_task(self._servers[1].serve(sockets=[exporter_socket]), name="exporter"))
            found = await self._found(exporter_socket is not None, notes)
            announce(found)
            self.rooms.notifier.serving(words(found)[0])
            gc.freeze()  # what start-up made stays: no collection need walk it again
            gc.set_threshold(YOUNG_OBJECTS, 10, 10)
            await self.rooms.leaving.told()
            await self.rooms.leaving.drain(self._servers, serving)
            for task in tasks:
                task.cancel()

    def _beat(self) -> None:
        self.rooms.keeping.look()
        self.rooms.experimenting.look()
        self.rooms.notifier.beat(self.rooms.controller.reconciled_at_seconds)

    async def _first_look(self, notes: list[str]) -> None:
        """Before anybody is answered: what earlier runs left, which engine, what the machine is like, what runs."""
        notes += await self.rooms.recollection.recalled()
        self.rooms.experimenting.apply()
        if isinstance(self.rooms.eyes.provider, AutoProvider):
            await self.rooms.eyes.provider.detect()
        await self.rooms.sampler.poll_once()
        await self.rooms.controller.prepare()
        self.rooms.slow_jobs.note_provider()
        rules = self.rooms.settings.lifecycle
        rivals = self.holds.fleet(rules, os.environ) if self.rooms.eyes.provider.name == "docker" else None
        impatient = self.rooms.notifier.too_impatient(rules.reconcile_interval_seconds + rules.list_timeout_seconds)
        notes += [warning for warning in (rivals, impatient) if warning is not None]

    def _exporter_socket(self, notes: list[str]) -> socket.socket | None:
        """None when it is switched off or its port is taken: then `/metrics` of the API has to do."""
        rules = self.rooms.settings.exporter
        if not rules.enabled:
            return None
        try:
            return bound(rules.host, rules.port)
        except PortInUse as busy:
            notes.append(f"the exporter's port {busy}; metrics are at /metrics of the API only")
            return None

    def _exporter(self) -> Server:
        """Beyond loopback it asks for the API's keys; it answers to the API's names and to some of its own."""
        rules = self.rooms.settings.exporter
        app = FrontDoor(metrics_app(self.rooms.exposition), self.rooms.current, os.environ, rules_from=exporter_rules)
        return server(server_config(app, rules.host, rules.port, self.rooms.limits))

    async def _found(self, exports: bool, notes: list[str]) -> Found:
        asked, provider = self.rooms.settings.telemetry.prometheus.enabled != "false", self.rooms.eyes.provider
        return Found(
            settings=self.rooms.settings,
            exports=exports,
            prometheus_answers=await self.rooms.eyes.prometheus.answers() if asked else None,
            engines=dict(provider.found()) if isinstance(provider, AutoProvider) else {},
            fleet=self.rooms.fleet(),
            snapshot=self.rooms.snapshot(),
            profiles=self.rooms.profiles(),
            config_path=self.rooms.reloading.path,
            history_path=self.rooms.store.path if self.rooms.store.flag(SEEN_REAL) else None,
            notes=tuple(notes),
        )

    def _listen_for_signals(self) -> None:
        self.rooms.leaving.listen()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.rooms.reloading.ask)
