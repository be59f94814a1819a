"""The configuration again, while the daemon runs: on SIGHUP, and when its file changes.

Read and checked whole in a thread, off the loop; put in force in one step, between two decisions: one new Settings in
the place of the old, and each room that keeps something of them told. A file with a problem changes nothing; one that
could not be read is tried again, for it has not been judged. What is wrong is in the log, in words; the event that
everybody may read has the paths only.
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
from dispatcher.config import FILE_NAME, Reread, Stamp, find, reread, stamp_of
from dispatcher.errors import ConfigurationInvalid
from dispatcher.telemetry.bounded_session import BoundedThreads, TooManyAbandoned
from dispatcher.vocabulary.event import Event, Reloaded
from dispatcher.vocabulary.settings import Settings

LOOK_SECONDS = 2.0  # between looks at the file
SETTLE_SECONDS = 0.2  # a file must have been left alone for so long: editors and copies write in pieces
SETTLE_LOOKS = 10  # … but one that never comes to rest is read all the same
READ_SECONDS = 30.0  # a file system that hangs
RETRY_SECONDS = 2.0  # until the first look again at a file that could not be read; each further one after twice as long
LONGEST_RETRY_SECONDS = 300.0
MOST_RETRIES = 12  # within half an hour; then it takes a SIGHUP, or another change of the file
TOLD_PROBLEMS = 20  # of more, the log and the event say how many; check-config names them all

_log = logging.getLogger("dispatcher.config")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the settings in force came from. path None: no file. stamp: of before it was read, so that nothing that
    was written meanwhile is missed. folder: where a SIGHUP looks for one if there was none at start; None: nowhere."""

    path: Path | None = None
    stamp: Stamp | None = None
    folder: Path | None = None

    @classmethod
    def of(cls, path: Path | None, folder: Path | None = None) -> Origin:
        return cls(path=path, stamp=stamp_of(path) if path is not None else None, folder=folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """What one read came to. path: of the file that was read; None: there is none."""

    path: Path | None
    stamp: Stamp | None
    outcome: Reread | Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unjudged:
    """A reload that could not read what it was to judge. stamp: as that read saw the file. due_seconds: on the loop's
    clock, when to try again."""

    tries: int
    stamp: Stamp | None
    due_seconds: float


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
        self._folder = origin.folder
        self._stamp = origin.stamp  # of what was judged last
        self._unjudged: _Unjudged | None = None
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
                elif self._unjudged is not None and asyncio.get_running_loop().time() >= self._unjudged.due_seconds:
                    await self._read_and_judge()
            except Exception:
                _log.exception('reload=failed consequence="the settings in force stay"')

    async def reload(self) -> None:
        """One reload, told whatever comes of it; what cannot be read is tried again by `run`."""
        self._unjudged = None
        await self._read_and_judge()

    async def _read_and_judge(self) -> None:
        """Who asks from now on is served by the next one: the file is read after this line."""
        self._asked.clear()
        with self._held():
            try:
                attempt = await self._off_loop(partial(self._read, self._settings()))
            except (TimeoutError, TooManyAbandoned):
                words = f"{self._name}: could not be read within {READ_SECONDS:g} s; is its file system there?"
                self._put_off(self._path, [words], words, self._stamp)
            else:
                self._judge(attempt)

    def _judge(self, attempt: _Attempt) -> None:
        outcome = attempt.outcome
        if isinstance(outcome, ConfigurationInvalid) and outcome.unread:
            of_file = attempt.path is not None and outcome.problems[0].startswith(f"{attempt.path.name}: ")
            because = outcome.problems[0].partition(";")[0] if of_file else _paths(outcome.problems)
            self._put_off(attempt.path, outcome.problems, because, attempt.stamp)
            return
        self._stamp, self._unjudged = attempt.stamp, None
        if isinstance(outcome, ConfigurationInvalid):
            self._refuse(attempt.path, outcome.problems, _paths(outcome.problems))
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            self._adopt(attempt.path)
            self._accept(outcome)

    def _put_off(self, path: Path | None, problems: list[str], because: str, stamp: Stamp | None) -> None:
        """Told once, tried again with growing patience, and in the end left until somebody asks or the file changes."""
        tries = self._unjudged.tries if self._unjudged is not None else 0
        if tries == 0 or problems != self._refused:
            self._refuse(path, problems, because)
        if tries >= MOST_RETRIES:
            self._stamp, self._unjudged = stamp, None
            _log.error('reload=given_up file="%s" tries=%d try="mend it, then SIGHUP"', path or "", tries)
            return
        wait_seconds = min(RETRY_SECONDS * 2**tries, LONGEST_RETRY_SECONDS)
        due_seconds = asyncio.get_running_loop().time() + wait_seconds
        self._unjudged = _Unjudged(tries=tries + 1, stamp=stamp, due_seconds=due_seconds)
        _log.info('reload=put_off file="%s" again_in_seconds=%g', path or "", wait_seconds)

    def _adopt(self, path: Path | None) -> None:
        """A file that was written after a start without one: from here on it is the one that is looked at."""
        if path is None and self._folder is not None:
            _log.info('reload=no_file looked_for="%s" consequence="the defaults stay"', self._folder / FILE_NAME)
        if path is None or path == self._path:
            return
        self._path = path
        rehearsal = ' until_a_restart="without a real engine rehearsal goes on standing in"'
        auto = self._settings().lifecycle.provider == "auto"
        _log.warning('reload=adopted file="%s" because="there was none at start"%s', path, rehearsal if auto else "")

    @property
    def _name(self) -> str:
        return self._path.name if self._path is not None else FILE_NAME if self._folder else "the environment"

    async def _has_changed(self) -> bool:
        """Whether the file is another than the one read last, and has come to rest."""
        if self._path is None or self._is_known(await self._stamp_now()):
            return False
        before: Stamp | None = None
        seen: Stamp | None = None
        for _ in range(SETTLE_LOOKS):
            before, seen = seen, await self._stamp_now()
            if seen == before and seen is not None:
                break
            await asyncio.sleep(SETTLE_SECONDS)
        return not self._is_known(seen)

    def _is_known(self, stamp: Stamp | None) -> bool:
        """Judged, or waiting for its next try."""
        return stamp == self._stamp or (self._unjudged is not None and stamp == self._unjudged.stamp)

    async def _stamp_now(self) -> Stamp | None:
        """The one read last when the file system does not answer: then there is nothing new to be read."""
        assert self._path is not None
        try:
            return await self._off_loop(partial(stamp_of, self._path))
        except (TimeoutError, TooManyAbandoned):
            return self._stamp

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await self._threads.run(work, READ_SECONDS, lambda: None)

    def _read(self, before: Settings) -> _Attempt:
        """In the thread: reads what is given to it, and leaves everything of this object as it is. The stamp is of
        before the read, as Origin's."""
        path = self._path
        if path is None and self._folder is not None:
            path = find(None, self._environ, self._folder)
        stamp = stamp_of(path) if path is not None else None
        try:
            return _Attempt(path=path, stamp=stamp, outcome=reread(path, self._environ, before))
        except Exception as error:
            return _Attempt(path=path, stamp=stamp, outcome=error)

    def _refuse(self, path: Path | None, problems: list[str], because: str) -> None:
        told = problems[:TOLD_PROBLEMS]
        if len(problems) > len(told):
            told.append(_more(problems))
        if problems != self._refused:
            _log.error(
                'reload=refused file="%s" problems=%d consequence="the old settings stay in force"\n%s',
                path or "",
                len(problems),
                "\n".join(f"  {problem}" for problem in told),
            )
        else:
            _log.info('reload=refused file="%s" problems=%d because="the same as before"', path or "", len(problems))
        self._refused = list(problems)
        self._emit(Reloaded(at_seconds=self._clock.now_seconds(), ok=False, because=because))

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


def _paths(problems: list[str]) -> str:
    """Where the problems are, without their words: those quote what was written, and an event goes to every reader."""
    paths = [problem.partition(": ")[0] for problem in problems[:TOLD_PROBLEMS]]
    if len(problems) > len(paths):
        paths.append(_more(problems))
    return f"{', '.join(paths)}; the log has the words"


def _more(problems: list[str]) -> str:
    return f"and {len(problems) - TOLD_PROBLEMS} more: dispatcher check-config"
