"""Model containers through the Docker SDK. Declared elsewhere (compose), found by label, moved between stopped and
running by name. Before every action the container is inspected again: without our labels it is untouchable.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from dispatcher.errors import EngineAnswerUnreadable, EngineRefused, EngineUnreachable, OutOfMemory, PlaceNotOurs
from dispatcher.lifecycle.docker_answers import (
    MODEL_LABEL,
    PAUSED,
    SERVER_PREFIX,
    Json,
    endpoint_of,
    how_it_ended,
    inspected_place,
    is_paused,
    is_privileged,
    is_running,
    place_of,
    row_name,
    seen_from_row,
    seen_of,
    was_oom_killed,
)
from dispatcher.lifecycle.docker_calls import DockerCalls, DockerEvents, Engine
from dispatcher.lifecycle.engine_calls import EngineCalls
from dispatcher.lifecycle.provider import Look
from dispatcher.vocabulary.engine import EngineSeen
from dispatcher.vocabulary.fleet import Place, PlaceSeen
from dispatcher.vocabulary.settings import LifecycleSettings

_LOOK_SECONDS = 2.0  # a healthy engine answers in milliseconds; a busy one within this
_WATCH_SECONDS = 0.5  # between looks at whether a container that loads still runs
_CUT_SECONDS = 3.0  # a load that was cut off: so long its container may take to be seen ended

_PRIVILEGED = "privileged, and what may do anything on its host is not started from here; declare it without that"
_STATS_SECONDS = 3.0  # deadline of one reading of a container's CPU and memory

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class DockerProvider:
    """Every container with `dispatcher.managed=true` and `dispatcher.model=<name>` is one place."""

    def __init__(self, settings: LifecycleSettings, look: Look) -> None:
        self._settings = settings
        self._look = look
        self._calls = DockerCalls(settings.docker_url)
        self._acts = DockerCalls(settings.docker_url)  # apart: places that take long to stop must not stop the looking
        self._engine = EngineCalls()
        self._events: DockerEvents | None = None
        self._changed = asyncio.Event()
        self._ignored: set[tuple[str, str]] = set()  # warned of once
        self._stats: dict[str, tuple[str, Json]] = {}  # container → the run it is of, its newest reading
        self._measuring: dict[str, asyncio.Task[None]] = {}

    name = "docker"
    rehearsal = False

    def apply(self, settings: LifecycleSettings) -> None:
        """Deadlines from now on; url and labels are those it was made with."""
        self._settings = settings

    @property
    def local(self) -> bool:
        return self._calls.remote_host is None

    @property
    def abandoned_threads(self) -> int:
        """For the gauge: Docker calls nobody waits for any more that have not come back."""
        return self._calls.abandoned_threads + self._acts.abandoned_threads

    def foreign_bytes(self) -> int:
        return 0

    async def list(self) -> Sequence[PlaceSeen]:
        timeout_seconds = self._settings.list_timeout_seconds
        until_seconds = time.monotonic() + timeout_seconds
        try:
            async with asyncio.timeout(timeout_seconds):
                rows = await self._calls.run(
                    lambda engine: engine.containers(self._settings.docker_labels),
                    what="list containers",
                    deadline_seconds=timeout_seconds,
                )
                seen = await _all(self._see(row, until_seconds) for row in rows)
        except EngineRefused as cause:
            raise EngineUnreachable(f"{cause}. A filtering proxy must allow GET /containers/json.") from cause
        except EngineAnswerUnreadable as cause:
            raise EngineUnreachable(str(cause)) from cause
        except TimeoutError as cause:
            raise EngineUnreachable(f"Docker did not list its containers within {timeout_seconds:g} s.") from cause
        return sorted((place for place in seen if place is not None), key=lambda one: one.place)

    async def _see(self, row: Json, until_seconds: float) -> PlaceSeen | None:
        """None: no place (no model label, or privileged), or gone since the list. A container that Docker does not
        inspect in half the time left, or not in its protocol, is told by its row alone, and does not hold up the
        others."""
        place = place_of(name := row_name(row), row.get("Labels"))
        if place is None:
            self._ignore(name, f"it is managed, but has no label {MODEL_LABEL}")
            return None
        try:
            inspected = await self._calls.run(
                lambda engine: engine.inspect(name),
                what=f"inspect {name}",
                deadline_seconds=_share(until_seconds, 0.5),
            )
        except (EngineUnreachable, EngineRefused, EngineAnswerUnreadable) as cause:
            return seen_from_row(place, row, str(cause))
        if inspected is None or inspected_place(inspected) != place:
            return None
        if is_privileged(inspected):
            self._ignore(name, f"it is {_PRIVILEGED}")
            return None
        try:
            if not is_running(inspected):
                return seen_of(place, inspected, remote_host=self._calls.remote_host)
            return await self._see_running(place, inspected, until_seconds)
        except (AttributeError, KeyError, TypeError, ValueError) as cause:  # fields of other types than Docker's
            return seen_from_row(place, row, f"Docker's answer about {name} cannot be read ({cause!r})")

    def _ignore(self, name: str, why: str) -> None:
        if (name, why) not in self._ignored:
            self._ignored.add((name, why))
            _log.warning("container=%s ignored: %s", name, why)

    async def _see_running(self, place: Place, inspected: Json, until_seconds: float) -> PlaceSeen:
        endpoint, _ = endpoint_of(inspected, self._calls.remote_host)
        share_seconds = min(_LOOK_SECONDS, _share(until_seconds, 0.8))
        engine = None if is_paused(inspected) else await self._look_at(endpoint, share_seconds)
        run = (_container(place), str((inspected.get("State") or {}).get("StartedAt")))
        return seen_of(
            place, inspected, remote_host=self._calls.remote_host, stats=self._newest_stats(*run), engine=engine
        )

    def _newest_stats(self, name: str, started_at: str) -> Json | None:
        """Of this run of the container, and a new reading is begun. Not waited for: Docker answers a second reading
        only at its next one-second tick, one-shot or not (measured on 20.10), and a look must not take a second."""
        if name not in self._measuring:
            self._measuring[name] = asyncio.create_task(self._measure(name, started_at), name=f"stats {name}")
        known = self._stats.get(name)
        return known[1] if known is not None and known[0] == started_at else None

    async def _measure(self, name: str, started_at: str) -> None:
        try:
            stats = await self._calls.run(
                lambda engine: engine.stats(name), what=f"read stats of {name}", deadline_seconds=_STATS_SECONDS
            )
        except (EngineUnreachable, EngineRefused):
            self._stats.pop(name, None)  # it stopped meanwhile, or Docker is slow: its CPU and memory are unknown
        else:
            self._stats[name] = (started_at, stats)
        finally:
            self._measuring.pop(name, None)

    async def _look_at(self, endpoint: str | None, deadline_seconds: float) -> EngineSeen | None:
        if endpoint is None:
            return None
        return await self._look(endpoint, deadline_seconds=deadline_seconds, details=True)

    async def answers(self, place: Place, endpoint: str) -> bool | None:
        """As its model server says, whatever Docker does."""
        engine = await self._look(endpoint, deadline_seconds=_LOOK_SECONDS, details=False)
        return engine.reachable

    async def start(self, place: Place) -> None:
        name = _container(place)

        def errand(engine: Engine) -> None:
            _ours(engine, place, self._settings.docker_labels)
            engine.start(name)

        await self._acts.run(errand, what=f"start {name}", deadline_seconds=self._settings.start_timeout_seconds)

    async def stop(self, place: Place) -> None:
        name = _container(place)
        grace_seconds = math.ceil(self._settings.stop_grace_seconds)

        def errand(engine: Engine) -> None:
            _ours(engine, place, self._settings.docker_labels)
            engine.stop(name, grace_seconds)

        await self._acts.run(errand, what=f"stop {name}", deadline_seconds=self._settings.stop_timeout_seconds)

    async def load(self, place: Place, num_ctx: int) -> float:
        inspected = await self._inspect(place)
        if not is_running(inspected):
            kind = OutOfMemory if was_oom_killed(inspected) else EngineRefused
            raise kind(f"{place} cannot load {place.model}: it is {how_it_ended(inspected)}.")
        if is_paused(inspected):
            raise EngineRefused(f"{place} cannot load {place.model}: {PAUSED}.")
        endpoint, no_endpoint = endpoint_of(inspected, self._calls.remote_host)
        if endpoint is None:
            raise EngineRefused(f"{place} cannot be asked to load {place.model}: {no_endpoint}.")
        started = (inspected.get("State") or {}).get("StartedAt")
        load = asyncio.create_task(self._engine.load(endpoint, place.model, num_ctx), name=f"load {place}")
        watch = asyncio.create_task(self._until_it_ends(place, started), name=f"watch {place}")
        try:
            await asyncio.wait({load, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not load.done():
                raise watch.result()
            try:
                return load.result()
            except EngineUnreachable as cause:  # cut off: by its end, perhaps, which Docker learns a little later
                await asyncio.wait({watch}, timeout=_CUT_SECONDS)
                if not watch.done():
                    raise
                raise watch.result() from cause
        finally:
            load.cancel()
            watch.cancel()
            await asyncio.gather(load, watch, return_exceptions=True)

    async def _until_it_ends(self, place: Place, started: Any) -> EngineRefused:
        """How it ended. A Docker that does not answer ends nothing, and neither does a pause: the load waits."""
        while True:
            with contextlib.suppress(EngineUnreachable, EngineAnswerUnreadable):
                if ended := await self._ended(place, started):
                    return ended
            await asyncio.sleep(_WATCH_SECONDS)

    async def _ended(self, place: Place, started: Any) -> EngineRefused | None:
        """None while it runs as it did."""
        inspected = await self._inspect(place)
        restarted = (inspected.get("State") or {}).get("StartedAt") != started
        ended = how_it_ended(inspected) or ("it was started anew meanwhile" if restarted else "")
        if not ended:
            return None
        kind = OutOfMemory if was_oom_killed(inspected) else EngineRefused
        return kind(f"{place} ended while {place.model} was loading: {ended}.")

    async def _inspect(self, place: Place) -> Json:
        return await self._calls.run(
            lambda engine: _ours(engine, place, self._settings.docker_labels),
            what=f"inspect {_container(place)}",
            deadline_seconds=self._settings.list_timeout_seconds,
        )

    async def wake(self) -> None:
        if self._events is None:
            self._events = DockerEvents(self._calls, self._settings.docker_labels, self._changed.set)
        await self._changed.wait()
        self._changed.clear()

    async def close(self) -> None:
        for measuring in list(self._measuring.values()):
            measuring.cancel()
        if self._events is not None:
            self._events.close()
        await self._calls.close()
        await self._acts.close()
        await self._engine.close()


def _container(place: Place) -> str:
    if not place.server.startswith(SERVER_PREFIX):
        raise PlaceNotOurs(f"{place} is no container; nothing was done to it.")
    return place.server.removeprefix(SERVER_PREFIX)


def _ours(engine: Engine, place: Place, labels: Mapping[str, str]) -> Json:
    """The container, inspected, if it is still what we take it for. labels: what it must carry besides ours. The name
    is compared because Docker also finds containers by the beginning of their id."""
    inspected = engine.inspect(_container(place))
    if inspected is None:
        raise PlaceNotOurs(f"There is no container for {place} any more; nothing was done.", status=404)
    found = inspected_place(inspected)
    if found != place:
        raise PlaceNotOurs(
            f"The container {_container(place)} is not declared as a place for {place.model} "
            f"(its labels say {found.model if found else 'nothing of us'}); nothing was done to it. "
            f"Declare it with dispatcher.managed=true and {MODEL_LABEL}={place.model}."
        )
    if is_privileged(inspected):
        raise PlaceNotOurs(f"The container {_container(place)} is {_PRIVILEGED}. Nothing was done to it.")
    carried = (inspected.get("Config") or {}).get("Labels") or {}
    missing = ", ".join(f"{name}={value}" for name, value in labels.items() if carried.get(name) != value)
    if missing:
        raise PlaceNotOurs(
            f"The container {_container(place)} does not carry {missing}: it belongs to another stack on this engine; "
            "nothing was done to it. lifecycle.docker_labels says which labels are asked for."
        )
    return inspected


def _share(until_seconds: float, ratio: float) -> float:
    return max(0.0, (until_seconds - time.monotonic()) * ratio)


async def _all(coroutines: Iterable[Coroutine[Any, Any, _Answer]]) -> Sequence[_Answer]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
    return [task.result() for task in tasks]
