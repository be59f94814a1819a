"""One modest machine in virtual time: three model servers that share it, with noise that is none of our predictor's.

Every server is the state machine behind the rehearsal (dispatcher.replay.engine); what computes at the same time slows
each other down, the host's speed drifts, and each request is slower or faster than its model's rate by chance of its
own. Chance belongs to the request and to the clock, never to the order of calls: each run meets the same.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dispatcher.clock import ManualClock
from dispatcher.replay.asks import Ask, Event, Fault, Finished, LoadEnded, Noise, Refused
from dispatcher.replay.engine import Engine
from dispatcher.replay.models import PRIOR_MODELS, Limits, RehearsalModel
from dispatcher.vocabulary.fleet import Place

CONTENTION_RATIO = 0.5  # each further model that computes slows every one by so much; as inside of one server
DRIFT_SECONDS = 900.0  # the host's speed stays for so long, then moves on
DRIFT_SIGMA = 0.15
CACHE_SECONDS = 3600.0  # a model's file stays in the page cache for so long after it was loaded
# The proportions are those of the priors; what a model really does here differs from them, each in its own way.
REAL_FACTORS: Mapping[str, tuple[float, float]] = {  # decode, prefill
    "phi3:mini": (0.92, 0.75),
    "llama3.2:3b": (1.08, 1.15),
    "qwen2.5:7b": (0.97, 0.85),
}


def real_models(speed_ratio: float = 1.0) -> dict[str, RehearsalModel]:
    """speed_ratio: 2.0 is a machine twice as fast."""
    return {
        name: replace(
            model,
            decode_tokens_per_second=model.decode_tokens_per_second * REAL_FACTORS[name][0] * speed_ratio,
            prefill_tokens_per_second=model.prefill_tokens_per_second * REAL_FACTORS[name][1] * speed_ratio,
        )
        for name, model in PRIOR_MODELS.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one request truly costs, whoever does it."""

    prompt_tokens: int
    output_tokens: int
    noise: Noise


