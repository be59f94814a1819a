"""Simulated places: one rehearsal server per model of the chain, in this process, started and stopped like containers.

Satisfies lifecycle.provider.Provider by its shape (wet rooms do not import each other), and passes its contract test.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from dispatcher.errors import EngineRefused, EngineUnreachable, PlaceNotOurs
from dispatcher.rehearsal.server import PRIOR_MODELS, RehearsalModel, RehearsalServer
from dispatcher.vocabulary.engine import EngineSeen
from dispatcher.vocabulary.fleet import Place, PlaceSeen
from dispatcher.vocabulary.profile import LOAD_BASE_SECONDS, OVERHEAD_BYTES
from dispatcher.vocabulary.request import DEFAULT_NUM_CTX
from dispatcher.vocabulary.settings import ModelSettings, RehearsalSettings

_HOST = "127.0.0.1"
_PORTS = range(20_000, 32_000)  # below the ephemeral ports: a readiness loop on one of those can connect to itself
_LOOK_SECONDS = 2.0
_LAYERS = 28
_KV_BYTES = 4  # per layer and head dimension: K and V, two bytes each

Load = Callable[[str, str, int], Awaitable[float]]  # lifecycle.engine_calls.EngineCalls.load(endpoint, model, num_ctx)
Look = Callable[..., Awaitable[EngineSeen]]  # telemetry's look(endpoint, deadline_seconds=…, details=…)


@dataclass(slots=True, kw_only=True)
class _Simulated:
    """One place's machinery. server None: stopped. The port stays, as a container's published port does."""

    model: RehearsalModel
    port: int
    server: RehearsalServer | None = None
    started_at_seconds: float | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # of this run; loads under way end with it

    @property
    def endpoint(self) -> str:
        return f"http://{_HOST}:{self.port}"


class RehearsalProvider:
    name = "rehearsal"
    rehearsal = True
    local = True

    def __init__(
        self,
        models: Sequence[ModelSettings],
        settings: RehearsalSettings,
        *,
        load: Load,
        look: Look,
        num_parallel: int = 1,
    ) -> None:
        self._settings = settings
        self._load = load
        self._look = look
        self._num_parallel = num_parallel
        self._places = {
            Place(server=f"rehearsal:{model.name.replace(':', '-')}", model=model.name): _Simulated(
                model=simulated(model), port=_free_port()
            )
            for model in models
        }
        self._locks = {place: asyncio.Lock() for place in self._places}
        self._changed = asyncio.Event()

    def loaded_bytes(self) -> int:
        """What all simulated models hold now: the simulated host misses it."""
        return sum(one.server.loaded_bytes() for one in self._places.values() if one.server is not None)

    def foreign_bytes(self) -> int:
        return 0

    async def list(self) -> Sequence[PlaceSeen]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._see(place, one)) for place, one in self._places.items()]
        return [task.result() for task in tasks]

    async def _see(self, place: Place, one: _Simulated) -> PlaceSeen:
        if one.server is None:
            return PlaceSeen(
                place=place, running=False, endpoint=one.endpoint, installed=True, because="simulated, stopped"
            )
        server = one.server
        engine = await self._look(one.endpoint, deadline_seconds=_LOOK_SECONDS, details=True)
        loaded = engine.loaded.get(one.model.name)
        return PlaceSeen(
            place=place,
            running=True,
            answers=engine.reachable,
            loaded=loaded is not None if engine.reachable else None,
            loaded_num_ctx=loaded.num_ctx if loaded else None,
            loaded_size_bytes=loaded.size_bytes if loaded else None,
            loaded_vram_bytes=loaded.size_vram_bytes if loaded else None,
            endpoint=one.endpoint,
            memory_used_bytes=server.loaded_bytes(),
            started_at_seconds=one.started_at_seconds,
            installed=True,
            version=engine.version,
            because=engine.because,
        )

    async def start(self, place: Place) -> None:
        one = self._find(place)
        async with self._locks[place]:
            if one.server is not None:
                return
            one.server = await self._listen(place, one)
            one.started_at_seconds = time.time()
            one.ended = asyncio.Event()
        self._changed.set()

    async def _listen(self, place: Place, one: _Simulated) -> RehearsalServer:
        """On its port; on another when somebody has taken that meanwhile."""
        free_bytes = self._settings.host_memory_bytes - self._settings.host_other_bytes - self.loaded_bytes()
        for port in (one.port, 0):
            server = RehearsalServer(
                [one.model],
                host=_HOST,
                port=port,
                seed=self._settings.seed,
                memory_bytes=max(0, free_bytes),
                num_parallel=self._num_parallel,
                time_scale=self._settings.time_scale,
            )
            try:
                await server.start()
            except OSError as cause:
                last = cause
                continue
            one.port = server.port
            return server
        raise EngineRefused(f"{place} could not be simulated: no port to listen on ({last}).") from last

    async def load(self, place: Place, num_ctx: int) -> float:
        one = self._find(place)
        if one.server is None:
            raise EngineRefused(f"{place} cannot load {place.model}: it is stopped.")
        ended = one.ended
        load = asyncio.ensure_future(self._load(one.endpoint, place.model, num_ctx))
        watch = asyncio.create_task(ended.wait(), name=f"watch {place}")
        try:
            await asyncio.wait({load, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.is_set():
                with contextlib.suppress(EngineUnreachable):  # cut off: by its end, perhaps
                    return load.result()
            if ended.is_set():
                raise EngineRefused(f"{place} was stopped while {place.model} was loading.")
            return load.result()
        finally:
            load.cancel()
            watch.cancel()
            await asyncio.gather(load, watch, return_exceptions=True)

    async def stop(self, place: Place) -> None:
        one = self._find(place)
        async with self._locks[place]:
            server, one.server = one.server, None
            one.ended.set()
            if server is not None:
                await server.stop()
                self._changed.set()

    def _find(self, place: Place) -> _Simulated:
        try:
            return self._places[place]
        except KeyError:
            raise PlaceNotOurs(f"{place} is none of the simulated places; nothing was done.") from None

    async def wake(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    async def close(self) -> None:
        """Simulated places do not outlive the process: they end here."""
        for place in self._places:
            await self.stop(place)


def simulated(model: ModelSettings) -> RehearsalModel:
    """The configured model as a server that rehearses it. Speeds: configured, else the priors of docs/numbers.md."""
    known = PRIOR_MODELS.get(model.name)
    decode = model.tokens_per_second or 1 / (0.035 + model.file_bytes / 40e9)
    same_shape = known is not None and known.kv_bytes_per_token == model.kv_bytes_per_token
    return RehearsalModel(
        name=model.name,
        file_bytes=model.file_bytes,
        resident_bytes=model.file_bytes + model.kv_bytes_per_token * DEFAULT_NUM_CTX + OVERHEAD_BYTES,
        kv_bytes_per_token=model.kv_bytes_per_token,
        load_seconds=LOAD_BASE_SECONDS + model.file_bytes / 1e9 if model.load_seconds is None else model.load_seconds,
        decode_tokens_per_second=decode,
        prefill_tokens_per_second=8 * decode,
        context_max=model.context,
        features=frozenset(model.features),
        layers=known.layers if known and same_shape else _LAYERS,
        kv_heads=known.kv_heads if known and same_shape else 1,
        head_dim=known.head_dim if known and same_shape else max(1, model.kv_bytes_per_token // (_KV_BYTES * _LAYERS)),
    )


def _free_port() -> int:
    for port in random.sample(_PORTS, 200):
        with contextlib.suppress(OSError), socket.create_server((_HOST, port)):
            return port
    raise EngineRefused(f"No free port among 200 tried in {_PORTS.start}..{_PORTS.stop}; nothing can be simulated.")
