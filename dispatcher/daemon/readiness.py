"""Whether a request would get a model now, and everything that rests on: what /readyz answers."""

from __future__ import annotations

from collections.abc import Callable

from dispatcher.api.doors import Check, Readiness
from dispatcher.clock import Clock
from dispatcher.daemon.pulse import Pulse
from dispatcher.desk import Desk
from dispatcher.history.store import Store
from dispatcher.lifecycle.controller import Controller
from dispatcher.vocabulary.event import Event, Reloaded
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import Settings
from dispatcher.vocabulary.signal import Freshness, Snapshot

LATE_SECONDS = 30.0  # a loop that is late by so much is stuck, not busy
DRAINING_RETRY_AFTER_SECONDS = 2


class Standing:
    """Only `model` and `draining` decide: with any of the others failing, a model that answers is still named, and the
    answer says what it does not know. Each check tells how old what it rests on is."""

    def __init__(
        self,
        *,
        desk: Desk,
        controller: Controller,
        store: Store,
        pulse: Pulse,
        snapshot: Callable[[], Snapshot],
        settings: Callable[[], Settings],
        clock: Clock,
    ) -> None:
        self._desk = desk
        self._controller = controller
        self._store = store
        self._pulse = pulse
        self._snapshot = snapshot
        self._settings = settings
        self._clock = clock
        self._since_seconds = clock.now_seconds()
        self._reloaded: Reloaded | None = None
        pulse.watch("telemetry", lambda: snapshot().number, self._poll_seconds)
        pulse.watch("reconcile", lambda: controller.reconciled_at_seconds, self._round_seconds)

    def on_event(self, event: Event) -> None:
        if isinstance(event, Reloaded):
            self._reloaded = event

    def _poll_seconds(self) -> float:
        telemetry = self._settings().telemetry
        return telemetry.interval_seconds + telemetry.prometheus.timeout_seconds

    def _round_seconds(self) -> float:
        lifecycle = self._settings().lifecycle
        return lifecycle.reconcile_interval_seconds + lifecycle.list_timeout_seconds

    def readiness(self) -> Readiness:
        decision = self._desk.recommend(Asked())
        draining = self._controller.tenancy.draining
        return Readiness(
            ready=decision.chosen is not None and not draining,
            checks=(
                Check(name="model", ok=decision.chosen is not None, because=decision.sentence, age_seconds=0.0),
                Check(name="draining", ok=not draining, because="it is leaving" if draining else "it stays"),
                *self._signals(),
                self._engine(),
                self._history(),
                self._beating("loop", self._pulse.loop_age_seconds(), self._pulse.loop_age_seconds()),
                *(
                    self._beating(name, self._pulse.age_of(name), self._pulse.late_seconds(name))
                    for name in ("telemetry", "reconcile")
                ),
                self._config(),
            ),
            retry_after_seconds=DRAINING_RETRY_AFTER_SECONDS if draining else decision.retry_after_seconds,
        )

    def _signals(self) -> tuple[Check, ...]:
        snapshot, telemetry = self._snapshot(), self._settings().telemetry
        whole = Check(
            name="signals",
            ok=snapshot.freshness is Freshness.FRESH,
            because=f"memory readings are {snapshot.freshness.value}, from {snapshot.source}",
            age_seconds=self._since(snapshot.at_seconds if snapshot.number else None),
        )
        asked = {"prometheus": telemetry.prometheus.enabled != "false", "host": telemetry.host_enabled}
        return (whole, *(self._source(name, wanted) for name, wanted in asked.items()))

    def _source(self, name: str, asked: bool) -> Check:
        snapshot = self._snapshot()
        seen = [reading.at_seconds for reading in snapshot.readings.values() if reading.source == name]
        failing = snapshot.failing.get(name)
        if failing is not None:
            because = f"failing: {failing}"
        elif not asked:
            because = "not asked (switched off)"
        else:
            because = f"{len(seen)} reading(s) in use" if seen else "nothing of it is in use"
        return Check(
            name=name, ok=failing is None, because=because, age_seconds=self._since(max(seen) if seen else None)
        )

    def _engine(self) -> Check:
        fleet = self._controller.view()
        return Check(
            name="engine",
            ok=fleet.failing is None,
            because=fleet.failing or f"{fleet.provider}: {len(fleet.places)} place(s)",
            age_seconds=self._since(self._controller.reconciled_at_seconds),
        )

    def _history(self) -> Check:
        because = self._store.failing or f"{self._store.dropped_total} event(s) dropped since start"
        return Check(name="history", ok=self._store.failing is None, because=because)

    def _beating(self, name: str, age_seconds: float, late_seconds: float) -> Check:
        late = late_seconds > LATE_SECONDS
        because = f"late by {late_seconds:.0f} s" if late else "goes round"
        return Check(name=name, ok=not late, because=because, age_seconds=round(age_seconds, 3))

    def _config(self) -> Check:
        told = self._reloaded
        if told is None:
            return Check(
                name="config", ok=True, because="as read at start", age_seconds=self._since(self._since_seconds)
            )
        because = "the last reload is in force" if told.ok else f"the last reload was refused: {told.because}"
        if told.waiting:
            because += f"; needs a restart: {', '.join(told.waiting)}"
        return Check(name="config", ok=told.ok, because=because, age_seconds=self._since(told.at_seconds))

    def _since(self, at_seconds: float | None) -> float | None:
        return None if at_seconds is None else round(max(0.0, self._clock.now_seconds() - at_seconds), 3)
