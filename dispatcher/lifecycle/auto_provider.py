"""Uses what it finds: labelled containers, else an Ollama with a model of the chain, else (if allowed) rehearsal.

Looks again every 30 s. It leaves rehearsal for the real thing, never the other way; and an engine that merely does not
answer is waited for, not replaced: its places are still there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from dispatcher.errors import EngineUnreachable
from dispatcher.lifecycle.none_provider import NoneProvider
from dispatcher.lifecycle.plain_words import in_few_words
from dispatcher.lifecycle.provider import Answering, Provider
from dispatcher.vocabulary.fleet import Place, PlaceSeen

DETECT_SECONDS = 30.0

_log = logging.getLogger(__name__)


class AutoProvider:
    """Delegates everything to the provider in use; before the first `detect` that is none."""

    def __init__(
        self,
        docker: Provider,
        ollama: Provider,
        *,
        rehearsal: Callable[[], Provider] | None,
        saw_real: Callable[[], bool],
        had: Callable[[], str | None] = lambda: None,
        erred: Callable[[str], None] = lambda error_type: None,
        detect_seconds: float = DETECT_SECONDS,
        now_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """rehearsal: makes it, when allowed (only without a configuration file). saw_real: was a real place ever seen
        here, in this life or an earlier one? had: the name of the provider that had our places last, as remembered.
        erred: counts a fault of ours."""
        self._candidates = (docker, ollama)
        self._make_rehearsal = rehearsal
        self._saw_real = saw_real
        self._had = had
        self._erred = erred
        self._detect_seconds = detect_seconds
        self._now_seconds = now_seconds
        self._current: Provider = NoneProvider()
        self._detected_at_seconds: float | None = None
        self._listed: Sequence[PlaceSeen] | None = None  # what detection saw of the current one, for the next `list`
        self._silent: dict[str, str] = {}  # candidates that could not be asked, and why
        self._found: dict[str, str] = {}
        self._switched = asyncio.Event()
        self._real_seen = False
        self._detecting = asyncio.Lock()

    @property
    def name(self) -> str:
        return self._current.name

    @property
    def rehearsal(self) -> bool:
        return self._current.rehearsal

    @property
    def local(self) -> bool:
        return self._current.local

    def found(self) -> Mapping[str, str]:
        """Provider → what the last detection found there, in words for the start-up lines."""
        return dict(self._found)

    def foreign_bytes(self) -> int:
        return self._current.foreign_bytes()

    async def detect(self) -> str:
        """Looks at every engine and returns the name of the one in use from now on."""
        async with self._detecting:
            listed: dict[str, Sequence[PlaceSeen]] = {}
            async with asyncio.TaskGroup() as group:
                for candidate in self._candidates:
                    group.create_task(self._ask(candidate, listed), name=f"detect {candidate.name}")
            chosen = self._choose(listed)
            self._detected_at_seconds = self._now_seconds()
            self._listed = listed.get(chosen.name)
            if chosen is not self._current:
                await self._switch(chosen)
            return chosen.name

    async def _ask(self, candidate: Provider, listed: dict[str, Sequence[PlaceSeen]]) -> None:
        try:
            seen = listed[candidate.name] = await candidate.list()
        except EngineUnreachable as cause:
            awaited = self._awaited(candidate)
            self._silent[candidate.name] = f"{cause}{_WAY_OUT}" if awaited else str(cause)
            words = f"{candidate.name.capitalize()}: no answer ({in_few_words(cause)})"
            self._found[candidate.name] = words + (_AWAITED if awaited else "")
            return
        except Exception as fault:  # ours: a provider promises EngineUnreachable. The others are used all the same
            if self._silent.get(candidate.name) != (because := f"a fault of ours: {fault!r}"):
                _log.exception('provider=%s fault="%r" consequence="it counts as silent"', candidate.name, fault)
            self._erred("internal")
            self._silent[candidate.name] = because
            self._found[candidate.name] = f"{candidate.name.capitalize()}: no answer ({because})"
            return
        self._silent.pop(candidate.name, None)
        self._found[candidate.name] = _in_words(candidate.name, seen)

    def _awaited(self, candidate: Provider) -> bool:
        """It has our places, in this life or, before any other has come into use, by what was remembered."""
        return candidate is self._current or (self._current.name == "none" and candidate.name == self._had())

    def _choose(self, listed: Mapping[str, Sequence[PlaceSeen]]) -> Provider:
        """The first that has something of ours. One in use that is silent, or has nothing while no other has, stays;
        and one that had our places before a restart is waited for in the same way."""
        for candidate in self._candidates:
            if candidate.name in self._silent and self._awaited(candidate):
                return candidate
            if any(_usable(seen) for seen in listed.get(candidate.name, ())):
                self._real_seen = True
                return candidate
        if self._current.name != "none" or self._make_rehearsal is None or self._real_seen or self._saw_real():
            return self._current
        return self._make_rehearsal()

    async def _switch(self, chosen: Provider) -> None:
        left, self._current = self._current, chosen
        _log.info("provider=%s before=%s", chosen.name, left.name)
        self._switched.set()
        self._switched = asyncio.Event()
        if left not in self._candidates:
            await left.close()

    async def list(self) -> Sequence[PlaceSeen]:
        """As the provider in use says. EngineUnreachable also when none is in use, real places were seen here once, and
        an engine that may have them is silent."""
        at_seconds = self._detected_at_seconds
        if at_seconds is None or self._now_seconds() - at_seconds >= self._detect_seconds:
            await self.detect()
            if self._listed is not None:
                return self._listed
            if self._current.name in self._silent:  # it was asked just now: not twice within one deadline
                raise EngineUnreachable(self._silent[self._current.name])
        if self._current.name == "none" and self._silent and self._saw_real():
            raise EngineUnreachable(" ".join(self._silent.values()))
        try:
            return await self._current.list()
        except EngineUnreachable as cause:
            raise EngineUnreachable(f"{cause}{_WAY_OUT}") from cause

    async def answers(self, place: Place, endpoint: str) -> bool | None:
        current = self._current
        return await current.answers(place, endpoint) if isinstance(current, Answering) else None

    async def start(self, place: Place) -> None:
        await self._current.start(place)

    async def load(self, place: Place, num_ctx: int) -> float:
        return await self._current.load(place, num_ctx)

    async def stop(self, place: Place) -> None:
        await self._current.stop(place)

    async def wake(self) -> None:
        """Also returns when another provider comes into use."""
        tasks = [
            asyncio.create_task(self._current.wake(), name="wake"),
            asyncio.create_task(self._switched.wait(), name="switched"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a fault, if it was one: a wake that fails at once must not look like news
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        for provider in (*self._candidates, self._current):
            await provider.close()


_AWAITED = "; it had the models last and is waited for (lifecycle.provider in the configuration names another)"
_WAY_OUT = " It had the models last, so it is waited for; to use another, name it: lifecycle.provider."


def _usable(seen: PlaceSeen) -> bool:
    """A container is declared, installed model or not; a model of a shared server must be on its disk (None: unknown,
    then it is not taken for it)."""
    return seen.installed is True or not seen.shared


def _in_words(name: str, seen: Sequence[PlaceSeen]) -> str:
    label = name.capitalize()
    if not any(place.shared for place in seen):
        count = len(seen)
        return f"{label}: {count or 'no'} labelled container{'' if count == 1 else 's'}"
    have = [place.place.model for place in seen if place.installed]
    if have:
        return f"{label}: {', '.join(have)}"
    return f"{label}: answers, has no model of the chain; try: ollama pull {seen[0].place.model}"
