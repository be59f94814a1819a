"""A model server as a state machine: what happens when, to whom, in virtual time. No clock, no chance, no socket.

The caller brings the time, the noise and the faults; the engine answers with events. Between calls nothing happens: ask
`next_event_at` when something will, call `advance` then. rehearsal.server puts sockets around it; simulations drive it
in virtual time. "Rule n" cites tests/fixtures/ollama/README.md, where the behaviour was captured.

Known to be simpler than the real server: one load at a time, and a loading model is not listed by `loaded`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

from dispatcher.replay.asks import (
    Ask,
    ContextExceeded,
    Event,
    Fault,
    Finished,
    LoadEnded,
    LoadKilled,
    LoadStarted,
    Noise,
    Refused,
    RunnerGone,
    RunnerKilled,
    ServerBusy,
    Token,
)
from dispatcher.replay.models import Limits, RehearsalModel, blob_of, resident_bytes_at
from dispatcher.replay.progress import Request, Running, common_ratio, run
from dispatcher.replay.runner import Runner, RunnerState, memory_guard_text
from dispatcher.replay.troubles import Troubles


class Engine:
    """One model server. Every method that takes now_seconds must be given times that never go back."""

    def __init__(self, models: Mapping[str, RehearsalModel], limits: Limits) -> None:
        self.models = dict(models)
        self.limits = limits
        self._troubles = Troubles()
        self._stalled_at_seconds = 0.0
        self._runners: dict[str, Runner] = {}
        self._pending: deque[Request] = deque()  # need a load; the first is being served (rule 12)
        self._requests: dict[int, Request] = {}
        self._events: list[Event] = []
        self._number = 0

    # ── asking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def num_ctx_for(self, model: str, num_ctx: int | None) -> int:
        """What a request gets: the model's default, or what it asks for, clipped to what the model was made for."""
        spec = self.models[model]
        return max(1, min(num_ctx or spec.num_ctx_default, spec.context_max))

    def loaded(self) -> list[Runner]:
        """What /api/ps lists: latest expiry first, dead and unloading ones still there. Read-only."""
        listed = [runner for runner in self._runners.values() if runner.state is not RunnerState.LOADING]
        return sorted(listed, key=lambda runner: -runner.expires_at_seconds)

    def held_bytes(self) -> int:
        """Memory of all models that are loaded, loading or leaving; a killed one holds none."""
        return sum(one.resident_bytes for one in self._runners.values() if one.state is not RunnerState.DEAD)

    def next_event_at(self) -> float | None:
        """When something happens by itself next; None: never, unless something is asked."""
        due = self._next()
        return None if due is None else due[0]

    def advance(self, now_seconds: float) -> list[Event]:
        """Everything that happened up to now and was not told yet, in order."""
        while (due := self._next()) is not None and due[0] <= now_seconds:
            due[1](due[0])
        told, self._events = self._events, []
        return told

    # ── being asked ────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, now_seconds: float, ask: Ask, noise: Noise) -> int:
        """Takes a request; its number names it in events. `ask.model` must be one of `models`: an unknown name never
        reaches the scheduler."""
        self._catch_up(now_seconds)
        self._number += 1
        request = Request(number=self._number, ask=ask, noise=noise, submitted_at_seconds=now_seconds)
        self._requests[request.number] = request
        runner = self._runners.get(ask.model)
        fits = runner is not None and runner.num_ctx == self._num_ctx_of(request)
        if runner is not None and fits and runner.state is RunnerState.READY:
            self._attach(now_seconds, request, runner)  # overtakes every waiting load (rule 12)
        elif runner is not None and fits and runner.state is RunnerState.LOADING:
            runner.waiting.append(request)
        elif len(self._pending) > self.limits.max_queue or self._troubles.refusal_of_loads(ask.model) == "busy":
            self._refuse(now_seconds, request, 503, ServerBusy)
        else:
            self._pending.append(request)
            self._serve_pending(now_seconds)
        return request.number

    def cancel(self, now_seconds: float, number: int) -> None:
        """Its client left: generation stops, the queue place is given up, its own load in progress is aborted."""
        self._catch_up(now_seconds)
        request = self._requests.pop(number, None)
        if request is None:
            return
        if request in self._pending:
            self._pending.remove(request)
        for runner in list(self._runners.values()):
            if runner.state is RunnerState.LOADING and runner.owner is request:
                self._lose_load(now_seconds, runner)
            elif request in runner.waiting:
                runner.waiting.remove(request)
                self._idle_begins(now_seconds, runner)
            else:
                for running in [one for one in runner.running.values() if one.request is request]:
                    self._leave_slot(now_seconds, runner, running)
        self._serve_pending(now_seconds)

    def unload(self, now_seconds: float, model: str) -> None:
        """keep_alive 0 without a prompt: goes now, or when its last request ends."""
        self._catch_up(now_seconds)
        runner = self._runners.get(model)
        if runner is not None and runner.state in (RunnerState.READY, RunnerState.DEAD):
            runner.keep_alive_seconds = 0
            if runner.idle:
                self._begin_unload(now_seconds, runner)

    def kill_runner(self, now_seconds: float, model: str) -> None:
        """kill -9 of the model process. Its requests fail; a load in progress too; a loaded one stays listed, dead."""
        self._catch_up(now_seconds)
        self._kill(now_seconds, model)

    def end_load(self, now_seconds: float, model: str, *, loaded: bool) -> None:
        """Limits.loads_end_outside: the memory is there, or the process that should hold it is gone."""
        self._catch_up(now_seconds)
        runner = self._runners.get(model)
        if runner is None or runner.state is not RunnerState.LOADING:
            return
        if loaded:
            self._end_load(now_seconds, runner)
        else:
            self._kill(now_seconds, model)

    def set_faults(self, now_seconds: float, faults: tuple[Fault, ...]) -> None:
        """Replaces all faults. What `silent` held back goes on from here when it is lifted."""
        self._catch_up(now_seconds)
        if self._troubles.stalled:
            for runner in self._runners.values():  # what was left of a load when the silence began is still left
                runner.changes_at_seconds += now_seconds - self._stalled_at_seconds
        self._settle(now_seconds)
        self._troubles = Troubles(faults)
        self._stalled_at_seconds = now_seconds
        for runner in self._runners.values():
            for running in runner.running.values():
                running.stops_at = self._troubles.kill_tokens(runner.model.name)

    # ── what is due ────────────────────────────────────────────────────────────────────────────────────────────────

    def _catch_up(self, now_seconds: float) -> None:
        self._events = self.advance(now_seconds)

    def _next(self) -> tuple[float, Callable[[float], None]] | None:
        """The earliest thing due, and what to do then. Ties: in the order the models were loaded."""
        due: tuple[float, Callable[[float], None]] | None = None
        if self._troubles.stalled:
            return None
        for runner in self._runners.values():
            for at_seconds, act in self._due_of(runner):
                if at_seconds < math.inf and (due is None or at_seconds < due[0]):
                    due = (at_seconds, act)
        return due

    def _due_of(self, runner: Runner) -> list[tuple[float, Callable[[float], None]]]:
        if runner.state is RunnerState.LOADING:
            ends = self._die_loading if runner.dies_loading else self._end_load
            return [(runner.changes_at_seconds, partial(ends, runner=runner))]
        if runner.state is RunnerState.UNLOADING:
            return [(runner.changes_at_seconds, partial(self._end_unload, runner=runner))]
        if runner.idle:
            return [(runner.expires_at_seconds, partial(self._begin_unload, runner=runner))]
        pace = self._pace(runner)
        return [
            (
                running.anchor_at_seconds + max(0.0, running.work_left()) / pace,
                partial(self._reach_token, runner=runner, running=running),
            )
            for running in runner.running.values()
        ]

    def _pace(self, runner: Runner) -> float:
        """Work seconds per clock second: every other running answer, of any model, takes its share of the machine."""
        if self._troubles.stalled:
            return 0.0
        active = sum(len(one.running) for one in self._runners.values())
        crowding = 1 + self.limits.contention_ratio * max(0, active - 1)
        return 1 / (crowding * self._troubles.slowdown_ratio(runner.model.name))

    def _settle(self, now_seconds: float) -> None:
        """Before anything changes the pace: count what was done at the old one."""
        for runner in self._runners.values():
            pace = self._pace(runner)
            for running in runner.running.values():
                running.settle(now_seconds, pace)

    # ── generating ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _attach(self, now_seconds: float, request: Request, runner: Runner) -> None:
        ask = request.ask
        request.attached_at_seconds = now_seconds
        if ask.keep_alive_seconds is not None:
            runner.keep_alive_seconds = ask.keep_alive_seconds
        if ask.work == "load":
            self._finish(Finished(
                at_seconds=now_seconds, request=request.number, done_reason="load",
                total_seconds=now_seconds - request.submitted_at_seconds,
                load_seconds=now_seconds - request.submitted_at_seconds, wait_seconds=0.0,
                prompt_eval_seconds=None, eval_seconds=None, prompt_tokens=0, output_tokens=0,
            ))  # fmt: skip
        elif ask.work == "generate" and not ask.truncate and ask.prompt_tokens > runner.num_ctx:
            self._refuse(now_seconds, request, 400, ContextExceeded)
        else:
            runner.waiting.append(request)
        self._fill_slots(now_seconds, runner)
        self._idle_begins(now_seconds, runner)

    def _fill_slots(self, now_seconds: float, runner: Runner) -> None:
        while runner.waiting and len(runner.running) < self.limits.num_parallel:
            self._settle(now_seconds)
            request = runner.waiting.popleft()
            free = [slot for slot in range(self.limits.num_parallel) if slot not in runner.running]
            prompt = request.ask.prompt
            slot = max(free, key=lambda one: (common_ratio(prompt, runner.cached[one]), -one))
            running = run(request, runner.model, runner.num_ctx, slot, runner.cached[slot], now_seconds)
            running.stops_at = self._troubles.kill_tokens(runner.model.name)
            runner.cached[slot] = prompt if request.ask.work == "generate" else None
            runner.running[slot] = running

    def _reach_token(self, now_seconds: float, runner: Runner, running: Running) -> None:
        self._settle(now_seconds)
        running.reach_token(now_seconds)
        request = running.request
        if request.ask.token_events and running.output_tokens > 0:
            self._events.append(Token(at_seconds=now_seconds, request=request.number, index=running.tokens))
        if running.output_tokens > 0 and running.tokens in running.stops_at:
            self._kill(now_seconds, runner.model.name)
        elif running.tokens >= running.last:
            self._finish(running.finished(now_seconds))
            self._leave_slot(now_seconds, runner, running)
            self._serve_pending(now_seconds)

    def _leave_slot(self, now_seconds: float, runner: Runner, running: Running) -> None:
        self._settle(now_seconds)
        del runner.running[running.slot]
        self._fill_slots(now_seconds, runner)
        self._idle_begins(now_seconds, runner)

    def _idle_begins(self, now_seconds: float, runner: Runner) -> None:
        if runner.state is not RunnerState.READY or not runner.idle:
            return
        runner.expires_at_seconds = runner.expiry_from(now_seconds)
        if runner.keep_alive_seconds == 0:
            self._begin_unload(now_seconds, runner)

    def _finish(self, finished: Finished) -> None:
        self._requests.pop(finished.request, None)
        self._events.append(finished)

    def _refuse(self, now_seconds: float, request: Request, status: int, text: str) -> None:
        self._requests.pop(request.number, None)
        self._events.append(Refused(at_seconds=now_seconds, request=request.number, status=status, text=text))

    # ── loading and unloading ──────────────────────────────────────────────────────────────────────────────────────

    def _serve_pending(self, now_seconds: float) -> None:
        """One request at a time gets what it needs, in order; the rest wait, whatever they need."""
        while self._pending and not any(one.state is RunnerState.LOADING for one in self._runners.values()):
            request = self._pending[0]
            runner = self._runners.get(request.ask.model)
            if runner is None:
                if not self._load_or_refuse(now_seconds, request):
                    return
            elif runner.state is RunnerState.DEAD:
                del self._runners[runner.model.name]
            elif runner.state is RunnerState.READY and runner.num_ctx == self._num_ctx_of(request):
                self._pending.popleft()
                self._attach(now_seconds, request, runner)
            else:
                if runner.state is RunnerState.READY and runner.idle:
                    self._begin_unload(now_seconds, runner)
                return

    def _load_or_refuse(self, now_seconds: float, request: Request) -> bool:
        """False: another model has to leave first, and the request stays the first in line."""
        spec = self.models[request.ask.model]
        needed = resident_bytes_at(spec, self._num_ctx_of(request), self.limits.num_parallel)
        free = self._free_bytes()
        short = free is not None and needed > free
        if self._runners and (short or len(self._runners) >= self.limits.max_loaded):
            self._send_one_away(now_seconds)
            return False
        self._pending.popleft()
        if short or self._troubles.refusal_of_loads(spec.name) == "memory":
            self._refuse(now_seconds, request, 500, memory_guard_text(needed, free or 0))
        else:
            self._begin_load(now_seconds, request, spec, needed)
        return True

    def _send_one_away(self, now_seconds: float) -> None:
        """An idle model; none, while one is already leaving or all are busy. Not the one longest unused: the shortest
        keep_alive goes, then the first by name of its weights' file (every eviction of timeline.json)."""
        if any(one.state is RunnerState.UNLOADING for one in self._runners.values()):
            return
        idle = [one for one in self._runners.values() if one.idle]
        if idle:
            self._begin_unload(now_seconds, min(idle, key=lambda one: (one.expiry_from(0.0), blob_of(one.model))))

    def _num_ctx_of(self, request: Request) -> int:
        return self.num_ctx_for(request.ask.model, request.ask.num_ctx)

    def _free_bytes(self) -> int | None:
        limit = self.limits.memory_bytes
        return None if limit is None else limit - sum(one.resident_bytes for one in self._runners.values())

    def _begin_load(self, at: float, request: Request, spec: RehearsalModel, needed: int) -> None:
        num_ctx = self._num_ctx_of(request)
        load_seconds = spec.load_seconds * request.noise.load_factor
        keep_alive = request.ask.keep_alive_seconds
        runner = Runner(
            model=spec,
            num_ctx=num_ctx,
            resident_bytes=needed,
            owner=request,
            keep_alive_seconds=self.limits.keep_alive_seconds if keep_alive is None else keep_alive,
            dies_loading=self._troubles.take_load_failure(spec.name),
            cached=[None] * self.limits.num_parallel,
        )
        if runner.dies_loading:
            runner.changes_at_seconds = at + load_seconds / 2
        elif not self.limits.loads_end_outside:
            runner.changes_at_seconds = at + load_seconds
        self._runners[spec.name] = runner
        self._events.append(LoadStarted(
            at_seconds=at, model=spec.name, num_ctx=num_ctx, resident_bytes=needed, load_seconds=load_seconds
        ))  # fmt: skip

    def _end_load(self, now_seconds: float, runner: Runner) -> None:
        runner.state, runner.changes_at_seconds = RunnerState.READY, math.inf
        runner.expires_at_seconds = runner.expiry_from(now_seconds)
        self._events.append(LoadEnded(at_seconds=now_seconds, model=runner.model.name, loaded=True))
        waiting, runner.waiting = runner.waiting, deque()
        owner, runner.owner = runner.owner, None
        for request in ([owner] if owner else []) + list(waiting):
            if runner.state is RunnerState.READY:
                self._attach(now_seconds, request, runner)
            else:
                self._pending.append(request)  # the first one's keep_alive 0 already sent it away
        self._serve_pending(now_seconds)

    def _die_loading(self, now_seconds: float, runner: Runner) -> None:
        self._kill(now_seconds, runner.model.name)

    def _lose_load(self, now_seconds: float, runner: Runner) -> None:
        """The load is over without a model. Who waited for it waits for a new one (rule 13)."""
        del self._runners[runner.model.name]
        self._pending.extendleft(reversed(runner.waiting))
        self._events.append(LoadEnded(at_seconds=now_seconds, model=runner.model.name, loaded=False))

    def _kill(self, now_seconds: float, model: str) -> None:
        runner = self._runners.get(model)
        if runner is None or runner.state not in (RunnerState.LOADING, RunnerState.READY):
            return
        if runner.state is RunnerState.LOADING:
            if runner.owner is not None:
                self._refuse(now_seconds, runner.owner, 500, LoadKilled)
            self._lose_load(now_seconds, runner)
        else:
            self._settle(now_seconds)
            lost = [running.request for running in runner.running.values()] + list(runner.waiting)
            runner.running.clear()
            runner.waiting.clear()
            if lost:
                self._idle_begins(now_seconds, runner)
            runner.state = RunnerState.DEAD
            self._events.append(RunnerGone(at_seconds=now_seconds, model=model, killed=True))
            for request in lost:
                self._refuse(now_seconds, request, 500, RunnerKilled)
        self._serve_pending(now_seconds)

    def _begin_unload(self, now_seconds: float, runner: Runner) -> None:
        runner.state = RunnerState.UNLOADING
        runner.changes_at_seconds = now_seconds + self.limits.unload_seconds

    def _end_unload(self, now_seconds: float, runner: Runner) -> None:
        del self._runners[runner.model.name]
        self._events.append(RunnerGone(at_seconds=now_seconds, model=runner.model.name, killed=False))
        self._serve_pending(now_seconds)
