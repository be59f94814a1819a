"""Engine calls: one task per place at a time, each under an absolute deadline. It acts; it decides nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dispatcher.clock import Clock
from dispatcher.errors import DispatcherError, EngineRefused, EngineUnreachable, OutOfMemory, PlaceNotOurs
from dispatcher.lifecycle.provider import Provider
from dispatcher.vocabulary.action import Action, Start, Stop
from dispatcher.vocabulary.event import Acted
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.settings import Settings

_log = logging.getLogger(__name__)


class Acting:
    def __init__(
        self,
        *,
        provider: Provider,
        settings: Callable[[], Settings],
        clock: Clock,
        done: Callable[[Acted], None],
        left: Callable[[Place], None],
        load_deadline_seconds: Callable[[Place], float],
        fault: Callable[[str, Exception, str], None],
    ) -> None:
        """left: called instead of `done` when a start that is no longer wanted has come to its end."""
        self._fault = fault
        self._load_deadline_seconds = load_deadline_seconds
        self._provider = provider
        self._settings = settings
        self._clock = clock
        self._done = done
        self._left = left
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[Place, asyncio.Task[None]] = {}
        self._last_seconds: dict[Place, float] = {}
        self._in_start_call: set[Place] = set()
        self._unwanted: set[Place] = set()
        self._unsettled: set[Place] = set()  # a start call went unanswered: the engine may still be at it
        self._settled_seconds: dict[Place, float] = {}

    def open(self, group: asyncio.TaskGroup) -> None:
        self._group = group

    def busy(self, place: Place) -> bool:
        return place in self._tasks

    def starting(self, place: Place) -> bool:
        """The engine has been asked to start it, and has not answered yet."""
        return place in self._in_start_call

    def may_yet_run(self, place: Place, look_began_seconds: float) -> bool:
        """For all that a look can know that began then: a start call that was not answered may still bring it up. Only
        a stop call that was answered rules that out, for the engine does one after the other."""
        return place in self._unsettled or look_began_seconds <= self._settled_seconds.get(place, float("-inf"))

    def since_last_seconds(self, place: Place) -> float:
        """Since the last action on this place began; infinite when there was none."""
        last = self._last_seconds.get(place)
        return float("inf") if last is None else self._clock.now_seconds() - last

    def begin(self, action: Action) -> None:
        """The caller has made sure that no task of this place runs."""
        assert self._group is not None, "acting before the loop runs"
        assert action.place not in self._tasks, f"two tasks for {action.place}"
        self._last_seconds[action.place] = self._clock.now_seconds()
        work = self._outlived(action)
        verb = "start" if isinstance(action, Start) else "stop"
        task = self._group.create_task(work, name=f"lifecycle.{verb}.{action.place}")
        self._tasks[action.place] = task
        task.add_done_callback(lambda ended: self._forget(action.place, ended))

    async def _outlived(self, action: Action) -> None:
        """What follows from an action's end is ours as well: a fault in it ends this task, and not the daemon."""
        try:
            await (self._start(action) if isinstance(action, Start) else self._stop(action))
        except Exception as fault:
            self._unwanted.discard(action.place)
            self._fault("action", fault, f"{action.place} is as it is; the next look tells how")

    def cancel(self, place: Place) -> None:
        """Its end is no longer wanted, nor reported. A load that is cut ends in the engine, too; a start call does not:
        it is waited for, within its deadline, so that nothing comes up after the stop."""
        task = self._tasks.get(place)
        if task is None:
            return
        if place in self._in_start_call:
            self._unwanted.add(place)
        else:
            task.cancel()

    def _forget(self, place: Place, ended: asyncio.Task[None]) -> None:
        """Called a moment after the task's end, when the next one of this place may already be at work."""
        if self._tasks.get(place) is ended:
            del self._tasks[place]

    async def _start(self, action: Start) -> None:
        rules = self._settings().lifecycle
        began = self._clock.now_seconds()
        load_seconds: float | None = None
        step = "start"

        async def work() -> None:
            nonlocal load_seconds, step
            await self._start_call(action.place, rules.start_timeout_seconds)
            if action.place in self._unwanted:
                return
            step = "load"
            async with asyncio.timeout(self._load_deadline_seconds(action.place)):
                load_seconds = await self._provider.load(action.place, action.num_ctx)

        because, error_type = await self._outcome(work, "start", lambda: step)
        if action.place in self._unwanted:
            self._unwanted.discard(action.place)
            self._tasks.pop(action.place, None)  # before `left`, as in _report
            self._left(action.place)
            return
        self._report(action, began, because, error_type, load_seconds)

    async def _start_call(self, place: Place, deadline_seconds: float) -> None:
        self._in_start_call.add(place)
        self._unsettled.add(place)
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._provider.start(place)
            self._unsettled.discard(place)
        except EngineRefused:
            self._unsettled.discard(place)
            raise
        finally:
            self._in_start_call.discard(place)

    async def _stop(self, action: Stop) -> None:
        began = self._clock.now_seconds()

        async def work() -> None:
            async with asyncio.timeout(self._settings().lifecycle.stop_timeout_seconds):
                await self._provider.stop(action.place)

        because, error_type = await self._outcome(work, "stop", lambda: "stop")
        if error_type in ("", "stop_refused", "place_not_ours") and action.place in self._unsettled:
            self._unsettled.discard(action.place)
            self._settled_seconds[action.place] = self._clock.now_seconds()
        self._report(action, began, because, error_type, None)

    async def _outcome(self, work: Callable[[], object], verb: str, step: Callable[[], str]) -> tuple[str, str]:
        """What went wrong, in words and as a word of the closed vocabulary; two empty strings: nothing. step: which of
        them a deadline has cut."""
        try:
            await work()  # type: ignore[misc]
        except TimeoutError:
            return f"the {step()} did not end within its deadline", f"{step()}_timeout"
        except EngineUnreachable as trouble:
            return str(trouble), "engine_unreachable"
        except OutOfMemory as trouble:
            return str(trouble), "oom_killed"
        except PlaceNotOurs as trouble:
            return str(trouble), "place_not_ours"
        except EngineRefused as trouble:
            return str(trouble), f"{verb}_refused"
        except DispatcherError as trouble:
            return str(trouble), f"{verb}_failed"
        except Exception as fault:  # ours: a provider promises DispatcherError. The loop outlives it
            _log.exception("action=%s fault=%s", verb, fault)
            return f"a fault of ours: {fault!r}", f"{verb}_failed"
        return "", ""

    def _report(
        self, action: Action, began_seconds: float, because: str, error_type: str, load_seconds: float | None
    ) -> None:
        now = self._clock.now_seconds()
        self._tasks.pop(action.place, None)  # before `done`: what follows from it may begin at once
        self._done(
            Acted(
                at_seconds=now,
                action=action,
                ok=not because,
                seconds=now - began_seconds,
                load_seconds=load_seconds,
                because=because,
                error_type=error_type,
            )
        )
