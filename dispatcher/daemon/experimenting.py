"""The experiments' owner: their states, who takes part, and what came of it. The arithmetic is dispatcher.experiments'.

One writer: states change here, on the loop, and nowhere else. A beginning is on the disk before it is answered; what is
counted follows within a second (SAVE_SECONDS), so kill -9 loses that much of the counts, and no experiment. Decisions
that await their outcome are memory alone: after a restart theirs are missing, in both arms alike, and counted so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from dispatcher.clock import Clock
from dispatcher.daemon.awaiting import Awaited, Awaiting, observation_of, status_of
from dispatcher.daemon.experiments_told import experiment_told, experiments_told
from dispatcher.errors import AskInvalid, HistoryUnavailable, NotFound, NotNow
from dispatcher.experiments.assign import Assigned, Prepared, assigned, prepared
from dispatcher.experiments.lifetime import lapsed, started, stopped
from dispatcher.experiments.observe import assignment_counted, observe
from dispatcher.experiments.shadow import shadowed
from dispatcher.experiments.specification import Check, conflicts, parsed, problems
from dispatcher.experiments.switches import NO_SWITCHES, Switches, decided
from dispatcher.history.store import Store
from dispatcher.policy.decide import decide
from dispatcher.vocabulary.action import Start
from dispatcher.vocabulary.decision import Decision
from dispatcher.vocabulary.event import Acted, Completed, Erred, Event, Leased
from dispatcher.vocabulary.experiment import (
    Arm,
    ExperimentEvent,
    ExperimentState,
    ExperimentTurned,
    ObservedStatus,
    Share,
)
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.request import Request
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.world import World
from dispatcher.wire.experiments import Experiments, ExperimentTold

SAVE_SECONDS = 1.0
REFUSED_SECONDS = 10.0  # after which a request for which the gateway found nothing is taken as refused

_log = logging.getLogger("dispatcher.experiments")


class Experimenting:
    """check: what is wrong with an arm's whole settings, in words."""

    def __init__(
        self,
        *,
        store: Store,
        settings: Callable[[], Settings],
        check: Check,
        clock: Clock,
        emit: Callable[[Event], None],
    ) -> None:
        self._store = store
        self._settings = settings
        self._check = check
        self._clock = clock
        self._emit = emit
        self._states: dict[str, ExperimentState] = {}
        self._prepared: Prepared = prepared((), settings())
        self._switches: dict[str, Switches] = {}
        self._awaiting = Awaiting()
        self._unsaved: set[str] = set()
        self._looked_seconds = 0.0
        self._changing = asyncio.Lock()
        self.running = False

    # ── asked by people ──

    def told(self) -> Experiments:
        return experiments_told(self._newest_first(), len(self._awaiting), self._awaiting.forgotten)

    def _newest_first(self) -> list[ExperimentState]:
        return sorted(self._states.values(), key=lambda state: -state.started_at_seconds)

    async def start(self, document: object) -> ExperimentTold:
        """On the disk when this returns. AskInvalid and NotNow have every reason at once, and nothing was recorded;
        nor was it after HistoryUnavailable."""
        async with self._changing:
            settings = self._settings()
            if not settings.experiments.enabled:
                raise NotNow("experiments.enabled is false: none can be started; set it to true")
            specification = parsed(document, settings, self._check)
            if isinstance(specification, tuple):
                raise AskInvalid(_listed(specification))
            now_seconds, known = self._clock.now_seconds(), tuple(self._states.values())
            if against := conflicts(specification, known, now_seconds):
                raise NotNow(_listed(against))
            state, events = started(specification, known, now_seconds)
            try:
                await self._store.record_experiment(state)
            except BaseException:  # cancelled, too: whether it is on the disk by now is not known
                self._store.forget_experiment(state.id)
                raise
            self._states[state.id] = state
            self._tell(events)
            self.apply()  # also: the settings may have been reloaded while the disk was asked
            return experiment_told(self._states[state.id])

    async def stop(self, experiment_id: str) -> ExperimentTold:
        """At once; on the disk when this returns. One that has ended stays as it was. NotFound, HistoryUnavailable:
        then it is stopped all the same, and written as soon as the disk lets it be."""
        async with self._changing:
            if experiment_id not in self._states:
                known = ", ".join(state.id for state in self._newest_first()[:5]) or "none"
                raise NotFound(f"no experiment {experiment_id!r} is known; the newest: {known}")
            state, events = stopped(self._states[experiment_id], self._clock.now_seconds())
            if not events:
                return experiment_told(state)
            self._put(state, events)
            self._refresh()
            try:
                await self._store.record_experiment(state)
            except HistoryUnavailable as trouble:
                self._store.owe_experiment(state)
                raise HistoryUnavailable(f"{experiment_id} is stopped, from memory only: {trouble}") from trouble
            self._unsaved.discard(experiment_id)
            return experiment_told(state)

    # ── the desk's ──

    def assigned(self, request: Request, before: str) -> Assigned | None:
        try:
            earlier = self._awaiting.of(before) if before else None
            if before:
                request = replace(request, id=before if earlier is None else earlier.ids[0])
            found = assigned(self._prepared, request, self._clock.now_seconds())
        except Exception:
            self._outlive("assign")
            return None
        return found if found.shares or found.shadows else None

    def decided(
        self, decision: Decision, assigned: Assigned | None, world: World, *, leased: bool, final: bool, before: str
    ) -> None:
        try:
            causes = self._switched(decision, () if assigned is None else assigned.shares) if leased else {}
            if assigned is None:
                return
            self._compare(decision, assigned, world)
            if assigned.shares:
                self._await(decision, assigned.shares, causes, final=final, before=before)
        except Exception:
            self._outlive("decided")

    def _switched(self, decision: Decision, shares: Sequence[Share]) -> dict[str, Arm]:
        """Who caused the load that this one waits for, per experiment."""
        arms: dict[str, Arm] = {share.experiment_id: share.arm for share in shares}
        causes: dict[str, Arm] = {}
        for state in self._prepared.running:
            if state.specification.mode == "split":
                book = self._switches.get(state.id, NO_SWITCHES)
                self._switches[state.id], cause = decided(book, decision, arms.get(state.id))
                if cause is not None:
                    causes[state.id] = cause
        return causes

    def _compare(self, decision: Decision, assigned: Assigned, world: World) -> None:
        """What each silent B would have done, in the very world this was decided in."""
        for shadow in assigned.shadows:
            other = decide(decision.request, world, shadow.settings, decision.at_seconds)
            if (state := self._states.get(shadow.experiment_id)) is not None:
                self._put(*shadowed(state, decision, other, self._clock.now_seconds()))

    def _await(
        self, decision: Decision, shares: tuple[Share, ...], causes: dict[str, Arm], *, final: bool, before: str
    ) -> None:
        now_seconds = self._clock.now_seconds()
        awaited = self._awaiting.of(before) or self._awaiting.of(decision.id)
        if awaited is None:
            awaited = Awaited(shares=shares, began_seconds=decision.request.at_seconds, ready_seconds=now_seconds)
            for share in shares:
                state = self._states.get(share.experiment_id)
                if state is not None and state.phase == "running":
                    self._put(assignment_counted(state, share.arm))
        self._awaiting.put(decision.id, awaited, self._settings().experiments.awaited_decisions)
        awaited.switch_arms, chosen = causes, decision.chosen
        awaited.ready_seconds = max(awaited.ready_seconds, now_seconds)
        awaited.loads = None if chosen is None or chosen.state is PlaceState.READY else chosen.place
        awaited.refused_seconds = now_seconds if chosen is None else None
        if chosen is None and final:
            self._ended(decision.id, "refused", None)

    # ── what happens ──

    def on_event(self, event: Event) -> None:
        if not self._awaiting:
            return
        try:
            match event:
                case Completed(decision_id=decision_id):
                    self._ended(decision_id, status_of(event), event)
                case Leased(what="ready", lease=lease, at_seconds=at_seconds):
                    self._awaiting.ready(lease.decision_id, at_seconds)
                case Acted(action=Start(place=place), ok=True, seconds=seconds, at_seconds=at_seconds):
                    self._awaiting.loaded(place, seconds, at_seconds)
                case _:
                    pass
        except Exception:
            self._outlive("on_event")

    def _ended(self, decision_id: str, status: ObservedStatus, completed: Completed | None) -> None:
        awaited = self._awaiting.taken(decision_id)
        if awaited is None:
            return
        for share in awaited.shares:
            state = self._states.get(share.experiment_id)
            if state is not None and state.phase == "running":
                observation = observation_of(awaited, share, status, completed)
                self._put(*observe(state, observation, self._clock.now_seconds()))

    def look(self) -> None:
        """At every beat: what time alone changes, and what is to be written."""
        now_seconds = self._clock.now_seconds()
        if not (self.running or self._unsaved) or now_seconds - self._looked_seconds < SAVE_SECONDS:
            return
        self._looked_seconds = now_seconds
        for awaited in self._awaiting.refused_before(now_seconds - REFUSED_SECONDS):
            self._ended(awaited.ids[0], "refused", None)
        for state in self._prepared.running:
            over, events = lapsed(self._states[state.id], now_seconds)
            if events:
                self._put(over, events)
        self.save()

    def save(self) -> None:
        """Not awaited; encoded and written by the history's thread."""
        for experiment_id in self._unsaved:
            self._store.owe_experiment(self._states[experiment_id])
        self._unsaved.clear()

    # ── start-up and reload ──

    def recall(self) -> None:
        """What earlier runs left; before anything is emitted, so `apply` comes after it, on the loop."""
        self._states = {state.id: state for state in self._store.experiments()}

    def apply(self) -> None:
        """The settings in force are others, or it is the first time they are known: what makes no sense under them is
        stopped, with its reason."""
        settings, now_seconds = self._settings(), self._clock.now_seconds()
        for state in [one for one in self._states.values() if one.phase == "running"]:
            words = self._problems(state, settings)
            if not settings.experiments.enabled:
                words = ["experiments.enabled is false"]
            if words:
                self._put(*stopped(state, now_seconds, f"the settings do not fit it any more: {_listed(words)}"))
        self._refresh()

    def _problems(self, state: ExperimentState, settings: Settings) -> list[str]:
        """One that another version began may have settings that this one does not know."""
        try:
            return problems(state.specification, settings, self._check)
        except (TypeError, ValueError, KeyError) as trouble:
            return [f"this version does not understand it ({trouble})"]

    def _refresh(self) -> None:
        """Who is running has changed, or the settings have."""
        running = [state for state in self._states.values() if state.phase == "running"]
        self._prepared = prepared(running, self._settings())
        self.running = bool(running)
        if not running:
            self._awaiting.clear()
        self._switches = {state.id: self._switches.get(state.id, NO_SWITCHES) for state in running}
        ended = [state for state in reversed(self._newest_first()) if state.phase != "running"]
        for state in ended[: max(0, len(self._states) - self._settings().experiments.kept)]:
            del self._states[state.id]
            self._unsaved.discard(state.id)
            self._store.forget_experiment(state.id)

    # ── one way for every change ──

    def _put(self, state: ExperimentState, events: Sequence[ExperimentEvent] = ()) -> None:
        self._states[state.id] = state
        self._unsaved.add(state.id)
        self._tell(events)
        if any(isinstance(event, ExperimentTurned) for event in events):
            self._refresh()
            self.save()

    def _tell(self, events: Sequence[ExperimentEvent]) -> None:
        for event in events:
            self._emit(event)

    def _outlive(self, where: str) -> None:
        """A fault of ours costs an experiment a sample, and no caller an answer."""
        _log.exception('experiments=fault where=%s consequence="this request is not counted"', where)
        self._emit(Erred(at_seconds=self._clock.now_seconds(), error_type="internal"))


def _listed(words: Sequence[str]) -> str:
    """Every problem, numbered where there are several."""
    if len(words) == 1:
        return words[0]
    return "; ".join(f"{number}) {one}" for number, one in enumerate(words, start=1))
