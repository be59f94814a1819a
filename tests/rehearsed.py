"""Rehearsal models in virtual time: the state machine that stands behind the rehearsal servers, without its sockets."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from dispatcher.clock import ManualClock
from dispatcher.replay.asks import Ask, Finished, Noise, Refused
from dispatcher.replay.engine import Engine
from dispatcher.replay.models import PRIOR_MODELS, Limits


@dataclass
class Rehearsed:
    """One model server. chance: its noise, heavy-tailed like the rehearsal server's, and none of our predictor's."""

    model: str
    clock: ManualClock
    chance: random.Random
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.empty()

    def empty(self) -> None:
        """Started anew: nothing is loaded."""
        self.engine = Engine({self.model: PRIOR_MODELS[self.model]}, Limits())

    async def load(self, num_ctx: int) -> Finished:
        return await self._ask(Ask(model=self.model, work="load", num_ctx=num_ctx, keep_alive_seconds=-1))

    async def answer(self, prompt_tokens: int, output_tokens: int, num_ctx: int) -> Finished:
        return await self._ask(
            Ask(
                model=self.model,
                prompt=f"{self.chance.random()}",
                prompt_tokens=prompt_tokens,
                natural_tokens=output_tokens,
                num_ctx=num_ctx,
            )
        )

    async def _ask(self, ask: Ask) -> Finished:
        factor = self.chance.lognormvariate(0.0, 0.25)
        noise = Noise(load_factor=factor, prefill_factor=factor, decode_factor=factor)
        number = self.engine.submit(self.clock.now_seconds(), ask, noise)
        while True:
            for event in self.engine.advance(self.clock.now_seconds()):
                if isinstance(event, Finished) and event.request == number:
                    return event
                assert not isinstance(event, Refused), event
            due = self.engine.next_event_at()
            assert due is not None, "the simulated server forgot a request"
            await asyncio.sleep(max(0.0, due - self.clock.now_seconds()))
