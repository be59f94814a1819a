"""The configuration again, while the daemon runs: on SIGHUP, and when its file changes.

Read and checked whole in a thread, off the loop; put in force in one step, between two decisions: one new Settings in
the place of the old, and each room that keeps something of them told. A file with a problem changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from dispatcher.clock import Clock
from dispatcher.config import Reread, Stamp, reread, stamp_of
from dispatcher.errors import ConfigurationInvalid
from dispatcher.telemetry.bounded_session import BoundedThreads, TooManyAbandoned
from dispatcher.vocabulary.event import Event, Reloaded
from dispatcher.vocabulary.settings import Settings

LOOK_SECONDS = 2.0  # between looks at the file
SETTLE_SECONDS = 0.2  # a file must have been left alone for so long: editors and copies write in pieces
SETTLE_LOOKS = 10  # … but one that never comes to rest is read all the same
READ_SECONDS = 30.0  # a file system that hangs
TOLD_PROBLEMS = 20  # of more, the log and the event say how many; check-config names them all

_log = logging.getLogger("dispatcher.config")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the settings in force came from. path None: no file. stamp: of before it was read, so that nothing that
    was written meanwhile is missed."""

    path: Path | None = None
    stamp: Stamp | None = None

    @classmethod
    def of(cls, path: Path | None) -> Origin:
        return cls(path=path, stamp=stamp_of(path) if path is not None else None)


class Reloading:
    """apply: puts settings in force, at once and whole. held: around each reload (the service manager is told)."""

    def __init__(
        self,
        origin: Origin,
        environ: Mapping[str, str],
        *,
        settings: Callable[[], Settings],
        apply: Callable[[Settings], None],
        emit: Callable[[Event], None],
        clock: Clock,
        held: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._path = origin.path
        self._stamp = origin.stamp
        self._environ = environ
        self._settings = settings
        self._apply = apply
        self._emit = emit
        self._clock = clock
        self._held = held
        self._asked = asyncio.Event()
        self._threads = BoundedThreads("config")
        self._refused: list[str] = []  # problems as told last; empty: the file is in force

    @property
    def path(self) -> Path | None:
        """Of the configuration file; None: there is none."""
        return self._path

    @property
    def abandoned_threads(self) -> int:
        return self._threads.abandoned

    def ask(self) -> None:
        """SIGHUP. However often it is asked while a reload is under way, one more follows."""
        self._asked.set()

    async def run(self) -> None:
        """Until cancelled. Nothing that goes wrong in here may end the daemon."""
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._asked.wait()
            except TimeoutError:
                pass
            try:
                if self._asked.is_set() or await self._has_changed():
                    await self.reload()
            except Exception:
                _log.exception('reload=failed consequence="the settings in force stay"')

    async def reload(self) -> None:
        """One reload. Who asks from now on is served by the next one: the file is read after this line."""
        self._asked.clear()
        with self._held():
            try:
                found = await self._off_loop(partial(self._read, self._settings()))
            except ConfigurationInvalid as invalid:
                self._refuse(invalid.problems)
            except (TimeoutError, TooManyAbandoned):
                self._refuse([f"{self._name}: could not be read within {READ_SECONDS:g} s; is its file system there?"])
            else:
                self._accept(found)

    @property
    def _name(self) -> str:
        return self._path.name if self._path is not None else "the environment"

    async def _has_changed(self) -> bool:
        """Whether the file is another than the one read last, and has come to rest."""
        if self._path is None or await self._stamp_now() == self._stamp:
            return False
        before: Stamp | None = None
        seen: Stamp | None = None
        for _ in range(SETTLE_LOOKS):
            before, seen = seen, await self._stamp_now()
            if seen == before and seen is not None:
                break
            await asyncio.sleep(SETTLE_SECONDS)
        return seen != self._stamp

    async def _stamp_now(self) -> Stamp | None:
        """The one read last when the file system does not answer: then there is nothing new to be read."""
        assert self._path is not None
        try:
            return await self._off_loop(partial(stamp_of, self._path))
        except (TimeoutError, TooManyAbandoned):
            return self._stamp

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await self._threads.run(work, READ_SECONDS, lambda: None)

    def _read(self, before: Settings) -> Reread:
        """In the thread."""
        if self._path is not None:
            self._stamp = stamp_of(self._path)
        return reread(self._path, self._environ, before)

    def _refuse(self, problems: list[str]) -> None:
        told = problems[:TOLD_PROBLEMS]
        if len(problems) > len(told):
            told.append(f"and {len(problems) - len(told)} more: dispatcher check-config")
        if problems != self._refused:
            _log.error(
                'reload=refused file="%s" problems=%d consequence="the old settings stay in force"\n%s',
                self._path or "",
                len(problems),
                "\n".join(f"  {problem}" for problem in told),
            )
        else:
            _log.info('reload=refused file="%s" problems=%d because="the same as before"', self._path, len(problems))
        self._refused = list(problems)
        self._emit(Reloaded(at_seconds=self._clock.now_seconds(), ok=False, because="; ".join(told)))

    def _accept(self, found: Reread) -> None:
        """No await in here: between one decision and the next, everything is the old or everything the new."""
        if found.changed:
            self._apply(found.settings)
        self._refused = []
        changed, waiting = ", ".join(found.changed) or "nothing", ", ".join(found.waiting)
        _log.log(
            logging.WARNING if waiting else logging.INFO,
            'reload=ok file="%s" changed="%s"%s',
            self._path or "",
            changed,
            f' needs_a_restart="{waiting}"' if waiting else "",
        )
        self._emit(
            Reloaded(at_seconds=self._clock.now_seconds(), ok=True, changed=found.changed, waiting=found.waiting)
        )
