"""All that may happen to the dispatcher in the laboratory, one method each. Faults are counted by their kind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from dispatcher.api.doors import OutcomeReport
from dispatcher.errors import HistoryUnavailable, NotFound, NotNow
from dispatcher.vocabulary.decision import Decision
from dispatcher.vocabulary.fleet import Lease, Place, PlaceState
from dispatcher.vocabulary.request import Asked
from dispatcher.vocabulary.settings import GIB, MIB
from tests.faultlab.lab import Lab
from tests.faultlab.truth import SLACK_SECONDS, Held

AT_ONCE_SECONDS = 0.001


class Moves(Lab):
    # ── callers ──

    def ask(self, asked: Asked) -> None:
        """A caller comes, and waits by itself."""
        client = self.loop.create_task(self._call(asked))
        self.process.clients.add(client)
        client.add_done_callback(self.process.clients.discard)

    async def _call(self, asked: Asked) -> None:
        await self.select(asked)

    def crowd(self, asks: Sequence[Asked]) -> None:
        """All in one tick."""
        self.truth.seen["crowd"] += 1
        for asked in asks:
            self.ask(asked)

    def caller_leaves(self) -> None:
        for client in sorted(self.process.clients, key=lambda task: task.get_name())[:1]:
            self._fault("caller leaves")
            client.cancel()
            self.advance(AT_ONCE_SECONDS)

    def reserve_on_old_advice(self, asks: Sequence[Asked], after_seconds: float) -> None:
        """Decisions made at one moment, their reservations all in one tick of a later one: the snapshot advises, and
        only the owner decides."""
        self._fault("old advice")
        advice = [self.process.desk.recommend(asked) for asked in asks]
        if after_seconds:
            self.advance(after_seconds)
        for decision in advice:
            self._reserve(decision)

    def _reserve(self, decision: Decision) -> None:
        chosen = decision.chosen
        if chosen is None:
            return
        given = self.process.tenancy.reserve(
            place=chosen.place, num_ctx=chosen.num_ctx, evicts=chosen.evicts, decision_id=decision.id, seconds=30.0
        )
        self.truth.seen["old advice taken" if isinstance(given, Lease) else "old advice refused"] += 1
        if isinstance(given, Lease):
            until = given.expires_at_seconds or self.process.clock.now_seconds() + given.seconds
            self.truth.held[given.id] = Held(
                lease=given, told_at_seconds=self.now(), until_seconds=until, kept_until_seconds=None
            )

    def held(self) -> list[Held]:
        return list(self.truth.held.values())

    def give_back(self, one: Held) -> None:
        del self.truth.held[one.lease.id]
        self.process.tenancy.end(one.lease.id, "returned")

    def report_outcome(self, one: Held) -> None:
        del self.truth.held[one.lease.id]
        report = OutcomeReport(decision_id=one.lease.decision_id, status="ok", duration_seconds=1.0, output_tokens=10)
        try:
            self.run(self.process.operations.record_outcome(report))
        except (HistoryUnavailable, NotFound):  # full; or granted without a decision that was ever told
            self.truth.seen["outcome not kept"] += 1

    def renew(self, one: Held) -> None:
        clock = self.process.clock.now_seconds()
        try:
            status = self.run(self.process.operations.renew_lease(one.lease.id))
        except (NotNow, NotFound) as refused:
            if one.until_seconds > clock + SLACK_SECONDS and self.engine.looks:
                self.truth.fault(f"{one.lease.id} lives and cannot be renewed: {refused}")
            return
        until = status.lease.expires_at_seconds or self.process.clock.now_seconds() + one.lease.seconds
        kept = one.kept_until_seconds if self.disk.full else until
        self.truth.held[one.lease.id] = replace(one, lease=status.lease, until_seconds=until, kept_until_seconds=kept)
        self.truth.seen["renewed"] += 1

    def work(self, one: Held, *, by_gateway: bool) -> None:
        """Its caller uses what it leased: it computes, or the gateway has a request there. It may outlast the lease."""
        place = one.lease.place
        server, view = self.engine.servers[place], self.process.controller.view().find(place)
        if server.num_ctx is None or server.at_work or view is None or view.state is not PlaceState.READY:
            return
        if by_gateway:
            self.in_flight[place] = self.now()
        else:
            self.engine.work(place, 2.0)
            self.working.setdefault(place, self.now())
        self.truth.seen["works"] += 1

    def rest(self, place: Place) -> None:
        self.in_flight.pop(place, None)
        self.working.pop(place, None)
        self.engine.work(place, 0.0)

    # ── by hand ──

    def by_hand(self, what: str, place: Place) -> None:
        view = self.process.controller.view().find(place)
        busy = bool(self.engine.servers[place].at_work)
        self.truth.seen[f"by hand {what}"] += 1
        if what == "stop":
            self.truth.hand_stops[place] = self.now()
        try:
            self.run(self.process.operations.act(place.model, what))
        except (NotNow, NotFound, HistoryUnavailable):
            return
        if what == "stop" and busy and view is not None and view.state is PlaceState.STARTING:
            self.truth.unreported["start", place] += 1

    # ── several in a row, which chance alone would seldom bring together ──

    def used_without_lease(self, place: Place, *, by_gateway: bool) -> None:
        """All is well, it comes up, it is used, and the lease is given back while the work goes on."""
        self.heal()
        self.ask(Asked(text="x", model=place.model, wait_seconds=60.0))
        self.advance(7.0)
        mine = next((one for one in self.held() if one.lease.place == place), None)
        if mine is not None:
            self.work(mine, by_gateway=by_gateway)
            self.give_back(mine)
            self.advance(16.0)

    def stop_fails(self, place: Place, *, hangs: bool, seconds: float) -> None:
        if hangs:
            self.stop_hangs(place)
        else:
            self.stop_refused(place)
        self.by_hand("stop", place)
        self.advance(seconds)

    def keeps_failing(self, place: Place) -> None:
        self._fault("start refused")
        self.engine.servers[place].fail_starts = 3
        self.ask(Asked(text="x", model=place.model, wait_seconds=60.0))
        self.advance(30.0)

    # ── faults of the engine ──

    def _fault(self, kind: str) -> None:
        self.faults[kind] += 1

    def engine_trouble(self, how: str) -> None:
        """refused, broken or hangs, until it is healed."""
        self._fault(f"engine {how}")
        self.engine.trouble = how

    def engine_heals(self) -> None:
        self.engine.answers_again()
        self.engine.tell()

    def start_fails(self, place: Place) -> None:
        self._fault("start refused")
        self.engine.servers[place].fail_starts = 1

    def start_hangs(self, place: Place) -> None:
        self._fault("start call hangs")
        self.engine.hung_starts.add(place)

    def load_fails(self, place: Place) -> None:
        self._fault("load fails")
        self.engine.servers[place].fail_loads = 1

    def never_ready(self, place: Place) -> None:
        self._fault("never ready")
        self.engine.servers[place].hang_load = True

    def stop_hangs(self, place: Place) -> None:
        self._fault("stop never ends")
        self.engine.servers[place].hang_stop = True

    def stop_refused(self, place: Place) -> None:
        self._fault("stop refused")
        self.engine.servers[place].refuse_stop = True

    def falls_silent(self, place: Place) -> None:
        self._fault("model server silent")
        self.engine.silence(place, silent=True)

    def paused(self, place: Place) -> None:
        self._fault("container paused")
        self.engine.silence(place, paused=True)

    def place_heals(self, place: Place) -> None:
        server = self.engine.servers[place]
        server.hang_load = server.hang_stop = server.refuse_stop = False
        self.engine.silence(place)
        self.engine.hung_starts.discard(place)
        self._declare(place)

    def vanishes(self, place: Place) -> None:
        self._fault("container vanishes")
        self.truth.gone[place] = self.now()
        self.truth.renewed.add(place)
        self.rest(place)
        self.engine.vanish(place)
        self.engine.tell()

    def _declare(self, place: Place) -> None:
        self.engine.undeclared.discard(place)

    def exits(self, place: Place, exit_code: int) -> None:
        if self.engine.servers[place].running:
            self._fault("container exits")
            self.rest(place)
            self.engine.down(place, exit_code=exit_code)
            self.engine.tell()

    def killed_for_memory(self, place: Place) -> None:
        """Once per place: each one teaches that it needs a quarter more."""
        server = self.engine.servers[place]
        if server.running and place not in self.truth.oom_killed:
            self._fault("killed for memory")
            self.truth.oom_killed.add(place)
            self.rest(place)
            self.engine.down(place, exit_code=137, oom_killed=True)
            self.excuse()
            self.engine.tell()

    def oom_while_loading(self, place: Place) -> None:
        if place not in self.truth.oom_killed:
            self._fault("killed while loading")
            self.truth.oom_killed.add(place)
            self.engine.servers[place].oom_loads = 1

    # ── somebody else ──

    def others_start(self, place: Place, num_ctx: int | None) -> None:
        server = self.engine.servers[place]
        if not server.running and place not in self.engine.undeclared:
            self._fault("started by others")
            self.engine.up(place, num_ctx)

    def others_stop(self, place: Place) -> None:
        if self.engine.servers[place].running:
            self._fault("stopped by others")
            self.rest(place)
            self.engine.down(place)
            self.engine.tell()

    def others_reload(self, place: Place, num_ctx: int | None) -> None:
        """With another context, or its model is unloaded."""
        server = self.engine.servers[place]
        if server.running and server.num_ctx and not server.at_work:
            self._fault("reloaded by others" if num_ctx else "unloaded by others")
            self.rest(place)
            self.engine.count()
            server.num_ctx = num_ctx
            self.engine.by_others.add(place)

    # ── faults of what is measured ──

    def samples_fail(self, how: str) -> None:
        self._fault(f"prometheus {how}")
        self.prometheus.trouble = how

    def host_unreadable(self) -> None:
        self._fault("host unreadable")
        self.host.trouble = "unreadable"

    def samples_heal(self) -> None:
        self.prometheus.trouble = self.host.trouble = ""
        self.prometheus.clock_error_seconds = 0.0

    def prometheus_clock(self, error_seconds: float) -> None:
        self._fault("clock of prometheus")
        self.prometheus.clock_error_seconds = error_seconds

    def clock_steps(self, seconds: float) -> None:
        """The machine's wall clock: a running daemon does not follow, the next one starts by it."""
        self._fault("clock step")
        self.wall_offset_seconds += seconds
        self.engine.stepped_at_seconds = self.now()

    # ── faults of the machine ──

    def memory(self, how: str) -> None:
        """plenty, short or hard: what others leave."""
        if how == "plenty":
            self.other_bytes = 0
            return
        self._fault(f"memory {how}")
        left = 64 * MIB if how == "hard" else 2 * GIB
        self.other_bytes = max(0, self.total_bytes - self.engine.held_bytes() - left)

    def stalls(self, ratio: float) -> None:
        self._fault("memory stalls")
        self.stall_ratio = ratio

    def others_compute(self, cores: float) -> None:
        self._fault("cpu busy")
        self.other_cores = cores

    def host_calms(self) -> None:
        self.other_bytes, self.other_cores, self.stall_ratio = 0, 0.0, 0.0

    def disk_full(self, full: bool) -> None:
        self.process.store.settle()
        if full:
            self._fault("disk full")
        self.disk.full = full

    def crash(self) -> None:
        self._fault("kill -9")
        self.run(self.restart())

    def settle(self) -> None:
        """Whoever may go on in this moment does."""
        self.run(asyncio.sleep(AT_ONCE_SECONDS))
