"""A workload against one way to choose, in virtual time: the real desk, policy, ledger, controller and tally decide;
the machine is simulated. What a caller does is done here: call, report the outcome with a judgement, and where an
answer is an error, ask again without that place, as the gateway does.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import cast

from dispatcher.clock import ManualClock
from dispatcher.vocabulary.decision import Prediction, Selected
from dispatcher.vocabulary.engine import Timings
from dispatcher.vocabulary.event import Completed, Failed
from dispatcher.vocabulary.fleet import Place, PlaceState
from dispatcher.vocabulary.request import TASKS, Asked, Task
from dispatcher.vocabulary.settings import GIB, LifecycleSettings, PolicySettings, Settings
from tests.bench.simulated import CONTENTION_RATIO, Machine, Server, real_models
from tests.bench.workload import QUALITY, Piece
from tests.builders import LLAMA, PHI, QWEN
from tests.fake_engine import FakeEngine
from tests.virtual_house import House
from tests.virtual_time import VirtualTimeLoop

PLACES = (PHI, LLAMA, QWEN)
MAX_ATTEMPTS = 3
PATIENCE_SECONDS = 3600.0  # nobody here gives up: who waits longer counts with how long it took
START_SECONDS, STOP_SECONDS = 0.3, 1.0
SETTLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a run is about. quality_target: of the policy, and of what the oracle may choose."""

    quality_target: float | None = None
    policy: PolicySettings = field(default_factory=PolicySettings)
    total_bytes: int = 12 * GIB
    other_bytes: int = int(1.5 * GIB)
    speed_ratio: float = 1.0
    contention_ratio: float = CONTENTION_RATIO
    failing: Mapping[str, float] = field(default_factory=dict)  # model → share of its answers that are errors
    keeps: bool = False  # what is loaded stays: a static choice pays one load
    taught: int = 0  # answers of each model to each task that were judged before the first request
    seed: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One request's end. seconds: from asking to the last token, all attempts. predicted: with the true number of
    output tokens put in; of the first attempt."""

    piece: Piece
    task: str
    model: str | None
    ok: bool
    seconds: float
    quality: float | None
    attempts: int
    cold: bool
    predicted: float | None
    waited_ahead: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    answered: Sequence[Answered]
    loads: int

    @property
    def seconds(self) -> list[float]:
        return sorted(one.seconds for one in self.answered)

    @property
    def mean_seconds(self) -> float:
        return statistics.fmean(self.seconds)

    def quantile_seconds(self, ratio: float) -> float:
        return self.seconds[min(len(self.seconds) - 1, int(len(self.seconds) * ratio))]

    @property
    def success_ratio(self) -> float:
        return sum(one.ok for one in self.answered) / len(self.answered)

    @property
    def mean_quality(self) -> float:
        return statistics.fmean(one.quality for one in self.answered if one.quality is not None)

    def able_ratio(self, target: float) -> float:
        """Share of the answers from a model that truly reaches the target at what was truly asked."""
        given = [one.quality for one in self.answered if one.quality is not None]
        return sum(quality >= target for quality in given) / len(given)

    def error_ratio(self, after: int = 50, *, alone: bool = False) -> float:
        """Median distance of the predicted from the actual seconds, relative to the actual, of those past the first.
        alone: of those that found nobody before them where they went; how long the others take nobody was told."""
        known = [
            one
            for one in self.answered[after:]
            if one.attempts == 1 and one.predicted is not None and not (alone and one.waited_ahead)
        ]
        return statistics.median(abs((one.predicted or 0.0) - one.seconds) / one.seconds for one in known)


Choose = Callable[["Stage", Piece], Asked]


class Stage:
    """A house with the machine inside it."""

    def __init__(self, clock: ManualClock, setting: Setting) -> None:
        models = real_models(setting.speed_ratio)
        self.clock, self.setting = clock, setting
        self.machine = Machine(
            clock,
            {place: models[place.model] for place in PLACES},
            setting.seed,
            contention_ratio=setting.contention_ratio,
        )
        rules = LifecycleSettings(reconcile_interval_seconds=30.0, idle_seconds=1e9 if setting.keeps else None)
        policy = replace(setting.policy, quality_target=setting.quality_target)
        self.house = House(
            clock=clock,
            engine=FakeEngine(clock, PLACES, start_seconds=START_SECONDS, stop_seconds=STOP_SECONDS),
            settings=replace(Settings(), lifecycle=rules, policy=policy),
            total_bytes=setting.total_bytes,
            other_bytes=setting.other_bytes,
        )
        for place, server in self.machine.servers.items():
            self.house.engine.servers[place].rehearsed = server  # type: ignore[assignment]  # loads and empties alike

    async def play(self, pieces: Sequence[Piece], choose: Choose) -> Run:
        async with self.house.open():
            self._teach()
            await asyncio.sleep(SETTLE_SECONDS)
            began, tasks = self.clock.now_seconds(), []
            for piece in pieces:
                await asyncio.sleep(max(0.0, began + piece.at_seconds - self.clock.now_seconds()))
                tasks.append(asyncio.create_task(self._answered(piece, choose)))
            answered = await asyncio.gather(*tasks)
            self.house.events.clear()
        return Run(answered=answered, loads=len(self.house.engine.did("loaded")))

    def _teach(self) -> None:
        """As if callers had judged answers for weeks: of quality, and of nothing else."""
        for task, model in product(TASKS, real_models()):
            quality = QUALITY.get(cast("Task", task), QUALITY["general"])[model]
            told = Completed(
                at_seconds=self.clock.now_seconds(),
                decision_id="d-before",
                model=model,
                place=None,
                task=task,
                agent="",
                status="ok",
                duration_seconds=1.0,
                quality=10 * quality,
                judged_by="caller",
            )
            for _ in range(self.setting.taught):
                self.house.emit(told)

    async def _answered(self, piece: Piece, choose: Choose) -> Answered:
        began, without = self.clock.now_seconds(), dict[Place, str]()
        first: Selected | None = None
        attempt = 0
        while attempt < MAX_ATTEMPTS and self.clock.now_seconds() - began < PATIENCE_SECONDS:
            self.machine.look()
            selected = await self.house.desk.select(choose(self, piece), without=without, again=attempt > 0)
            first = first or selected
            if selected.lease is None:  # as callers do that are told when to ask again
                await asyncio.sleep(selected.decision.retry_after_seconds)
                continue
            attempt += 1
            place, lease = selected.lease.place, selected.lease
            fails = attempt == 1 and piece.unlucky < self.setting.failing.get(place.model, 0.0)
            timings = await self._worked(piece, place, selected, fails=fails)
            self.house.give_back(lease, "outcome")
            ok = timings is not None and not fails
            now = self.clock.now_seconds()
            task = selected.decision.request.task
            if not ok:
                self.house.emit(_failed(selected, place, now, now - began))
                without[place] = "it failed a moment ago"
                continue
            quality = QUALITY[piece.kind][place.model]
            self.house.emit(self._completed(piece, selected, place, now - began, timings, quality))
            return Answered(
                piece=piece,
                task=task,
                model=place.model,
                ok=True,
                seconds=now - began,
                quality=quality,
                attempts=attempt,
                cold=first.state is not PlaceState.READY,
                predicted=_with_true_length(first, piece),
                waited_ahead=_has_others_before(first),
                reasons=tuple(reason.code for reason in selected.decision.reasons),
            )
        return Answered(
            piece=piece,
            task=first.decision.request.task if first else "general",
            model=None,
            ok=False,
            seconds=self.clock.now_seconds() - began,
            quality=None,
            attempts=attempt,
            cold=False,
            predicted=None,
            waited_ahead=False,
        )

    async def _worked(self, piece: Piece, place: Place, selected: Selected, *, fails: bool) -> Timings | None:
        """The engine's own durations; None: it did not answer. An answer that is to fail ends half way."""
        house, server = self.house, self.machine.servers[place]
        house.in_flight[place] = house.in_flight.get(place, 0) + 1
        house.engine.work(place, 2.0)
        job = replace(piece.job, output_tokens=max(1, piece.job.output_tokens // 2)) if fails else piece.job
        try:
            assert selected.lease is not None
            done = await server.answer(job, selected.lease.num_ctx)
        finally:
            house.in_flight[place] -= 1
            if not house.in_flight[place]:
                house.engine.work(place, 0.0)
        if done is None:
            return None
        return Timings(
            total_seconds=done.total_seconds,
            load_seconds=done.load_seconds,
            prompt_eval_seconds=done.prompt_eval_seconds,
            eval_seconds=done.eval_seconds,
            prompt_tokens=done.prompt_tokens,
            output_tokens=done.output_tokens,
        )

    def _completed(
        self, piece: Piece, selected: Selected, place: Place, seconds: float, timings: Timings | None, quality: float
    ) -> Completed:
        request = selected.decision.request
        return Completed(
            at_seconds=self.clock.now_seconds(),
            decision_id=request.id,
            model=place.model,
            place=place,
            task=request.task,
            agent="",
            status="ok",
            duration_seconds=timings.total_seconds if timings and timings.total_seconds else seconds,
            prompt_tokens=timings.prompt_tokens if timings else None,
            output_tokens=timings.output_tokens if timings else None,
            quality=10 * min(1.0, max(0.0, quality + piece.report_noise)),
            judged_by="caller",
            timings=timings,
            relayed=True,
        )


def _failed(selected: Selected, place: Place, now_seconds: float, seconds: float) -> Failed:
    return Failed(
        at_seconds=now_seconds,
        decision_id=selected.decision.id,
        place=place,
        task=selected.decision.request.task,
        cause="server_error",
        seconds=seconds,
        fails_place=True,
    )


def _has_others_before(selected: Selected) -> bool:
    chosen = selected.decision.chosen
    return chosen is not None and chosen.prediction is not None and chosen.prediction.wait_seconds > 0


def _with_true_length(selected: Selected, piece: Piece) -> float | None:
    chosen = selected.decision.chosen
    if chosen is None or chosen.prediction is None:
        return None
    predicted: Prediction = chosen.prediction
    decode = (piece.job.output_tokens - 1) / predicted.tokens_per_second
    return predicted.total_seconds - predicted.decode_seconds + decode


def by_policy(stage: Stage, piece: Piece) -> Asked:
    """The words, and nothing else."""
    return Asked(text=piece.text, wait_seconds=PATIENCE_SECONDS)


def always(model: str) -> Choose:
    def choose(stage: Stage, piece: Piece) -> Asked:
        return Asked(text=piece.text, model=model, wait_seconds=PATIENCE_SECONDS)

    return choose


def by_oracle(stage: Stage, piece: Piece) -> Asked:
    """The least true finish among those whose true quality reaches the target (none does: the best), by the same
    ledger. It knows lengths, speeds, noise and who waits where; not what will be asked next."""
    target = stage.setting.quality_target or 0.0
    quality = QUALITY[piece.kind]
    able = [place for place in PLACES if quality[place.model] >= target]
    able = able or [max(PLACES, key=lambda place: quality[place.model])]
    best = min(able, key=lambda place: stage.machine.finish_seconds(place, piece.job, _ready_in_seconds(stage, place)))
    return Asked(text=piece.text, model=best.model, wait_seconds=PATIENCE_SECONDS)


def _ready_in_seconds(stage: Stage, place: Place) -> float:
    """Until it could begin: the rest of its load; else its start and load, after the end of what has to go for it."""
    views = {view.place: view for view in stage.house.controller.view().places}
    view, server = views[place], stage.machine.servers[place]
    if view.state is PlaceState.READY:
        return 0.0
    if server.loading_until_seconds is not None:
        return server.loading_until_seconds - stage.clock.now_seconds()
    load = START_SECONDS + server.model.load_seconds
    free = stage.setting.total_bytes - stage.setting.other_bytes - GIB
    others = [view for other, view in views.items() if other != place and view.budget_bytes]
    short = server.model.resident_bytes * 1.1 + sum(other.budget_bytes for other in others) - free
    if short <= 0 or not others:
        return load
    now, gone = stage.clock.now_seconds(), []
    for other in others:
        left = stage.machine.servers[other.place].queue_seconds()
        stays = max(left, other.dwell_until_seconds - now, 0.0)
        gone.append(stays if other.budget_bytes >= short else math.inf)
    ends = min(gone)
    return load + STOP_SECONDS + (ends if math.isfinite(ends) else sum(one for one in gone if math.isfinite(one)))


def played(pieces: Sequence[Piece], setting: Setting, choose: Choose) -> Run:
    """The whole of it. The desk draws the ids of requests, which exploring hashes: seeded, a run is the same again."""
    clock, before = ManualClock(), random.getstate()
    random.seed(setting.seed)
    try:
        with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
            return runner.run(Stage(clock, setting).play(pieces, choose))
    finally:
        random.setstate(before)


__all__ = ["PLACES", "Answered", "Run", "Server", "Setting", "always", "by_oracle", "by_policy", "played"]
