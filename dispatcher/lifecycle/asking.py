"""Asking model servers themselves for a sign of life, while their engine cannot say whether what runs answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from dispatcher.clock import Clock
from dispatcher.lifecycle.provider import Answering, Provider
from dispatcher.lifecycle.resident import heard_of
from dispatcher.lifecycle.tenancy import Tenancy
from dispatcher.vocabulary.fleet import Place, PlaceState

_log = logging.getLogger(__name__)


async def ask_themselves(
    places: Sequence[Place], provider: Provider, tenancy: Tenancy, clock: Clock, notify: Callable[[], None]
) -> None:
    """What runs is handed out meanwhile: so the ready ones of these are asked. notify: one of them is down, or up."""
    if not isinstance(provider, Answering):
        return
    residents = tenancy.residents

    async def ask(place: Place, endpoint: str) -> None:
        try:
            answers = await provider.answers(place, endpoint)
        except Exception as fault:  # ours: nobody may raise there. The loop outlives it
            _log.exception("place=%s fault=%s consequence=nobody knows whether it answers", place, fault)
            return
        resident = residents.get(place)
        if answers is None or resident is None or resident.state is not PlaceState.READY:
            return
        because = "" if answers else f"no answer from {endpoint}"
        after = heard_of(resident, answers, clock.now_seconds(), because)
        residents[place] = replace(after, seen=replace(after.seen, answers=answers, because=because))
        tenancy.changed(place)
        if after.life.down is not resident.life.down:
            notify()

    async with asyncio.TaskGroup() as group:
        for place in places:
            one = residents.get(place)
            if one is None or one.state is not PlaceState.READY or one.seen.paused or one.seen.endpoint is None:
                continue
            group.create_task(ask(place, one.seen.endpoint), name=f"lifecycle.ask.{place}")