@dataclass
class Server:
    """One place's model server. FakeEngine empties and loads it as it does a Rehearsed one."""

    model: RehearsalModel
    machine: Machine
    engine: Engine = field(init=False)
    loading_until_seconds: float | None = None
    _waiting: dict[int, asyncio.Future[Event]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.empty()

    def empty(self) -> None:
        """Started anew: nothing is loaded, and who was being answered is not."""
        self.engine = Engine({self.model.name: self.model}, Limits())
        for lost in self._waiting.values():
            lost.cancel()
        self._waiting.clear()

    async def load(self, num_ctx: int) -> Finished | None:
        factor = self.machine.load_factor(self.model.name)
        self.loading_until_seconds = self.machine.clock.now_seconds() + self.model.load_seconds * factor
        try:
            return await self._ask(
                Ask(model=self.model.name, work="load", num_ctx=num_ctx, keep_alive_seconds=-1),
                Noise(load_factor=factor),
            )
        finally:
            self.loading_until_seconds = None

    async def answer(self, job: Job, num_ctx: int) -> Finished | None:
        """None: it was stopped meanwhile, or refused."""
        ask = Ask(
            model=self.model.name,
            prompt_tokens=job.prompt_tokens,
            natural_tokens=job.output_tokens,
            num_ctx=num_ctx,
            keep_alive_seconds=-1,
        )
        return await self._ask(ask, job.noise)

    async def _ask(self, ask: Ask, noise: Noise) -> Finished | None:
        number = self.engine.submit(self.machine.clock.now_seconds(), ask, noise)
        told = self._waiting[number] = asyncio.get_running_loop().create_future()
        self.machine.look()
        event = await told
        return event if isinstance(event, Finished) else None

    def work_seconds(self, job: Job) -> float:
        """Alone on the machine."""
        prefill = job.prompt_tokens / self.model.prefill_tokens_per_second * job.noise.prefill_factor
        decode = (job.output_tokens - 1) / self.model.decode_tokens_per_second * job.noise.decode_factor
        return prefill + decode

    def queue_seconds(self) -> float:
        """Work that is left of all it was given, alone on the machine; as of the last look."""
        left = 0.0
        for runner in self.engine.loaded():
            for running in runner.running.values():
                left += running.first_work + running.step_work * (running.last - 1) - running.done_work
            for request in runner.waiting:
                job = Job(
                    prompt_tokens=request.ask.prompt_tokens,
                    output_tokens=request.ask.natural_tokens,
                    noise=request.noise,
                )
                left += self.work_seconds(job)
        return left

    def computes(self) -> bool:
        return any(runner.running for runner in self.engine.loaded())

    def happen(self, now_seconds: float) -> None:
        for event in self.engine.advance(now_seconds):
            number = getattr(event, "request", None)
            if isinstance(event, Finished | Refused) and number in self._waiting:
                told = self._waiting.pop(number)
                if not told.done():
                    told.set_result(event)
            assert not isinstance(event, LoadEnded) or event.loaded, event


class Machine:
    """All of it. `look` lets happen what is due, shares the machine out anew and sets the next alarm."""

    def __init__(
        self,
        clock: ManualClock,
        places: Mapping[Place, RehearsalModel],
        seed: int,
        *,
        contention_ratio: float = CONTENTION_RATIO,
    ) -> None:
        self.clock = clock
        self._contention_ratio = contention_ratio
        self.servers = {place: Server(model, self) for place, model in places.items()}
        self._seed = seed
        self._began_at_seconds = clock.now_seconds()
        self._drift = [0.0]
        self._drift_chance = random.Random(f"drift {seed}")
        self._loads = 0
        self._loaded_at_seconds: dict[str, float] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._slowdown = 0.0

    def load_factor(self, model: str) -> float:
        """From a cold disk a load takes twice as long, from the page cache half as long."""
        now = self.clock.now_seconds()
        warm = now - self._loaded_at_seconds.get(model, -math.inf) <= CACHE_SECONDS
        self._loaded_at_seconds[model] = now
        self._loads += 1
        chance = random.Random(f"load {self._seed} {self._loads}")
        return (0.5 if warm else 2.0) * chance.lognormvariate(0.0, 0.2)

    def drift_ratio(self) -> float:
        """How much slower everything is at this moment than on an average one."""
        step = int((self.clock.now_seconds() - self._began_at_seconds) // DRIFT_SECONDS)
        while len(self._drift) <= step:  # remembers, and comes back
            moved = self._drift_chance.gauss(0.0, DRIFT_SIGMA * math.sqrt(1 - 0.9**2))
            self._drift.append(0.9 * self._drift[-1] + moved)
        return math.exp(self._drift[step])

    def look(self) -> None:
        now = self.clock.now_seconds()
        for server in self.servers.values():
            server.happen(now)
        computing = sum(server.computes() for server in self.servers.values())
        slowdown = self.drift_ratio() * self.slowed_by(computing)
        for server in self.servers.values():
            server.engine.set_faults(now, (Fault(slowdown_ratio=slowdown),))
        due = [at for server in self.servers.values() if (at := server.engine.next_event_at()) is not None]
        if self._alarm is not None:
            self._alarm.cancel()
        if due:
            next_drift = now + DRIFT_SECONDS - (now - self._began_at_seconds) % DRIFT_SECONDS
            self._alarm = asyncio.get_running_loop().call_at(max(now, min(*due, next_drift)), self.look)

    def slowed_by(self, computing: int) -> float:
        return 1 + self._contention_ratio * max(0, computing - 1)

    def finish_seconds(self, place: Place, job: Job, ready_in_seconds: float) -> float:
        """The true answer to "how long would it take there": what everybody has been given already, shared out as the
        machine will share it, and nothing further asked meanwhile."""
        left = {one: server.queue_seconds() for one, server in self.servers.items()}
        mine = left[place] + self.servers[place].work_seconds(job)
        left[place] = 0.0  # until it is ready nothing is done there
        drift, at, begins_at = self.drift_ratio(), 0.0, max(0.0, ready_in_seconds)
        while True:
            if mine and at >= begins_at:
                left[place], mine = mine, 0.0
            computing = [one for one, seconds in left.items() if seconds > 0]
            if not mine and place not in computing:
                return at
            pace = 1 / (drift * self.slowed_by(len(computing)))
            ends = min((left[one] / pace for one in computing), default=float("inf"))
            step = min(ends, begins_at - at) if mine else ends
            for one in computing:
                spent = step * pace
                left[one] = left[one] - spent if left[one] - spent > 1e-9 else 0.0
            at = begins_at if mine and step == begins_at - at else at + step
