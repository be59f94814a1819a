"""Queues and settings as the tests of waiting need them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dispatcher.clock import Clock
from dispatcher.gateway.queue import NoSlot, Queues, Slot
from dispatcher.vocabulary.fleet import Place
from dispatcher.vocabulary.gateway_settings import CacheSettings, GatewaySettings, QueueSettings
from dispatcher.vocabulary.settings import Settings
from tests.builders import LLAMA

LONG_SECONDS = 100_000.0


def settings_of(*, queue: QueueSettings | None = None, cache: CacheSettings | None = None) -> Settings:
    return Settings(gateway=GatewaySettings(queue=queue or QueueSettings(), cache=cache or CacheSettings()))


def queues_of(
    clock: Clock, *, slots: int = 1, idle_since: Callable[[Place, float], bool] = lambda place, at: False, **rules
) -> Queues:
    settings = settings_of(queue=QueueSettings(**rules))
    return Queues(settings=lambda: settings, clock=clock, slots=lambda place: slots, idle_since=idle_since)


class Asking:
    """One request that wants to enter; what became of it is in its task."""

    def __init__(self, queues: Queues, clock: Clock, priority: str = "normal", place: Place = LLAMA, **asked) -> None:
        asked = {
            "expected_seconds": 1.0,
            "until_seconds": clock.now_seconds() + LONG_SECONDS,
        } | asked
        self.task: asyncio.Task[Slot] = asyncio.create_task(queues.enter(place, priority, **asked))

    @property
    def waits(self) -> bool:
        return not self.task.done()

    @property
    def slot(self) -> Slot:
        return self.task.result()

    @property
    def refusal(self) -> NoSlot:
        refused = self.task.exception()
        assert isinstance(refused, NoSlot), refused
        return refused


async def settle() -> None:
    """Everything that can happen without time passing has happened."""
    for _ in range(5):
        await asyncio.sleep(0)


def is_empty(queues: Queues) -> bool:
    lines = queues.lines()
    return not any(line.running or line.draining or any(line.waiting.values()) for line in lines)
