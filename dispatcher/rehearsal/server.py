"""A model server that only rehearses: sockets around replay.engine, for tests, demos and load runs.

It is held to captures of a real server (tests/rehearsal/test_captures.py). Several can run in one event loop; it
installs no signal handlers and owns nothing but its port and, with `allocate`, the processes that hold memory for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import uvicorn
from starlette.types import Scope

from dispatcher.rehearsal.answering import House
from dispatcher.rehearsal.app import App
from dispatcher.rehearsal.catalog import Catalog
from dispatcher.rehearsal.driver import Driver
from dispatcher.replay.asks import Fault
from dispatcher.replay.models import PRIOR_MODELS, Limits, RehearsalModel
from dispatcher.vocabulary.address import is_loopback

__all__ = ["PRIOR_MODELS", "Fault", "RehearsalModel", "RehearsalServer", "serve_forever"]

_PORTS = range(20_000, 32_000)  # below the ephemeral ports: a readiness loop on one of those can connect to itself
_IDLE_CONNECTION_SECONDS = 24 * 3600  # the real server never closes an idle connection


class RehearsalServer:
    """One simulated model server."""

    def __init__(
        self,
        models: Mapping[str, RehearsalModel] | Iterable[RehearsalModel],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int = 0,
        allocate: bool = False,
        memory_bytes: int | None = None,
        num_parallel: int = 1,
        max_loaded: int = 3,
        time_scale: float = 1.0,
        max_queue: int = 512,
        characters_per_token: float = 4.0,
        natural_tokens: int | None = None,
    ) -> None:
        """port 0: a free one below the ephemeral ports. time_scale: loading, evaluating and generating take that many
        times as long (0.01: a hundred times faster); keep_alive is not scaled. memory_bytes: what the memory guard
        believes there is, None: enough. natural_tokens: where every answer ends by itself, None: differs by prompt."""
        listed = models.values() if isinstance(models, Mapping) else models
        self._models = {model.name: _faster(model, time_scale) for model in listed}
        self._limits = Limits(
            num_parallel=num_parallel,
            max_loaded=max_loaded,
            max_queue=max_queue,
            memory_bytes=memory_bytes,
            unload_seconds=Limits().unload_seconds * time_scale,
            loads_end_outside=allocate,
        )
        self.host = host
        self.port = port
        self._seed = seed
        self._allocate = allocate
        self._characters_per_token = characters_per_token
        self._natural_tokens = natural_tokens
        self._driver: Driver | None = None
        self._uvicorn: uvicorn.Server | None = None
        self._ticking: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def start(self) -> None:
        """Listens when it returns. OSError: the port is taken, or not ours to take."""
        listener = self._listen()
        self._driver = Driver(self._models, self._limits, seed=self._seed, allocate=self._allocate)
        house = House(
            driver=self._driver,
            catalog=Catalog(self._models, self._driver.now_seconds()),
            characters_per_token=self._characters_per_token,
            natural_tokens=self._natural_tokens,
        )
        app = App(house, host=self.host, loopback=is_loopback(self.host), cut=self._cut)
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_CONNECTION_SECONDS,
        )
        config.load()
        self._uvicorn = uvicorn.Server(config)  # its parts, not serve(): that one takes the process's signals
        self._uvicorn.lifespan = config.lifespan_class(config)
        await self._uvicorn.startup(sockets=[listener])
        self._ticking = asyncio.create_task(self._uvicorn.main_loop(), name=f"rehearsal-{self.port}")

    async def stop(self) -> None:
        """At once, as `docker stop` ends a real one: requests in flight are cut (rule 22)."""
        if self._uvicorn is not None and self._ticking is not None and self._driver is not None:
            for listener in self._uvicorn.servers:
                listener.close()
            for connection in list(self._uvicorn.server_state.connections):
                connection.transport.abort()
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking
            await self._driver.stop()
            await asyncio.gather(*self._uvicorn.server_state.tasks, return_exceptions=True)
            self._uvicorn = self._ticking = self._driver = None

    def loaded_bytes(self) -> int:
        """Memory of the models that are loaded, loading or just leaving: what a host would miss. 0 when stopped."""
        return 0 if self._driver is None else self._driver.engine.held_bytes()

    def set_faults(self, *faults: Fault) -> None:
        """Replaces all faults; none: all is well again."""
        self._running().set_faults(faults)

    @property
    def faults(self) -> tuple[Fault, ...]:
        return self._running().faults

    def kill_runner(self, model: str) -> None:
        """kill -9 of the process that holds the model (rule 10). Nothing happens when it is not loaded."""
        self._running().kill_runner(model)

    def _running(self) -> Driver:
        if self._driver is None:
            raise RuntimeError(f"the rehearsal server on port {self.port} is not running; await start() first")
        return self._driver

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        if self.port:
            return socket.create_server((self.host, self.port), family=family)
        for port in random.sample(_PORTS, 200):
            try:
                listener = socket.create_server((self.host, port), family=family)
            except OSError:
                continue
            self.port = port
            return listener
        raise OSError(f"no free port on {self.host} among 200 tried in {_PORTS.start}..{_PORTS.stop}; give one")

    def _cut(self, scope: Scope) -> None:
        if self._uvicorn is None:
            return
        for connection in list(self._uvicorn.server_state.connections):
            if getattr(connection, "client", None) == scope.get("client"):
                connection.transport.close()


def _faster(model: RehearsalModel, time_scale: float) -> RehearsalModel:
    return replace(
        model,
        load_seconds=model.load_seconds * time_scale,
        decode_tokens_per_second=model.decode_tokens_per_second / time_scale,
        prefill_tokens_per_second=model.prefill_tokens_per_second / time_scale,
    )


async def serve_forever(
    server: RehearsalServer, *, startup_seconds: float = 0.0, listening: Callable[[], None] = lambda: None
) -> None:
    """For a process of its own: listens after `startup_seconds` (then calls `listening`), until SIGTERM or SIGINT; then
    it stops at once."""
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(startup_seconds):
            await asked_to_stop.wait()
            return
    await server.start()
    listening()
    try:
        await asked_to_stop.wait()
    finally:
        await server.stop()
